import torch

from dfkd_core.priors.fourier import FourierPrior, radial_frequencies


def test_radial_frequencies_count_cycles_per_side_and_are_at_least_one():
    frequencies = radial_frequencies(8, 8, half=True)
    assert frequencies.shape == (8, 5)
    assert frequencies[0, 0] == 1
    assert frequencies[0, 3] == 3
    assert frequencies[4, 3] == 5


def test_amplitude_falls_with_frequency_as_the_mean_exponent_says():
    prior = FourierPrior((1, 64, 64))
    images = prior.decode(prior.start(range(400), seed=0)).logit(eps=1e-6)
    power = torch.fft.rfft2(images).abs().square().mean((0, 1))
    slope = torch.log2(power[0, 16] / power[0, 4]) / 2
    # Exponents spread evenly over 1 to 2, and power weighs the flat ones at high frequencies.
    assert -3.6 < slope < -2.2


def test_zero_coefficients_decode_to_mid_grey():
    prior = FourierPrior((2, 8, 8))
    zeros = torch.zeros_like(prior.start([0], seed=0))
    torch.testing.assert_close(prior.decode(zeros), torch.full((1, 2, 8, 8), 0.5))
