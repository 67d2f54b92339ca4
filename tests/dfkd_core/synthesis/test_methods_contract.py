"""What holds for every synthesis method."""

import dataclasses
from typing import Any

import pytest
import torch

from dfkd_core.common.digests import canonical_json
from dfkd_core.errors import ConfigError, TeacherError
from dfkd_core.progress import Progress
from dfkd_core.synthesis.base import Labelling
from dfkd_core.synthesis.methods import SynthesisConfig, build_synthesizer, method_names
from dfkd_core.synthesis.shards import synthesize_shard

pytestmark = pytest.mark.parametrize("method", method_names())

NEED_BATCH_NORM = {"inversion", "noise_engineered"}


@pytest.fixture
def teacher(method, teacher, bn_teacher):
    """A teacher that the method can use."""
    return bn_teacher if method in NEED_BATCH_NORM else teacher


def short(method):
    """The method's defaults with three iterations."""
    config = SynthesisConfig(method=method, num_images=40, images_per_shard=24, batch_size=10)
    settings: Any = config.method_config
    for name in ("refinement", "descent"):
        if hasattr(settings, name):
            part = dataclasses.replace(getattr(settings, name), iterations=3)
            settings = dataclasses.replace(settings, **{name: part})
    changed: dict[str, Any] = {method: settings}
    return dataclasses.replace(config, methods=dataclasses.replace(config.methods, **changed))


def test_makes_images_in_the_unit_range_and_targets_that_sum_to_one(method, teacher, statistics):
    made = build_synthesizer(short(method), teacher, statistics).synthesize(range(12), seed=0)
    assert made.images.shape == (12, 1, 8, 8)
    assert made.images.dtype == torch.float32
    assert made.images.min() >= 0
    assert made.images.max() <= 1
    assert made.soft_targets.shape == (12, 3)
    torch.testing.assert_close(made.soft_targets.sum(1), torch.ones(12))


def test_equal_batches_give_equal_bytes(method, teacher, statistics):
    synthesizer = build_synthesizer(short(method), teacher, statistics)
    first, second = (synthesizer.synthesize(range(12), seed=0) for _ in range(2))
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.soft_targets, second.soft_targets)


def test_an_image_does_not_depend_on_the_batch_around_it(method, teacher, statistics):
    config = short(method)
    if config.method_config.couples_images:
        pytest.skip("the images of a batch depend on each other, as the method's documentation says")
    synthesizer = build_synthesizer(config, teacher, statistics)
    together = synthesizer.synthesize(range(12), seed=0)
    parts = [synthesizer.synthesize(part, seed=0) for part in (range(5), [5], range(6, 12))]
    torch.testing.assert_close(torch.cat([p.soft_targets for p in parts]), together.soft_targets, rtol=1e-4, atol=1e-5)
    # Adam's first step is the gradient's sign, so a pixel whose gradient is rounding noise may go either way.
    difference = (torch.cat([p.images for p in parts]) - together.images).abs()
    assert (difference > 1e-3).float().mean() < 0.01


def test_seed_and_index_address_the_draws(method, teacher, statistics):
    synthesizer = build_synthesizer(short(method), teacher, statistics)
    image = synthesizer.synthesize([7], seed=0).images
    assert not torch.equal(image, synthesizer.synthesize([7], seed=1).images)
    assert not torch.equal(image, synthesizer.synthesize([8], seed=0).images)


def test_progress_ends_with_all_images_of_the_shard(method, teacher, statistics):
    config = short(method)
    reports: list[Progress] = []
    synthesizer = build_synthesizer(config, teacher, statistics)
    synthesize_shard(synthesizer, teacher, shard_index=1, config=config, seed=0, on_progress=reports.append)
    done = [report.done for report in reports]
    assert done == sorted(done)
    assert (done[-1], reports[-1].total, reports[-1].unit) == (16, 16, "images")


def test_stored_logits_are_those_of_the_stored_images(method, teacher, statistics):
    config = short(method)
    synthesizer = build_synthesizer(config, teacher, statistics)
    shard = synthesize_shard(synthesizer, teacher, shard_index=1, config=config, seed=0)
    assert shard.image_index.tolist() == list(range(24, 40))
    label = synthesizer.label if isinstance(synthesizer, Labelling) else teacher
    expected = [label(images.float() / 255) for images in shard.images.split(config.batch_size)]
    torch.testing.assert_close(shard.teacher_logits, torch.cat(expected))


def test_the_teacher_and_the_global_generator_are_left_alone(method, teacher, statistics):
    before = torch.get_rng_state()
    build_synthesizer(short(method), teacher, statistics).synthesize(range(4), seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in teacher.classifier.parameters())


def test_settings_are_plain_data(method):
    settings: Any = SynthesisConfig(method=method).method_config
    assert canonical_json(dataclasses.asdict(settings)).startswith("{")


def test_fewer_images_than_classes_are_refused(method, teacher, statistics):
    with pytest.raises(ConfigError, match="num_images is 2, the teacher has 3 classes"):
        build_synthesizer(SynthesisConfig(method=method, num_images=2), teacher, statistics)


class Offering:
    """A teacher that offers what a method declares to need, and nothing more."""

    def __init__(self, teacher, needs):
        self.access = needs
        names = ["card", "digest", "device", "memory", "label"] + (["passes"] if needs == "gradient" else [])
        for name in names:
            setattr(self, name, getattr(teacher, name))
        self._teacher = teacher

    def __call__(self, images):
        assert self.access == "gradient"
        return self._teacher(images)


def test_uses_nothing_of_the_teacher_beyond_what_it_declares(method, teacher, statistics):
    config = short(method)
    settings = config.method_config
    offered: Any = teacher if settings.needs == "layers" else Offering(teacher, settings.needs)
    known = statistics if settings.uses_statistics else None
    made = build_synthesizer(config, offered, known).synthesize(range(12), seed=0)
    assert torch.equal(
        made.soft_targets, build_synthesizer(config, teacher, statistics).synthesize(range(12), seed=0).soft_targets
    )


def test_asks_for_statistics_in_a_sentence_if_it_uses_them(method, teacher):
    config = short(method)
    if config.method_config.uses_statistics:
        with pytest.raises(TeacherError, match=f"{method} draws from the teacher's feature statistics"):
            build_synthesizer(config, teacher, None)
    else:
        build_synthesizer(config, teacher, None)


def test_refined_images_differ_from_their_starts_and_the_others_do_not(method, teacher, statistics):
    config = short(method)
    starts = dataclasses.replace(
        config,
        methods=dataclasses.replace(config.methods, **{method: config.method_config.with_iterations(0)}),
    )
    made, drawn = (
        build_synthesizer(each, teacher, statistics).synthesize(range(12), seed=0) for each in (config, starts)
    )
    is_changed = (made.images - drawn.images).abs().flatten(1).amax(1) > 0
    assert torch.equal(config.method_config.is_refined(range(12)), is_changed)
    assert not starts.method_config.is_refined(range(12)).any()
