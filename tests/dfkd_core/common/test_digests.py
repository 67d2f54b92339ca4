import hashlib
import json
import os
import stat

import pytest
import torch
from safetensors.torch import save_file

from dfkd_core.common.digests import (
    canonical_json,
    file_sha256,
    json_digest,
    tensors_digest,
    write_atomically,
    write_json,
)


def test_file_digest_is_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert file_sha256(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()


def test_json_digest_ignores_the_order_of_keys():
    assert canonical_json({"b": 1, "a": (1, 2)}) == '{"a":[1,2],"b":1}'
    assert json_digest({"b": 1, "a": 2}) == json_digest({"a": 2, "b": 1})
    assert json_digest({"a": 1}) != json_digest({"a": 2})


def test_json_refuses_nan():
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"loss": float("nan")})


def test_tensor_digest_sees_name_type_shape_and_values_but_not_layout():
    x = torch.arange(24.0).view(2, 3, 2, 2)
    digest = tensors_digest({"x": x})
    assert digest == tensors_digest({"x": x.to(memory_format=torch.channels_last)})
    others = [{"y": x}, {"x": x.double()}, {"x": x.view(3, 2, 2, 2)}, {"x": x + 1}, {"x": x, "y": x}]
    assert digest not in {tensors_digest(other) for other in others}
    assert len({tensors_digest(other) for other in others}) == len(others)


def test_tensor_digest_takes_scalars_and_empty_tensors():
    assert tensors_digest({"x": torch.tensor(1)}) != tensors_digest({"x": torch.empty(0)})


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")

    def fail_half_way():
        with write_atomically(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_write_json_makes_folders_and_reads_back(tmp_path):
    write_json(tmp_path / "b" / "c.json", {"a": (1.5, "x")})
    assert json.loads((tmp_path / "b" / "c.json").read_text()) == {"a": [1.5, "x"]}


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002, 0o027])
def test_a_written_file_has_the_rights_of_the_umask_whatever_writes_it(tmp_path, umask):
    before = os.umask(umask)
    try:
        with write_atomically(tmp_path / "a") as temporary:
            temporary.write_text("x")
        with write_atomically(tmp_path / "b") as temporary:
            save_file({"x": torch.zeros(2)}, temporary)
        with write_atomically(tmp_path / "c") as temporary:
            temporary.unlink()
            temporary.touch(0o600)
        write_json(tmp_path / "d", {})
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o666 & ~umask}
