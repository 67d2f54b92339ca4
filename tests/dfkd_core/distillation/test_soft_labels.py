import pytest
import torch

from dfkd_core.distillation.soft_labels import distillation_loss


def test_the_loss_is_the_formula():
    student, teacher, temperature = torch.randn(5, 4), torch.randn(5, 4), 3.0
    expected = 0.0
    for row_s, row_t in zip(student.double(), teacher.double(), strict=True):
        q, p = (torch.exp(row / temperature) / torch.exp(row / temperature).sum() for row in (row_s, row_t))
        expected += temperature**2 * (p * (p / q).log()).sum().item() / 5
    assert distillation_loss(student, teacher, temperature=temperature).item() == pytest.approx(expected, rel=1e-5)


def test_the_loss_is_zero_for_equal_logits_and_for_shifted_ones():
    logits = torch.randn(5, 4)
    assert distillation_loss(logits + 7, logits, temperature=2.0).item() == pytest.approx(0, abs=1e-6)
    assert distillation_loss(logits, logits, temperature=2.0).item() == 0


def test_at_a_high_temperature_the_loss_is_the_difference_of_centred_logits():
    student, teacher = torch.randn(6, 4).double(), torch.randn(6, 4).double()
    centred = (student - student.mean(1, True)) - (teacher - teacher.mean(1, True))
    # Hinton et al., 2015, equation 4, integrated: sum of squares / 2k.
    expected = centred.square().sum(1).mean() / (2 * 4)
    torch.testing.assert_close(distillation_loss(student, teacher, temperature=1e4), expected, rtol=1e-3, atol=0)
