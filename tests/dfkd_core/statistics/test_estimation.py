import pytest
import torch

from dfkd_core.errors import TeacherError
from dfkd_core.models.classifier import ModelCard, build_classifier
from dfkd_core.models.teacher import Teacher
from dfkd_core.statistics.estimation import StatisticsConfig, estimate_statistics
from dfkd_core.statistics.features import FeatureStatistics, load_statistics, save_statistics, summarise_statistics

PAPER = StatisticsConfig(side="incoming", spread="sigma", sigma=1.5)


@pytest.fixture(scope="module")
def teacher():
    card = ModelCard(
        network="lenet5", in_channels=1, image_size=32, num_classes=10, mean=(0.3,), std=(0.3,), layer="fc1"
    )
    return Teacher(build_classifier(card, seed=0))


def test_covariance_from_the_weights_is_sigma_squared_times_cosine_similarity(teacher):
    statistics = estimate_statistics(teacher, PAPER, seed=0)
    weights = teacher.classifier.network.fc1.weight
    cosine = torch.nn.functional.cosine_similarity(weights[:, None], weights[None], dim=2)
    torch.testing.assert_close(statistics.covariance, 1.5**2 * cosine)
    assert torch.equal(statistics.mean, torch.zeros(84))


def test_mean_may_be_the_bias_and_the_correlation_that_of_the_readers(teacher):
    config = StatisticsConfig(mean="bias", side="outgoing", spread="sigma", sigma=2.0)
    statistics = estimate_statistics(teacher, config, seed=0)
    assert torch.equal(statistics.mean, teacher.classifier.network.fc1.bias)
    columns = teacher.classifier.network.fc2.weight.T
    cosine = torch.nn.functional.cosine_similarity(columns[:, None], columns[None], dim=2)
    torch.testing.assert_close(statistics.covariance, 4 * cosine)
    assert statistics.rank == 10  # 84 units read by 10: exact though the covariance is singular


def test_samples_have_the_moments_of_the_model():
    mean = torch.tensor([1.0, -2.0, 0.5])
    factor = torch.tensor([[1.0, 0.0], [0.5, 0.2], [-1.0, 0.3]])
    statistics = FeatureStatistics(mean, factor)
    samples = statistics.sample(200_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(samples.mean(0), mean, atol=0.01, rtol=0)
    torch.testing.assert_close(torch.cov(samples.T), factor @ factor.T, atol=0.02, rtol=0)
    # rank 2 in 3 dimensions: every sample lies in the plane
    assert torch.linalg.matrix_rank(samples[:1000] - mean, rtol=1e-4) == 2


def test_probe_statistics_are_the_moments_of_the_probe_features(teacher):
    from dfkd_core.priors.procedural import ProceduralPrior

    statistics = estimate_statistics(teacher, StatisticsConfig(source="probes", num_probes=60), seed=3)
    prior = ProceduralPrior(teacher.card.image_shape)
    images = prior.decode(prior.start(range(60), seed=3, stream="probe"))
    with torch.no_grad():
        features = teacher.forward_with_features(images)[1]
    torch.testing.assert_close(statistics.mean, features.mean(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(statistics.covariance, torch.cov(features.T), atol=1e-5, rtol=1e-3)


def test_batch_norm_statistics_have_the_buffers_moments_and_the_weights_correlation():
    card = ModelCard(
        network="lenet5_bn", in_channels=1, image_size=32, num_classes=10, mean=(0.3,), std=(0.3,), layer="fc1"
    )
    bn_teacher = Teacher(build_classifier(card, seed=0))
    mean, std = bn_teacher.layer_batch_norm_moments()
    statistics = estimate_statistics(bn_teacher, StatisticsConfig(source="batchnorm"), seed=0)
    assert torch.equal(statistics.mean, mean)
    torch.testing.assert_close(statistics.covariance.diagonal(), std**2)


def test_what_is_saved_is_what_is_loaded(teacher, tmp_path):
    statistics = estimate_statistics(teacher, StatisticsConfig(), seed=0)
    save_statistics(tmp_path, statistics)
    loaded = load_statistics(tmp_path)
    assert loaded.digest == statistics.digest
    assert torch.equal(loaded.factor, statistics.factor)


def test_statistics_changed_on_disk_are_refused(teacher, tmp_path):
    save_statistics(tmp_path, estimate_statistics(teacher, StatisticsConfig(), seed=0))
    other = estimate_statistics(teacher, StatisticsConfig(spread="sigma"), seed=0)
    save_statistics(tmp_path / "other", other)
    (tmp_path / "other" / "statistics.safetensors").rename(tmp_path / "statistics.safetensors")
    with pytest.raises(TeacherError, match="does not match its summary"):
        load_statistics(tmp_path)
    (tmp_path / "statistics.safetensors").write_bytes(b"xx")
    with pytest.raises(TeacherError, match="does not hold feature statistics"):
        load_statistics(tmp_path)
    (tmp_path / "statistics.safetensors").unlink()
    with pytest.raises(TeacherError, match=r"statistics\.safetensors is missing"):
        load_statistics(tmp_path)


def test_summary_of_an_isotropic_model():
    summary = summarise_statistics(FeatureStatistics(torch.zeros(20), 2 * torch.eye(20)))
    assert summary["rank"] == 20
    assert summary["mean_std"] == pytest.approx(2)
    assert summary["effective_rank"] == pytest.approx(20)
    assert summary["variance_in_first_10_directions"] == pytest.approx(0.5)


def test_statistics_that_are_not_finite_are_refused():
    with pytest.raises(TeacherError, match="NaN or Inf"):
        FeatureStatistics(torch.zeros(2), torch.full((2, 1), float("nan")))


@pytest.mark.parametrize("side", ["incoming", "outgoing"])
def test_sigma_is_found_that_gives_the_confidence(teacher, side):
    statistics = estimate_statistics(teacher, StatisticsConfig(side=side, confidence=0.7), seed=0)
    logits = teacher.rest(statistics.sample(20_000, torch.Generator().manual_seed(5)))
    assert logits.softmax(1).amax(1).mean().item() == pytest.approx(0.7, abs=0.01)
    paper = estimate_statistics(teacher, StatisticsConfig(side=side, spread="sigma", sigma=1.0), seed=0)
    sigma = statistics.covariance.diagonal().sqrt()
    torch.testing.assert_close(statistics.covariance, sigma[0] ** 2 * paper.covariance)


def test_a_confidence_out_of_reach_is_refused_with_the_range(teacher):
    with pytest.raises(TeacherError, match=r"mean confidence 0\.01 .*statistics\.confidence between"):
        estimate_statistics(teacher, StatisticsConfig(confidence=0.01), seed=0)
