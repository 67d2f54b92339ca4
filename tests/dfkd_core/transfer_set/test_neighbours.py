"""The nearest pairs are those of plain code, exactly, and do not depend on blocks."""

from __future__ import annotations

import itertools

import pytest
import torch

from dfkd_core.transfer_set.neighbours import nearest_pairs


@pytest.mark.parametrize(("num_images", "levels"), [(0, 256), (1, 256), (2, 256), (7, 2), (300, 4), (600, 256)])
def test_pairs__are_those_of_plain_code(num_images: int, levels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, levels, (num_images, 1, 3, 3), dtype=torch.uint8, generator=generator)
    found = nearest_pairs(pixels, 6)
    rows = pixels.flatten(1).long()
    pairs = list(itertools.combinations(range(num_images), 2))
    first, second = (torch.tensor([pair[side] for pair in pairs], dtype=torch.int64) for side in (0, 1))
    squares = (rows[first] - rows[second]).square().sum(1)
    order = squares.argsort(stable=True)[:6]
    assert found.index.tolist() == [list(pairs[place]) for place in order.tolist()]
    torch.testing.assert_close(found.distance, (squares[order] / 9).sqrt().div(255).float())
    assert found.num_duplicates == int(((squares / 9).sqrt() / 255 < 0.01).sum())


def test_equal_images__are_all_duplicates() -> None:
    found = nearest_pairs(torch.full((50, 3, 8, 8), 200, dtype=torch.uint8), 6)
    assert found.num_duplicates == 50 * 49 / 2
    assert found.index.tolist() == [[0, other] for other in range(1, 7)]
    assert found.distance.tolist() == [0.0] * 6
