import pytest
import torch

from dfkd_core.common.rows import ShardedRows
from dfkd_core.distillation import soft_labels
from dfkd_core.distillation.soft_labels import distillation_loss, temperature_of_confidence
from dfkd_core.errors import DistillationError


def test_the_loss_is_the_formula():
    student, teacher, temperature = torch.randn(5, 4), torch.randn(5, 4), 3.0
    expected = 0.0
    for row_s, row_t in zip(student.double(), teacher.double(), strict=True):
        q, p = (torch.exp(row / temperature) / torch.exp(row / temperature).sum() for row in (row_s, row_t))
        expected += temperature**2 * (p * (p / q).log()).sum().item() / 5
    assert distillation_loss(student, teacher, temperature=temperature).item() == pytest.approx(expected, rel=1e-5)
    squares = (student - teacher).square().mean().item()
    both = distillation_loss(student, teacher, temperature=temperature, mse_weight=0.5)
    assert both.item() == pytest.approx(expected + 0.5 * squares, rel=1e-5)


def test_the_loss_is_zero_for_equal_logits_and_for_shifted_ones():
    logits = torch.randn(5, 4)
    assert distillation_loss(logits + 7, logits, temperature=2.0).item() == pytest.approx(0, abs=1e-6)
    assert distillation_loss(logits, logits, temperature=2.0, mse_weight=1.0).item() == 0


def test_at_a_high_temperature_the_loss_is_the_difference_of_centred_logits():
    student, teacher = torch.randn(6, 4).double(), torch.randn(6, 4).double()
    centred = (student - student.mean(1, True)) - (teacher - teacher.mean(1, True))
    # Hinton et al., 2015, equation 4, integrated: sum of squares / 2k.
    expected = centred.square().sum(1).mean() / (2 * 4)
    torch.testing.assert_close(distillation_loss(student, teacher, temperature=1e4), expected, rtol=1e-3, atol=0)


def test_temperature_of_confidence__is_the_closed_form_for_two_classes():
    # softmax([d, 0] / T) has the larger entry c where d / T = log(c / (1 - c)).
    logits = torch.tensor([[3.0, 0.0], [0.0, 3.0]])
    expected = 3 / torch.tensor(0.8 / 0.2).log().item()
    assert temperature_of_confidence(logits, 0.8) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("confidence", [0.2, 0.5, 0.9])
def test_temperature_of_confidence__gives_the_mean_confidence(confidence):
    logits = 4 * torch.randn(200, 10, generator=torch.Generator().manual_seed(0))
    temperature = temperature_of_confidence(logits, confidence)
    assert (logits / temperature).softmax(1).amax(1).mean().item() == pytest.approx(confidence, abs=1e-5)


@pytest.mark.parametrize("logits", [torch.randn(5, 10), torch.zeros(5, 2), torch.full((5, 10), torch.nan)])
def test_temperature_of_confidence__what_no_temperature_gives_is_an_error(logits):
    with pytest.raises(DistillationError, match=r"confidence of 0\.05.*distillation\.confidence"):
        temperature_of_confidence(logits, 0.05)


def test_temperature_of_confidence__of_logits_in_pieces_is_that_of_all(monkeypatch):
    logits = 4 * torch.randn(100, 10, generator=torch.Generator().manual_seed(0))
    whole = temperature_of_confidence(logits, 0.5)
    monkeypatch.setattr(soft_labels, "VALUES_AT_ONCE", 70)
    assert temperature_of_confidence(ShardedRows(logits.split(33)), 0.5) == whole
