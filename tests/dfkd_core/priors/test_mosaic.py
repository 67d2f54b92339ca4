import math

import pytest
from torch import Tensor
from torch.nn import functional

from dfkd_core.common.seeding import uniform_rows
from dfkd_core.priors.draws import Cursor
from dfkd_core.priors.mosaic import MOST_CELLS, MosaicPrior, paint_cells, pixel_centres

SIZE = 48


@pytest.fixture(scope="module")
def images() -> Tensor:
    return MosaicPrior((1, SIZE, SIZE)).start(range(400), seed=0)


def has_plain_ground(images: Tensor) -> Tensor:
    """Return which images have one colour in all their corners, bool [n]."""
    corners = functional.unfold(images, 3, stride=SIZE - 3).flatten(1)
    return corners.amax(1) - corners.amin(1) < 1e-6


def test_every_pixel_off_the_borders_has_the_colour_of_its_nearest_centre() -> None:
    x, y = (part.expand(8, 24, 24) for part in pixel_centres(24, 24))
    rows = uniform_rows(0, "test", range(8), (4 + MOST_CELLS * 4,))
    rows[:, 3] = 0.99  # no joints
    images = paint_cells(x, y, 12, 1, Cursor(rows))
    for image, row, column_x, row_y in zip(images, rows, x, y):
        count = 3 + int(row[0] ** 2 * (MOST_CELLS - 2))
        centres = (2 * row[4 : 4 + 2 * MOST_CELLS].view(2, -1) - 1) * (0.7 + 0.6 * row[1])
        grey = row[4 + 2 * MOST_CELLS : 4 + 3 * MOST_CELLS]
        for i in range(0, 24, 5):
            for j in range(0, 24, 5):
                point = (column_x[i, j].item(), row_y[i, j].item())
                far = [math.dist(point, centres[:, k].tolist()) for k in range(count)]
                nearest, second = sorted(range(count), key=far.__getitem__)[:2]
                if far[second] - far[nearest] > 2 / 12:
                    assert abs(image[0, i, j] - grey[nearest]) < 1e-4


def test_two_thirds_are_lumps_about_the_centre_of_a_plain_ground(images: Tensor) -> None:
    is_lump = has_plain_ground(images)
    assert is_lump.float().mean() == pytest.approx(0.67, abs=0.05)
    lumps = images[is_lump]
    ground = lumps[:, 0, 0, 0]
    assert (ground == 0).float().mean() == pytest.approx(0.25, abs=0.06)
    assert (ground == 1).float().mean() == pytest.approx(0.25, abs=0.06)
    cover = ((lumps - ground[:, None, None, None]).abs() > 0.02)[:, 0].float()
    share, third = cover.mean((1, 2)), SIZE // 3
    assert (share > 0.005).all()
    assert (share < 0.9).all()
    assert cover[:, third:-third, third:-third].mean() > 3 * cover[:, : third // 2].mean()


def test_images_are_smooth_but_for_their_borders(images: Tensor) -> None:
    steps = images.diff(dim=3)
    assert steps.square().mean() < 0.1 * images.var()
    assert (steps.abs().flatten(1).median(1).values < 0.02).float().mean() > 0.9


def test_images_reach_more_than_one_colour(images: Tensor) -> None:
    pixels = images.flatten(1)
    assert (pixels.amax(1) - pixels.amin(1) > 0.1).float().mean() > 0.97


def test_images_vary_and_few_are_blank() -> None:
    images = MosaicPrior((1, 32, 32)).start(range(400), seed=0)
    assert (images.flatten(1).std(1) < 0.02).float().mean() < 0.03
    means = images.mean((1, 2, 3))
    assert means.min() < 0.1
    assert means.max() > 0.9
