"""The bins of a reliability diagram hold the images of their confidence, and give the calibration error."""

from __future__ import annotations

import pytest
import torch

from dfkd_core.evaluation.metrics import confidence_and_class, expected_calibration_error
from dfkd_core.evaluation.reliability import reliability


def test_bins__give_the_calibration_error() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = 2 * torch.randn(300, 4, generator=generator), torch.randint(0, 4, (300,), generator=generator)
    confidence, classes = confidence_and_class(logits)
    bins = reliability(confidence.tolist(), (classes == labels).tolist(), num_bins=15)
    error = sum(found.num_images * abs(found.share - found.mean_confidence) for found in bins) / 300
    assert error == pytest.approx(expected_calibration_error(logits, labels))
    assert sum(found.num_images for found in bins) == 300
    assert all(found.lower < found.mean_confidence <= found.upper for found in bins)


def test_bins__are_closed_on_the_right_and_empty_ones_left_out() -> None:
    bins = reliability([0.0, 0.5, 1.0], [True, False, True], num_bins=4)
    assert [(found.lower, found.upper) for found in bins] == [(0.0, 0.25), (0.25, 0.5), (0.75, 1.0)]
    assert [found.share for found in bins] == [1.0, 0.0, 1.0]
    assert reliability([], [], num_bins=4) == ()
