"""The page of a small project with real files: its figures are those of metrics.json and of `dfkd show`."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from dfkd_core.data.datasets import LabelledImages
from dfkd_core.errors import DfkdError
from dfkd_core.evaluation.comparison import evaluate
from dfkd_core.evaluation.disagreements import Disagreements, find_disagreements, write_disagreements
from dfkd_core.evaluation.predictions import read_predictions, write_predictions
from dfkd_core.models.classifier import ModelCard, build_classifier
from dfkd_core.models.storage import save_model
from dfkd_core.models.teacher import Teacher
from dfkd_core.training.loop import EpochRecord
from dfkd_core.transfer_set.manifest import write_manifest
from dfkd_core.transfer_set.shards import Shard, write_shard
from dfkd_core.transfer_set.summary import SetSummary, write_summary
from dfkd_flows.cli import app
from dfkd_flows.report.collecting import collect
from dfkd_flows.report.making import make_project_page, report_run
from dfkd_flows.run.figures import student_figures
from dfkd_flows.run.outcome import Made
from dfkd_flows.run.table import table_rows
from dfkd_flows.settings.overrides import changes_between, write_params
from dfkd_flows.settings.params import Params
from dfkd_flows.settings.parsing import load_params, parse_params
from dfkd_tasks.caching.workspace import PROJECT_REPORT, StudentFiles, TeacherFiles
from dfkd_tasks.records.history import write_history, write_start

SHARED, OWN = TeacherFiles("default"), StudentFiles("default")
CARD = ModelCard(
    network="lenet5", in_channels=1, image_size=32, num_classes=3, mean=(0.3,), std=(0.3,), layer="fc1",
    class_names=("<script>", "b", "c"),
)  # fmt: skip


@pytest.fixture(autouse=True)
def _results(project: Path) -> None:
    """A project with the results of its student."""
    teacher, student = (build_classifier(CARD, seed=seed).eval() for seed in (0, 1))
    for folder, model in ((SHARED.network, teacher), (OWN.network, student)):
        save_model(folder, model)
    write_start(OWN.network, "random", ["no thinner copy"])
    draws = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (40, 1, 32, 32), generator=draws, dtype=torch.uint8)
    _write_set(pixels, Teacher(teacher))
    labels = torch.arange(40) % 3
    found = evaluate(student, Teacher(teacher), data=LabelledImages(pixels, labels, CARD.class_names or ()))
    write_predictions(OWN.predictions, found.predictions)
    write_disagreements(OWN.disagreements, find_disagreements(found.predictions, pixels))
    write_history(OWN.reports / "epochs.csv", [EpochRecord(epoch=1, loss=1.5, learning_rate=0.1, terms={"kl": 1.0})])
    OWN.metrics.parent.mkdir()
    metrics = {**found.to_metrics(), "num_images": found.num_images, "notes": ["no thinner copy"]}
    OWN.metrics.write_text(json.dumps(metrics))


def _write_set(pixels: torch.Tensor, teacher: Teacher) -> None:
    SHARED.transfer_set.mkdir(parents=True)
    logits = teacher.label(pixels.float() / 255)
    shard = Shard(
        images=pixels, teacher_logits=logits, soft_targets=logits.softmax(1), image_index=torch.arange(len(pixels))
    )
    record = write_shard(SHARED.transfer_set / "shard-00000.safetensors", shard)
    write_manifest(
        SHARED.transfer_set, method="noise", method_config={}, temperature=1.0, teacher_digest="a1",
        statistics_digest=None, code_version="", seed=0, shards=[record],
    )  # fmt: skip


def student() -> Params:
    return load_params().for_student("default")


def rows_of(page: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the name and the cells of each row of the figures."""
    for row in re.findall(r"<tr><th scope=\"row\">(.*?)</tr>", page, re.DOTALL):
        name, *cells = re.split(r"</?t[hd][^>]*>", row)
        yield name.partition("<small>")[0], [cell for cell in cells if cell]


def test_report__has_the_figures_of_metrics_json_to_the_digit_and_the_texts_of_dfkd_show() -> None:
    result = CliRunner().invoke(app, ["report"])
    assert result.output.split() == [str(OWN.report), str(PROJECT_REPORT)]
    page = PROJECT_REPORT.read_text()
    assert page == OWN.report.read_text()
    assert "<script" not in page
    assert "Facts about the transfer set are missing" in page
    figures, shown = student_figures(student()), {name: cells for name, *cells in table_rows(student())}
    rows = dict(rows_of(page))
    names = {"accuracy": "accuracy", "calibration error": "ece", "size": "size_bytes", "parameters": "num_parameters"}
    for name, figure in names.items():
        for model, cell, text in zip(("teacher", "student"), rows[name], shown[name]):
            assert f'<data value="{figures[f"{model}.{figure}"]}">{text}</data>' in cell
    assert f'<data value="{figures["student.agreement"]}">{shown["agreement"][1]}</data>' in rows["agreement"][1]
    # lenet5 on one channel of 32 pixels, with three classes.
    assert '<data value="415932">415,932</data>' in rows["operations"][0]


def test_report__warns_and_states_what_is_not_known() -> None:
    found = collect(student())
    assert found.verdict.title == "not decided"
    assert "with: dfkd publish" in found.verdict.sentences[0]
    assert "The student did not start or train as set: no thinner copy" in found.warnings
    assert "Only 40 images were evaluated, so the intervals are wide." in found.warnings


def test_report__of_several_runs_is_side_by_side() -> None:
    students = {name: {"teacher": "default"} for name in ("default", "small", "later")}
    write_params(changes_between(load_params(), parse_params({"students": students}, source="test")))
    StudentFiles("small").metrics.write_text(OWN.metrics.read_text().replace('"accuracy": 0.', '"accuracy": 0.0'))
    result = CliRunner().invoke(app, ["report", "default", "small"])
    assert result.output.split() == ["reports/comparison.html"]
    names = [name for name, _ in rows_of(Path("reports/comparison.html").read_text())]
    assert names == ["default", "small"]
    OWN.report.write_text("its page")
    assert make_project_page(load_params()) == PROJECT_REPORT
    assert '<a href="students/default/report.html">default</a>' in PROJECT_REPORT.read_text()


@pytest.mark.parametrize("runs", [["smal"], ["default", "../../x"]])
def test_report__of_an_unknown_run_is_a_sentence(runs: list[str]) -> None:
    result = CliRunner().invoke(app, ["report", *runs])
    assert result.exit_code == 2
    assert "No student and no run in MLflow is named" in result.output
    assert not PROJECT_REPORT.exists()


def test_report__without_results_names_the_next_command() -> None:
    OWN.metrics.unlink()
    result = CliRunner().invoke(app, ["report"])
    assert result.exit_code == 1
    assert "dfkd run" in result.output


@pytest.mark.parametrize("name", ["predictions.safetensors", "disagreements.safetensors", "epochs.csv"])
def test_damaged_fact__is_reported_and_fails_no_run(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (OWN.reports / name).write_bytes(b'"')
    report_run(Made(load_params(), {}))
    printed = capsys.readouterr().out
    assert name in printed
    assert "Make it again with: dfkd report" in printed
    assert not OWN.report.exists()


def _with_predictions(**changes: object) -> None:
    write_predictions(OWN.predictions, dataclasses.replace(read_predictions(OWN.predictions), **changes))  # type: ignore[arg-type]


def _write_facts(classes: int, shape: tuple[int, ...]) -> None:
    """Write facts about a transfer set of so many classes."""
    none = torch.zeros(0, dtype=torch.int64)
    counts = torch.ones(classes, dtype=torch.int64)
    write_summary(
        SHARED.summary,
        SetSummary(
            class_counts=counts, target_counts=counts, confidence_counts=torch.ones(20, dtype=torch.int64),
            sample_images=torch.zeros(1, *shape, dtype=torch.uint8), sample_index=torch.zeros(1, dtype=torch.int64),
            sample_targets=torch.ones(1, classes), sample_logits=torch.ones(1, classes),
            sample_is_refined=torch.zeros(1, dtype=torch.bool), num_duplicates=0, num_compared=1,
            pair_images=torch.zeros(0, 2, *shape, dtype=torch.uint8), pair_index=none.view(0, 2),
            pair_distance=torch.zeros(0), drawn_axes=torch.zeros(0, 2), image_axes=torch.zeros(0, 2),
        ),
    )  # fmt: skip


def _write_disagreements(place: int, shape: tuple[int, ...]) -> None:
    write_disagreements(
        OWN.disagreements, Disagreements(torch.zeros(1, *shape, dtype=torch.uint8), torch.tensor([place]))
    )


def _change_metrics(change: Callable[[dict[str, Any]], object]) -> None:
    found = json.loads(OWN.metrics.read_text())
    change(found)
    OWN.metrics.write_text(json.dumps(found))


def _make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


_SHAPE = (1, 32, 32)
_NOT_OF_THESE: dict[str, tuple[Callable[[], object], str]] = {
    "class of a student": (lambda: _with_predictions(student=(3,) * 40), "predictions.safetensors is not of these"),
    "class of a teacher": (lambda: _with_predictions(teacher=(-1,) * 40), "it has the class -1, and there are 3"),
    "label": (lambda: _with_predictions(labels=(99,) * 40), "it has the class 99"),
    "place of an image": (lambda: _write_disagreements(40, _SHAPE), "it has the image 40, and 40 were evaluated"),
    "place before all": (
        lambda: _write_disagreements(-41, _SHAPE),
        "disagreements.safetensors is not of these",
    ),
    "images without channels": (lambda: _write_disagreements(0, (0, 32, 32)), "its images have the shape (0, 32, 32)"),
    "images without rows": (lambda: _write_disagreements(0, (1, 0, 32)), "its images have the shape (1, 0, 32)"),
    "no file": (lambda: _make_folder(OWN.disagreements), "is not a regular file"),
    "classes of the set": (lambda: _write_facts(2, _SHAPE), "it has 2 classes, and the teacher has 3"),
    "samples": (lambda: _write_facts(3, (1, 32, 0)), "transfer_set.safetensors is not of these results"),
    "epochs": (lambda: (OWN.reports / "epochs.csv").write_text("epoch,loss\nnan,1\n"), "epochs are not whole numbers"),
    "share": (lambda: _change_metrics(lambda found: found["student"].update(accuracy=7)), "share student.accuracy"),
    "notes": (lambda: _change_metrics(lambda found: found.update(notes=5)), "list of texts notes"),
}


@pytest.mark.parametrize("fault", _NOT_OF_THESE)
def test_file_that_does_not_belong_to_the_results__is_named(fault: str) -> None:
    change, message = _NOT_OF_THESE[fault]
    change()
    with pytest.raises(DfkdError, match=re.escape(message)) as found:
        collect(student())
    assert "dfkd run" in str(found.value)


def test_facts__without_real_images() -> None:
    models = [build_classifier(CARD, seed=seed).eval() for seed in (0, 1)]
    found = evaluate(models[1], Teacher(models[0]), held_out=torch.zeros(9, 1, 32, 32, dtype=torch.uint8))
    write_predictions(OWN.predictions, found.predictions)
    OWN.disagreements.unlink()
    OWN.metrics.write_text(json.dumps({**found.to_metrics(), "num_images": 9}))
    facts = collect(student())
    rows = {row.name: row for row in facts.rows}
    assert facts.is_proxy
    assert "accuracy" not in rows
    assert rows["agreement (proxy)"].student.value == found.agreement
    assert "No real images were given. On 9 synthetic images" in " ".join(facts.verdict.sentences)
    assert any("The teacher gives 100.00% of the evaluated images one class" in text for text in facts.warnings)


def test_facts__of_results_of_an_earlier_version() -> None:
    for path in (OWN.disagreements, OWN.reports / "epochs.csv"):
        path.unlink()
    found: Any = collect(student())
    assert found.disagreements is found.transfer_set is None
    assert found.histories["student"].epochs == ()
