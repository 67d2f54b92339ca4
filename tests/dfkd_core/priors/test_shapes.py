import pytest
import torch

from dfkd_core.priors.draws import Cursor
from dfkd_core.priors.shapes import NUM_OUTLINE_DRAWS, OUTLINE_WEIGHTS, OUTLINES


def grid(num_shapes, size=40, reach=1.6):
    line = torch.linspace(-reach, reach, size)
    u, v = line.expand(size, size), line[:, None].expand(size, size)
    return u.expand(num_shapes, -1, -1).contiguous(), v.expand(num_shapes, -1, -1).contiguous()


@pytest.mark.parametrize("outline", OUTLINES, ids=lambda outline: outline.__name__)
def test_every_outline_has_an_inside_and_an_outside(outline):
    rows = torch.rand(200, NUM_OUTLINE_DRAWS, generator=torch.Generator().manual_seed(0))
    distance = outline(torch.stack(grid(200), 1), Cursor(rows))
    assert torch.isfinite(distance).all()
    inside = (distance < 0).float().mean((1, 2))
    assert (inside > 0.001).float().mean() > 0.98
    assert (inside < 0.9).all()


def test_every_outline_has_a_weight():
    assert len(OUTLINES) == len(OUTLINE_WEIGHTS)


def test_a_round_ellipse_is_a_circle_of_radius_one():
    ellipse = OUTLINES[0]
    u, v = grid(1)
    rows = torch.full((1, NUM_OUTLINE_DRAWS), 1.0)
    torch.testing.assert_close(ellipse(torch.stack([u, v], 1), Cursor(rows)), (u.square() + v.square()).sqrt() - 1)
