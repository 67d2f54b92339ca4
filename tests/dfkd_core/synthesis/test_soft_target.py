import torch

from dfkd_core.seeding import normal_rows
from dfkd_core.synthesis import RefinementConfig, SoftTargetConfig


def test_targets_are_the_rest_of_the_teacher_on_sampled_features(teacher, statistics):
    config = SoftTargetConfig(refinement=RefinementConfig(temperature=3.0))
    targets = config.build(teacher, statistics).soft_targets(range(5), seed=1)
    noise = normal_rows(1, "target", range(5), (statistics.rank,))
    features = statistics.mean + noise @ statistics.factor.T
    fc2 = teacher.classifier.network.fc2
    torch.testing.assert_close(targets, (fc2(features.relu()) / 3).softmax(1))


def test_targets_reach_all_classes(teacher, statistics):
    targets = SoftTargetConfig().build(teacher, statistics).soft_targets(range(300), seed=0)
    assert set(targets.argmax(1).tolist()) == {0, 1, 2}
