"""The pipeline evaluated on nothing, then on a file, through its commands; each test goes on from the one before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dfkd_core.data.datasets import DataConfig, load_dataset


@pytest.fixture(scope="module")
def without_data(make_workspace: Any, small: dict[str, Any]) -> Any:
    """Return a workspace in which the pipeline has run without real images, and what that printed."""
    workspace = make_workspace("evaluation-data")
    settings = small | {
        "teacher.dataset": "digits",
        # Good enough that labels in another order are noticed.
        "teacher.epochs": 20,
        "data.dataset": "none",
        "evaluation.num_held_out_images": 300,
    }
    changes = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    return workspace, workspace.run("dfkd", "run", *changes)


def write_digits(path: Path, shift: int = 0) -> None:
    data = load_dataset(DataConfig(dataset="digits", image_size=8), "test")
    np.savez(path, images=data.images[:, 0].numpy(), labels=(data.labels.numpy() + shift) % 10)


@pytest.mark.slow
def test_run_without_data__shows_a_proxy_and_no_accuracy(without_data: Any) -> None:
    workspace, output = without_data
    metrics = workspace.read_json("metrics/default.json")
    assert metrics["proxy"].keys() == {"agreement", "kl", "num_classes", "largest_class"}
    assert metrics["num_images"] == 300
    assert "accuracy" not in metrics["teacher"].keys() | metrics["student"].keys()
    labels = ("no real images", "agreement (proxy)", "synthetic ones (proxy)", "predicted classes", "first champion")
    for words in labels:
        assert words in output
    assert "accuracy" not in output
    assert "Registered dfkd-student-proxy-" in output
    for noise in ("Traceback", "Warning", "ERROR"):
        assert noise not in output
    assert (workspace.path / "reports/students/default/confusion.csv").read_text() == "actual,predicted\n"
    assert (workspace.path / "reports/students/default/confusion.png").stat().st_size > 1000
    assert workspace.run("dvc", "status", "--json").strip() == "{}"
    assert "proxy.agreement" in workspace.run("dvc", "metrics", "show")
    workspace.run("dvc", "plots", "show")
    assert "Nothing has changed" in workspace.run("dfkd", "run")


@pytest.mark.slow
def test_run_with_a_file__keeps_the_student_and_measures_its_accuracy(without_data: Any) -> None:
    workspace, _ = without_data
    before = workspace.read_lock()
    write_digits(workspace.path / "digits.npz")
    output = workspace.run("dfkd", "run", "--set", "data.dataset=file:digits.npz")
    assert "(reused)" in output
    for stage in ("statistics", "synthesize", "distill"):
        assert workspace.read_lock()[f"{stage}@default"] == before[f"{stage}@default"]
    assert "accuracy" in workspace.read_json("metrics/default.json")["student"]
    assert "Registered dfkd-student-file-digits.npz version 1: first champion" in output


@pytest.mark.slow
def test_other_content_under_the_same_name__is_evaluated_anew_and_its_order_found(without_data: Any) -> None:
    workspace, _ = without_data
    accuracy = workspace.read_json("metrics/default.json")["teacher"]["accuracy"]
    write_digits(workspace.path / "digits.npz", shift=1)
    output = workspace.run("dfkd", "stage", "evaluate", code=1)
    assert f"on {accuracy:.2%} with another order of the 10 classes: each label minus 1, modulo 10" in output
    assert "Traceback" not in output
    workspace.run("dfkd", "run", "--set", "data.class_order=[9,0,1,2,3,4,5,6,7,8]")
    assert workspace.read_json("metrics/default.json")["teacher"]["accuracy"] == accuracy


@pytest.mark.slow
def test_run__says_before_anything_runs_that_there_is_nothing_to_train_on(without_data: Any) -> None:
    workspace, _ = without_data
    output = workspace.run("dfkd", "run", "--set", "teacher.dataset=''", code=2)
    assert "teacher training needs a built-in data set or torchvision:NAME, got 'file:digits.npz'" in output
    missing = workspace.run(
        "dfkd", "run", "--set", "data.dataset=folder:nowhere", "--set", "data.class_order=[]", code=1
    )
    assert "No folder nowhere" in missing
