import http.server
import json
import os
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from packaging.specifiers import SpecifierSet
from PIL import Image
from typer.testing import CliRunner

from flows.cli import app
from flows.doctor import Finding, Verdict, render
from flows.doctor.findings import fault, note, ok
from flows.doctor.machine import device_findings, num_cores, parallelism_findings
from flows.doctor.project import disk_finding, look_at_data, look_at_disk, look_at_networks
from flows.doctor.services import (
    look_at_dvc,
    look_at_git,
    look_at_mlflow,
    look_at_prefect,
    look_at_telemetry,
    without_secrets,
)
from flows.doctor.versions import Declared, find_extra_faults, find_faults, read_declared, torchvision_findings
from flows.settings.overrides import apply_overrides
from flows.settings.parsing import load_params, parse_params
from tasks.caching.code import ROOT


def only(findings: Iterator[Finding]) -> Finding:
    (finding,) = findings
    return finding


def command(*words: str, cwd: Path | None = None) -> None:
    subprocess.run(words, check=True, capture_output=True, cwd=cwd)


def set_remote(url: str, name: str = "local", *, file: str = "config", is_default: bool = True) -> None:
    """Write what `dvc remote add` writes, without the second that it takes."""
    core = f"[core]\n    remote = {name}\n" if is_default else ""
    Path(".dvc", file).write_text(f"{core}['remote \"{name}\"']\n    url = {url}\n")


@pytest.fixture
def repository(project: Path) -> Path:
    """A project that is a repository of git and DVC, with a commit, and has no remote."""
    command("git", "init", "-q")
    Path(".dvc").mkdir()
    Path(".dvc/config").touch()
    command("git", "add", "--all")
    command("git", "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "-q", "-m", "start")
    return project


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def healthy_server() -> Iterator[str]:
    """A server that answers at /health as Prefect's and MLflow's do, and nowhere else."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path.endswith("/health") else 404)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


# Showing


def test_render__one_verdict_per_finding_and_a_command_that_is_never_broken() -> None:
    long = "pip install " + "a-package " * 20
    text = render([ok("git", "fine " * 20), note("data", "first\nsecond", long), fault("dvc", "broken", "x")], width=60)
    lines = text.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ") and line][:3] == ["ok", "note", "fault"]
    assert f"-> {long}" in text
    assert "second" in lines[lines.index("note   data       first") + 1]
    assert max(len(line) for line in lines if "->" not in line) <= 60
    assert lines[-1] == "1 fault, 1 note"


def test_finding__must_say_what_to_do() -> None:
    with pytest.raises(AssertionError, match="no next step"):
        Finding("git", Verdict.FAULT, "broken")


# Versions


@pytest.fixture
def declared() -> Declared:
    found = read_declared(ROOT)
    assert found
    return found


def in_range(declared: Declared) -> dict[str, str | None]:
    every = [*declared.needed, *(each for needed in declared.extras.values() for each in needed)]
    return {each.name: next(clause.version for clause in each.specifier if clause.operator == ">=") for each in every}


def test_versions__all_at_their_lowest_are_no_fault(declared: Declared) -> None:
    assert list(find_faults(declared, in_range(declared), python="3.11.0")) == []
    assert [finding.verdict for finding in find_extra_faults(declared, in_range(declared))] == [Verdict.OK]


@pytest.mark.parametrize(
    ("name", "version", "text", "command"),
    [
        ("fastapi", "0.154.0", "fastapi 0.154.0 is outside of <0.154,>=0.115", "pip install 'fastapi<0.154,>=0.115'"),
        ("torch", "2.7.1+cpu", "torch 2.7.1+cpu is outside of <3,>=2.8", "pip install 'torch<3,>=2.8'"),
        ("mlflow", None, "mlflow is missing; needed is <4,>=3.10", "pip install 'mlflow<4,>=3.10'"),
    ],
)
def test_versions__one_outside_of_its_range_is_a_fault_that_names_the_range(
    declared: Declared, name: str, version: str | None, text: str, command: str
) -> None:
    found = only(find_faults(declared, in_range(declared) | {name: version}, python="3.12.1"))
    assert found == Finding("versions", Verdict.FAULT, text, command)


def test_versions__a_preview_of_torch_counts_as_its_version(declared: Declared) -> None:
    found = in_range(declared) | {"torch": "2.14.0.dev20260101+cu130"}
    assert list(find_faults(declared, found, python="3.11.0")) == []


def test_versions__an_old_python_is_a_fault(declared: Declared) -> None:
    found = only(find_faults(declared, in_range(declared), python="3.10.2"))
    assert found.text == "Python is 3.10.2, outside of >=3.11"


def test_extras__a_missing_one_is_a_note_and_one_out_of_range_a_fault(declared: Declared) -> None:
    found = in_range(declared) | {"onnxruntime": None, "torchao": "1.1"}
    missing, wrong, there = find_extra_faults(declared, found)
    assert (missing.verdict, missing.command) == (Verdict.NOTE, "pip install 'dfkd[onnx]'")
    assert missing.text.endswith("without onnxruntime")
    assert (wrong.verdict, wrong.text) == (Verdict.FAULT, "torchao 1.1 is outside of <1,>=0.14")
    assert there.text == "timm 1.0, torchao 1.1"


def test_torchvision__beside_another_torch_than_its_own() -> None:
    pin = SpecifierSet("==2.13.0")
    assert list(torchvision_findings("2.13.0+cpu", "0.28.0", pin, loads=True)) == []
    beside_cpu = only(torchvision_findings("2.13.0+cpu", "0.28.0", pin, loads=False))
    assert beside_cpu.verdict is Verdict.OK
    assert "do not load" in beside_cpu.text
    other = only(torchvision_findings("2.12.0", "0.28.0", pin, loads=False))
    assert (other.verdict, other.command) == (Verdict.NOTE, "pip install 'torch==2.13.0'")


# Machine


@pytest.mark.parametrize(
    ("line", "files", "expected"),
    [
        ("0::/job/step", {"job/cpu.max": "50000 100000"}, 0.5),
        ("0::/job", {"job/cpu.max": "max 100000"}, None),
        ("3:cpu,cpuacct:/job", {"cpu/job/cpu.cfs_quota_us": "25000", "cpu/job/cpu.cfs_period_us": "100000"}, 0.25),
        ("3:cpu,cpuacct:/job", {"cpu/job/cpu.cfs_quota_us": "-1", "cpu/job/cpu.cfs_period_us": "100000"}, None),
        ("4:memory:/job", {"job/cpu.max": "50000 100000"}, None),
    ],
)
def test_cores__are_those_of_the_tightest_control_group(
    tmp_path: Path, line: str, files: dict[str, str], expected: float | None
) -> None:
    for name, content in {"proc/self/cgroup": line, **{f"groups/{name}": text for name, text in files.items()}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content + "\n")
    found = num_cores(proc=tmp_path / "proc", cgroups=tmp_path / "groups")
    assert found == (len(os.sched_getaffinity(0)) if expected is None else expected)


def test_parallelism__more_at_once_than_cores_is_a_note() -> None:
    assert list(parallelism_findings(2, 1, 2)) == []
    found = list(parallelism_findings(4, 3, 2.5))
    assert [finding.command for finding in found] == [
        "dfkd run --set execution.num_workers=2",
        "dfkd run --set execution.num_threads=2",
    ]
    assert only(parallelism_findings(2, 1, 0.5)).command == "dfkd run --set execution.num_workers=1"


@pytest.mark.parametrize("device", ["cuda:99", "graphics"])
def test_device__that_is_not_there_is_a_fault(device: str) -> None:
    found = only(device_findings(device))
    assert (found.verdict, found.command) == (Verdict.FAULT, "dfkd run --set execution.device=auto")
    assert repr(device) in found.text


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_device__that_is_there_is_ok(device: str) -> None:
    assert only(device_findings(device)).verdict is Verdict.OK


# Project


@pytest.mark.parametrize(
    ("free", "verdict"), [(3_999, Verdict.NOTE), (4_000, Verdict.OK), (1_000, Verdict.NOTE), (999, Verdict.FAULT)]
)
def test_disk__four_copies_should_fit_and_one_must(free: int, verdict: Verdict) -> None:
    assert disk_finding(free, 10, 100).verdict is verdict


def test_disk__takes_the_images_that_the_teacher_sees(project: Path) -> None:
    params = apply_overrides(load_params(), ["data.dataset=cifar10", f"synthesis.num_images={2**20}"])
    assert f"1,048,576 images need {4 * 3 * 32 * 32:,} MiB" in only(look_at_disk(params)).text
    brought = parse_params({"teacher": {"source": {"model": "torchvision:resnet18"}}}, source="test")
    assert "once the teacher was read" in only(look_at_disk(brought)).text


def data(dataset: str, **teacher: Any) -> list[Finding]:
    content = {"data": {"dataset": dataset}, "teacher": {"dataset": "digits", **teacher}}
    return list(look_at_data(parse_params(content, source="test")))


def test_data__that_is_not_there_is_a_note_and_is_not_fetched(project: Path) -> None:
    for name, folder in (("mnist", "mnist"), ("torchvision:EuroSAT", "EuroSAT")):
        found, digits = data(name)
        assert found.verdict is Verdict.NOTE
        assert f"not in data/{folder}" in found.text
        assert digits.text.startswith("digits")
    assert not Path("data").exists()


def test_data__that_is_there_is_found(project: Path) -> None:
    for name in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            path = Path(f"data/MNIST/raw/{name}-{kind}-ubyte.gz")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
    assert data("mnist")[0].text == "mnist in data/MNIST/raw"
    path.unlink()
    assert data("mnist")[0].verdict is Verdict.NOTE


def test_data__of_the_user(project: Path) -> None:
    missing, _ = data("folder:shop")
    assert missing.verdict is Verdict.FAULT
    for name in ("a", "b"):
        Path("shop", name).mkdir(parents=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(f"shop/{name}/1.png")
    assert data("folder:shop")[0].text == "shop: 2 pictures of 2 classes"
    assert data("file:x.npz")[0] == Finding(
        "data", Verdict.FAULT, "no file x.npz", "dfkd run --set data.dataset=file:PATH"
    )
    assert data("none")[0].verdict is Verdict.OK


def teacher(model: str, weights: str = "") -> list[Finding]:
    source = {"model": model, "weights": weights}
    findings = look_at_networks(parse_params({"teacher": {"source": source}}, source="test"))
    return [finding for finding in findings if finding.area == "teacher"]


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ("nowhere.pt2", "no network 'nowhere.pt2'"),
        ("no_such_package.nets:make", "No module 'no_such_package'"),
        ("failing:make", "Importing failing fails: RuntimeError: out of order"),
        ("working:other", "working has no 'other'"),
        ("weights.safetensors", "holds weights and no network"),
        ("models:/net@champion", "mlflow.db is missing"),
    ],
)
def test_teacher__that_cannot_be_had_is_a_fault(
    project: Path, monkeypatch: pytest.MonkeyPatch, model: str, text: str
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "modules", {**sys.modules})
    Path("failing.py").write_text("raise RuntimeError('out of order')")
    Path("working.py").write_text("def make(): ...")
    Path("weights.safetensors").touch()
    found = only(iter(teacher(model)))
    assert found.verdict is Verdict.FAULT
    assert text in found.text


def test_teacher__and_its_weights_that_are_there(project: Path) -> None:
    Path("net.pt2").touch()
    assert only(iter(teacher("net.pt2"))) == Finding("teacher", Verdict.OK, "net.pt2")
    _, missing = teacher("torchvision:resnet18", "ckpt.pt")
    assert (missing.verdict, missing.text) == (Verdict.FAULT, "no file ckpt.pt")
    _, published = teacher("torchvision:resnet18", "pretrained")
    assert published.verdict is Verdict.NOTE
    Path("ckpt.pt").touch()
    assert [finding.verdict for finding in teacher("torchvision:resnet18", "ckpt.pt")] == [Verdict.OK]


# Services


def test_git__needs_a_repository_with_a_commit(project: Path) -> None:
    assert only(look_at_git()).command.startswith("git init")
    command("git", "init", "-q")
    assert only(look_at_git()).text == "the repository has no commit"
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    command("git", *identity, "commit", "-q", "--allow-empty", "-m", "start")
    assert only(look_at_git()).text.startswith("commit ")


def test_git__that_is_not_installed_is_a_fault(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(project))
    assert only(look_at_git()).text == "git is not installed, and DVC needs it"


def test_dvc__outside_of_its_repository_is_a_fault(project: Path) -> None:
    command("git", "init", "-q")
    assert only(look_at_dvc()).command == "git checkout .dvc (or: dvc init)"


def test_dvc__needs_a_default_remote(repository: Path) -> None:
    assert only(look_at_dvc()).command == "dvc remote add --default local .dvc-store"
    set_remote("../.dvc-store", is_default=False)
    assert only(look_at_dvc()).command == "dvc remote default local"
    set_remote("../.dvc-store")
    inside = f"remote local: {repository}/.dvc-store, made by the first run"
    assert only(look_at_dvc()) == Finding("dvc", Verdict.OK, inside)


def test_dvc__a_remote_that_is_not_mounted_is_a_fault(
    repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "a disk with a long name that is not mounted" / "store"
    set_remote("../.dvc-store")
    # What is local to the machine wins over what is committed.
    set_remote(str(elsewhere), file="config.local")
    gone = only(look_at_dvc())
    assert (gone.verdict, gone.text) == (Verdict.FAULT, f"remote local: no folder {elsewhere}")
    elsewhere.mkdir(parents=True)
    assert only(look_at_dvc()) == Finding("dvc", Verdict.OK, f"remote local: {elsewhere}")


def test_dvc__a_store_that_is_gone_after_a_run_is_a_note(repository: Path) -> None:
    set_remote("../.dvc-store")
    Path("dvc.lock").write_text("schema: '2.0'\n")
    assert only(look_at_dvc()).command == "dvc push"


def test_dvc__a_remote_elsewhere_is_named_without_its_password(repository: Path) -> None:
    set_remote("https://me:secret@example.com/store", "far")
    assert only(look_at_dvc()).text == "remote far: https://example.com/store (not contacted)"


@pytest.mark.skipif(find_spec("dvc_oss") is not None, reason="dvc-oss is installed")
def test_dvc__a_remote_whose_package_is_missing_is_a_fault(repository: Path) -> None:
    set_remote("oss://bucket/store", "far")
    found = only(look_at_dvc())
    assert (found.verdict, found.command) == (Verdict.FAULT, "pip install 'dvc[oss]'")


def test_dvc__a_broken_or_incomplete_graph_is_a_fault(repository: Path) -> None:
    set_remote("../.dvc-store")
    graph = yaml.safe_load(Path("dvc.yaml").read_text())
    del graph["stages"]["distill"]
    Path("dvc.yaml").write_text(yaml.safe_dump(graph))
    assert next(look_at_dvc()).text == "dvc.yaml has no stage distill"
    Path("dvc.yaml").write_text("stages: [")
    broken = next(look_at_dvc())
    assert broken.verdict is Verdict.FAULT
    assert "dvc.yaml" in broken.text


def test_prefect__none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert only(look_at_prefect()).text == "a server is started for each run"


def test_prefect__a_server_must_answer(monkeypatch: pytest.MonkeyPatch, closed_port: int, healthy_server: str) -> None:
    monkeypatch.setenv("PREFECT_API_URL", f"{healthy_server}/api")
    assert only(look_at_prefect()).verdict is Verdict.OK
    for url in (f"http://127.0.0.1:{closed_port}/api", "no url"):
        monkeypatch.setenv("PREFECT_API_URL", url)
        found = only(look_at_prefect())
        assert (found.verdict, found.text) == (Verdict.FAULT, f"no server answers at PREFECT_API_URL={url}")
        assert "unset PREFECT_API_URL" in found.command


def test_mlflow__its_store_must_open(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert only(look_at_mlflow()).text == "mlflow.db, made by the first run"
    Path("mlflow.db").write_bytes(b"this is no database " * 100)
    broken = only(look_at_mlflow())
    assert (broken.verdict, broken.command) == (Verdict.FAULT, "mv mlflow.db mlflow.db.broken")
    Path("mlflow.db").unlink()
    connection = sqlite3.connect("mlflow.db")
    connection.execute("CREATE TABLE other (x)")
    assert "no such table: runs" in only(look_at_mlflow()).text
    connection.execute("CREATE TABLE runs (run_uuid)")
    connection.execute("INSERT INTO runs VALUES (1)")
    connection.commit()
    connection.close()
    assert only(look_at_mlflow()) == Finding("mlflow", Verdict.OK, "mlflow.db, 1 run")


def test_mlflow__a_tracking_server_that_does_not_answer_is_a_note(
    project: Path, monkeypatch: pytest.MonkeyPatch, closed_port: int, healthy_server: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{closed_port}")
    _, found = look_at_mlflow()
    assert found.verdict is Verdict.NOTE
    assert f"MLFLOW_TRACKING_URI=http://127.0.0.1:{closed_port}," in found.text
    monkeypatch.setenv("MLFLOW_TRACKING_URI", healthy_server)
    assert [finding.verdict for finding in look_at_mlflow()] == [Verdict.OK, Verdict.OK]


def test_telemetry__that_the_user_left_on_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(look_at_telemetry()).text == "off"
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")
    found = only(look_at_telemetry())
    assert (found.verdict, found.command) == (Verdict.NOTE, "unset MLFLOW_DISABLE_TELEMETRY")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:secret@host:1/a", "https://host:1/a"),
        ("s3://bucket/a@b", "s3://bucket/a@b"),
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
    ],
)
def test_secrets__are_not_shown(url: str, shown: str) -> None:
    assert without_secrets(url) == shown


# The command


def call() -> tuple[int, str]:
    result = CliRunner().invoke(app, ["doctor"])
    return result.exit_code, result.output


def test_outside_of_a_project__the_machine_is_still_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, output = call()
    assert code == 1
    assert "fault  project    No dvc.yaml and params.yaml" in output
    assert all(f"ok     {area}" in output for area in ("versions", "cpu", "memory"))
    assert list(tmp_path.iterdir()) == []


def test_without_torch__all_else_is_still_told(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As Python itself marks a module that must not be imported.
    monkeypatch.setitem(sys.modules, "torch", None)
    code, output = call()
    assert code == 1
    assert [line for line in output.splitlines() if "torch" in line and line.startswith("fault")] != []
    assert "telemetry  off" in output
    assert "cannot be looked at" not in output


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"teacher: {epoch: 3}\nseed: -1\n", "teacher.epoch: unknown key; did you mean teacher.epochs?"),
        (b"seed: [", "params.yaml is not YAML"),
        (b"seed: \xff\xfe", "params.yaml is not YAML"),
    ],
)
def test_broken_params__are_told_beside_everything_else(project: Path, content: bytes, text: str) -> None:
    Path("params.yaml").write_bytes(content)
    code, output = call()
    assert code == 1
    assert text in output
    assert "-> git init" in output
    assert "telemetry  off" in output
    assert "Traceback" not in output


def test_a_check_that_fails__is_a_fault_and_the_others_go_on(project: Path) -> None:
    Path("artifacts/teacher").mkdir(parents=True)
    Path("artifacts/teacher/config.json").write_text(json.dumps([]))
    source = {"teacher": {"source": {"model": "torchvision:resnet18"}}, "data": {"dataset": "digits"}}
    Path("params.yaml").write_text(yaml.safe_dump(source))
    code, output = call()
    assert code == 1
    assert "fault  disk" in output
    assert "telemetry  off" in output


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written__is_a_fault(project: Path) -> None:
    project.chmod(0o500)
    try:
        _, output = call()
    finally:
        project.chmod(0o700)
    assert f"Cannot write to {project}" in output


def test_doctor__as_a_user(make_workspace: Callable[[str], Any]) -> None:
    workspace = make_workspace("doctor")
    before = subprocess.run(["git", "status", "--short"], cwd=workspace.path, capture_output=True, text=True).stdout
    output = workspace.run("dfkd", "doctor")
    assert "no faults" in output
    assert "made by the first run" in output
    assert len(output.splitlines()) <= 40
    after = subprocess.run(["git", "status", "--short"], cwd=workspace.path, capture_output=True, text=True).stdout
    assert before == after
