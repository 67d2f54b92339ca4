import pytest
import torch

from dfkd_core.errors import TeacherError
from dfkd_core.synthesis.dirichlet import DirichletConfig, class_similarity
from dfkd_core.synthesis.targets import TargetedSynthesizer


def targeted(config, teacher, statistics):
    made = config.build(teacher, statistics)
    assert isinstance(made, TargetedSynthesizer)
    return made


def test_similarity_is_the_cosine_scaled_per_row():
    weights = torch.tensor([[2.0, 0.0], [0.0, 1.0], [-3.0, 0.0]])
    # Cosines of row 0: 1, 0, -1; of row 1: 0, 1, 0.
    expected = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.5, 1.0]])
    torch.testing.assert_close(class_similarity(weights), expected)


def test_a_single_class_has_a_finite_similarity():
    assert torch.isfinite(class_similarity(torch.ones(1, 4))).all()


def test_mean_target_is_that_of_the_dirichlet_distribution(teacher, statistics):
    synthesizer = targeted(DirichletConfig(beta_low=1.0, beta_high=1.0), teacher, statistics)
    class_0 = range(0, 3 * 800, 3)
    mean = synthesizer.soft_targets(class_0, seed=0).mean(0)
    alpha = class_similarity(teacher.classifier.network.fc2.weight)[0].clamp_min(1e-4)
    torch.testing.assert_close(mean, alpha / alpha.sum(), atol=0.05, rtol=0)


def test_half_of_each_class_gets_the_low_beta(teacher, statistics):
    synthesizer = targeted(DirichletConfig(beta_low=0.01, beta_high=100.0), teacher, statistics)
    largest = synthesizer.soft_targets(range(600), seed=0).amax(1)
    low = torch.arange(600) // 3 % 2 == 0
    assert largest[low].mean() > 0.95
    assert largest[~low].mean() < 0.9


def test_a_teacher_without_a_last_linear_layer_is_refused(teacher, statistics):
    teacher.classifier.network.fc2 = torch.nn.Identity()
    with pytest.raises(TeacherError, match="last linear layer with 3 outputs"):
        DirichletConfig().build(teacher, statistics)
