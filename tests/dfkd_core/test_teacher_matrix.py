"""Teachers of every build, taken the whole way: inspection, statistics, synthesis, distillation, evaluation, export."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional

from dfkd_core.compression import make_student
from dfkd_core.data.datasets import DataConfig, LabelledImages, load_dataset
from dfkd_core.distillation.config import DistillationConfig
from dfkd_core.distillation.run import distill_images
from dfkd_core.distillation.students import check_student
from dfkd_core.evaluation.comparison import evaluate
from dfkd_core.export.report import ExportFormat
from dfkd_core.export.run import export_model, probe_images
from dfkd_core.inspection import inspect_teacher
from dfkd_core.models.architectures import build_architecture
from dfkd_core.models.classifier import Classifier
from dfkd_core.models.layers import OUTPUT
from dfkd_core.models.storage import load_model, model_digest, save_model
from dfkd_core.models.teacher import Teacher
from dfkd_core.statistics.estimation import StatisticsConfig, estimate_statistics
from dfkd_core.synthesis.methods import MethodSettings, SynthesisConfig, build_synthesizer
from dfkd_core.synthesis.refinement import RefinementConfig
from dfkd_core.synthesis.shards import synthesize_shard
from dfkd_core.synthesis.soft_target import SoftTargetConfig
from dfkd_core.teachers.loading import bring_module, bring_teacher
from dfkd_core.teachers.source import SourceConfig
from dfkd_core.teachers.training import TeacherConfig, train_teacher
from dfkd_core.training.augmentation import AugmentationConfig
from dfkd_core.transfer_set.shards import Shard

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
ITERATIONS = 3
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture(autouse=True)
def zoo(monkeypatch):
    """Make the fixtures importable, as a user's own package is."""
    monkeypatch.syspath_prepend(str(FIXTURES))
    torch.manual_seed(0)


Source = Callable[[Path], dict[str, Any]]


def built(name: str, *, shape: tuple[int, int, int], num_classes: int = 10, **arguments: Any) -> nn.Module:
    return build_architecture(
        name, in_channels=shape[0], image_size=shape[1], num_classes=num_classes, arguments=arguments
    ).eval()


def own_weights(name: str, *, shape: tuple[int, int, int], num_classes: int = 10, **arguments: Any) -> Source:
    """Random weights of this network, saved as a user saves trained ones."""

    def make(folder: Path) -> dict[str, Any]:
        network = built(name, shape=shape, num_classes=num_classes, **arguments)
        torch.save({"state_dict": network.state_dict(), "epoch": 3}, folder / "weights.pth")
        return {"model": name, "weights": str(folder / "weights.pth"), "arguments": arguments}

    return make


def program(how: str, file: str) -> Source:
    def make(folder: Path) -> dict[str, Any]:
        network, images = built("teachers_zoo:Plain", shape=(1, 16, 16)), torch.rand(4, 1, 16, 16)
        path = folder / file
        free = ({0: torch.export.Dim("batch")},)
        if how == "torchscript":
            torch.jit.script(network).save(path)
        elif how == "onnx":
            torch.onnx.export(network, (images,), path, dynamo=True, dynamic_shapes=free, verbose=False)
        else:
            dynamic = None if how == "pt2 of 4 images" else free
            torch.export.save(torch.export.export(network, (images,), dynamic_shapes=dynamic), path)
        return {"model": str(path)}

    return make


@dataclass(frozen=True, kw_only=True)
class Case:
    """A teacher, what must be found out about it, and a student."""

    source: Source
    shape: tuple[int, int, int]
    layer: str
    num_features: int
    student: str
    start: str = "random"
    num_classes: int = 10
    outputs: str = "logits"
    normalisation: str = ""
    student_arguments: Mapping[str, Any] = field(default_factory=dict)
    formats: tuple[ExportFormat, ...] = ("pt2",)
    settings: Mapping[str, Any] = field(default_factory=dict)


GREY_8, GREY_16, GREY_32, COLOUR_32, COLOUR_64 = (1, 8, 8), (1, 16, 16), (1, 32, 32), (3, 32, 32), (3, 64, 64)
SMALL_NET: dict[str, Any] = {"student": "digits_net:DigitsNet", "student_arguments": {"width": 4}}
SMALL_PLAIN: dict[str, Any] = {"student": "teachers_zoo:Plain", "student_arguments": {"width": 4}}

FAST = {
    "CNN without normalisation": Case(
        source=own_weights("teachers_zoo:Plain", shape=GREY_16),
        shape=GREY_16, layer="fc:input", num_features=64, **SMALL_PLAIN, start="pruned", formats=("pt2", "onnx"),
    ),
    "CNN with BatchNorm and a head of two layers": Case(
        source=own_weights("digits_net:DigitsNet", shape=GREY_8, width=8),
        shape=GREY_8, layer="fc2:input", num_features=64, **SMALL_NET, start="pruned", normalisation="BatchNorm2d",
    ),
    "GroupNorm, probabilities in a tuple": Case(
        source=own_weights("teachers_zoo:GroupNormed", shape=GREY_16),
        shape=GREY_16, layer="fc:input", num_features=8, **SMALL_PLAIN, outputs="probabilities",
        normalisation="GroupNorm",
    ),
    "MLP with LayerNorm, log-probabilities in a mapping": Case(
        source=own_weights("teachers_zoo:LayerNormed", shape=GREY_8),
        shape=GREY_8, layer="head:input", num_features=32, student="teachers_zoo:Transformer",
        outputs="log_probabilities", normalisation="LayerNorm",
    ),
    "transformer": Case(
        source=own_weights("teachers_zoo:Transformer", shape=GREY_8),
        shape=GREY_8, layer="head:input", num_features=16, **SMALL_NET, normalisation="LayerNorm",
        formats=("pt2", "onnx"),
    ),
    "one sigmoid for two classes": Case(
        source=own_weights("teachers_zoo:Binary", shape=(3, 16, 16)),
        shape=(3, 16, 16), layer="fc:input", num_features=8, num_classes=2, outputs="binary_probability",
        student="resnet18_eighth",
    ),
    "1,000 classes": Case(
        source=own_weights("teachers_zoo:Plain", shape=GREY_8, num_classes=1000),
        shape=GREY_8, layer="fc:input", num_features=64, num_classes=1000, **SMALL_PLAIN, start="pruned",
    ),
    "three layers with dropout as head": Case(
        source=own_weights("teachers_zoo:ManyLayeredHead", shape=COLOUR_64),
        shape=COLOUR_64, layer="classifier.6:input", num_features=64, student="teachers_zoo:ManyLayeredHead",
        student_arguments={"width": 8}, start="pruned",
    ),
    "mean, deviation and range of 0 to 255": Case(
        source=own_weights("teachers_zoo:Plain", shape=GREY_16),
        settings={"mean": (127.5,), "std": (51.0,), "value_range": (0.0, 255.0)},
        shape=GREY_16, layer="fc:input", num_features=64, **SMALL_PLAIN, start="pruned",
    ),
    "pt2": Case(source=program("pt2", "net.pt2"), shape=GREY_16, layer="fc:input", num_features=64, **SMALL_PLAIN),
    "pt2 that takes 4 images": Case(
        source=program("pt2 of 4 images", "net.pt2"), shape=GREY_16, layer=OUTPUT, num_features=10, **SMALL_PLAIN
    ),
    "TorchScript": Case(
        source=program("torchscript", "net.pt"), shape=GREY_16, layer=OUTPUT, num_features=10, **SMALL_PLAIN
    ),
    "ONNX": Case(
        source=program("onnx", "net.onnx"), shape=GREY_16, layer="node_linear:input", num_features=64, **SMALL_PLAIN
    ),
    "built in": Case(
        source=own_weights("lenet5", shape=GREY_32),
        shape=GREY_32, layer="fc1", num_features=84, student="lenet5@0.5", start="pruned",
    ),
}  # fmt: skip

SLOW = {
    "timm ViT": Case(
        source=own_weights("timm:test_vit", shape=COLOUR_64),
        shape=COLOUR_64, layer="head:input", num_features=64, student="resnet18_eighth", normalisation="LayerNorm",
    ),
    "timm ResNet": Case(
        source=own_weights("timm:test_resnet", shape=COLOUR_64),
        shape=COLOUR_64, layer="fc:input", num_features=96, student="teachers_zoo:ManyLayeredHead",
        normalisation="BatchNormAct2d", formats=("pt2", "onnx"),
    ),
    "timm ConvNeXt": Case(
        source=own_weights("timm:test_convnext", shape=COLOUR_64),
        shape=COLOUR_64, layer="head.fc:input", num_features=64, student="timm:test_resnet", normalisation="LayerNorm",
    ),
    "timm network without normalisation layers": Case(
        source=own_weights("timm:test_nfnet", shape=COLOUR_64),
        shape=COLOUR_64, layer="head.fc:input", num_features=192, student="timm:test_vit",
    ),
    "torchvision ResNet of one channel": Case(
        source=own_weights("torchvision:resnet18", shape=GREY_32),
        shape=GREY_32, layer="fc:input", num_features=512, student="timm:test_resnet", normalisation="BatchNorm2d",
    ),
    "torchvision MobileNet": Case(
        source=own_weights("torchvision:mobilenet_v3_small", shape=COLOUR_64),
        shape=COLOUR_64, layer="classifier.3:input", num_features=1024, student="timm:test_vit",
        normalisation="BatchNorm2d",
    ),
    "torchvision SqueezeNet, which has no linear layer": Case(
        source=own_weights("torchvision:squeezenet1_1", shape=COLOUR_64),
        shape=COLOUR_64, layer=OUTPUT, num_features=10, student="resnet18_eighth",
    ),
    "built-in ResNet": Case(
        source=own_weights("resnet18_quarter", shape=COLOUR_32),
        shape=COLOUR_32, layer="pool", num_features=128, student="resnet18@0.125", start="pruned",
        normalisation="BatchNorm2d",
    ),
}  # fmt: skip


def synthesis_of(num_images: int, *, iterations: int = ITERATIONS) -> SynthesisConfig:
    moved = RefinementConfig(prior="mixed", iterations=iterations, learning_rate=0.03, refined_share=1.0)
    methods = MethodSettings(soft_target=SoftTargetConfig(refinement=moved))
    return SynthesisConfig(num_images=num_images, images_per_shard=num_images, batch_size=100, methods=methods)


def mean_distance(shard: Shard) -> float:
    """Mean KL(target || teacher's answer) at the temperature of the targets."""
    said = (shard.teacher_logits.double() / 20).log_softmax(1)
    return functional.kl_div(said, shard.soft_targets.double(), reduction="batchmean").item()


def num_hooks(network: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules())


def check_inspection(case: Case, teacher: Teacher, synthesis: SynthesisConfig) -> None:
    # Its time is measured on a batch.
    found = inspect_teacher(teacher, StatisticsConfig(), dataclasses.replace(synthesis, batch_size=16), seed=0)
    assert found.num_features == case.num_features
    assert bool(case.normalisation) == bool(found.normalisations) or teacher.card.program_sha256
    assert found.normalisations.get(case.normalisation, 1) > 0
    usable = {name for name, fit in found.statistics.items() if not fit.reason}
    assert {"weights", "probes"} <= usable
    assert {"soft_target", "noise", "boundary"} <= {name for name, fit in found.methods.items() if not fit.reason}
    assert found.seconds_per_1000_images is not None
    assert 0 < found.seconds_per_1000_images < math.inf


def check_shard(shard: Shard, unmoved: Shard, teacher: Teacher, num_images: int) -> None:
    assert shard.images.dtype == torch.uint8
    assert tuple(shard.images.shape) == (num_images, *teacher.card.image_shape)
    torch.testing.assert_close(shard.soft_targets.sum(1), torch.ones(num_images))
    with torch.no_grad():
        answers = teacher(shard.images[:20].float() / 255)
    torch.testing.assert_close(shard.teacher_logits[:20], answers, rtol=1e-3, atol=1e-4)
    assert mean_distance(shard) < mean_distance(unmoved)


def check_export(student: Classifier, folder: Path, formats: tuple[ExportFormat, ...]) -> None:
    images = probe_images(student.card.image_shape)
    report = export_model(student, folder, formats=formats, images=images)
    assert [form.format for form in report.forms] == list(formats)
    assert all(form.fidelity.agreement > 0.99 for form in report.forms)
    batch = images[:3].float() / 255
    # Without a class of this package.
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        exported = torch.export.load(folder / "model.pt2").module()(student.normalise(batch))
    torch.testing.assert_close(exported, student(batch), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "case",
    [
        *(pytest.param(case, id=name) for name, case in FAST.items()),
        *(pytest.param(case, id=name, marks=pytest.mark.slow) for name, case in SLOW.items()),
    ],
)
def test_a_teacher_goes_the_whole_way(case: Case, tmp_path: Path) -> None:
    source = SourceConfig(**case.source(tmp_path), **case.settings)
    brought = bring_teacher(source, scratch=tmp_path, image_size_hint=case.shape[1])
    card = brought.classifier.card
    assert (card.image_shape, card.num_classes, card.outputs, card.layer) == (
        case.shape, case.num_classes, case.outputs, case.layer,
    )  # fmt: skip
    save_model(tmp_path / "teacher", brought.classifier)
    teacher = Teacher(load_model(tmp_path / "teacher", trusted_factories=[card.network]))
    before = model_digest(teacher.classifier)

    num_images = max(60, case.num_classes)
    synthesis = synthesis_of(num_images)
    check_inspection(case, teacher, synthesis)

    statistics = estimate_statistics(teacher, StatisticsConfig(), seed=0)
    assert len(statistics.mean) == case.num_features

    shards = []
    for config in (synthesis, synthesis_of(num_images, iterations=0)):
        synthesizer = build_synthesizer(config, teacher, statistics)
        shards.append(synthesize_shard(synthesizer, teacher, shard_index=0, config=config, seed=0))
    shard = shards[0]
    check_shard(shard, shards[1], teacher, num_images)

    training = DistillationConfig(
        student=case.student, student_arguments=case.student_arguments, epochs=2, batch_size=32, learning_rate=2e-3
    )
    check_student(card, training)
    made = distill_images(teacher, shard.images, shard.teacher_logits, training, seed=0)
    assert made.start == case.start
    assert [record.epoch for record in made.history] == [1, 2]
    assert all(math.isfinite(record.loss) for record in made.history)
    student = made.student
    assert (student.card.image_shape, student.card.num_classes) == (case.shape, case.num_classes)
    assert student.card.outputs == "logits"

    report = evaluate(student, teacher, held_out=probe_images(case.shape)[:50])
    assert report.proxy
    assert 0 <= report.agreement <= 1
    assert 0 <= report.kl < math.inf
    assert sum(map(sum, report.answers)) == report.num_images == 50
    itself = evaluate(teacher.classifier, teacher, held_out=shard.images[:20])
    assert itself.agreement == 1

    check_export(student, tmp_path / "exported", case.formats)
    assert model_digest(teacher.classifier) == before
    assert num_hooks(teacher.classifier) == 0


def digits() -> tuple[LabelledImages, LabelledImages]:
    """The split that tests/fixtures/train_digits.py makes."""
    bunch = load_digits()
    images = torch.tensor(bunch.images).mul(255 / 16).round().byte().unsqueeze(1)
    labels = torch.tensor(bunch.target).long()
    parts = train_test_split(images, labels, test_size=397, random_state=0, stratify=labels)
    return LabelledImages(parts[0], parts[2], ()), LabelledImages(parts[1], parts[3], ())


def trained_elsewhere(folder: Path) -> Teacher:
    """A checkpoint of a script that knows nothing of this package, brought by its path."""
    script = FIXTURES / "train_digits.py"
    subprocess.run([sys.executable, script, folder / "ckpt.pth"], check=True, capture_output=True)
    source = SourceConfig(
        model="digits_net:DigitsNet", weights=str(folder / "ckpt.pth"), mean=(0.5,), std=(0.5,), image_size=8
    )
    return Teacher(bring_teacher(source, scratch=folder).classifier)


def trained_here(network: nn.Module, *, epochs: int) -> Teacher:
    data, _ = digits()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    network.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(data)).split(64):
            optimizer.zero_grad()
            images = (data.images[batch] / 255 - 0.5) / 0.5
            functional.cross_entropy(network(images), data.labels[batch]).backward()
            optimizer.step()
    return Teacher(bring_module(network, SourceConfig(mean=(0.5,), std=(0.5,), image_size=8)).classifier)


def trained_group_norm(folder: Path) -> Teacher:
    network = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.GroupNorm(4, 32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)),
    )
    return trained_here(network, epochs=15)


def trained_transformer(folder: Path) -> Teacher:
    return trained_here(built("teachers_zoo:Transformer", shape=GREY_8, width=32), epochs=60)


def trained_built_in(folder: Path) -> Teacher:
    """LeNet-5, which takes 32 pixels."""
    data = DataConfig(dataset="digits", image_size=32)
    made = train_teacher(TeacherConfig(network="lenet5", epochs=20), load_dataset(data, "train"), seed=0)
    return Teacher(made.classifier)


def accuracy_of(student: Classifier, teacher: Teacher, test: LabelledImages) -> float:
    scores = evaluate(student, teacher, data=test).student.scores
    assert scores is not None
    return scores.accuracy


STUDENT_OF_8_PIXELS: dict[str, Any] = {"student": "digits_net:DigitsNet", "student_arguments": {"width": 12}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "student"),
    [
        pytest.param(trained_elsewhere, STUDENT_OF_8_PIXELS, id="BatchNorm CNN from a checkpoint"),
        pytest.param(trained_group_norm, STUDENT_OF_8_PIXELS, id="GroupNorm CNN"),
        pytest.param(trained_transformer, STUDENT_OF_8_PIXELS, id="transformer"),
        pytest.param(trained_built_in, {"student": "lenet5_half"}, id="built in"),
    ],
)
def test_soft_targets_teach_more_than_noise(
    make: Callable[[Path], Teacher], student: dict[str, Any], tmp_path: Path
) -> None:
    teacher = make(tmp_path)
    size = teacher.card.image_size
    test = digits()[1] if size == 8 else load_dataset(DataConfig(dataset="digits", image_size=size), "test")
    assert accuracy_of(teacher.classifier, teacher, test) > 0.9
    statistics = estimate_statistics(teacher, StatisticsConfig(), seed=0)
    training = DistillationConfig(
        **student, start="random", epochs=20, learning_rate=4e-3, augmentation=AugmentationConfig()
    )
    accuracy = {}
    for method in ("soft_target", "noise"):
        synthesis = SynthesisConfig(method=method, num_images=4000)
        made = make_student(teacher, statistics, synthesis, training, seed=0)
        accuracy[method] = accuracy_of(made, teacher, test)
    assert accuracy["soft_target"] > accuracy["noise"] + 0.2, accuracy


@pytest.mark.slow
def test_a_student_comes_near_to_one_that_was_distilled_on_the_real_images(tmp_path: Path) -> None:
    teacher = trained_elsewhere(tmp_path)
    train, test = digits()
    training = DistillationConfig(
        **STUDENT_OF_8_PIXELS,
        start="pruned",
        epochs=20,
        batch_size=256,
        temperature=1.0,
        learning_rate=8e-3,
        batch_norm_rate_factor=0.25,
        augmentation=AugmentationConfig(shift=0.0),
    )
    refined = dataclasses.replace(SoftTargetConfig().refinement, refined_share=1.0)
    synthesis = SynthesisConfig(
        num_images=15_000, methods=MethodSettings(soft_target=SoftTargetConfig(refinement=refined))
    )
    statistics = estimate_statistics(teacher, StatisticsConfig(), seed=0)
    student = make_student(teacher, statistics, synthesis, training, seed=0)

    num_steps = training.epochs * math.ceil(synthesis.num_images / training.batch_size)
    epochs = round(num_steps / math.ceil(len(train) / training.batch_size))
    with torch.no_grad():
        logits = teacher(train.images.float() / 255)
    on_real = dataclasses.replace(training, epochs=epochs)
    real = distill_images(teacher, train.images, logits, on_real, seed=0).student
    found, bound = accuracy_of(student, teacher, test), accuracy_of(real, teacher, test)
    assert bound > 0.97
    assert found / bound >= 0.95, (found, bound)
