"""Files of tensors are read whole and in the form that is asked for, or refused with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dfkd_core.common.digests import file_sha256
from dfkd_core.common.tensor_files import read_tensors, write_tensors

FORMS = {"images": "uint8 m c", "index": "int64 m 2", "distance": "float32 m"}
TENSORS = {
    "images": torch.zeros(3, 1, dtype=torch.uint8),
    "index": torch.zeros(3, 2, dtype=torch.int64),
    "distance": torch.zeros(3),
}


def test_tensors__come_back_from_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_tensors(tmp_path / name, TENSORS)
    assert file_sha256(tmp_path / "a") == file_sha256(tmp_path / "b")
    found = read_tensors(tmp_path / "a", FORMS)
    assert all(torch.equal(found[name], TENSORS[name]) for name in FORMS)


def test_write_tensors__takes_views_of_one_memory(tmp_path: Path) -> None:
    rows = torch.arange(12.0).view(6, 2)
    write_tensors(tmp_path / "a", {"left": rows[:, 0], "right": rows[:, 1]})
    assert read_tensors(tmp_path / "a", {"left": "float32 n", "right": "float32 n"})["right"].tolist() == [
        1,
        3,
        5,
        7,
        9,
        11,
    ]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"images": TENSORS["images"].long()}, r"images of int64 \[3, 1\] in place of uint8 \[m, c\]"),
        ({"images": TENSORS["images"][0]}, r"images of uint8 \[1\]"),
        ({"index": TENSORS["index"][:2]}, r"index of int64 \[2, 2\] in place of int64 \[m, 2\]"),
        ({"index": torch.zeros(3, 3, dtype=torch.int64)}, r"index of int64 \[3, 3\]"),
        ({"distance": torch.tensor([0.0, torch.nan, 1.0])}, "distance with NaN or Inf"),
        ({"more": torch.zeros(1)}, "has the tensors distance, images, index, more, not distance, images, index"),
    ],
)
def test_read_tensors__refuses_others(tmp_path: Path, changes: dict[str, Tensor], fault: str) -> None:
    write_tensors(tmp_path / "a", {**TENSORS, **changes})
    with pytest.raises(ValueError, match=fault):
        read_tensors(tmp_path / "a", FORMS)


@pytest.mark.parametrize("content", [b"", b"1234567890"])
def test_read_tensors__refuses_half_a_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read"):
        read_tensors(tmp_path / "a", FORMS)
    with pytest.raises(FileNotFoundError):
        read_tensors(tmp_path / "b", FORMS)
