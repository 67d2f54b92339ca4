"""Each task as a plain function, on a tiny teacher: what it writes and what it returns. No server."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dfkd_core.common.compute import CPU
from dfkd_core.data.datasets import DataConfig
from dfkd_core.distillation.config import DistillationConfig
from dfkd_core.errors import TransferSetError
from dfkd_core.evaluation.comparison import EvaluationConfig
from dfkd_core.evaluation.disagreements import read_disagreements
from dfkd_core.evaluation.predictions import read_predictions
from dfkd_core.models.classifier import ModelCard, build_classifier
from dfkd_core.models.storage import load_model, save_model
from dfkd_core.models.teacher import load_teacher
from dfkd_core.statistics.axes import read_real_axes
from dfkd_core.statistics.estimation import StatisticsConfig
from dfkd_core.statistics.features import load_statistics
from dfkd_core.synthesis.methods import MethodSettings, SynthesisConfig
from dfkd_core.synthesis.refinement import RefinementConfig
from dfkd_core.synthesis.soft_target import SoftTargetConfig
from dfkd_core.teachers.training import TeacherConfig
from dfkd_core.transfer_set.manifest import verify_transfer_set
from dfkd_core.transfer_set.summary import read_summary
from dfkd_tasks.caching.workspace import Artifact, is_intact, reference
from dfkd_tasks.records.history import read_notes, read_start
from dfkd_tasks.stages.distillation import make_student
from dfkd_tasks.stages.evaluation import make_evaluation, measure_models
from dfkd_tasks.stages.statistics import make_statistics
from dfkd_tasks.stages.synthesis import assemble_transfer_set, make_shard
from dfkd_tasks.stages.teacher import make_teacher

CARD = ModelCard(
    network="lenet5",
    in_channels=1,
    image_size=32,
    num_classes=10,
    mean=(0.3,),
    std=(0.3,),
    layer="fc1",
    class_names=tuple("0123456789"),
)
DATA = DataConfig(dataset="digits")
SYNTHESIS = SynthesisConfig(method="noise", num_images=25, images_per_shard=10, batch_size=10)


@pytest.fixture
def teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    monkeypatch.chdir(tmp_path)
    save_model(Path("teacher"), build_classifier(CARD, seed=0))
    return reference(Path("teacher"))


@pytest.fixture
def statistics(teacher: Artifact) -> Artifact:
    return make_statistics.fn(teacher, StatisticsConfig(), seed=0, folder="statistics", compute=CPU)


@pytest.fixture
def shards(teacher: Artifact, statistics: Artifact) -> list[Artifact]:
    return [make_shard.fn(index, teacher, statistics, SYNTHESIS, seed=0, folder=".", compute=CPU) for index in range(3)]


@pytest.fixture
def transfer_set(teacher: Artifact, statistics: Artifact, shards: list[Artifact]) -> Artifact:
    return assemble_transfer_set.fn(shards, teacher, statistics, SYNTHESIS, seed=0, folder="set", reports="reports")


def test_make_teacher__writes_model_and_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    Path("out/left.over").touch()
    made = make_teacher.fn(DATA, TeacherConfig(epochs=1), seed=0, folder="out", compute=CPU)
    assert load_teacher(Path("out/model")).card.num_classes == 10
    assert Path("out/epochs.csv").read_text().startswith("epoch,loss,learning_rate,cross_entropy\n1,")
    assert not Path("out/left.over").exists()
    assert is_intact(made)


def test_make_statistics__are_those_of_the_teacher(statistics: Artifact) -> None:
    assert load_statistics(Path(statistics.path)).mean.shape == (84,)
    assert is_intact(statistics)


def test_make_shard__repeats_to_the_byte(teacher: Artifact, statistics: Artifact, shards: list[Artifact]) -> None:
    again = make_shard.fn(1, teacher, statistics, SYNTHESIS, seed=0, folder=".", compute=CPU)
    assert again == shards[1]
    assert [shard.numbers["num_images"] for shard in shards] == [10, 10, 5]


def test_assemble_transfer_set__can_be_verified(teacher: Artifact, transfer_set: Artifact) -> None:
    manifest = verify_transfer_set(Path("set"), load_teacher(Path(teacher.path)).digest)
    assert manifest.num_images == 25
    assert manifest.method == "noise"
    assert Path("reports/samples.png").read_bytes().startswith(b"\x89PNG")
    assert is_intact(transfer_set)


def test_assemble_transfer_set__writes_the_facts_of_the_set(teacher: Artifact, transfer_set: Artifact) -> None:
    found = read_summary(Path("reports/transfer_set.safetensors"))
    assert found.class_counts.sum() == found.num_compared == 25
    assert len(found.sample_images) == 24
    assert not found.sample_is_refined.any()
    # The method uses no statistics.
    assert len(found.drawn_axes) == len(found.image_axes) == 0


def test_assemble_transfer_set__has_features_on_axes_if_the_method_uses_their_model(
    teacher: Artifact, statistics: Artifact
) -> None:
    refinement = RefinementConfig(prior="pixels", iterations=1, refined_share=0.5)
    methods = MethodSettings(soft_target=SoftTargetConfig(refinement=refinement))
    config = SynthesisConfig(num_images=20, images_per_shard=20, batch_size=20, methods=methods)
    settings: dict[str, Any] = {"teacher": teacher, "statistics": statistics, "config": config, "seed": 0}
    shard = make_shard.fn(0, **settings, folder=".", compute=CPU)
    for name in ("one", "two"):
        assemble_transfer_set.fn([shard], **settings, folder="set", reports=f"{name}/default")
    found = read_summary(Path("one/default/transfer_set.safetensors"))
    assert found.drawn_axes.shape == (500, 2)
    assert found.image_axes.shape == (20, 2)
    assert found.sample_is_refined.sum() == 10
    for name in ("transfer_set.safetensors", "samples.png"):
        assert Path("one/default", name).read_bytes() == Path("two/default", name).read_bytes()


def test_assemble_transfer_set__replaces_an_earlier_set_and_nothing_else(
    teacher: Artifact, statistics: Artifact, shards: list[Artifact], transfer_set: Artifact
) -> None:
    Path("set/notes.txt").write_text("mine")
    assemble_transfer_set.fn(shards[:1], teacher, statistics, SYNTHESIS, seed=0, folder="set", reports=None)
    names = sorted(path.name for path in Path("set").iterdir())
    assert names == ["manifest.json", "notes.txt", "shard-00000.safetensors"]
    assert verify_transfer_set(Path("set")).num_images == 10
    Path(shards[1].path).unlink()
    with pytest.raises(TransferSetError, match="Cannot write set"):
        assemble_transfer_set.fn(shards, teacher, statistics, SYNTHESIS, seed=0, folder="set", reports=None)
    assert verify_transfer_set(Path("set")).num_images == 10


def test_make_student__learns_from_the_set_of_its_teacher_only(teacher: Artifact, transfer_set: Artifact) -> None:
    settings: dict[str, Any] = {"seed": 0, "folder": "student", "checkpoint": "checkpoint.safetensors", "compute": CPU}
    config = DistillationConfig(epochs=1)
    made = make_student.fn(teacher, transfer_set, config, **settings)
    assert load_model(Path("student/model")).card.network == "lenet5_half"
    assert is_intact(made)
    save_model(Path("other"), build_classifier(CARD, seed=1))
    with pytest.raises(TransferSetError, match="another teacher"):
        make_student.fn(reference(Path("other")), transfer_set, config, **settings)


def test_a_student_that_is_no_copy__has_the_reason_in_its_folder_and_in_the_metrics(
    teacher: Artifact, transfer_set: Artifact
) -> None:
    config = DistillationConfig(student="resnet18@0.03", epochs=1)
    make_student.fn(teacher, transfer_set, config, seed=0, folder="student", checkpoint="c", compute=CPU)
    student = Path("student/model")
    (note,) = read_notes(student)
    assert read_start(student) == "random"
    assert "the student has no conv2" in note
    assert "distillation.start: pruned" in note
    without = DataConfig(dataset="none")
    few = EvaluationConfig(num_held_out_images=30)
    make_evaluation.fn(teacher, reference(student), without, few, folder="out", compute=CPU)
    assert json.loads(Path("out/metrics.json").read_text())["notes"] == [note]


def test_make_evaluation__writes_figures_and_tables(teacher: Artifact) -> None:
    made = make_evaluation.fn(teacher, teacher, DATA, EvaluationConfig(), folder="out", compute=CPU)
    metrics = json.loads(Path("out/metrics.json").read_text())
    assert metrics["student"]["agreement"] == 1.0
    rows = Path("out/confusion.csv").read_text().splitlines()
    assert len(rows) == 1 + metrics["num_images"]
    assert Path("out/per_class.csv").read_text().startswith("class,teacher_accuracy,student_accuracy\n0,")
    assert len(read_disagreements(Path("out/disagreements.safetensors")).index) == 0
    assert len(read_real_axes(Path("out/real_axes.safetensors"))) == 0
    assert Path("out/confusion.png").read_bytes().startswith(b"\x89PNG")
    assert make_evaluation.fn(teacher, teacher, DATA, EvaluationConfig(), folder="out", compute=CPU) == made


def test_make_evaluation__has_features_of_labelled_images_and_the_worst_disagreements(
    teacher: Artifact, statistics: Artifact
) -> None:
    save_model(Path("student"), build_classifier(CARD, seed=1))
    student = reference(Path("student"))
    settings: dict[str, Any] = {"statistics": statistics, "folder": "out", "compute": CPU}
    made = make_evaluation.fn(teacher, student, DATA, EvaluationConfig(), **settings)
    num_images = json.loads(Path("out/metrics.json").read_text())["num_images"]
    assert len(read_real_axes(Path("out/real_axes.safetensors"))) == min(500, num_images)
    predictions = read_predictions(Path("out/predictions.safetensors"))
    worst = read_disagreements(Path("out/disagreements.safetensors")).index.tolist()
    assert all(predictions.student[place] != predictions.teacher[place] for place in worst)
    assert len(worst) == 24
    assert make_evaluation.fn(teacher, student, DATA, EvaluationConfig(), **settings) == made


def test_make_evaluation__without_data_has_a_proxy_and_tables_without_rows(teacher: Artifact) -> None:
    config = EvaluationConfig(num_held_out_images=30)
    made = make_evaluation.fn(teacher, teacher, DataConfig(dataset="none"), config, folder="out", compute=CPU)
    metrics = json.loads(Path("out/metrics.json").read_text())
    assert metrics["proxy"]["agreement"] == made.numbers["agreement"] == 1.0
    assert metrics["num_images"] == 30
    assert metrics["teacher"].keys() == metrics["student"].keys() == {"num_parameters", "size_bytes"}
    assert Path("out/confusion.csv").read_text() == "actual,predicted\n"
    assert Path("out/per_class.csv").read_text() == "class,teacher_accuracy,student_accuracy\n"
    assert Path("out/confusion.png").read_bytes().startswith(b"\x89PNG")


def test_make_evaluation__labels_are_put_in_the_teachers_order_by_name_and_numbers_name_classes(
    teacher: Artifact,
) -> None:
    reversed_card = dataclasses.replace(CARD, class_names=CARD.class_names[::-1])
    for folder, card in (("reversed", reversed_card), ("nameless", dataclasses.replace(CARD, class_names=()))):
        save_model(Path(folder), build_classifier(card, seed=0))
        model = reference(Path(folder))
        make_evaluation.fn(model, model, DATA, EvaluationConfig(), folder=f"{folder}-out", compute=CPU)
    metrics, plain = (json.loads(Path(f"{folder}-out/metrics.json").read_text()) for folder in ("reversed", "nameless"))
    assert metrics["labels_ordered_by_name"] == 1
    assert "labels_ordered_by_name" not in plain
    assert Path("reversed-out/per_class.csv").read_text().splitlines()[1].startswith("9,")
    assert Path("nameless-out/per_class.csv").read_text().splitlines()[1].startswith("0,")


def test_make_evaluation__keeps_remarks_on_the_images(teacher: Artifact) -> None:
    for name in ("7", "1"):
        Path("pictures", name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(Path("pictures", name, "1.png"))
    data = DataConfig(dataset="folder:pictures")
    make_evaluation.fn(teacher, teacher, data, EvaluationConfig(), folder="out", compute=CPU)
    assert Path("out/notes.txt").read_text() == "the images have 2 of the teacher's 10 classes, by their names"


def test_measure_models__times_both(teacher: Artifact) -> None:
    measure_models.fn(teacher, teacher, num_runs=1, path="latency.json", compute=CPU)
    found = json.loads(Path("latency.json").read_text())
    assert found["student_sha256"] == teacher.sha256
    assert found["teacher"].keys() == {"batch_1_ms", "batch_64_ms"}


@pytest.fixture(autouse=True)
def _threads() -> object:
    """Give the tests after this one their threads back: a shard takes one."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
