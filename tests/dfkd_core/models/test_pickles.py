import argparse
import dataclasses
import datetime
import decimal
import enum
import functools
import os
import pathlib
import random
import types
from collections import OrderedDict, defaultdict, deque

import numpy as np
import pytest
import torch
from torch import nn

from dfkd_core.errors import TeacherError
from dfkd_core.models.pickles import read_plain_file, unpickle
from dfkd_core.models.weights import read_state

TENSOR = torch.arange(6.0).view(2, 3)


class Options(dict):
    """A dictionary with attributes, as configuration packages have them."""


class Mode(enum.Enum):
    FAST = 1


class Phase(enum.StrEnum):
    TRAIN = "train"
    TEST = "test"


class Schedule:
    def __init__(self):
        self.rates = [0.1, 0.01]


class Slotted:
    __slots__ = ("rate",)

    def __init__(self):
        self.rate = 0.1


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    rate: float = 0.1


@dataclasses.dataclass(slots=True)
class Holder:
    weights: dict[str, torch.Tensor]


class Names(list):
    """A list with a name of its own."""


class Word(str):
    """A text with a name of its own."""


class Call:
    """Calls a function when it is unpickled."""

    def __init__(self, function, argument):
        self.called = (function, (argument,))

    def __reduce__(self):
        return self.called


def touch(path):
    path.touch()


def beside():
    options = Options(rate=0.1)
    vars(options)["name"] = "run"
    return {
        "args": argparse.Namespace(lr=0.1, out=pathlib.PurePosixPath("runs/1"), data=pathlib.Path("here")),
        "best": np.float64(0.91),
        "flag": np.bool_(True),
        "epochs": np.int64(3),
        "options": options,
        "mode": Mode.FAST,
        "schedule": Schedule(),
        "slots": Slotted(),
        "counts": defaultdict(list, {"a": [1]}),
        "recent": deque([1.0, 2.0], maxlen=5),
        "time": datetime.datetime(2026, 1, 1),
        "space": types.SimpleNamespace(depth=3),
        "norm": functools.partial,
        "device": torch.device("cpu"),
        "names": np.array(["cat", "dog"]),
        "objects": np.array([{"a": 1}, None], dtype=object),
        "settings": [Settings(), Settings(0.2)],
        "partial": functools.partial(touch, path=2),
        "range": range(3),
        "random": random.Random(1).getstate(),
        "list": Names(["cat"]),
        "lists": [Names([1]), Options(a=Names([2]))],
        "keys": {
            **{key: 1 for key in (*Phase, pathlib.PurePosixPath("a"), Settings(), Word("b"), range(2))},
            (Mode.FAST, 1): 2,
            decimal.Decimal("0.1"): 3,
            datetime.date(2026, 1, 1): {Mode.FAST: [Settings()]},
        },
        "set": {Mode.FAST, Word("c")},
        "default": defaultdict(functools.partial(dict), {Mode.FAST: 1}),
    }


@pytest.mark.parametrize("is_old", [False, True])
@pytest.mark.parametrize("name", sorted(beside()))
def test_objects_next_to_the_tensors_do_not_prevent_reading_them(tmp_path, name, is_old):
    path = tmp_path / "w.pt"
    torch.save(
        {"before": TENSOR, name: beside()[name], "after": TENSOR}, path, _use_new_zipfile_serialization=not is_old
    )
    content = read_plain_file(path).value
    assert torch.equal(content["before"], TENSOR)
    assert torch.equal(content["after"], TENSOR)


def test_numbers_of_numpy_are_read_and_classes_are_named(tmp_path):
    torch.save(beside(), tmp_path / "w.pt")
    read = read_plain_file(tmp_path / "w.pt")
    assert (read.value["best"], read.value["flag"], read.value["epochs"]) == (0.91, True, 3)
    assert {"argparse.Namespace", "pathlib.PurePosixPath"} <= set(read.replaced)
    assert not any("numpy" in name for name in read.replaced)


@pytest.mark.parametrize("code", ["f2", "f4", "f8", ">f4", "i8", "u1", "?"])
def test_arrays_become_tensors(tmp_path, code):
    array = np.arange(24).reshape(2, 3, 4).astype(code)
    torch.save(OrderedDict(a=array, b=np.asfortranarray(array[:, :, 0]), c=[array]), tmp_path / "w.pt")
    content = read_plain_file(tmp_path / "w.pt").value
    native = array.astype(array.dtype.newbyteorder("="))
    assert torch.equal(content["a"], torch.from_numpy(native))
    assert torch.equal(content["b"], torch.from_numpy(native[:, :, 0].copy()))
    assert torch.equal(content["c"][0], content["a"])


def test_no_class_of_the_file_is_imported_or_called(tmp_path):
    marker = tmp_path / "executed"
    torch.save({"weights": TENSOR, "other": Call(touch, marker)}, tmp_path / "w.pt")
    assert torch.equal(read_plain_file(tmp_path / "w.pt").value["weights"], TENSOR)
    assert not marker.exists()
    unpickle(tmp_path / "w.pt")
    assert marker.exists()


def test_lists_of_other_classes_keep_their_items(tmp_path):
    torch.save({"names": Names(["cat", TENSOR])}, tmp_path / "w.pt")
    assert read_plain_file(tmp_path / "w.pt").value["names"][0] == "cat"


@pytest.mark.parametrize("is_old", [False, True])
def test_weights_in_an_object_with_slots_are_found(tmp_path, is_old):
    content = {"model": Holder({"fc.weight": TENSOR})}
    torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=not is_old)
    assert torch.equal(read_state(tmp_path / "w.pt").state["fc.weight"], TENSOR)


def test_keys_of_other_classes_stay_apart(tmp_path):
    torch.save({"scores": {Phase.TRAIN: 1.0, Phase.TEST: 2.0}, "mode": Phase.TEST}, tmp_path / "w.pt")
    content = read_plain_file(tmp_path / "w.pt").value
    assert sorted(content["scores"].values()) == [1.0, 2.0]
    assert "Phase" in str(content["scores"])


def test_classes_are_allowed_for_one_file_only(tmp_path):
    torch.save(beside(), tmp_path / "w.pt")
    before = set(torch.serialization.get_safe_globals())
    read_plain_file(tmp_path / "w.pt")
    assert set(torch.serialization.get_safe_globals()) == before


def test_a_system_call_is_refused(tmp_path):
    torch.save({"weights": TENSOR, "other": Call(os.system, "true")}, tmp_path / "w.pt")
    with pytest.raises(TeacherError, match=r"holds more than tensors \((posix|nt)\.system\).*--trust-pickle"):
        read_plain_file(tmp_path / "w.pt")


def test_another_protocol_says_how_to_read_it(tmp_path):
    torch.save({"weights": TENSOR}, tmp_path / "w.pt", pickle_protocol=4)
    with pytest.raises(TeacherError, match=r"another pickle_protocol.*--trust-pickle"):
        read_plain_file(tmp_path / "w.pt")
    assert torch.equal(unpickle(tmp_path / "w.pt")["weights"], TENSOR)


def test_a_content_that_contains_itself_ends(tmp_path):
    content: list[object] = [TENSOR]
    content.append(content)
    torch.save({"loop": content}, tmp_path / "w.pt")
    assert torch.equal(read_plain_file(tmp_path / "w.pt").value["loop"][0], TENSOR)


@pytest.mark.parametrize("read", [read_plain_file, unpickle])
def test_files_that_cannot_be_read_are_one_sentence(tmp_path, read):
    with pytest.raises(TeacherError, match="No weights file"):
        read(tmp_path / "missing.pt")
    for name, content in (("empty.pt", b""), ("text.pt", b"hello"), ("zip.pt", b"PK\x03\x04 broken")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(TeacherError, match=name):
            read(tmp_path / name)
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "cut.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "cut.pt").read_bytes()[:-300])
    with pytest.raises(TeacherError, match=r"cut\.pt"):
        read(tmp_path / "cut.pt")
