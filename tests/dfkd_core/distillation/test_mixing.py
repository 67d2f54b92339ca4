import math

import pytest
import torch

from dfkd_core.distillation.mixing import mix

SIZE = 40


def make(num_images=400):
    """Images of one grey level each, so that a pixel tells where it is from."""
    levels = torch.arange(num_images) / num_images
    return levels.view(-1, 1, 1, 1).expand(-1, 3, SIZE, SIZE).contiguous()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_none__changes_and_draws_nothing():
    images, draws = make(), generator()
    assert mix(images, "none", draws) is images
    assert torch.equal(draws.get_state(), generator().get_state())


@pytest.mark.parametrize("mixing", ["mixup", "cutmix"])
def test_mix__every_bit_comes_from_the_generator_and_the_images_stay(mixing):
    images, before, state = make(), make(), torch.get_rng_state()
    first, again, other = (mix(images, mixing, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.shape == images.shape
    assert first.min() >= 0
    assert first.max() <= 1


def test_mixup__blends_with_the_neighbour_in_shares_of_the_uniform_distribution():
    images = make()
    mixed = mix(images, "mixup", generator())
    assert torch.equal(mixed.amin((1, 2, 3)), mixed.amax((1, 2, 3)))
    own, other = images[:, 0, 0, 0], images.roll(1, 0)[:, 0, 0, 0]
    shares = (mixed[:, 0, 0, 0] - other) / (own - other)
    assert shares.mean().item() == pytest.approx(0.5, abs=0.06)
    assert shares.var().item() == pytest.approx(1 / 12, rel=0.2)


def test_cutmix__pastes_a_box_of_the_neighbour():
    images = make()
    mixed = mix(images, "cutmix", generator())
    pasted = mixed != images
    assert torch.equal(mixed, torch.where(pasted, images.roll(1, 0), images))
    rows, columns = pasted.any(1).any(2), pasted.any(1).any(1)
    assert torch.equal(pasted[:, 0], rows[:, :, None] & columns[:, None, :])
    for side in (rows, columns):
        assert (side.int().diff(dim=1).abs().sum(1) <= 2).all()


def test_cutmix__boxes_are_cut_squares_of_the_shares_area():
    images = make(2000)
    pasted = mix(images, "cutmix", generator()) != images
    rows, columns = pasted.any(1).any(2).sum(1), pasted.any(1).any(1).sum(1)
    # A share u in [0, 1) pastes a square of side floor(sqrt(u) * 40) around any pixel, cut off at the border.
    expected = 0.0
    for side in range(SIZE):
        ends = [(math.floor(c - side / 2), math.floor(c + side / 2)) for c in range(SIZE)]
        length = sum(min(end, SIZE) - max(start, 0) for start, end in ends) / SIZE
        expected += ((side + 1) ** 2 - side**2) / SIZE**2 * length**2
    assert (rows * columns).float().mean().item() == pytest.approx(expected, rel=0.03)
