"""The whole pipeline, used through its commands in a copy of the repository; each test goes on from the one before."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dfkd_core.models.storage import load_model
from dfkd_tasks.caching.workspace import StudentFiles

IDENTITY = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
SECONDS_TO_SEE_A_SHARD = 200
# Few images, but every one refined for a second per shard: what a killed run started ends within half a second.
ITERATIONS = "synthesis.methods.soft_target.refinement.iterations"
SECONDS_PER_SHARD = [
    "--set", f"{ITERATIONS}=60", "--set", "synthesis.methods.soft_target.refinement.refined_share=1",
    "--set", "synthesis.num_images=200", "--set", "synthesis.images_per_shard=50",
]  # fmt: skip


@pytest.fixture(scope="module")
def first_run(make_workspace: Any, small: dict[str, Any]) -> Any:
    """Return a workspace in which the pipeline has run once, and what that printed."""
    workspace = make_workspace("pipeline")
    settings = [part for name, value in small.items() for part in ("--set", f"{name}={value}")]
    return workspace, workspace.run("dfkd", "run", *settings)


def test_run__prints_the_table_and_registers_the_student(first_run: Any) -> None:
    workspace, output = first_run
    for word in ("accuracy", "agreement", "35,820", "orchestration", "mlflow ui", "dvc metrics show"):
        assert word in output
    metrics = workspace.read_json("metrics/default.json")
    assert 0 <= metrics["student"]["agreement"] <= 1
    assert metrics["student"]["num_parameters"] == 35_820
    assert "Registered dfkd-student-digits version 1: first champion" in output
    assert "report     reports/report.html" in output
    page = (workspace.path / "reports/report.html").read_text()
    assert "Version 1 of dfkd-student-digits is the champion" in page
    assert f'<data value="{metrics["student"]["agreement"]}">' in page
    [logged] = (workspace.path / "mlartifacts").rglob("artifacts/report.html")
    assert logged.read_text() == page
    for noise in ("Traceback", "Warning", "ERROR"):
        assert noise not in output
    assert _most_at_once(workspace.path, "synthesize@default") <= 2


def test_run__has_the_stages_as_sub_runs_in_prefect(first_run: Any) -> None:
    workspace, _ = first_run
    # The server of the command has ended; its database is there.
    with sqlite3.connect(workspace.path / ".dfkd/prefect/prefect.db") as database:
        runs = dict(database.execute("SELECT name, parent_task_run_id FROM flow_run"))
        [parent] = database.execute(
            "SELECT DISTINCT flow_run.name FROM flow_run JOIN task_run ON task_run.flow_run_id = flow_run.id "
            "WHERE task_run.id IN (SELECT parent_task_run_id FROM flow_run)"
        ).fetchall()
    database.close()
    assert parent == ("lenet5 on digits -> lenet5@0.5",)
    assert [name for name, task in runs.items() if not task] == ["lenet5 on digits -> lenet5@0.5"]
    assert len(runs) == 6


def test_run__leaves_git_and_dvc_clean(first_run: Any) -> None:
    workspace, _ = first_run
    assert workspace.run("dvc", "status", "--json").strip() == "{}"
    changed = subprocess.run(["git", "status", "--porcelain"], cwd=workspace.path, capture_output=True, text=True)
    assert changed.stdout.split() == ["M", "params.yaml", "??", "dvc.lock"]
    assert "up to date" in workspace.run("dvc", "repro")
    assert "student.accuracy" in workspace.run("dvc", "metrics", "show")
    assert "in sync" in workspace.run("dvc", "status", "--cloud")


def test_run__has_plots_that_need_no_internet(first_run: Any) -> None:
    workspace, _ = first_run
    workspace.run("dvc", "plots", "show")
    page = (workspace.path / "dvc_plots/index.html").read_text()
    shown = re.findall('src="([^"]+)"', page)
    assert len(shown) == 5
    assert all((workspace.path / "dvc_plots" / place).is_file() for place in shown)
    assert "http" not in page
    assert "vega" not in page


def test_run_again__does_nothing_but_say_so(first_run: Any) -> None:
    workspace, _ = first_run
    output = workspace.run("dfkd", "run")
    assert "Nothing has changed" in output
    assert "agreement" in output
    assert "teacher:" not in output


def test_champion__predicts_what_the_stored_student_predicts(first_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace, _ = first_run
    monkeypatch.chdir(workspace.path)
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{workspace.path}/mlflow.db")
    model = mlflow.pyfunc.load_model("models:/dfkd-student-digits@champion")
    images = np.random.default_rng(0).random((5, 1, 32, 32), dtype=np.float32)
    with torch.no_grad():
        expected = load_model(workspace.path / StudentFiles("default").network)(torch.from_numpy(images))
    np.testing.assert_allclose(np.stack(model.predict(images)["logits"]), expected.numpy(), rtol=1e-4, atol=1e-5)
    assert model.metadata.metadata["class_names"] == [str(digit) for digit in range(10)]


def test_mlflow__shows_what_ran_with_which_data_and_how_well(first_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace, _ = first_run
    monkeypatch.chdir(workspace.path)
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{workspace.path}/mlflow.db")
    [run] = mlflow.search_runs(search_all_experiments=True, output_format="list")
    client, figures = mlflow.MlflowClient(), workspace.read_json("metrics/default.json")
    assert run.info.run_name == "digits lenet5→lenet5_half pruned"
    accuracy, agreement = (f"{figures['student'][name]:.2%}" for name in ("accuracy", "agreement"))
    shown = {"accuracy": accuracy, "agreement": agreement, "data": "digits", "promoted": "yes"}
    [version] = client.search_model_versions("name = 'dfkd-student-digits'")
    assert shown.items() <= run.data.tags.items() & version.tags.items()
    digests = [name for name in run.data.tags if name.startswith("dfkd.") and name.endswith(("sha256", "digest"))]
    assert sorted(digests) == ["dfkd.images_sha256", "dfkd.results_sha256"]
    note = run.data.tags["mlflow.note.content"]
    assert note == version.description
    assert note.startswith(f"**Accuracy {accuracy}**, the teacher's {figures['teacher']['accuracy']:.2%}. **Agreement ")
    assert f"| accuracy | {figures['teacher']['accuracy']:.2%} | {accuracy} |" in note
    assert "models:/dfkd-student-digits@champion" in client.get_registered_model("dfkd-student-digits").description
    # Files: the digests, and the answers that differ.
    read = {
        name: mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/{name}.json")
        for name in ("lineage", "disagreements")
    }
    assert read["lineage"]["results_sha256"] == run.data.tags["dfkd.results_sha256"]
    assert re.fullmatch("[0-9a-f]{40}-dirty", read["lineage"]["git_commit"])
    assert read["disagreements"]["columns"][:4] == ["image", "teacher", "student", "label"]
    assert read["disagreements"]["columns"][4:] == ["teacher_confidence", "student_confidence"]
    num_different = round(figures["num_images"] * (1 - figures["student"]["agreement"]))
    assert len(read["disagreements"]["data"]) == num_different
    assert len(client.load_table(run.info.experiment_id, "disagreements.json", [run.info.run_id])) == num_different
    # Inputs: no image is copied.
    inputs = {each.dataset.name: (each.tags[0].value, each.dataset.digest) for each in run.inputs.dataset_inputs}
    assert inputs == {
        "transfer set of lenet5, soft_target": ("training", read["lineage"]["transfer_set_sha256"][:8]),
        "digits, test images": ("evaluation", read["lineage"]["images_sha256"][:8]),
    }
    [logged] = client.search_logged_models([run.info.experiment_id])
    [metric] = [metric for metric in logged.metrics if metric.key == "student.accuracy"]
    assert (metric.value, metric.dataset_name) == (figures["student"]["accuracy"], "digits, test images")
    assert run.data.metrics["student.accuracy"] == figures["student"]["accuracy"]
    assert run.data.params["synthesis.num_images"] == "400"
    assert len(client.get_metric_history(run.info.run_id, "student_training.loss")) == 2


def test_change_of_the_student__leaves_the_synthesis(first_run: Any) -> None:
    workspace, _ = first_run
    before = workspace.read_lock()
    subprocess.run(["git", "add", "dvc.lock", "params.yaml"], cwd=workspace.path, check=True)
    subprocess.run(["git", *IDENTITY, "commit", "-q", "-m", "First results"], cwd=workspace.path, check=True)
    output = workspace.run("dfkd", "run", "--set", "distillation.epochs=3")
    assert "distillation.epochs: 2 -> 3" in output
    assert "Changed: distill; the stages that depend on them follow" in output
    assert "synthesize:" not in output
    after = workspace.read_lock()
    for stage in ("teacher", "statistics", "synthesize"):
        assert after[f"{stage}@default"] == before[f"{stage}@default"]
    assert "version 2" in output
    assert "champion before, version 1" in (workspace.path / "reports/report.html").read_text()


def test_change_of_the_student__can_be_compared_by_dvc_with_the_last_commit(first_run: Any) -> None:
    workspace, _ = first_run
    difference = json.loads(workspace.run("dvc", "metrics", "diff", "--json"))["metrics/default.json"]
    assert {"student.kl", "student.ece"} <= difference.keys()
    assert all(isinstance(found[side], float) for found in difference.values() for side in ("old", "new"))
    shown = workspace.run("dvc", "exp", "show", "--only-changed", "--drop", "artifacts|dfkd_core|tasks", "--csv")
    columns = shown.splitlines()[0].split(",")
    assert "distillation.epochs" in columns
    assert len(columns) < 10


@pytest.mark.slow
def test_second_student__shares_all_that_the_teacher_has(first_run: Any) -> None:
    workspace, _ = first_run
    before = workspace.read_lock()
    small = ["--set", "students.small={teacher: default}", "--set", "students.small.distillation.student=lenet5@0.25"]
    output = workspace.run("dfkd", "run", *small, "--set", "students.small.distillation.epochs=1")
    assert "Changed: distill (small), evaluate (small); the stages that depend on them follow" in output
    assert not [name for name in ("teacher", "statistics", "synthesize") if f"\n{name}" in output]
    assert workspace.read_lock().items() >= before.items()
    assert "small: Registered dfkd-student-small-digits version 1: first champion" in output
    assert "default: Registered" not in output
    rows = json.loads(workspace.run("dfkd", "compare", "--json", "--runs", "1"))
    assert [row["student"] for row in rows if row["run"] == "now"] == ["default", "small"]
    assert all(row["accuracy_interval"][0] < row["accuracy"] < row["accuracy_interval"][1] for row in rows)
    assert "No student 'smal' in this project; did you mean small?" in workspace.run("dfkd", "run", "smal", code=2)
    # The tests that follow are about the only student.
    path = workspace.path / "params.yaml"
    path.write_text(path.read_text().partition("  small:")[0])


@pytest.mark.parametrize(
    ("victim", "said"),
    [
        (("-m", "dfkd_flows.session.server"), "Prefect's server was ended by SIGKILL (signal 9)."),
        (("bin/dfkd", "run"), ""),
    ],
    ids=["server", "command"],
)
def test_kill_while_the_stage_imports__leaves_no_process_and_names_the_reason(
    first_run: Any, victim: tuple[str, str], said: str
) -> None:
    workspace, _ = first_run
    # The transfer set is up to date, so this is the first stage.
    process = workspace.start("dfkd", "run", "--set", "distillation.epochs=4")
    _find(process, ("stage", "distill"))
    _find(process, victim).kill()
    output, _ = process.communicate(timeout=120)
    assert said in output
    assert not said or "Continue with the same command." in output
    assert process.returncode == (1 if said else -signal.SIGKILL), output
    _wait_until_alone(workspace.path)


def test_kill_in_the_middle_of_the_synthesis__goes_on_and_ends_as_if_undisturbed(
    first_run: Any, tmp_path: Path
) -> None:
    workspace, _ = first_run
    process = workspace.start("dfkd", "run", *SECONDS_PER_SHARD, "--set", "distillation.epochs=1")
    _wait_for_shards(workspace.path, process, earlier=4, count=1)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    _wait_until_alone(workspace.path)
    output = workspace.run("dfkd", "run")
    reused = re.search(r"([1-3]) of 4 shards reused", output)
    assert reused, output
    # Runs that were killed, and their stages, no longer count as running in Prefect.
    with sqlite3.connect(workspace.path / ".dfkd/prefect/prefect.db") as database:
        states = [name for (name,) in database.execute("SELECT state_name FROM flow_run")]
    database.close()
    assert "Running" not in states
    assert states.count("Crashed") >= 2
    # From nothing, with one thread in place of two processes, and outside of DVC.
    undisturbed = workspace.run(
        "dfkd", "synthesize", "--teacher", "default", "--statistics", "artifacts/teachers/default/statistics", "--out",
        str(tmp_path / "set"), "--set", "execution.num_workers=1", "--set", "execution.task_runner=threads",
        PREFECT_LOCAL_STORAGE_PATH=str(tmp_path / "results"),
    )  # fmt: skip
    assert "reused" not in undisturbed
    assert _most_at_once(workspace.path, "synthesize") == 1
    resumed = (workspace.path / "artifacts/teachers/default/transfer_set/manifest.json").read_text()
    assert (tmp_path / "set/manifest.json").read_text() == resumed


def test_interrupt__keeps_finished_shards_and_says_how_to_go_on(first_run: Any) -> None:
    workspace, _ = first_run
    earlier = len(_shards(workspace.path))
    process = workspace.start("dfkd", "run", "--set", f"{ITERATIONS}=61")
    try:
        _wait_for_shards(workspace.path, process, earlier=earlier, count=1)
    finally:
        os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert output.rstrip().endswith("Continue with: dfkd run")
    assert "Traceback" not in output
    assert len(_shards(workspace.path)) > earlier
    _wait_until_alone(workspace.path)


def _find(process: subprocess.Popen[str], words: tuple[str, str]) -> Any:
    """Return the first process of a command, itself included, whose command line has these words in a row."""
    import psutil

    root = psutil.Process(process.pid)
    deadline = time.monotonic() + SECONDS_TO_SEE_A_SHARD
    while time.monotonic() < deadline:
        for candidate in (root, *root.children(recursive=True)):
            try:
                line = candidate.cmdline()
            except psutil.Error:
                continue
            if any(first.endswith(words[0]) and second == words[1] for first, second in pairwise(line)):
                return candidate
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    raise AssertionError(f"no process {words}")


def _shards(path: Path) -> list[Path]:
    return list(path.glob(".dfkd/work/synthesize/*/shard-*.safetensors"))


def _most_at_once(path: Path, name: str) -> int:
    """Return how many shards of the last synthesis of that name were made at the same time."""
    lines = (path / f".dfkd/timings/{name}.jsonl").read_text().splitlines()
    spans = [json.loads(line) for line in lines]
    assert len(spans) == 4
    return max(sum(start <= moment < end for start, end in spans) for moment, _ in spans)


def _wait_for_shards(path: Path, process: subprocess.Popen[str], *, earlier: int, count: int) -> None:
    deadline = time.monotonic() + SECONDS_TO_SEE_A_SHARD
    while len(_shards(path)) < earlier + count:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _wait_until_alone(path: Path) -> None:
    """Return when no process works in the folder any more."""
    import psutil

    deadline = time.monotonic() + 20
    while any(_works_in(process, path) for process in psutil.process_iter()):
        assert time.monotonic() < deadline, "processes were left behind"
        time.sleep(0.2)


def _works_in(process: Any, path: Path) -> bool:
    import psutil

    try:
        return Path(process.cwd()) == path and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
