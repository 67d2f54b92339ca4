import itertools

import pytest
import torch

from dfkd_core.errors import TeacherError
from dfkd_core.models.classifier import Classifier, ModelCard
from dfkd_core.models.teacher import Teacher
from dfkd_core.synthesis.boundary import BoundaryConfig, pair_label, whole_pairs
from dfkd_core.synthesis.descent import DescentConfig
from dfkd_core.synthesis.image_losses import total_variation


def config(iterations=40, **changes):
    descent = DescentConfig(prior="pixels", iterations=iterations, learning_rate=0.05)
    return BoundaryConfig(descent=descent, **changes)


def make(teacher, statistics, indices=range(40), **changes):
    return config(**changes).build(teacher, statistics).synthesize(indices, seed=0)


@pytest.fixture
def curved_teacher():
    """A teacher of 4 classes that images reach from anywhere."""
    card = ModelCard(network="mlp", in_channels=1, image_size=8, num_classes=4, mean=(0.5,), std=(0.2,), layer="1")
    last = torch.nn.Linear(16, 4, bias=False)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.Tanh(), last)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
        last.weight.mul_(4)
    return Teacher(Classifier(network, card))


def test_pairs__have_two_classes_and_all_pairs_in_turn():
    pairs = [(pair_label(2 * p, 4), pair_label(2 * p + 1, 4)) for p in range(12)]
    assert sorted(pairs) == sorted(itertools.permutations(range(4), 2))
    assert [pair_label(i, 4) for i in range(24, 48)] == [pair_label(i, 4) for i in range(24)]


def test_pairs__every_class_is_asked_for_equally_often():
    labels = [pair_label(i, 5) for i in range(2 * 5 * 4)]
    assert [labels.count(k) for k in range(5)] == [8] * 5


def test_whole_pairs__adds_the_missing_partners():
    assert whole_pairs([7, 3, 2, 8]) == [2, 3, 6, 7, 8, 9]


def test_losses__are_their_formulas_with_the_contrast_halved_between_the_images_of_a_pair(teacher, statistics):
    settings = config(contrast_weight=0.6, total_variation_weight=0.5)
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = settings.build(teacher, statistics).objective([2, 3, 6, 7], seed=0)(images, torch.arange(4))
    logits = teacher(images)
    labels = torch.tensor([pair_label(i, 3) for i in (2, 3, 6, 7)])
    label = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(found["label"], label)
    torch.testing.assert_close(found["total_variation"], 0.5 * total_variation(images))
    for first, second in ((0, 1), (2, 3)):
        squares = [(logits[first, k] - logits[second, k]).item() ** 2 for k in range(3)]
        contrast = 0.6 * sum(squares) / 3
        assert found["contrast"][[first, second]].tolist() == pytest.approx([contrast / 2] * 2, rel=1e-5)


def test_noise__is_drawn_per_image_and_step(teacher, statistics):
    settings = config(noise_std=0.3, contrast_weight=0.0)
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    together, apart = (settings.build(teacher, statistics).objective(range(n, 4), seed=0) for n in (0, 2))
    first, second = (together(images, torch.arange(4))["label"] for _ in range(2))
    assert not torch.allclose(first, second)
    torch.testing.assert_close(apart(images[2:], torch.arange(2))["label"], first[2:])


def test_pairs__end_in_the_two_classes_asked_for(curved_teacher, statistics):
    answered = []
    for iterations in (0, 40):
        made = make(curved_teacher, statistics, iterations=iterations, contrast_weight=0.1)
        answers = curved_teacher(made.images).argmax(1)
        answered.append((answers == made.soft_targets.argmax(1)).float().mean())
    assert answered[0] < 0.5 < 0.95 < answered[1]
    assert (answers[::2] != answers[1::2]).float().mean() > 0.95


def test_pairs__are_nearer_to_each_other_than_images_of_two_pairs_with_the_same_classes(curved_teacher, statistics):
    made = make(curved_teacher, statistics, indices=range(96), iterations=15, contrast_weight=1.0)
    logits, labels = curved_teacher(made.images), made.soft_targets.argmax(1)
    distances = torch.cdist(logits[::2], logits[1::2])
    own = torch.eye(48, dtype=torch.bool)
    alike = (labels[::2, None] == labels[None, ::2]) & (labels[1::2, None] == labels[None, 1::2]) & ~own
    assert distances[own].mean() < 0.8 * distances[alike].mean()


def test_the_contrast_term_brings_pairs_to_the_boundary(curved_teacher, statistics):
    margins = []
    for weight in (1.0, 0.0):
        best = curved_teacher(make(curved_teacher, statistics, contrast_weight=weight).images).topk(2, dim=1).values
        margins.append((best[:, 0] - best[:, 1]).mean().item())
    assert margins[0] < 0.7 * margins[1]


def test_an_image_without_its_partner_is_the_same_as_with_it(teacher, statistics):
    together = make(teacher, statistics, indices=range(8), iterations=5, noise_std=0.1)
    alone = make(teacher, statistics, indices=[5, 2], iterations=5, noise_std=0.1)
    torch.testing.assert_close(alone.soft_targets, together.soft_targets[[5, 2]])
    assert ((alone.images - together.images[[5, 2]]).abs() > 1e-3).float().mean() < 0.01


def test_a_teacher_of_one_class_is_refused(statistics):
    card = ModelCard(network="flat", in_channels=1, image_size=8, num_classes=1, mean=(0.5,), std=(0.2,), layer="1")
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 1))
    with pytest.raises(TeacherError, match="boundary method needs a boundary, and the teacher has 1 class"):
        BoundaryConfig().build(Teacher(Classifier(network, card)), statistics)


def test_pairs_that_go_through_in_parts_are_those_of_one_pass(curved_teacher, statistics, limit_passes):
    whole = make(curved_teacher, statistics, range(11), noise_std=0.1)
    # Fewer than a pair at once is not possible.
    limit_passes(curved_teacher, 1)
    parts = make(curved_teacher, statistics, range(11), noise_std=0.1)
    torch.testing.assert_close(parts.images, whole.images, rtol=0, atol=1e-4)
