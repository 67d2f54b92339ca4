"""What a teacher allows, and the sentence for whoever asks for more."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dfkd_core.errors import TeacherError
from dfkd_core.evaluation.comparison import evaluate
from dfkd_core.models.access import Access, has_access, require_access
from dfkd_core.models.classifier import ModelCard, build_classifier
from dfkd_core.models.teacher import Teacher
from dfkd_core.statistics.estimation import StatisticsConfig, estimate_statistics


def make_teacher(network: str = "lenet5") -> Teacher:
    card = ModelCard(
        network=network, in_channels=1, image_size=32, num_classes=10, mean=(0.3,), std=(0.25,), layer="fc1"
    )
    return Teacher(build_classifier(card, seed=0))


class Answering:
    """A teacher that only answers, as a program behind an address would."""

    def __init__(self, teacher: Teacher, access: Access = "labels") -> None:
        self.access: Access = access
        self.card, self.digest, self.device, self.memory = teacher.card, teacher.digest, teacher.device, teacher.memory
        self._teacher = teacher

    def label(self, images: Tensor) -> Tensor:
        return self._teacher.label(images)


@pytest.mark.parametrize(
    ("access", "allowed"),
    [("labels", ["labels"]), ("gradient", ["labels", "gradient"]), ("layers", ["labels", "gradient", "layers"])],
)
def test_access__includes_what_comes_before(access: Access, allowed: list[Access]) -> None:
    teacher = Answering(make_teacher(), access)
    kinds: tuple[Access, ...] = ("labels", "gradient", "layers")
    assert [kind for kind in kinds if has_access(teacher, kind)] == allowed


def test_require_access__names_who_asks_what_is_needed_what_there_is_and_what_to_do() -> None:
    with pytest.raises(TeacherError) as caught:
        require_access(Answering(make_teacher()), "gradient", by="synthesis.method boundary", remedy="Set noise")
    assert str(caught.value) == (
        "synthesis.method boundary needs a teacher that also returns the gradient with respect to its images "
        "(access 'gradient'); this one has access 'labels'. Set noise"
    )


def test_label__gives_the_logits_without_a_gradient_and_in_parts(limit_passes) -> None:
    teacher = make_teacher()
    images = torch.rand(7, 1, 32, 32, generator=torch.Generator().manual_seed(0), requires_grad=True)
    whole = teacher.label(images)
    assert not whole.requires_grad
    assert whole.dtype == torch.float32
    torch.testing.assert_close(whole, teacher(images).detach())
    limit_passes(teacher, 2)
    torch.testing.assert_close(teacher.label(images), whole)


@pytest.mark.parametrize("source", ["weights", "batchnorm", "probes"])
def test_statistics__of_a_teacher_that_only_answers_are_refused_in_a_sentence(source: str) -> None:
    with pytest.raises(TeacherError, match=f"statistics.source {source} needs a teacher that also exposes its layers"):
        estimate_statistics(Answering(make_teacher()), StatisticsConfig(source=source), seed=0)


def test_evaluation__needs_answers_alone() -> None:
    teacher = make_teacher()
    images = torch.randint(0, 256, (20, 1, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    student = build_classifier(teacher.card, seed=1)
    whole, answered = (evaluate(student, t, held_out=images) for t in (teacher, Answering(teacher)))
    assert (answered.agreement, answered.kl, answered.student) == (whole.agreement, whole.kl, whole.student)
    assert answered.teacher.num_parameters is None
    assert "size_bytes" not in answered.to_metrics()["teacher"]


def test_merged__is_a_whole_teacher() -> None:
    teacher = make_teacher("lenet5_bn")
    images = torch.rand(5, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    merged = teacher.merged()
    assert merged is not teacher
    assert (merged.digest, merged.passes) == (teacher.digest, teacher.passes)
    # Its layers are those of the network that it runs: no tensor of one is the other's.
    assert not {id(module) for module in merged.network.modules()} & {
        id(module) for module in teacher.network.modules()
    }
    torch.testing.assert_close(merged.layer_weights("outgoing"), teacher.layer_weights("outgoing"))
    features = teacher.forward_with_features(images)[1]
    torch.testing.assert_close(merged.forward_with_features(images)[1], features, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(merged.rest(features), teacher.rest(features), atol=1e-5, rtol=1e-4)
