import argparse
import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dfkd_core.errors import TeacherError
from dfkd_core.models.pickles import read_plain_file
from dfkd_core.models.renaming import fit_weights
from dfkd_core.models.weights import read_state, state_faults, weight_files


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 3))


def loads(path, **kwargs):
    """Load the file into a fresh network and return whether it is the one that was saved."""
    fresh = network()
    for parameter in fresh.parameters():
        nn.init.zeros_(parameter)
    state = fit_weights(fresh, read_state(path, **kwargs).state).state
    assert state_faults(fresh, state) == []
    fresh.load_state_dict(state)
    return all(torch.equal(a, b) for a, b in zip(fresh.parameters(), network().parameters()))


STATE = network().state_dict()


def prefixed(prefix, state=STATE):
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"state_dict": STATE, "epoch": 3},
        {"model": prefixed("module."), "optimizer": {"state": {}, "param_groups": []}},
        {"model_state": STATE, "args": {"lr": 0.1}},
        {"state_dict": {**prefixed("model."), "criterion.weight": torch.ones(3)}},
        {"net": prefixed("_orig_mod.module.")},
        {"state_dict_ema": prefixed("module."), "epoch": 1},
        {**prefixed("module."), "n_averaged": torch.tensor(5)},
        {name: t for name, t in STATE.items() if "num_batches" not in name},
        {"state_dict": STATE, "hyper_parameters": argparse.Namespace(lr=0.1), "rng_state": torch.zeros(4)},
        {"checkpoint": {"trainer": {"model": STATE}}, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}},
        {"epoch": torch.tensor(3), "model": STATE},
        {"optimal_weights": STATE, "epoch": 3},
        {"optimizer": {"ema": prefixed("x.")}, "mine": STATE},
        {"model": prefixed("module."), "model_ema": {"module": STATE}},
        {"params_ema": STATE, "metrics": {"accuracy": torch.tensor(0.5)}},
        {"model": network()},
        network(),
        [tensor for name, tensor in STATE.items() if "num_batches" not in name],
        [tensor.numpy() for tensor in STATE.values()],
        OrderedDict((name, tensor.numpy()) for name, tensor in STATE.items()),
        {"state_dict": {name: tensor.to_sparse() for name, tensor in STATE.items() if tensor.dim()}},
    ],
)
def test_every_usual_wrapping_is_understood(tmp_path, content):
    torch.save(content, tmp_path / "weights.pt")
    assert loads(tmp_path / "weights.pt")


def test_safetensors_and_the_old_format_of_torch_save(tmp_path):
    save_file(prefixed("module."), tmp_path / "weights.safetensors")
    assert loads(tmp_path / "weights.safetensors")
    torch.save(STATE, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert loads(tmp_path / "old.pth")


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_type_becomes_float32(tmp_path, precision):
    torch.save({n: t.to(precision) if t.is_floating_point() else t for n, t in STATE.items()}, tmp_path / "w.pt")
    state = read_state(tmp_path / "w.pt").state
    assert {t.dtype for t in state.values()} == {torch.float32, torch.int64}


def test_an_averaged_copy_is_reported_and_can_be_chosen(tmp_path):
    average = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in STATE.items()}
    torch.save({"state_dict": STATE, "state_dict_ema": average}, tmp_path / "w.pt")
    plain = read_state(tmp_path / "w.pt")
    assert (plain.key, plain.others) == ("state_dict", ("state_dict_ema",))
    assert torch.equal(plain.state["0.bias"], STATE["0.bias"])
    assert torch.equal(read_state(tmp_path / "w.pt", key="state_dict_ema").state["0.bias"], STATE["0.bias"] + 1)
    with pytest.raises(TeacherError, match=r"no state dict under 'nope'\. It has: state_dict, state_dict_ema"):
        read_state(tmp_path / "w.pt", key="nope")


def test_a_state_of_another_network_lists_what_differs():
    other = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3), nn.Linear(3, 3))
    faults = "; ".join(state_faults(network(), fit_weights(network(), other.state_dict()).state))
    assert "unexpected: 4.bias, 4.weight" in faults
    assert "0.weight (4, 1, 3, 3) for (2, 1, 3, 3)" in faults
    missing = {name: tensor for name, tensor in STATE.items() if name != "3.bias"}
    assert state_faults(network(), missing) == ["missing: 3.bias"]
    bad = {**STATE, "3.bias": torch.full((3,), float("nan"))}
    assert state_faults(network(), bad) == ["NaN or Inf in: 3.bias"]


class Payload:
    """Runs when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("is_old", [False, True])
def test_nothing_in_a_pickle_is_run(tmp_path, is_old):
    payload = Payload(tmp_path / "executed")
    torch.save({"state_dict": payload}, tmp_path / "w.pt", _use_new_zipfile_serialization=not is_old)
    with pytest.raises(TeacherError, match=r"holds more than tensors.*--trust-pickle"):
        read_state(tmp_path / "w.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(payload))
    with pytest.raises(TeacherError):
        read_state(tmp_path / "plain.pt")
    assert not payload.target.exists()
    with (tmp_path / "plain.pt").open("rb") as stream:
        pickle.load(stream)  # noqa: S301  # that the payload would have worked
    assert payload.target.exists()


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_a_file_that_is_cut_short_is_one_clear_error(tmp_path, name):
    path = tmp_path / name
    save_file(STATE, path) if name.endswith("safetensors") else torch.save(STATE, path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(TeacherError, match=f"{name} is not a complete"):
        read_state(path)
    with pytest.raises(TeacherError, match="No weights file"):
        read_state(tmp_path / f"missing-{name}")


def test_what_is_no_state_dict_says_how_to_save_one(tmp_path):
    torch.save([1, 2], tmp_path / "w.pt")
    with pytest.raises(TeacherError, match=r"holds a list.*torch\.save\(model\.state_dict\(\), PATH\)"):
        read_state(tmp_path / "w.pt")
    torch.save({"epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(TeacherError, match="no state dict; its keys: epoch"):
        read_state(tmp_path / "w.pt")


def test_the_rest_of_a_file_is_named(tmp_path):
    torch.save({"state_dict": STATE, "args": argparse.Namespace(lr=0.1)}, tmp_path / "w.pt")
    assert read_state(tmp_path / "w.pt").unread == ("argparse.Namespace",)


class Average:
    """Keeps an averaged copy, as a training script does."""

    def __init__(self):
        self.decay, self.module = 0.99, network()


class Rebuilt(nn.Sequential):
    """Pickles as a call, so that its weights are in no file."""

    def __init__(self):
        super().__init__(*network())

    def __reduce__(self):
        return (Rebuilt, ())


def test_weights_inside_an_object_are_read_without_its_code(tmp_path):
    torch.save({"average": Average(), "epoch": 3}, tmp_path / "w.pt")
    found = read_state(tmp_path / "w.pt")
    assert found.key == "average.module"
    assert torch.equal(found.state["3.bias"], STATE["3.bias"])


def test_weights_that_only_code_makes_need_trust(tmp_path):
    torch.save({"net": Rebuilt()}, tmp_path / "w.pt")
    with pytest.raises(TeacherError, match=r"holds more than tensors \(.*Rebuilt\).*--trust-pickle"):
        read_state(tmp_path / "w.pt")
    assert torch.equal(read_state(tmp_path / "w.pt", trust_pickle=True).state["3.bias"], STATE["3.bias"])


def test_several_state_dicts_may_have_numbers(tmp_path):
    torch.save({0: STATE, 1: STATE}, tmp_path / "w.pt")
    assert read_state(tmp_path / "w.pt").key == "0"
    assert read_state(tmp_path / "w.pt", key="1").others == ("0",)


def test_weights_in_several_files_are_read_by_their_index(tmp_path):
    names = list(STATE)
    parts = {"a.safetensors": names[:4], "b.safetensors": names[4:]}
    for file, held in parts.items():
        save_file({name: STATE[name] for name in held}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: file for file, held in parts.items() for name in held}}))
    assert loads(index)
    assert loads(tmp_path)
    assert [path.name for path in weight_files(index)] == [index.name, *parts]
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(TeacherError, match=r"No weights file .*b\.safetensors"):
        read_state(index)


def cache_of(tmp_path, *, below=""):
    """Make a snapshot as in a cache of Hugging Face, and return its folder and the folder of the files."""
    snapshot, blobs = tmp_path / "models--me--net" / "snapshots" / "abc" / below, tmp_path / "models--me--net" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    save_file(STATE, blobs / "1234")
    (blobs / "5678").write_text(json.dumps({"weight_map": dict.fromkeys(STATE, "part.safetensors")}))
    for name, blob in (("part.safetensors", "1234"), ("model.safetensors.index.json", "5678")):
        (snapshot / name).symlink_to(os.path.relpath(blobs / blob, snapshot))
    return snapshot, blobs


@pytest.mark.parametrize("below", ["", "unet"])
def test_links_within_a_cache_of_hugging_face_are_followed(tmp_path, below):
    snapshot, _ = cache_of(tmp_path, below=below)
    assert loads(snapshot)
    (tmp_path / "link").symlink_to(snapshot)
    assert loads(tmp_path / "link")


def test_links_that_leave_the_folder_or_the_cache_are_refused(tmp_path):
    snapshot, blobs = cache_of(tmp_path)
    save_file(STATE, tmp_path / "outside")
    part = snapshot / "part.safetensors"
    part.unlink()
    part.symlink_to(tmp_path / "outside")
    with pytest.raises(TeacherError, match=r"part\.safetensors is a link to .*outside, outside of .*models--me--net\."):
        weight_files(snapshot)
    blobs.rename(tmp_path / "elsewhere")
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "model.safetensors.index.json").write_text((tmp_path / "elsewhere" / "5678").read_text())
    (plain / "part.safetensors").symlink_to(tmp_path / "elsewhere" / "1234")
    with pytest.raises(TeacherError, match=r"is a link to .*1234, outside of .*plain\. Copy the file itself"):
        read_state(plain)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"weight_map": {"a": "../secret.safetensors"}}', "must be in the same folder"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "must be in the same folder"),
        ('{"weight_map": {"a": ".."}}', "must be in the same folder"),
        ('{"weight_map": ["a"]}', "is no index"),
        ("[]", "is no index"),
        ("{", "is no index"),
    ],
)
def test_an_index_that_is_damaged_or_leaves_its_folder_is_refused(tmp_path, content, message):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(TeacherError, match=message):
        read_state(tmp_path)


def test_a_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "w.pt")
    with pytest.raises(TeacherError, match=r"w\.pt is not a regular file"):
        read_state(tmp_path / "w.pt")


def test_a_folder_has_its_weights_under_their_usual_name(tmp_path):
    with pytest.raises(TeacherError, match=r"has none of .*model\.safetensors"):
        read_state(tmp_path)
    torch.save(STATE, tmp_path / "pytorch_model.bin")
    assert loads(tmp_path)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_tensors_that_cannot_be_loaded_are_named(tmp_path):
    quantised = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8)
    torch.save({"fc.weight": quantised}, tmp_path / "w.pt")
    with pytest.raises(TeacherError, match=r"holds quantised tensors \(fc\.weight\)"):
        read_state(tmp_path / "w.pt")
    torch.save({"fc.weight": torch.empty(3, device="meta")}, tmp_path / "w.pt")
    with pytest.raises(TeacherError, match=r"holds tensors without data \(fc\.weight\)"):
        read_state(tmp_path / "w.pt")


def test_a_file_of_another_framework_says_so(tmp_path):
    (tmp_path / "model.h5").write_bytes(b"HDF")
    with pytest.raises(TeacherError, match="is not a file of PyTorch weights"):
        read_state(tmp_path / "model.h5")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<html><body>Not Found</body></html>", "is no file of torch.save: it begins with b'<html>"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
            "is no file of torch.save: it begins with b'version",
        ),
        (b'{"error": "not found"}', "is no file of torch.save: it begins with b'{"),
        (b"", "is not a complete file of torch.save: it ends too early"),
    ],
)
def test_what_a_failed_download_leaves__is_named_and_no_trust_is_asked_for(tmp_path, content, reason):
    path = tmp_path / "weights.bin"
    path.write_bytes(content)
    with pytest.raises(TeacherError) as caught:
        read_plain_file(path)
    assert f"{path} {reason}" in str(caught.value)
    assert "trust" not in str(caught.value)
