import math

import torch

from dfkd_core.common.seeding import uniform_rows
from dfkd_core.priors.draws import Cursor
from dfkd_core.priors.mosaic import _NUM_CELLS, MosaicPrior, _bands, _cells, _field, _lump, _num_draws, _pixel_centres

SIZE = (24, 24)


def draws(n=60):
    return Cursor(uniform_rows(0, "test", range(n), (_num_draws(1),)))


def test_every_pixel_off_the_borders_has_the_colour_of_its_nearest_centre():
    x, y = (part.expand(8, *SIZE) for part in _pixel_centres(*SIZE))
    rows = uniform_rows(0, "test", range(8), (4 + _NUM_CELLS * 4,))
    rows[:, 3] = 0.99  # no joints
    images = _cells(x, y, SIZE[0] / 2, 1, Cursor(rows))
    for image, row, column_x, row_y in zip(images, rows, x, y):
        count = 3 + int(row[0] ** 2 * (_NUM_CELLS - 2))
        centres = (2 * row[4 : 4 + 2 * _NUM_CELLS].view(2, -1) - 1) * (0.7 + 0.6 * row[1])
        grey = row[4 + 2 * _NUM_CELLS : 4 + 3 * _NUM_CELLS]
        for i in range(0, 24, 5):
            for j in range(0, 24, 5):
                far = [math.dist((column_x[i, j], row_y[i, j]), centres[:, k].tolist()) for k in range(count)]
                nearest, second = sorted(range(count), key=far.__getitem__)[:2]
                if far[second] - far[nearest] > 2 / 12:
                    assert abs(image[0, i, j] - grey[nearest]) < 1e-4


def test_lumps_lie_about_the_centre_and_cover_part_of_the_image():
    x, y = (part.expand(60, *SIZE) for part in _pixel_centres(*SIZE))
    cover = _lump(x, y, torch.zeros(60, *SIZE), SIZE[0] / 2, draws())[:, 0]
    share = cover.mean((1, 2))
    assert (share > 0.02).all()
    assert (share < 0.9).all()
    assert cover[:, 8:16, 8:16].mean() > 3 * cover[:, :4].mean()


def test_bands_reach_both_their_colours():
    x, y = (part.expand(60, *SIZE) for part in _pixel_centres(*SIZE))
    bands, shade = _bands(x, y, torch.zeros(60, *SIZE), SIZE[0] / 2, 1, draws())
    spread = bands.amax((1, 2, 3)) - bands.amin((1, 2, 3))
    assert (spread > 0.1).float().mean() > 0.9
    assert shade.abs().max() <= 0.25


def test_fields_are_smooth_and_of_mean_square_one():
    x, y = _pixel_centres(*SIZE)
    fields = _field(x, y, Cursor(uniform_rows(0, "test", range(2000), (1 + 15,))))
    assert abs(fields.square().mean() - 1) < 0.05
    assert fields.diff(dim=2).square().mean() < 0.15


def test_images_vary_and_few_are_blank():
    images = MosaicPrior((1, 32, 32)).start(range(400), seed=0)
    assert (images.flatten(1).std(1) < 0.02).float().mean() < 0.03
    means = images.mean((1, 2, 3))
    assert means.min() < 0.1
    assert means.max() > 0.9
