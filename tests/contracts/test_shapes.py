"""The shapes and number types that the docstrings of the core promise; a letter is the same number all over a call."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from beartype import beartype
from jaxtyping import Float32, Int64, TypeCheckError, UInt8, jaxtyped
from torch import Tensor

from dfkd_core.common import pixels
from dfkd_core.common.rows import ShardedRows
from dfkd_core.distillation import soft_labels
from dfkd_core.evaluation import metrics
from dfkd_core.models.classifier import ModelCard, build_classifier
from dfkd_core.models.teacher import Teacher
from dfkd_core.priors.table import build_prior, prior_names
from dfkd_core.statistics.estimation import StatisticsConfig, estimate_statistics
from dfkd_core.statistics.features import FeatureStatistics
from dfkd_core.synthesis import image_losses, refinement

checked = jaxtyped(typechecker=beartype)

Images = Float32[Tensor, "n c h w"]
Logits = Float32[Tensor, "n k"]
PerImage = Float32[Tensor, "n"]


@checked
def target_losses(logits: Logits, soft_targets: Logits) -> PerImage:
    return refinement.target_losses(logits, soft_targets, temperature=4.0)


@checked
def label_losses(logits: Logits, wanted: Logits) -> PerImage:
    return image_losses.label_losses(logits, wanted, temperature=4.0)


@checked
def one_hot_labels(labels: Int64[Tensor, "n"], like: Logits) -> Logits:
    return image_losses.one_hot_labels(labels, like.shape[1])


@checked
def total_variation(images: Images) -> PerImage:
    return image_losses.total_variation(images)


@checked
def squared_norms(images: Images, mean: Float32[Tensor, "1 c 1 1"], std: Float32[Tensor, "1 c 1 1"]) -> PerImage:
    return image_losses.squared_norms(images, mean=mean, std=std)


@checked
def distillation_loss(student_logits: Logits, teacher_logits: Logits) -> Float32[Tensor, ""]:
    return soft_labels.distillation_loss(student_logits, teacher_logits, temperature=4.0)


@checked
def confusion_matrix(logits: Logits, labels: Int64[Tensor, "n"]) -> Int64[Tensor, "k k"]:
    return metrics.confusion_matrix(logits, labels)


@checked
def transform(
    mean: Float32[Tensor, "d"], factor: Float32[Tensor, "d r"], normal: Float32[Tensor, "n r"]
) -> Float32[Tensor, "n d"]:
    return FeatureStatistics(mean=mean, factor=factor).transform(normal)


@checked
def coded_and_decoded(images: Images) -> Images:
    stored: UInt8[Tensor, "n c h w"] = pixels.quantise(images)
    return pixels.dequantise(stored)


@checked
def batch(images: UInt8[Tensor, "n c h w"], positions: Int64[Tensor, "m"]) -> Float32[Tensor, "m c h w"]:
    return pixels.load_batch(ShardedRows([images[:1], images[1:]]), positions)


@checked
def label(teacher: Teacher, images: Images, like: Logits) -> Logits:
    return teacher.label(images)


@checked
def split_at_layer(
    teacher: Teacher, images: Images, mean: Float32[Tensor, "d"], like: Logits
) -> tuple[Logits, Float32[Tensor, "n d"]]:
    logits, features = teacher.forward_with_features(images)
    rest: Logits = teacher.rest(features)
    torch.testing.assert_close(rest, logits)
    return logits, features


@checked
def drawn(name: Any, indices: Sequence[int], like: Images) -> Images:
    prior = build_prior(name, (like.shape[1], like.shape[2], like.shape[3]))
    return prior.decode(prior.start(indices, seed=0)).float()


def logits_of(n: int, k: int, seed: int = 0) -> Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed))


def images_of(n: int, c: int = 3, h: int = 8, w: int = 6) -> Tensor:
    return torch.rand(n, c, h, w, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("n", "k"), [(5, 3), (1, 10), (4, 4)])
def test_losses_are_one_number_per_image_or_one_for_all(n: int, k: int) -> None:
    logits, labels = logits_of(n, k), torch.arange(n) % k
    wanted = one_hot_labels(labels, logits)
    assert (target_losses(logits, logits.softmax(1)) >= 0).all()
    torch.testing.assert_close(label_losses(logits, wanted), target_losses(logits, wanted))
    assert distillation_loss(logits, logits_of(n, k, seed=1)) > 0
    assert confusion_matrix(logits, labels).sum() == n


@pytest.mark.parametrize(("n", "c"), [(5, 3), (1, 1), (3, 2)])
def test_terms_of_images_are_one_number_per_image(n: int, c: int) -> None:
    images, one = images_of(n, c), torch.ones(1, c, 1, 1)
    assert (total_variation(images) > 0).all()
    torch.testing.assert_close(squared_norms(images, 0 * one, one), images.square().flatten(1).mean(1))


@pytest.mark.parametrize(("n", "d", "r"), [(7, 5, 3), (1, 4, 4)])
def test_features_have_the_units_of_the_layer_at_any_rank(n: int, d: int, r: int) -> None:
    mean = logits_of(1, d)[0]
    torch.testing.assert_close(transform(mean, logits_of(d, r), torch.zeros(n, r)), mean.expand(n, d))


def test_pixels_keep_their_shape_and_rows_the_order_asked_for() -> None:
    images = images_of(4)
    assert (coded_and_decoded(images) - images).abs().max() <= 0.5 / 255 + 1e-6
    stored = pixels.quantise(images)
    torch.testing.assert_close(batch(stored, torch.tensor([3, 0])), pixels.dequantise(stored[[3, 0]]))


def test_a_teacher_labels_images_and_can_be_split_at_its_layer() -> None:
    card = ModelCard(
        network="lenet5", in_channels=2, image_size=32, num_classes=7, mean=(0.3,) * 2, std=(0.2,) * 2, layer="fc1"
    )
    teacher, images = Teacher(build_classifier(card, seed=0)), images_of(3, 2, 32, 32)
    statistics = estimate_statistics(teacher, StatisticsConfig(), seed=0)
    answers = label(teacher, images, logits_of(3, 7))
    logits, _ = split_at_layer(teacher, images, statistics.mean, answers)
    torch.testing.assert_close(logits, answers)


@pytest.mark.parametrize("name", prior_names())
@pytest.mark.parametrize("shape", [(1, 12, 12), (3, 10, 14)])
def test_priors_draw_images_of_the_shape_asked_for(name: str, shape: tuple[int, int, int]) -> None:
    images = drawn(name, range(4, 9), images_of(5, *shape))
    assert 0 <= images.min()
    assert images.max() <= 1


def test_a_wrong_shape_or_type_is_noticed() -> None:
    with pytest.raises(TypeCheckError):
        label_losses(logits_of(5, 3), logits_of(4, 3))
    with pytest.raises(TypeCheckError):
        target_losses(logits_of(5, 3), logits_of(5, 3).double())
    with pytest.raises(TypeCheckError):
        transform(torch.zeros(5), torch.zeros(5, 3), torch.zeros(2, 4))
