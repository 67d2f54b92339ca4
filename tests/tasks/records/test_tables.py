from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfkd_tasks.records.tables import write_confusion_picture, write_image_grid


@pytest.mark.parametrize(("size", "expected"), [(8, (2 * 28, 2 * 19)), (100, (304, 203))])
def test_image_grid__zooms_small_images_alone(tmp_path: Path, size: int, expected: tuple[int, int]) -> None:
    images = np.zeros((5, 1, size, size), np.uint8)
    write_image_grid(tmp_path / "grid.png", images, columns=3)
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.size == expected


def test_confusion_picture__of_very_many_classes_stays_a_picture(tmp_path: Path) -> None:
    names = [f"class {k}" for k in range(1000)]
    write_confusion_picture(tmp_path / "confusion.png", np.eye(1000, dtype=int).tolist(), names)
    with Image.open(tmp_path / "confusion.png") as picture:
        width, height = picture.size
    assert max(width, height) < 2000
