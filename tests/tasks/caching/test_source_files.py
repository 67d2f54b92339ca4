import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dfkd_core.models.classifier import ModelCard, build_classifier
from dfkd_core.models.storage import save_model
from dfkd_core.teachers.loading import source_digest
from dfkd_core.teachers.source import SourceConfig
from dfkd_tasks.caching.source_files import teacher_digest

ROOT = Path(__file__).resolve().parents[3]


# Older than the seconds within which time stamps prove nothing.
OLD = ROOT / "LICENSE"

_opened: list[list[str]] = []


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _opened:
        _opened[-1].append(str(arguments[0]))


# A hook stays for good, so that there is one for all tests.
sys.addaudithook(_note)


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """The paths of the files that are opened during the test."""
    _opened.append([])
    yield _opened[-1]
    _opened.pop()


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    sys.modules.pop("digested_net", None)


def change_in_disguise(path: Path) -> None:
    """Change one byte; size and modification time stay."""
    before, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def make_folder() -> Path:
    card = ModelCard(
        network="lenet5_half", in_channels=1, image_size=32, num_classes=10, mean=(0.3,), std=(0.4,), layer="fc1"
    )
    save_model(Path("mine"), build_classifier(card, seed=0))
    return Path("mine/model.safetensors")


def make_weights() -> Path:
    Path("ckpt.pt").write_bytes(b"weights")
    return Path("ckpt.pt")


def make_module() -> Path:
    Path("digested_net.py").write_text("def make(): ...\n#")
    return Path("digested_net.py")


@pytest.mark.parametrize(
    ("make", "source"),
    [
        (make_folder, SourceConfig(model="mine")),
        (make_weights, SourceConfig(model="lenet5", weights="ckpt.pt")),
        (make_module, SourceConfig(model="digested_net:make")),
    ],
)
def test_every_kind_of_source__a_changed_byte_changes_the_digest(make: Any, source: SourceConfig) -> None:
    changing = make()
    first = teacher_digest(source)
    assert first == source_digest(source) == teacher_digest(source)
    change_in_disguise(changing)
    assert teacher_digest(source) == source_digest(source) != first


def test_file_that_is_the_same__is_hashed_once(opened: list[str]) -> None:
    source = SourceConfig(model="lenet5", weights=str(OLD))
    first = teacher_digest(source)
    assert teacher_digest(source) == first == source_digest(SourceConfig(model="lenet5", weights=str(OLD)))
    # The last one is that of source_digest itself.
    assert opened.count(str(OLD)) == 2


def test_file_that_was_just_written__is_not_trusted_yet(opened: list[str]) -> None:
    source = SourceConfig(model="lenet5", weights=str(make_weights()))
    before = opened.count("ckpt.pt")
    teacher_digest(source)
    teacher_digest(source)
    assert opened.count("ckpt.pt") == before + 2


def test_source_without_files__has_the_digest_of_nothing() -> None:
    assert teacher_digest(SourceConfig(model="torchvision:resnet18")) == source_digest(SourceConfig(model="lenet5"))
