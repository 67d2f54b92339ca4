from typing import Any

import pytest
import torch

from dfkd_core.distillation.config import DistillationConfig
from dfkd_core.distillation.run import distill_images
from dfkd_core.distillation.views import StoredViews
from dfkd_core.errors import DistillationError
from dfkd_core.models.classifier import ModelCard, build_classifier
from dfkd_core.models.storage import model_digest
from dfkd_core.models.teacher import Teacher
from dfkd_core.training.augmentation import AugmentationConfig
from dfkd_core.training.loop import Schedule, epoch_batches

CARD = ModelCard(network="lenet5", in_channels=1, image_size=32, num_classes=3, mean=(0.4,), std=(0.2,), layer="fc1")
IMAGES = torch.randint(0, 256, (20, 1, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
SCHEDULE = Schedule(num_images=20, batch_size=6, epochs=5, warmup_fraction=0.0)
MOVED = AugmentationConfig(shift=0.1, flip=True)
TURNED = AugmentationConfig(rotation_degrees=20.0)


class CountingTeacher(Teacher):
    def __init__(self):
        super().__init__(build_classifier(CARD, seed=0))
        self.num_images = 0

    def merged(self, *, keep=()):
        return self

    def forward_with_outputs(self, addresses, images):
        self.num_images += len(images)
        return super().forward_with_outputs(addresses, images)


def distilled(teacher=None, **changes):
    teacher = teacher or Teacher(build_classifier(CARD, seed=0))
    settings: dict[str, Any] = {
        "start": "random",
        "epochs": 4,
        "batch_size": 6,
        "feature_weight": 1.0,
        "augmentation": MOVED,
    }
    logits = teacher.label(IMAGES / 255)
    return distill_images(teacher, IMAGES, logits, DistillationConfig(**settings | changes), seed=0)


def test_the_teacher_runs_once_per_image_and_view():
    plain, stored = CountingTeacher(), CountingTeacher()
    distilled(plain, epochs=5)
    distilled(stored, epochs=5, views=2)
    assert plain.num_images - stored.num_images == 3 * len(IMAGES)


def test_as_many_views_as_epochs_are_new_images_in_every_epoch():
    assert model_digest(distilled(views=4).student) == model_digest(distilled().student)
    assert model_digest(distilled(views=2).student) != model_digest(distilled().student)


def test_views_without_the_teachers_answers_change_nothing():
    unmoved = {"augmentation": AugmentationConfig(), "feature_weight": 0.0}
    assert model_digest(distilled(views=1, **unmoved).student) == model_digest(distilled(**unmoved).student)


@pytest.mark.parametrize("changes", [{}, {"mixing": "mixup"}, {"augmentation": TURNED}, {"feature_weight": 0.0}])
def test_a_student_learns_from_stored_views(changes):
    history = distilled(views=1, epochs=8, **changes).history
    assert history[-1].loss < history[0].loss


def made_rows(positions, generator):
    noise = torch.rand(len(positions), 2, generator=generator)
    return IMAGES[positions] / 255, noise, positions.float()


def views(*, memory=2**40, folder=None, num_views=2):
    return StoredViews(num_views, made_rows, SCHEDULE, seed=0, memory=memory, folder=folder)


def epoch_of(stored, epoch):
    generator, batches = epoch_batches(SCHEDULE, epoch, seed=0)
    stored.begin(epoch)
    rows = [stored.load(positions, generator) for positions in batches]
    images, noise, which = (torch.cat(list(parts)) for parts in zip(*rows, strict=True))
    order = which.argsort()
    return images[order], noise[order]


@pytest.mark.parametrize("memory", [2**40, 0])
def test_later_epochs_repeat_the_first_ones_in_turn_in_memory_and_in_files(tmp_path, memory):
    stored = views(memory=memory, folder=tmp_path / "new")
    first, second, third, fourth, fifth = (epoch_of(stored, epoch) for epoch in range(1, 6))
    for repeated, original in ((third, first), (fourth, second), (fifth, first)):
        assert all(torch.equal(*pair) for pair in zip(repeated, original, strict=True))
    assert torch.equal(first[0], IMAGES / 255)
    assert not torch.equal(first[1], second[1])
    assert not list(tmp_path.rglob("*.*"))


def test_a_view_that_a_resumed_run_lacks_is_made_again():
    whole, resumed = views(), views()
    for epoch in range(1, 4):
        epoch_of(whole, epoch)
    assert torch.equal(epoch_of(resumed, 4)[1], epoch_of(whole, 4)[1])


def test_no_space_for_the_views_is_reported_with_the_setting(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DistillationError, match=r"2 stored views of .* each.*distillation\.views"):
        epoch_of(views(memory=0, folder=tmp_path / "file"), 1)
