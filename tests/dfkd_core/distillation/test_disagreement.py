import pytest
import torch

from dfkd_core.common.seeding import derive_generator
from dfkd_core.distillation.disagreement import DisagreementConfig, seek_disagreement
from dfkd_core.distillation.soft_labels import distillation_loss
from dfkd_core.errors import ConfigError
from dfkd_core.models.classifier import ModelCard, build_classifier
from dfkd_core.models.storage import model_digest
from dfkd_core.models.teacher import Teacher

CARD = ModelCard(network="lenet5", in_channels=1, image_size=32, num_classes=4, mean=(0.5,), std=(0.2,), layer="fc1")


@pytest.fixture
def teacher():
    return Teacher(build_classifier(CARD, seed=0))


@pytest.fixture
def student():
    card = ModelCard(
        network="lenet5_half_bn", in_channels=1, image_size=32, num_classes=4, mean=(0.5,), std=(0.2,), layer="fc1"
    )
    return build_classifier(card, seed=1)


@pytest.fixture
def images():
    return torch.rand(12, 1, 32, 32, generator=derive_generator(0, "test"))


def divergence(teacher, student, images):
    student.eval()
    with torch.no_grad():
        return distillation_loss(student(images), teacher(images), temperature=2.0).item()


def test_moved_images_are_more_disputed_and_the_more_the_further(teacher, student, images):
    found = [divergence(teacher, student, images)]
    for radius in (0.05, 0.2):
        moved = seek_disagreement(teacher, student, images, DisagreementConfig(radius=radius), temperature=2.0)
        found.append(divergence(teacher, student, moved))
    assert found == sorted(found)
    assert found[2] > 1.1 * found[0]


@pytest.mark.parametrize("steps", [1, 4])
def test_changes_end_at_the_radius_and_at_black_and_white(teacher, student, images, steps):
    config = DisagreementConfig(radius=0.1, steps=steps)
    moved = seek_disagreement(teacher, student, images, config, temperature=2.0)
    assert (moved.amin().item(), moved.amax().item()) == (0, 1)
    change = (moved - images).abs()
    assert change.max() <= 0.1 + 1e-6
    assert change.median() > 0.03
    assert not moved.requires_grad


def test_a_student_equal_to_its_teacher_leaves_nothing_to_seek(teacher, images):
    moved = seek_disagreement(teacher, teacher.classifier, images, DisagreementConfig(), temperature=2.0)
    assert divergence(teacher, teacher.classifier, moved) == 0


@pytest.mark.parametrize("is_training", [True, False])
def test_the_networks_stay_as_they_were(teacher, student, images, is_training):
    student.train(is_training)
    student.network.bn1.eval()
    before, start = (model_digest(student), teacher.digest), images.clone()
    seek_disagreement(teacher, student, images, DisagreementConfig(), temperature=2.0)
    assert (model_digest(student), Teacher(teacher.classifier).digest) == before
    assert (student.training, student.network.bn2.training) == (is_training, is_training)
    assert not student.network.bn1.training
    assert torch.equal(images, start)
    assert all(parameter.grad is None for parameter in student.parameters())


def test_settings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match=r"share must be at most 1.*steps must be at least 1.*radius must be greater"):
        DisagreementConfig(share=2, steps=0, radius=0)


def test_passes_that_memory_limits_move_images_alike(teacher, student, images, limit_passes):
    config = DisagreementConfig(radius=0.1)
    whole = seek_disagreement(teacher, student, images, config, temperature=2.0)
    limit_passes(teacher, 5)
    parts = seek_disagreement(teacher, student, images, config, temperature=2.0)
    # The sign of a gradient of about 0 may change with rounding.
    assert (parts != whole).float().mean() < 1e-3
