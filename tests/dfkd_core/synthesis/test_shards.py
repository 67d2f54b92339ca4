import pytest
import torch

from dfkd_core.errors import SynthesisError
from dfkd_core.progress import ignore
from dfkd_core.synthesis.base import SynthesizedBatch
from dfkd_core.synthesis.methods import SynthesisConfig, build_synthesizer
from dfkd_core.synthesis.shards import images_at_once, num_shards, shard_indices, synthesize_shard


class Constant:
    """Makes images of one grey level."""

    temperature = 1.0

    def __init__(self, level=0.5):
        self.level = level

    def synthesize(self, image_indices, *, seed, on_progress=ignore):
        n = len(image_indices)
        return SynthesizedBatch(torch.full((n, 1, 8, 8), self.level), torch.full((n, 3), 1 / 3))


def make(teacher, synthesizer, num_images, method="soft_target"):
    config = SynthesisConfig(num_images=num_images, batch_size=8, method=method)
    return synthesize_shard(synthesizer, teacher, shard_index=0, config=config, seed=0)


def test_shards_cover_the_set_once():
    config = SynthesisConfig(num_images=25, images_per_shard=10)
    assert num_shards(config) == 3
    assert [i for shard in range(3) for i in shard_indices(config, shard)] == list(range(25))


@pytest.mark.parametrize(
    ("device", "changes", "image_shape", "expected"),
    [
        ("cpu", {}, (1, 32, 32), 500),
        ("cuda", {}, (1, 32, 32), 5000),
        ("cuda", {"batch_size": 100}, (3, 224, 224), 445),
        ("cuda", {"batch_size": 600}, (3, 224, 224), 600),
        ("cuda", {"method": "inversion"}, (1, 32, 32), 500),
    ],
)
def test_a_gpu_takes_a_shard_at_once_where_images_do_not_depend_on_each_other(device, changes, image_shape, expected):
    config = SynthesisConfig(**changes)
    size = images_at_once(config, num_images=5000, image_shape=image_shape, device=torch.device(device))
    assert size == expected


def test_a_whole_number_of_shards_has_no_empty_one():
    assert num_shards(SynthesisConfig(num_images=20, images_per_shard=10)) == 2


def test_a_shard_holds_what_its_batches_made(teacher):
    shard = make(teacher, Constant(), 20)
    assert shard.images.unique().tolist() == [128]
    assert shard.image_index.tolist() == list(range(20))
    assert shard.soft_targets.shape == shard.teacher_logits.shape == (20, 3)


@pytest.mark.parametrize(("method", "advice"), [("soft_target", "soft_target.refinement.iterations"), ("noise", "std")])
def test_a_shard_of_one_class_is_refused(teacher, method, advice):
    with pytest.raises(
        SynthesisError, match=rf"Shard 0: the teacher predicts class \d of 3 for all 30 images.*{advice}"
    ):
        make(teacher, Constant(), 30, method)


def test_a_small_shard_may_have_one_class(teacher):
    assert len(make(teacher, Constant(), 29).images) == 29


def test_images_that_are_not_finite_name_shard_and_images(teacher):
    with pytest.raises(SynthesisError, match="Shard 0: images of 8 of the images 0 to 7 hold NaN or Inf"):
        make(teacher, Constant(float("nan")), 20)


def test_an_error_of_the_method_names_the_shard(teacher):
    class Failing(Constant):
        def synthesize(self, image_indices, *, seed, on_progress=ignore):
            raise SynthesisError("The loss is not finite at iteration 3")

    with pytest.raises(SynthesisError, match="Shard 0: The loss is not finite at iteration 3"):
        make(teacher, Failing(), 20)


@pytest.mark.parametrize("method", ["soft_target", "noise"])
def test_passes_that_memory_limits_change_labels_by_rounding_alone(teacher, statistics, limit_passes, method):
    config = SynthesisConfig(num_images=20, batch_size=8, method=method)
    synthesizer = build_synthesizer(config, teacher, statistics)
    whole = synthesize_shard(synthesizer, teacher, shard_index=0, config=config, seed=0)
    limit_passes(teacher, 3)
    parts = synthesize_shard(synthesizer, teacher, shard_index=0, config=config, seed=0)
    # A pixel that lies between two grey levels may go to either.
    assert (parts.images.int() - whole.images.int()).abs().max() <= 1
    torch.testing.assert_close(parts.teacher_logits, whole.teacher_logits, rtol=0, atol=0.05)
    torch.testing.assert_close(parts.soft_targets, whole.soft_targets)
