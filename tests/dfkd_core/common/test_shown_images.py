"""The few images of a report are spread over the set, whatever its period, and small."""

from __future__ import annotations

import pytest
import torch

from dfkd_core.common.shown_images import MOST_SHOWN_PX, shrunk, spread_positions


@pytest.mark.parametrize(
    ("num_images", "most"), [(0, 5), (1, 24), (24, 24), (25, 24), (47, 24), (60_000, 24), (60_000, 5000)]
)
def test_spread_positions__are_different_and_one_of_each_part(num_images: int, most: int) -> None:
    positions = spread_positions(num_images, most)
    count = min(num_images, most)
    ends = [number * num_images // max(1, count) for number in range(count + 1)]
    assert all(first <= place < end for place, first, end in zip(positions.tolist(), ends, ends[1:], strict=False))
    assert len(positions) == count
    assert torch.equal(positions, spread_positions(num_images, most))


@pytest.mark.parametrize("period", [2, 4, 10])
def test_spread_positions__miss_no_class_of_a_set_that_repeats_them(period: int) -> None:
    few, many = (
        (spread_positions(60_000, most) % period).bincount(minlength=period) / most * period for most in (24, 5000)
    )
    assert few.count_nonzero() > 0.8 * period
    assert (many - 1).abs().max() < 0.2


def test_shrunk__averages_large_images_and_keeps_small_ones() -> None:
    small = torch.randint(0, 256, (2, 3, MOST_SHOWN_PX, 8), dtype=torch.uint8)
    assert torch.equal(shrunk(small), small)
    large = torch.zeros(2, 1, 128, 64, dtype=torch.uint8)
    large[:, :, ::2] = 100
    assert torch.equal(shrunk(large), torch.full((2, 1, 64, 32), 50, dtype=torch.uint8))
    assert shrunk(torch.zeros(1, 3, 224, 224, dtype=torch.uint8)).shape == (1, 3, 64, 64)
    assert shrunk(torch.zeros(1, 3, 1000, 2, dtype=torch.uint8)).shape == (1, 3, 64, 1)
    assert shrunk(large[:0]).shape == (0, 1, 64, 32)
