import pytest
import torch

from dfkd_core.common.seeding import derive_generator
from dfkd_core.errors import ConfigError
from dfkd_core.training.augmentation import AugmentationConfig, augment

EVERYTHING = AugmentationConfig(shift=0.25, scale=0.2, rotation_degrees=10.0, flip=True)


def dot(num_images, size=9):
    images = torch.zeros(num_images, 1, size, size)
    images[:, :, size // 2, size // 2] = 1
    return images


def test_the_default_changes_nothing_and_draws_nothing():
    images, generator = torch.rand(5, 3, 8, 8), derive_generator(0)
    state = generator.get_state()
    assert not AugmentationConfig().is_active
    assert torch.equal(augment(images, AugmentationConfig(), generator), images)
    assert torch.equal(generator.get_state(), state)


@pytest.mark.parametrize(
    "config",
    [
        AugmentationConfig(shift=0.1),
        AugmentationConfig(scale=0.1),
        AugmentationConfig(rotation_degrees=5.0),
        AugmentationConfig(flip=True),
        EVERYTHING,
    ],
)
def test_shape_type_and_range_stay_and_the_input_is_left_alone(config):
    images = torch.rand(7, 3, 12, 12)
    before = images.clone()
    moved = augment(images, config, derive_generator(0))
    assert config.is_active
    assert moved.shape == images.shape
    assert moved.dtype == torch.float32
    assert 0 <= moved.min() <= moved.max() <= 1 + 1e-6
    assert not torch.equal(moved, images)
    assert torch.equal(images, before)


def test_the_generator_decides_and_the_global_one_is_not_touched():
    images, state = torch.rand(40, 1, 16, 16), torch.get_rng_state()
    first, again, other = (augment(images, EVERYTHING, derive_generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("scale", [0.0, 1e-9])
def test_shifts_reach_every_whole_pixel_up_to_the_limit_and_none_beyond(scale):
    generator, seen = derive_generator(0), set()
    for _ in range(30):
        moved = augment(dot(16), AugmentationConfig(shift=2 / 9, scale=scale), generator)
        rows, columns = moved.flatten(1).argmax(1) // 9 - 4, moved.flatten(1).argmax(1) % 9 - 4
        torch.testing.assert_close(moved.amax((1, 2, 3)), torch.ones(16))
        seen |= set(zip(rows.tolist(), columns.tolist(), strict=True))
    assert seen == {(row, column) for row in range(-2, 3) for column in range(-2, 3)}


def test_a_shift_is_a_share_of_the_height_and_of_the_width_rounded_down():
    generator, rows, columns = derive_generator(0), set(), set()
    for _ in range(30):
        images = torch.zeros(16, 1, 30, 9)
        images[:, :, 15, 4] = 1
        positions = augment(images, AugmentationConfig(shift=0.1), generator).flatten(1).argmax(1)
        rows |= set((positions // 9 - 15).tolist())
        columns |= set((positions % 9 - 4).tolist())
    assert rows == set(range(-3, 4))
    assert columns == {0}


def test_half_of_the_images_are_mirrored_each_by_a_draw_of_its_own():
    images = torch.zeros(400, 1, 2, 2)
    images[..., 0] = 1
    moved = augment(images, AugmentationConfig(flip=True), derive_generator(0))
    mirrored = moved[:, 0, 0, 1] == 1
    assert torch.equal(moved[mirrored], images[mirrored].flip(3))
    assert torch.equal(moved[~mirrored], images[~mirrored])
    assert 150 < mirrored.sum() < 250


@pytest.mark.parametrize("config", [AugmentationConfig(shift=0.34), AugmentationConfig(shift=0.34, scale=1e-9)])
def test_each_image_moves_in_its_own_way(config):
    places = augment(dot(200), config, derive_generator(0)).flatten(1).argmax(1)
    counts = torch.bincount(places, minlength=81).view(9, 9)[1:8, 1:8]
    assert counts.sum() == 200
    assert (counts > 0).sum() > 40


def test_a_rotation_keeps_the_centre_and_moves_the_rest_by_at_most_its_angle():
    images = torch.zeros(300, 1, 9, 17)
    images[:, :, 4, 8] = images[:, :, 4, 14] = 1
    moved = augment(images, AugmentationConfig(rotation_degrees=45.0), derive_generator(0))
    torch.testing.assert_close(moved[:, 0, 4, 8], torch.ones(300))
    rows = moved[:, 0, :, 11:].amax(2).argmax(1) - 4
    assert (int(rows.min()), int(rows.max())) == (-4, 4)


@pytest.mark.parametrize("config", [AugmentationConfig(shift=0.2), EVERYTHING])
def test_moved_images_keep_channels_last(config):
    images = torch.rand(6, 3, 10, 10).contiguous(memory_format=torch.channels_last)
    assert augment(images, config, derive_generator(0)).is_contiguous(memory_format=torch.channels_last)


def test_scale_is_symmetric_around_one():
    images = torch.zeros(128, 1, 33, 33)
    images[:, :, 8:25, 8:25] = 1
    area = augment(images, AugmentationConfig(scale=0.3), derive_generator(0)).sum((1, 2, 3)) / 17**2
    assert 0.45 < area.min() < 0.8 < 1.2 < area.max() < 1.75


def test_no_images_and_a_single_one():
    assert augment(torch.empty(0, 1, 8, 8), EVERYTHING, derive_generator(0)).shape == (0, 1, 8, 8)
    assert augment(torch.rand(1, 1, 8, 8), EVERYTHING, derive_generator(0)).shape == (1, 1, 8, 8)


@pytest.mark.parametrize(
    "values", [{"shift": -0.1}, {"shift": 1.5}, {"scale": 1.0}, {"scale": -0.1}, {"rotation_degrees": -1.0}]
)
def test_a_value_out_of_range_is_named(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        AugmentationConfig(**values)
