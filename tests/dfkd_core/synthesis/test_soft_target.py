import dataclasses

import pytest
import torch

from dfkd_core.common.seeding import normal_rows
from dfkd_core.errors import TeacherError
from dfkd_core.models.classifier import Classifier
from dfkd_core.models.teacher import Teacher
from dfkd_core.synthesis.refinement import RefinementConfig
from dfkd_core.synthesis.soft_target import SoftTargetConfig, choose_draws
from dfkd_core.synthesis.targets import TargetedSynthesizer


def targeted(config, teacher, statistics):
    made = config.build(teacher, statistics)
    assert isinstance(made, TargetedSynthesizer)
    return made


def test_targets_are_the_rest_of_the_teacher_on_sampled_features(teacher, statistics):
    config = SoftTargetConfig(balanced=False, refinement=RefinementConfig(temperature=3.0))
    targets = targeted(config, teacher, statistics).soft_targets(range(5), seed=1)
    noise = normal_rows(1, "target", range(5), (statistics.rank,))
    features = statistics.mean + noise @ statistics.factor.T
    fc2 = teacher.classifier.network.fc2
    torch.testing.assert_close(targets, (fc2(features.relu()) / 3).softmax(1))


def test_targets_reach_all_classes(teacher, statistics):
    targets = targeted(SoftTargetConfig(), teacher, statistics).soft_targets(range(300), seed=0)
    assert set(targets.argmax(1).tolist()) == {0, 1, 2}


def test_draws__take_the_first_that_fits_or_the_likeliest():
    probabilities = torch.tensor(
        [
            [[0.6, 0.4, 0.0], [0.3, 0.5, 0.2], [0.1, 0.8, 0.1]],
            [[0.6, 0.1, 0.3], [0.5, 0.3, 0.2], [0.7, 0.2, 0.1]],
        ]
    )
    assert choose_draws(probabilities, torch.tensor([1, 1])).tolist() == [1, 1]


def test_balanced_targets__are_of_the_classes_in_turn(teacher, statistics):
    targets = targeted(SoftTargetConfig(balanced=True), teacher, statistics).soft_targets(range(30), seed=0)
    assert targets.argmax(1).tolist() == [0, 1, 2] * 10


def test_a_layer_with_positions_is_refused_before_anything_is_drawn(teacher, statistics):
    card = dataclasses.replace(teacher.card, layer="conv")
    with pytest.raises(TeacherError, match="can only be passed on from a layer with one position"):
        SoftTargetConfig().build(Teacher(Classifier(teacher.classifier.network, card)), statistics)
