import pytest
import torch

from dfkd_core.compression import make_student
from dfkd_core.distillation.config import DistillationConfig
from dfkd_core.distillation.run import distill_images
from dfkd_core.models.classifier import ModelCard, build_classifier
from dfkd_core.models.storage import model_digest
from dfkd_core.models.teacher import Teacher
from dfkd_core.statistics.estimation import StatisticsConfig, estimate_statistics
from dfkd_core.synthesis.methods import SynthesisConfig, build_synthesizer
from dfkd_core.synthesis.shards import synthesize_shard

CARD = ModelCard(network="lenet5", in_channels=1, image_size=32, num_classes=4, mean=(0.3,), std=(0.3,), layer="fc1")
# Too few to be judged: an untrained teacher has a favourite class.
SYNTHESIS = SynthesisConfig(method="noise", num_images=30, images_per_shard=20)
DISTILLATION = DistillationConfig(start="random", epochs=2, batch_size=8)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_student_is_the_one_of_shards_made_one_by_one(prefetch):
    teacher = Teacher(build_classifier(CARD, seed=0))
    statistics = estimate_statistics(teacher, StatisticsConfig(), seed=0)
    synthesizer = build_synthesizer(SYNTHESIS, teacher, statistics)
    shards = [synthesize_shard(synthesizer, teacher, shard_index=i, config=SYNTHESIS, seed=3) for i in (0, 1)]
    images, logits = (torch.cat([getattr(s, name) for s in shards]) for name in ("images", "teacher_logits"))
    expected = distill_images(teacher, images, logits, DISTILLATION, seed=3).student
    made = make_student(teacher, statistics, SYNTHESIS, DISTILLATION, seed=3, prefetch=prefetch)
    assert model_digest(made) == model_digest(expected)
