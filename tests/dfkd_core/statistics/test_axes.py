"""Features on the axes of the largest variance of their model, for any rank and any teacher with layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dfkd_core.errors import DataError
from dfkd_core.models.classifier import ModelCard, build_classifier
from dfkd_core.models.teacher import Teacher
from dfkd_core.statistics.axes import (
    drawn_on_axes,
    images_on_axes,
    principal_axes,
    read_real_axes,
    write_real_axes,
)
from dfkd_core.statistics.features import FeatureStatistics


def model(factor: torch.Tensor) -> FeatureStatistics:
    return FeatureStatistics(torch.ones(len(factor)), factor)


def test_axes__are_those_of_the_largest_variance_with_a_fixed_sign() -> None:
    factor = torch.diag(torch.tensor([1.0, 3.0, 2.0]))
    expected = torch.tensor([[0, 0], [1, 0], [0, 1]], dtype=torch.float64)
    torch.testing.assert_close(principal_axes(model(factor)), expected)
    torch.testing.assert_close(principal_axes(model(-factor)), expected)


@pytest.mark.parametrize("factor", [torch.ones(1, 1), torch.ones(4, 1), torch.ones(1, 4), torch.zeros(3, 2)])
def test_axes__without_variance_are_zero(factor: torch.Tensor) -> None:
    axes = principal_axes(model(factor))
    assert axes.shape == (len(factor), 2)
    assert torch.equal(axes[:, 1], torch.zeros(len(factor), dtype=torch.float64))
    drawn = drawn_on_axes(model(factor), seed=0)
    assert drawn.shape == (500, 2)
    assert drawn.isfinite().all()


def test_drawn__have_the_variance_of_the_axes_around_the_mean() -> None:
    drawn = drawn_on_axes(model(torch.diag(torch.tensor([1.0, 5.0, 0.1]))), seed=0)
    assert drawn.std(0).tolist() == pytest.approx([5.0, 1.0], rel=0.1)
    assert drawn.mean(0).abs().max() < 0.6
    assert torch.equal(drawn, drawn_on_axes(model(torch.diag(torch.tensor([1.0, 5.0, 0.1]))), seed=0))


@pytest.mark.parametrize("layer", ["fc1", "conv2", ":output"])
def test_images__are_where_the_teacher_puts_them(layer: str) -> None:
    card = ModelCard(
        network="lenet5", in_channels=1, image_size=32, num_classes=10, mean=(0.5,), std=(0.25,), layer=layer
    )
    teacher = Teacher(build_classifier(card, seed=0))
    images = torch.randint(0, 256, (120, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    statistics = model(torch.eye(teacher.num_features))
    features = teacher.forward_with_features(images / 255)[1].detach()
    expected = ((features - 1).double() @ principal_axes(statistics)).float()
    torch.testing.assert_close(images_on_axes(teacher, statistics, images), expected, rtol=1e-3, atol=1e-4)


def test_real_axes__come_back_from_their_file(tmp_path: Path) -> None:
    for axes in (torch.rand(3, 2), torch.empty(0, 2)):
        write_real_axes(tmp_path / "a", axes)
        assert torch.equal(read_real_axes(tmp_path / "a"), axes)
    with pytest.raises(DataError, match=r"is missing.*dfkd run"):
        read_real_axes(tmp_path / "b")
