import torch

from dfkd_core.synthesis.noise import NoiseConfig


def test_noise_lies_around_mid_grey_and_targets_are_the_teachers(teacher, statistics):
    made = NoiseConfig(std=0.1).build(teacher, statistics).synthesize(range(200), seed=0)
    assert abs(made.images.mean().item() - 0.5) < 0.01
    assert abs(made.images.std().item() - 0.1) < 0.01
    torch.testing.assert_close(made.soft_targets, teacher(made.images).softmax(1))
