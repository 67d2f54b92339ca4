"""The whole way on a GPU: the same bytes each time, and what a CPU gives up to rounding."""

import copy
import dataclasses
import random

import pytest
import torch
from torch import nn

from dfkd_core.common.compute import Compute
from dfkd_core.common.cuda_graphs import recorded_on_gpu
from dfkd_core.common.devices import resolve_device
from dfkd_core.compression import make_transfer_set
from dfkd_core.data.datasets import DataConfig, load_dataset
from dfkd_core.distillation.config import DistillationConfig
from dfkd_core.distillation.disagreement import DisagreementConfig
from dfkd_core.distillation.run import distill_images
from dfkd_core.errors import SynthesisError
from dfkd_core.evaluation.comparison import evaluate
from dfkd_core.evaluation.latency import measure_latency
from dfkd_core.evaluation.proxy import proxy_score
from dfkd_core.models.classifier import Classifier
from dfkd_core.models.teacher import Teacher
from dfkd_core.statistics.estimation import StatisticsConfig, estimate_statistics
from dfkd_core.synthesis import descent
from dfkd_core.synthesis.base import Synthesizer
from dfkd_core.synthesis.methods import SynthesisConfig, build_synthesizer, method_names
from dfkd_core.synthesis.refinement import RefinementConfig, refine
from dfkd_core.synthesis.shards import synthesize_shard
from dfkd_core.teachers.training import TeacherConfig, train_teacher
from dfkd_core.training import loop
from dfkd_core.training.augmentation import AugmentationConfig, augment

pytestmark = pytest.mark.gpu

MOVED = AugmentationConfig(shift=0.0625, scale=0.1, rotation_degrees=10)


@pytest.fixture(scope="module")
def digits():
    return load_dataset(DataConfig(dataset="digits"), "train")


@pytest.fixture(scope="module")
def make_teacher(digits):
    trained = {}

    def make(network="lenet5_bn", device="cuda"):
        if network not in trained:
            config = TeacherConfig(network=network, epochs=15, augmentation=MOVED)
            trained[network] = train_teacher(config, digits, seed=0, device=resolve_device("cuda")).classifier
        return Teacher(copy.deepcopy(trained[network]), device=device)

    return make


def soft_targets(teacher, n):
    wanted = torch.arange(n) % teacher.card.num_classes
    return 0.8 * nn.functional.one_hot(wanted, teacher.card.num_classes).float() + 0.02


REFINEMENTS = [
    {},
    {"prior": "mixed", "smoothing_px": 1.0, "toned_share": 0.5, "learning_rate": 0.03},
    {"prior": "fourier", "learning_rate": 0.1},
    {"activation_weight": 0.05},
]


@pytest.mark.parametrize("changes", REFINEMENTS)
@pytest.mark.parametrize("network", ["lenet5", "resnet18_eighth"])
def test_a_recorded_refinement_gives_the_bytes_of_one_that_is_not(network, changes, make_teacher, monkeypatch):
    teacher = make_teacher(network)
    config = RefinementConfig(iterations=12, temperature=4.0, **changes)

    def run():
        return refine(teacher, soft_targets(teacher, 50), image_indices=range(50), seed=3, config=config)

    recorded = run()
    assert torch.equal(recorded, run())
    monkeypatch.setattr(descent, "recorded_on_gpu", lambda work, device: work)
    assert torch.equal(recorded, run())
    start = dataclasses.replace(config, iterations=0)
    starts = refine(teacher, soft_targets(teacher, 50), image_indices=range(50), seed=3, config=start)
    wanted = soft_targets(teacher, 50)
    logits = [teacher(images.cuda()).cpu() for images in (starts, recorded)]
    losses = [-(wanted * (each / 4).log_softmax(1)).sum(1).mean() for each in logits]
    assert losses[1] < losses[0]


class Looking(nn.Module):
    """A network whose forward pass waits for the GPU, which no recording can hold."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        assert images.abs().max().item() < 100
        return self.network(images)


def test_a_network_that_cannot_be_recorded_is_run_each_time(make_teacher):
    plain = make_teacher("lenet5")
    card = dataclasses.replace(plain.card, layer="network.fc1")
    looking = Teacher(Classifier(Looking(plain.classifier.network), card), device="cuda")
    config = RefinementConfig(iterations=12, temperature=4.0)
    images = [
        refine(teacher, soft_targets(plain, 20), image_indices=range(20), seed=0, config=config)
        for teacher in (plain, looking)
    ]
    assert torch.equal(*images)


def test_a_loss_that_is_not_finite_is_named(make_teacher):
    teacher = make_teacher("lenet5")
    targets = soft_targets(teacher, 20)
    targets[7] = float("nan")
    with pytest.raises(SynthesisError, match="kl of 1 images \\(7\\)"):
        refine(teacher, targets, image_indices=range(20), seed=0, config=RefinementConfig(iterations=12))


# Of plain noise a teacher may say one class alone, which the guard refuses.
@pytest.mark.parametrize("method", sorted(set(method_names()) - {"noise", "noise_engineered"}))
def test_a_shard_has_the_same_bytes_each_time_and_its_labels_are_a_cpus(method, make_teacher):
    teacher, on_cpu = make_teacher(), make_teacher(device="cpu")
    config = SynthesisConfig(method=method, num_images=400, images_per_shard=200, batch_size=50)
    statistics = estimate_statistics(teacher, StatisticsConfig(), seed=0)
    shards = [
        synthesize_shard(build_synthesizer(config, teacher, statistics), teacher, shard_index=1, config=config, seed=0)
        for _ in range(2)
    ]
    for name in ("images", "teacher_logits", "soft_targets"):
        assert torch.equal(*(getattr(shard, name) for shard in shards))
    expected = on_cpu((shards[0].images / 255).contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(shards[0].teacher_logits, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", ["noise", "noise_engineered"])
def test_noise_has_the_same_bytes_each_time(method, make_teacher):
    teacher = make_teacher()
    config = SynthesisConfig(method=method, num_images=200)
    statistics = estimate_statistics(teacher, StatisticsConfig(), seed=0)
    made = [build_synthesizer(config, teacher, statistics).synthesize(range(50), seed=0) for _ in range(2)]
    assert torch.equal(made[0].images, made[1].images)
    assert torch.equal(made[0].soft_targets, made[1].soft_targets)


def test_a_gpu_makes_a_whole_shard_at_once(make_teacher):
    teacher, seen = make_teacher("lenet5"), []

    class Noting(Synthesizer):
        temperature = 1.0

        def synthesize(self, image_indices, **options):
            seen.append(len(image_indices))
            return inner.synthesize(image_indices, **options)

    config = SynthesisConfig(num_images=200, images_per_shard=200, batch_size=50)
    inner = build_synthesizer(config, teacher, estimate_statistics(teacher, StatisticsConfig(), seed=0))
    synthesize_shard(Noting(), teacher, shard_index=0, config=config, seed=0)
    assert seen == [200]


@pytest.mark.parametrize("source", ["weights", "batchnorm", "probes"])
def test_statistics_are_a_cpus(source, make_teacher):
    config = StatisticsConfig(source=source)
    found = [estimate_statistics(make_teacher(device=device), config, seed=0) for device in ("cuda", "cpu")]
    torch.testing.assert_close(found[0].mean, found[1].mean, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found[0].covariance, found[1].covariance, rtol=1e-2, atol=1e-2)


@pytest.fixture(scope="module")
def transfer_set(make_teacher):
    teacher = make_teacher()
    statistics = estimate_statistics(teacher, StatisticsConfig(), seed=0)
    return make_transfer_set(teacher, statistics, SynthesisConfig(num_images=2000, images_per_shard=1000), seed=0)


DISTILLATIONS = [
    {"start": "pruned"},
    {"start": "random"},
    {"start": "random", "augmentation": MOVED, "mixing": "cutmix"},
    {"start": "random", "feature_weight": 0.0, "augmentation": AugmentationConfig()},
    {"start": "random", "disagreement": DisagreementConfig(share=0.25)},
]


@pytest.mark.parametrize("changes", DISTILLATIONS)
def test_distillation_learns_and_goes_on_from_its_checkpoint(changes, make_teacher, transfer_set, tmp_path, digits):
    teacher, images, logits = make_teacher(), transfer_set.images, transfer_set.teacher_logits
    config = DistillationConfig(**{"student": "lenet5_half_bn", "epochs": 8, "batch_size": 64} | changes)
    path = tmp_path / "checkpoint.safetensors"
    device = torch.device("cuda")

    def run(**options):
        return distill_images(
            teacher,
            images,
            logits,
            config,
            seed=0,
            compute=Compute(device=device, prefetch=options.pop("prefetch", 0)),
            **options,
        )

    class Stopped(Exception):
        pass

    def stop(progress):
        if progress.done == 4:
            raise Stopped

    with pytest.raises(Stopped):
        run(checkpoint=path, prefetch=2, on_progress=stop)
    resumed, whole = run(checkpoint=path, prefetch=2), run()
    assert next(resumed.student.parameters()).device.type == "cpu"
    assert len(resumed.history) == len(whole.history) == 8
    agreements = [evaluate(result.student, teacher, data=digits).agreement for result in (resumed, whole)]
    assert abs(agreements[0] - agreements[1]) < 0.05
    assert min(agreements) > (0.9 if config.start == "pruned" else 0.5)


@pytest.mark.parametrize("changes", DISTILLATIONS)
def test_a_recorded_distillation_gives_the_bytes_of_one_that_is_not(changes, make_teacher, transfer_set, monkeypatch):
    # 2,000 images in batches of 300 are of two sizes, so there are two recordings.
    config = DistillationConfig(**{"student": "lenet5_half_bn", "epochs": 3, "batch_size": 300} | changes)
    images, logits = transfer_set.images, transfer_set.teacher_logits

    def run():
        student = distill_images(make_teacher(), images, logits, config, seed=0, compute=Compute(device="cuda")).student
        return torch.cat([value.detach().flatten().float() for value in student.state_dict().values()])

    recorded, again = run(), run()
    monkeypatch.setattr(loop, "recorded_on_gpu", lambda work, device: work)
    assert torch.equal(recorded, again)
    assert torch.equal(recorded, run())


def test_a_step_that_draws_on_the_cpu_is_run_each_time():
    seen = []
    total = torch.zeros((), device="cuda")

    def work():
        seen.append(random.random())
        total.add_(seen[-1])

    repeat = recorded_on_gpu(work, torch.device("cuda"))
    for _ in range(5):
        repeat()
    assert len(set(seen)) == 5
    assert total.item() == pytest.approx(sum(seen))


@pytest.mark.parametrize("config", [AugmentationConfig(shift=0.1), AugmentationConfig(shift=0.0625, flip=True), MOVED])
@pytest.mark.parametrize("num_images", [5, 64, 100])
def test_images_move_as_on_a_cpu(config, num_images):
    images = torch.rand(num_images, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    moved = [augment(images.to(device), config, torch.Generator().manual_seed(1)).cpu() for device in ("cuda", "cpu")]
    torch.testing.assert_close(*moved, rtol=0, atol=1e-4 if config is MOVED else 0)


def test_evaluation_and_proxy_are_a_cpus(make_teacher, transfer_set, digits):
    on_gpu, on_cpu = make_teacher(), make_teacher(device="cpu")
    config = DistillationConfig(student="lenet5_half_bn", epochs=2, batch_size=64)
    images, logits = transfer_set.images, transfer_set.teacher_logits
    student = distill_images(on_gpu, images, logits, config, seed=0, compute=Compute(device="cuda")).student
    reports = [evaluate(student, teacher, data=digits) for teacher in (on_gpu, on_cpu)]
    assert abs(reports[0].student.scores.accuracy - reports[1].student.scores.accuracy) < 0.002
    assert abs(reports[0].kl - reports[1].kl) < 1e-3
    scores = [proxy_score(teacher, student, num_images=1000) for teacher in (on_gpu, on_cpu)]
    assert abs(scores[0] - scores[1]) < 0.005
    assert measure_latency(student, num_runs=5, device="cuda")["batch_1_ms"] > 0
