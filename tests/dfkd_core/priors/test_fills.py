import torch

from dfkd_core.priors.draws import Cursor
from dfkd_core.priors.fills import NUM_FILL_DRAWS, fill_maps, rough_fields


def test_rough_fields_have_mean_zero_and_unit_spread():
    white = torch.rand(6, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    fields = rough_fields(white, torch.linspace(0.5, 2, 6))
    torch.testing.assert_close(fields.mean((2, 3)), torch.zeros(6, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(fields.square().mean((2, 3)), torch.ones(6, 2))


def test_a_larger_exponent_gives_a_smoother_field():
    white = torch.rand(1, 2, 16, 16, generator=torch.Generator().manual_seed(0)).expand(2, -1, -1, -1)
    rough, smooth = rough_fields(white, torch.tensor([0.5, 2.0])).diff(dim=3).square().mean((1, 2, 3))
    assert smooth < 0.5 * rough


def test_plain_fills_are_the_first_colour_and_others_vary():
    rows = torch.rand(50, NUM_FILL_DRAWS, generator=torch.Generator().manual_seed(0))
    fields = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    x = torch.linspace(-1, 1, 8).expand(1, 8, 8)
    carriers = torch.cat([torch.stack([x, x.mT], 1), fields], 1).expand(50, -1, -1, -1)
    centre, radius = torch.zeros(50, 2), torch.ones(50)
    plain = fill_maps(carriers, centre, radius, Cursor(rows), plain_share=1)
    assert not plain.any()
    varied = fill_maps(carriers, centre, radius, Cursor(rows), plain_share=0)
    assert (varied.flatten(1).std(1) > 0.01).float().mean() > 0.8
    assert varied.min() >= 0
    assert varied.max() <= 1
