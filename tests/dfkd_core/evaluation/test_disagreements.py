"""The images on which the models differ most are those of which both are sure."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dfkd_core.common.rows import ShardedRows
from dfkd_core.errors import DataError
from dfkd_core.evaluation.disagreements import find_disagreements, read_disagreements, worst_places, write_disagreements
from dfkd_core.evaluation.predictions import Predictions


def predictions(student: list[int], teacher: list[int], *confidences: list[float]) -> Predictions:
    sure = [tuple(values) for values in confidences]
    return Predictions(
        student=tuple(student),
        teacher=tuple(teacher),
        labels=None,
        images_sha256="0" * 64,
        student_confidence=sure[0],
        teacher_confidence=sure[1],
    )


IMAGES = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 1, 8, 8).contiguous()


def test_worst__are_by_the_product_of_confidences_then_by_position() -> None:
    made = predictions([0, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 0.5, 0.9, 0.5, 1], [1, 0.5, 0.9, 0.5, 0.6])
    found = find_disagreements(made, ShardedRows(IMAGES.split(2)))
    assert found.index.tolist() == [2, 4, 1, 3]
    assert found.images[:, 0, 0, 0].tolist() == [2, 4, 1, 3]


def test_worst_places__keep_the_order_of_the_images_without_confidences() -> None:
    made = Predictions(student=(0, 1, 2), teacher=(1, 1, 0), labels=None, images_sha256="0" * 64)
    assert worst_places(made).tolist() == [0, 2]


def test_worst__are_at_most_24_small_images() -> None:
    images = torch.zeros(60, 3, 100, 100, dtype=torch.uint8)
    made = predictions([1] * 60, [0] * 60, [1.0] * 60, [1.0] * 60)
    found = find_disagreements(made, images)
    assert found.index.tolist() == list(range(24))
    assert found.images.shape == (24, 3, 64, 64)


@pytest.mark.parametrize("student", [[0] * 5, [0, 0, 1, 0, 0]])
def test_disagreements__come_back_from_their_file_also_if_there_are_none(tmp_path: Path, student: list[int]) -> None:
    found = find_disagreements(predictions(student, [0] * 5, [0.9] * 5, [0.9] * 5), IMAGES)
    write_disagreements(tmp_path / "a", found)
    again = read_disagreements(tmp_path / "a")
    assert torch.equal(again.images, found.images)
    assert torch.equal(again.index, found.index)
    assert again.images.shape == (sum(student), 1, 8, 8)


def test_read_disagreements__names_the_next_command(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is missing.*dfkd run"):
        read_disagreements(tmp_path / "a")
    (tmp_path / "a").write_bytes(b"1234567890")
    with pytest.raises(DataError, match=r"cannot be read .*dfkd run"):
        read_disagreements(tmp_path / "a")
