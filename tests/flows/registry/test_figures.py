"""The champion's figures count on the same images alone; else it is evaluated again, or they are not known."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
from safetensors.torch import load_file, save_file

from dfkd_core.data.datasets import DataConfig
from dfkd_core.errors import DataError
from dfkd_core.evaluation.comparison import EvaluationReport
from dfkd_core.teachers.training import TeacherConfig
from dfkd_flows.registry.figures import champion_figures, evaluated_images, figures_again
from dfkd_flows.settings.params import Params
from dfkd_tasks.caching.workspace import StudentFiles
from dfkd_tasks.mlflow_store.aliases import Version

PARAMS = Params(data=DataConfig(dataset="digits"))

Register = Callable[..., Version]
Report = Callable[..., EvaluationReport]

PREDICTIONS = StudentFiles("default").predictions


@pytest.fixture
def challenger(evaluated_on: Report) -> EvaluationReport:
    return evaluated_on()


def test_champion_figures__of_its_own_evaluation_on_the_same_images_need_no_model(
    challenger: EvaluationReport, register: Register, report: Report
) -> None:
    own = report("champion")
    champion = register("champion", own)
    shutil.rmtree("models")
    found = champion_figures(champion, evaluated_images(PARAMS))
    assert found.score == own.student.scores.accuracy
    assert found.hits is not None
    assert sum(found.hits) / challenger.num_images == found.score
    assert (found.version, found.note, found.is_proxy) == ("1", "", False)


@pytest.mark.parametrize("name", ["champion", "colour"])
def test_champion_figures__of_other_images_are_measured_again(
    challenger: EvaluationReport, register: Register, report: Report, name: str
) -> None:
    # Its run has figures of other images, which do not count.
    champion = register(name, report("champion", "none"), **{"student.accuracy": 0.99})
    found, again = champion_figures(champion, evaluated_images(PARAMS)), report(name)
    assert found.score == pytest.approx(again.student.scores.accuracy)
    assert found.ece == pytest.approx(again.student.scores.ece, abs=1e-6)
    assert found.num_images == challenger.num_images
    assert found.note == "evaluated again on them"


def test_champion_figures__without_real_images(evaluated_on: Report, register: Register, report: Report) -> None:
    params = Params(data=DataConfig(dataset="none"), teacher=TeacherConfig(dataset="digits"))
    evaluated_on("none")
    again = report("champion", "none")
    found = champion_figures(register("champion"), evaluated_images(params))
    assert found.is_proxy
    assert found.score == found.agreement == pytest.approx(again.agreement)
    own = champion_figures(register("champion", again), evaluated_images(params))
    assert own.hits == found.hits


def no_files() -> None:
    shutil.rmtree("models")


def pickled() -> None:
    Path("models/0/data/model.pt2").rename("models/0/data/model.pth")


def cut() -> None:
    Path("models/0/data/model.pt2").write_bytes(Path("models/0/data/model.pt2").read_bytes()[:1000])


@pytest.mark.parametrize("damage", [no_files, pickled, cut])
def test_champion_figures__of_a_champion_that_cannot_be_loaded(
    challenger: EvaluationReport, register: Register, damage: Callable[[], None]
) -> None:
    champion = register("champion")
    damage()
    found = champion_figures(champion, evaluated_images(PARAMS))
    assert found.score is None
    assert found.note.startswith("it has no run; Version 1 of dfkd-student-digits cannot be loaded from the registry: ")
    assert "\n" not in found.note


def test_champion_figures__of_another_number_of_classes_and_of_a_run_that_is_gone(
    challenger: EvaluationReport, register: Register
) -> None:
    found = champion_figures(register("seven", **{"student.accuracy": 0.9}), evaluated_images(PARAMS))
    assert (found.score, found.note) == (
        None,
        "it was evaluated on other images; it has 7 classes, the teacher has 10",
    )
    gone = replace(register("seven"), run_id="0" * 32)
    assert champion_figures(gone, evaluated_images(PARAMS)).note.startswith("its run 00000000 is gone; ")


def test_champion_figures__without_its_files_are_those_of_its_run_if_of_the_same_images(
    challenger: EvaluationReport, register: Register, report: Report
) -> None:
    own = report("champion")
    champion = register("champion", own)
    shutil.rmtree("models")
    shutil.rmtree("mlartifacts")
    found = champion_figures(champion, evaluated_images(PARAMS))
    assert found.score == own.student.scores.accuracy
    assert found.hits is None
    assert found.num_images == challenger.num_images
    mlflow.delete_run(champion.run_id)
    assert champion_figures(champion, evaluated_images(PARAMS)).score == found.score


def change_labels() -> None:
    tensors = load_file(PREDICTIONS)
    tensors["labels"] = tensors["labels"].flip(0).contiguous()
    save_file(tensors, PREDICTIONS, metadata={"images_sha256": "0" * 64})


def change_images() -> None:
    save_file(
        load_file(PREDICTIONS),
        PREDICTIONS,
        metadata={"images_sha256": "0" * 64},
    )


@pytest.mark.parametrize("change", [change_labels, change_images])
def test_figures_again__of_images_that_have_changed_since(
    challenger: EvaluationReport, register: Register, change: Callable[[], None]
) -> None:
    champion = register("champion")
    change()
    for figures in (figures_again, champion_figures):
        with pytest.raises(DataError, match=r"The images of 'digits' are not those of the last evaluation.*dfkd stage"):
            figures(champion, evaluated_images(PARAMS))
