import dataclasses

import pytest
import torch

from dfkd_core.errors import ConfigError, SynthesisError, TeacherError
from dfkd_core.models.passes import PassSizes
from dfkd_core.synthesis.batch_norm import recording_distances
from dfkd_core.synthesis.descent import DescentConfig
from dfkd_core.synthesis.image_losses import squared_norms, total_variation
from dfkd_core.synthesis.inversion import InversionConfig


def config(iterations=40, **changes):
    descent = DescentConfig(prior="pixels", iterations=iterations, learning_rate=0.05)
    weights = {"batch_norm_weight": 1.0, "total_variation_weight": 0.0}
    return InversionConfig(descent=descent, **{**weights, **changes})


def distance(teacher, synthesizer, images):
    with recording_distances(synthesizer.layers) as distances:
        teacher(images)
    return torch.stack(distances).sum().item()


def test_labels__are_the_classes_in_turn(bn_teacher, statistics):
    targets = config().build(bn_teacher, statistics).soft_targets([4, 5, 6])
    assert torch.equal(targets, torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]))


def test_losses__are_their_formulas(bn_teacher, statistics):
    settings = config(temperature=2.0, batch_norm_weight=3.0, total_variation_weight=0.5, squared_norm_weight=0.25)
    synthesizer = settings.build(bn_teacher, statistics)
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = synthesizer.objective(synthesizer.soft_targets(range(6)))(images, torch.arange(6))
    label = torch.nn.functional.cross_entropy(
        bn_teacher(images) / 2, torch.tensor([0, 1, 2, 0, 1, 2]), reduction="none"
    )
    torch.testing.assert_close(found["label"], label)
    expected = torch.full((6,), 3 * distance(bn_teacher, synthesizer, images))
    torch.testing.assert_close(found["batch_norm"], expected)
    torch.testing.assert_close(found["total_variation"], 0.5 * total_variation(images))
    norms = squared_norms(images, mean=torch.tensor(0.5), std=torch.tensor(0.2))
    torch.testing.assert_close(found["squared_norm"], 0.25 * norms)


def test_losses__of_some_rows_compare_with_the_labels_of_these(bn_teacher, statistics):
    synthesizer = config().build(bn_teacher, statistics)
    objective = synthesizer.objective(synthesizer.soft_targets(range(6)))
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = objective(images, torch.tensor([4, 2]))["label"]
    expected = torch.nn.functional.cross_entropy(bn_teacher(images), torch.tensor([1, 2]), reduction="none")
    torch.testing.assert_close(found, expected)


def test_terms_without_weight_are_left_out(bn_teacher, statistics):
    synthesizer = config(batch_norm_weight=0.0).build(bn_teacher, statistics)
    terms = synthesizer.objective(synthesizer.soft_targets(range(3)))(torch.rand(3, 1, 8, 8), torch.arange(3))
    assert list(terms) == ["label"]


def test_batch_norm_distance_falls_and_the_teacher_gives_the_labels(bn_teacher, statistics):
    synthesizer = config().build(bn_teacher, statistics)
    start = config(iterations=0).build(bn_teacher, statistics).synthesize(range(24), seed=0).images
    end = synthesizer.synthesize(range(24), seed=0).images
    assert distance(bn_teacher, synthesizer, end) < 0.6 * distance(bn_teacher, synthesizer, start)
    answered = (bn_teacher(end).argmax(1) == torch.arange(24) % 3).float().mean()
    assert answered > 0.9 > (bn_teacher(start).argmax(1) == torch.arange(24) % 3).float().mean()


def test_the_batch_norm_term_is_what_lowers_the_distance(bn_teacher, statistics):
    with_term, without = (
        config(batch_norm_weight=weight).build(bn_teacher, statistics).synthesize(range(24), seed=0).images
        for weight in (1.0, 0.0)
    )
    synthesizer = config().build(bn_teacher, statistics)
    assert distance(bn_teacher, synthesizer, with_term) < 0.7 * distance(bn_teacher, synthesizer, without)


@pytest.mark.parametrize(
    ("name", "measure"), [("total_variation_weight", total_variation), ("squared_norm_weight", None)]
)
def test_regularisers_lower_what_they_weigh(bn_teacher, statistics, name, measure):
    def measured(images):
        values = measure(images) if measure else squared_norms(images, mean=torch.tensor(0.5), std=torch.tensor(0.2))
        return values.mean().item()

    plain, regularised = (
        measured(config(**{name: weight}).build(bn_teacher, statistics).synthesize(range(12), seed=0).images)
        for weight in (0.0, 50.0)
    )
    assert regularised < 0.8 * plain


def test_a_teacher_without_batch_norm_is_refused(teacher, statistics):
    with pytest.raises(TeacherError, match="inversion method reads BatchNorm"):
        InversionConfig().build(teacher, statistics)


@pytest.mark.parametrize(("name", "value"), [("temperature", 0.0), ("batch_norm_weight", -1.0)])
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(ConfigError, match=name):
        dataclasses.replace(InversionConfig(), **{name: value})


def test_a_batch_that_does_not_fit_is_refused_with_the_size_that_does(bn_teacher, statistics):
    images = range(100_000)
    bn_teacher.passes = PassSizes(bn_teacher.classifier, memory=0)
    with pytest.raises(
        SynthesisError, match=r"inversion needs a whole batch.* 100000 images .*synthesis.batch_size: \d+,"
    ):
        config().build(bn_teacher, statistics).synthesize(images, seed=0)
