import math
from typing import Any

import pytest
import torch

from dfkd_core.common.pixels import load_batch
from dfkd_core.data.datasets import LabelledImages
from dfkd_core.errors import ConfigError, DataError, TeacherError
from dfkd_core.models.classifier import ModelCard, build_classifier
from dfkd_core.models.storage import model_digest
from dfkd_core.progress import Progress
from dfkd_core.teachers.training import TeacherConfig, pixel_statistics, train_teacher
from dfkd_core.training.augmentation import AugmentationConfig
from dfkd_core.training.loop import Schedule, build_optimizer, run_epochs

CARD = ModelCard(network="lenet5", in_channels=1, image_size=32, num_classes=3, mean=(0.3,), std=(0.3,), layer="fc1")


def make_data(num_images=48, num_classes=3):
    """Noise with a bright band whose height tells the class."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 60, (num_images, 1, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.arange(num_images) % num_classes
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, 10 * label : 10 * label + 6] += 180
    return LabelledImages(images=images, labels=labels, class_names=tuple("abcdefghij"[:num_classes]))


def make_config(**changes):
    plain: dict[str, Any] = {"epochs": 4, "batch_size": 16, "augmentation": AugmentationConfig()}
    return TeacherConfig(**(plain | changes))


def weights(classifier):
    return torch.cat([parameter.detach().flatten() for parameter in classifier.parameters()])


def zero(classifier):
    """A loss of 0 that depends on the weights."""
    return sum(parameter.sum() for parameter in classifier.parameters()) * 0


def collect(loss_terms, *, num_images=10, batch_size=4, epochs=2, **changes):
    classifier = build_classifier(CARD, seed=0)
    optimizer = build_optimizer(classifier, learning_rate=1.0, weight_decay=0.0)
    warmup_fraction = changes.pop("warmup_fraction", 0.0)
    schedule = Schedule(num_images=num_images, batch_size=batch_size, epochs=epochs, warmup_fraction=warmup_fraction)

    class Step:
        def load(self, positions, generator):
            return positions, generator

        def begin(self, epoch):
            pass

        def label(self, *loaded):
            return loaded

        def twin(self):
            return None

        def halves(self, batch):
            return batch, batch, 1.0

        def terms(self, batch):
            return loss_terms(classifier, *batch)

    return list(run_epochs(classifier, optimizer, Step(), schedule, **{"seed": 0, "error": TeacherError, **changes}))


def test_a_teacher_learns_what_its_labels_say():
    data = make_data()
    reports: list[Progress] = []
    result = train_teacher(make_config(epochs=8), data, seed=0, on_progress=reports.append)
    predicted = result.classifier(load_batch(data.images, torch.arange(48))).argmax(1)
    assert (predicted == data.labels).float().mean() > 0.9
    assert not result.classifier.training
    assert [record.epoch for record in result.history] == list(range(1, 9))
    assert result.history[-1].loss < result.history[0].loss
    assert [(report.done, report.total, report.unit) for report in reports] == [(i, 8, "epochs") for i in range(1, 9)]


def test_the_card_says_what_the_data_are():
    data = make_data()
    card = train_teacher(make_config(epochs=1), data, seed=0).classifier.card
    mean, std = pixel_statistics(data.images)
    assert (card.network, card.layer, card.image_shape, card.num_classes) == ("lenet5", "fc1", (1, 32, 32), 3)
    assert (card.mean, card.std, card.class_names) == (mean, std, ("a", "b", "c"))
    assert train_teacher(make_config(epochs=1, layer="act_fc1"), data, seed=0).classifier.card.layer == "act_fc1"


def test_the_seed_decides_every_bit_and_the_global_generator_is_not_touched():
    config = make_config(epochs=2, augmentation=AugmentationConfig(shift=0.05, scale=0.1, flip=True))
    state = torch.get_rng_state()
    first, again, other = (train_teacher(config, make_data(), seed=seed) for seed in (0, 0, 1))
    assert model_digest(first.classifier) == model_digest(again.classifier)
    assert first.history == again.history
    assert model_digest(first.classifier) != model_digest(other.classifier)
    assert torch.equal(torch.get_rng_state(), state)


def test_every_image_is_seen_once_per_epoch_in_batches_of_nearly_equal_size():
    seen = []

    def terms(classifier, positions, generator):
        seen.append(positions.tolist())
        return {"zero": zero(classifier)}

    collect(terms)
    assert [len(batch) for batch in seen] == [4, 3, 3, 4, 3, 3]
    epochs = [[position for batch in batches for position in batch] for batches in (seen[:3], seen[3:])]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10))
    assert epochs[0] != epochs[1]


def test_an_epoch_draws_the_same_whichever_is_the_first():
    def draws(**changes):
        seen = []

        def terms(classifier, positions, generator):
            seen.append((positions.tolist(), torch.rand(1, generator=generator).item()))
            return {"zero": zero(classifier)}

        records = collect(terms, epochs=3, **changes)
        return seen, [record.learning_rate for record in records]

    (seen, rates), (later, later_rates) = draws(), draws(first_epoch=3)
    assert later == seen[-3:]
    assert later_rates == rates[-1:]


def test_a_record_holds_the_mean_of_each_term_and_their_sum():
    values = iter([1.0, 3.0])

    def terms(classifier, positions, generator):
        return {"falling": zero(classifier) + next(values), "fixed": zero(classifier) + 0.5}

    (record,) = collect(terms, batch_size=5, epochs=1)
    assert record.terms == {"falling": 2.0, "fixed": 0.5}
    assert record.loss == 2.5


def test_a_loss_that_is_not_finite_is_named_with_epoch_step_and_term():
    steps = iter(range(1000))

    def terms(classifier, positions, generator):
        return {"good": zero(classifier), "bad": zero(classifier) + (math.inf if next(steps) == 4 else 0)}

    with pytest.raises(TeacherError, match="term bad is inf in epoch 2, step 2 of 3"):
        collect(terms)


def test_a_learning_rate_that_explodes_is_an_error_of_the_teacher():
    with pytest.raises(TeacherError, match=r"cross_entropy is (nan|inf)"):
        train_teacher(make_config(learning_rate=1e30), make_data(), seed=0)


def test_the_learning_rate_rises_straight_then_falls_along_half_a_cosine():
    def schedule(steps, warmup_fraction):
        return Schedule(num_images=8, batch_size=4, epochs=steps // 2, warmup_fraction=warmup_fraction)

    assert schedule(12, 0.0).steps_per_epoch == 2
    factors = [schedule(12, 1 / 3).factor(step) for step in range(12)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0
    assert factors[8] == pytest.approx(0.5)
    assert factors[11] == pytest.approx((1 + math.cos(math.pi * 7 / 8)) / 2)
    assert [schedule(2, 1.0).factor(step) for step in range(2)] == [0.5, 1.0]
    assert schedule(2, 0.0).factor(0) == 1.0


def test_the_fused_kernel_gives_what_the_plain_one_gives_on_channels_last_weights():
    models = [build_classifier(CARD, seed=0) for _ in range(2)]
    fused = build_optimizer(models[0], learning_rate=0.01, weight_decay=0.1)
    decayed = [p for p in models[1].parameters() if p.ndim > 1]
    others = [p for p in models[1].parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    plain = torch.optim.AdamW(groups, lr=0.01, foreach=False)
    images = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    for model, optimizer in zip(models, (fused, plain), strict=True):
        for _ in range(3):
            optimizer.zero_grad()
            model(images).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(weights(models[0]), weights(models[1]))


def test_pixel_statistics_are_those_of_the_scaled_pixels():
    images = torch.randint(0, 256, (5, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    scaled = (images.double() / 255).transpose(0, 1).flatten(1)
    mean, std = pixel_statistics(images)
    torch.testing.assert_close(torch.tensor(mean).double(), scaled.mean(1), atol=5e-5, rtol=0)
    torch.testing.assert_close(torch.tensor(std).double(), scaled.std(1, correction=0), atol=5e-5, rtol=0)


def test_a_batch_is_float_in_zero_to_one_and_channels_last():
    images = torch.arange(0, 240, dtype=torch.uint8).view(5, 3, 4, 4)
    batch = load_batch(images, torch.tensor([3, 0]))
    assert torch.equal(batch, images[[3, 0]].float() / 255)
    assert batch.is_contiguous(memory_format=torch.channels_last)


def test_bad_labels_and_too_few_images_are_named():
    good = make_data()
    wrong = LabelledImages(images=good.images, labels=good.labels + 1, class_names=good.class_names)
    with pytest.raises(DataError, match=r"from 1 to 3.*must be 0 to 2"):
        train_teacher(make_config(), wrong, seed=0)
    few = LabelledImages(images=good.images[:2], labels=good.labels[:2], class_names=good.class_names)
    with pytest.raises(DataError, match="2 training images for 3 classes"):
        train_teacher(make_config(), few, seed=0)


@pytest.mark.parametrize("values", [{"network": "lenet6"}, {"epochs": 0}, {"weight_decay": -1.0}])
def test_a_value_out_of_range_is_named(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        TeacherConfig(**values)
