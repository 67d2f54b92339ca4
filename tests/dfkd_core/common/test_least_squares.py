import torch

from dfkd_core.common.least_squares import fit_linear
from dfkd_core.common.seeding import derive_generator


def test_fit_linear__recovers_a_linear_map_and_leaves_a_right_prior_alone():
    generator = derive_generator(0, "test")
    inputs = torch.randn(200, 4, generator=generator, dtype=torch.float64) + 3
    weights = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    bias = torch.tensor([1.0, -2.0], dtype=torch.float64)
    found = fit_linear(inputs, inputs @ weights.T + bias, weights)
    torch.testing.assert_close(found, (weights, bias))
