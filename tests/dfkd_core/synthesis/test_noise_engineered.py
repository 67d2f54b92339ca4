import copy

import pytest
import torch

from dfkd_core.errors import SynthesisError, TeacherError
from dfkd_core.models.passes import PassSizes
from dfkd_core.synthesis.methods import SynthesisConfig
from dfkd_core.synthesis.noise import NoiseConfig
from dfkd_core.synthesis.noise_engineered import NoiseEngineeredConfig
from dfkd_core.synthesis.shards import synthesize_shard


def test_images__are_those_of_the_noise_method(bn_teacher, statistics):
    made = NoiseEngineeredConfig(std=0.1).build(bn_teacher, statistics).synthesize(range(5), seed=3)
    plain = NoiseConfig(std=0.1).build(bn_teacher, statistics).synthesize(range(5), seed=3)
    assert torch.equal(made.images, plain.images)


def test_labels__are_those_of_the_teacher_in_training_mode(bn_teacher, statistics):
    synthesizer = NoiseEngineeredConfig().build(bn_teacher, statistics)
    made = synthesizer.synthesize(range(20), seed=0)
    expected = copy.deepcopy(bn_teacher.classifier).train()(made.images)
    torch.testing.assert_close(synthesizer.label(made.images), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made.soft_targets, expected.softmax(1), rtol=1e-4, atol=1e-5)


def test_labels__spread_over_more_classes_than_those_of_the_teacher_as_it_is(bn_teacher, statistics):
    bn_teacher.classifier.network.bn1.running_mean.fill_(20.0)
    synthesizer = NoiseEngineeredConfig().build(bn_teacher, statistics)
    images = synthesizer.synthesize(range(60), seed=0).images
    as_it_is = torch.bincount(bn_teacher(images).argmax(1), minlength=3)
    by_batch = torch.bincount(synthesizer.label(images).argmax(1), minlength=3)
    assert as_it_is.max() == 60
    assert by_batch.max() < 60


def test_stored_logits__are_the_methods_own_batch_by_batch(bn_teacher, statistics):
    synthesizer = NoiseEngineeredConfig().build(bn_teacher, statistics)
    config = SynthesisConfig(method="noise_engineered", num_images=16, batch_size=10)
    shard = synthesize_shard(synthesizer, bn_teacher, shard_index=0, config=config, seed=0)
    expected = [synthesizer.label(part.float() / 255) for part in (shard.images[:10], shard.images[10:])]
    torch.testing.assert_close(shard.teacher_logits, torch.cat(expected))


def test_a_teacher_without_batch_norm_is_refused(teacher, statistics):
    with pytest.raises(TeacherError, match="noise_engineered"):
        NoiseEngineeredConfig().build(teacher, statistics)


def test_a_batch_is_labelled_whole_or_not_at_all(bn_teacher, statistics, limit_passes):
    synthesizer = NoiseEngineeredConfig().build(bn_teacher, statistics)
    images = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    whole = synthesizer.label(images)
    limit_passes(bn_teacher, 4)
    assert torch.equal(synthesizer.label(images), whole)
    bn_teacher.passes = PassSizes(bn_teacher.classifier, memory=0)
    with pytest.raises(SynthesisError, match=r"noise_engineered needs a whole batch.*synthesis.batch_size: \d+,"):
        synthesizer.label(torch.zeros(1, 1, 8, 8).expand(1_000_000, 1, 8, 8))
