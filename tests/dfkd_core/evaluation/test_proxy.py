import copy
import dataclasses

import pytest
import torch

from dfkd_core.errors import TeacherError
from dfkd_core.evaluation.proxy import held_out_images, held_out_logits, proxy_score, weighted_agreement
from dfkd_core.models.classifier import ModelCard, build_classifier
from dfkd_core.models.teacher import Teacher

CARD = ModelCard(network="lenet5", in_channels=1, image_size=32, num_classes=4, mean=(0.3,), std=(0.3,), layer="fc1")


@pytest.fixture
def teacher():
    classifier = build_classifier(CARD, seed=0)
    with torch.no_grad():
        last = list(classifier.network.parameters())[-2]
        # Larger weights: an untrained teacher would give nearly all images one class.
        last.mul_(20)
    return Teacher(classifier)


def build_student(seed=1):
    return build_classifier(dataclasses.replace(CARD, network="lenet5_half"), seed=seed)


def test_agreement_by_hand():
    teacher = torch.tensor([[3.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 5.0, 1.0]])
    student = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 9.0, 0.0]])
    # Class 0: margin 3 of 3 + 1 kept; class 1: 4 of 2 + 4; class 2 does not occur.
    assert weighted_agreement(teacher, student) == pytest.approx((3 / 4 + 4 / 6) / 2)


def test_agreement_agrees_with_plain_code():
    generator = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(2, 300, 5, generator=generator).unbind(0)
    shares = []
    for k in range(5):
        rows = [(sorted(t.tolist()), int(s.argmax())) for t, s in zip(teacher, student) if int(t.argmax()) == k]
        kept = sum(logits[-1] - logits[-2] for logits, answer in rows if answer == k)
        shares.append(kept / sum(logits[-1] - logits[-2] for logits, _ in rows))
    assert weighted_agreement(teacher, student) == pytest.approx(sum(shares) / 5)


def test_agreement_counts_a_rare_class_like_a_frequent_one():
    teacher = torch.tensor([[1.0, 0.0]] * 99 + [[0.0, 1.0]])
    student = torch.tensor([[1.0, 0.0]]).expand(100, 2)
    assert weighted_agreement(teacher, student) == pytest.approx(0.5)


@pytest.mark.parametrize("temperature", [0.1, 7.0])
def test_agreement_does_not_depend_on_the_scale_of_the_logits(temperature):
    generator = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(2, 50, 4, generator=generator).unbind(0)
    expected = weighted_agreement(teacher, student)
    assert weighted_agreement(teacher / temperature, student * temperature) == pytest.approx(expected)


def test_score_of_the_teacher_itself_is_1(teacher):
    assert proxy_score(teacher, copy.deepcopy(teacher.classifier), num_images=100) == 1.0


def test_score_of_a_random_student_is_lower(teacher):
    assert proxy_score(teacher, build_student(), num_images=200) < 0.7


def test_score_is_that_of_the_stream(teacher):
    student = build_student()
    scores = [proxy_score(teacher, student, num_images=200, seed=seed) for seed in (0, 0, 1)]
    assert scores[0] == scores[1] != scores[2]


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_score_does_not_depend_on_the_batch_size(teacher, batch_size):
    student = build_student()
    expected = proxy_score(teacher, student, num_images=30)
    assert proxy_score(teacher, student, num_images=30, batch_size=batch_size) == pytest.approx(expected, abs=1e-4)


def test_score_leaves_the_global_generator_alone(teacher):
    before = torch.get_rng_state()
    proxy_score(teacher, build_student(), num_images=100)
    assert torch.equal(torch.get_rng_state(), before)


def test_teacher_that_knows_one_class_is_an_error(teacher):
    with torch.no_grad():
        list(teacher.classifier.network.parameters())[-1][2] = 1e6
    with pytest.raises(TeacherError, match="predicts class 2 for all 50 held-out images"):
        proxy_score(teacher, build_student(), num_images=50)


def test_held_out_images_are_those_of_the_score_whatever_they_are_asked_for(teacher):
    images = held_out_images(CARD.image_shape, 5)
    assert images.shape == (5, 1, 32, 32)
    everything = images[torch.arange(5)]
    assert everything.dtype == torch.uint8
    assert torch.equal(images[torch.tensor([3, 1])], everything[[3, 1]])
    with torch.no_grad():
        logits = teacher(everything.float() / 255)
    torch.testing.assert_close(logits, held_out_logits(teacher, build_student(), num_images=5)[0], atol=0.3, rtol=0.05)
