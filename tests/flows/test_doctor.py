import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from shlex import split
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from dfkd_flows.cli import app
from dfkd_flows.doctor import Finding, Verdict, render
from dfkd_flows.doctor.findings import fault, note, ok
from dfkd_flows.doctor.machine import device_findings, num_cores, parallelism_findings
from dfkd_flows.doctor.project import check_data, check_disk, check_networks, check_place, disk_finding
from dfkd_flows.doctor.services import check_prefect, check_telemetry
from dfkd_flows.doctor.versions import check_packages, check_torch, check_versions, package_findings
from dfkd_flows.settings.overrides import apply_overrides
from dfkd_flows.settings.parsing import load_params, parse_params


def only(findings: Iterator[Finding]) -> Finding:
    (finding,) = findings
    return finding


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
    with pytest.raises(AssertionError, match="no next command"):
        Finding("git", Verdict.FAULT, "broken")


# Versions


def test_versions__names_the_main_packages() -> None:
    found = next(iter(check_versions()))
    assert found.verdict is Verdict.OK
    assert f"torch {metadata.version('torch')}" in found.text


def test_packages__are_checked_by_pip() -> None:
    passes = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True).returncode == 0
    assert all((finding.verdict is Verdict.OK) == passes for finding in check_packages())


def test_packages__a_conflict_of_dfkd_is_a_fault_and_one_of_others_a_note() -> None:
    own = "dfkd 0.1.0 has requirement fastapi<0.154,>=0.115, but you have fastapi 0.155.0."
    other = "black 24.1 requires click, which is not installed."
    found = list(package_findings(1, f"{own}\n{other}\n", ""))
    assert [(each.verdict, each.text) for each in found] == [(Verdict.FAULT, own), (Verdict.NOTE, other)]
    fixes = [split(each.command)[1:] for each in found]
    assert fixes == [["-m", "pip", "install", "fastapi<0.154,>=0.115"], ["-m", "pip", "install", "click"]]


def test_packages__without_pip_are_a_note() -> None:
    found = only(package_findings(1, "", "python: No module named pip\n"))
    assert (found.verdict, found.text) == (Verdict.NOTE, "pip check fails: python: No module named pip")


def test_torchvision__that_cannot_be_imported_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(check_torch()) == []
    monkeypatch.setitem(sys.modules, "dfkd_core.common.vision", None)
    found = only(check_torch())
    assert found.verdict is Verdict.FAULT
    assert found.text.startswith("torchvision cannot be imported")


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
    assert disk_finding(free, 10, 1000).verdict is verdict


def test_disk__takes_the_images_that_the_teacher_sees(project: Path) -> None:
    params = apply_overrides(load_params(), ["data.dataset=cifar10", f"synthesis.num_images={2**20}"])
    assert f"1,048,576 images need {4 * 3 * 32 * 32:,} MiB" in only(check_disk(params)).text
    brought = parse_params({"teacher": {"source": {"model": "torchvision:resnet18"}}}, source="test")
    assert "known after the first run" in only(check_disk(brought)).text


def data(dataset: str, **teacher: Any) -> list[Finding]:
    content = {"data": {"dataset": dataset}, "teacher": {"dataset": "digits", **teacher}}
    return list(check_data(parse_params(content, source="test")))


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
    findings = check_networks(parse_params({"teacher": {"source": source}}, source="test"))
    return [finding for finding in findings if finding.area == "teacher"]


def test_networks_of_several__get_a_command_that_changes_the_right_one() -> None:
    teacher = {"teacher": {"source": {"model": "nowhere.pt2"}}}
    students = {name: {"teacher": name, "distillation": {"student": "a.b:c"}} for name in ("default", "other")}
    params = parse_params({"teachers": {"default": {}, "other": teacher}, "students": students}, source="test")
    found = [finding.command for finding in check_networks(params) if finding.verdict is Verdict.FAULT]
    assert found == [
        "dfkd run --set teachers.other.teacher.source.model=SOURCE",
        "dfkd run --set students.default.distillation.student=SOURCE",
        "dfkd run --set students.other.distillation.student=SOURCE",
    ]


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


def test_prefect__none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert only(check_prefect()).text == "a server of its own, which ends with the run"


def test_prefect__a_server_must_answer(
    monkeypatch: pytest.MonkeyPatch, closed_port: int, answering: Callable[..., str]
) -> None:
    pages = {"/health": (200, True), "/admin/version": (200, metadata.version("prefect")), "/flows/filter": (200, [])}
    monkeypatch.setenv("PREFECT_API_URL", f"{answering(pages)}/api")
    assert only(check_prefect()).verdict is Verdict.OK
    for url in (f"http://127.0.0.1:{closed_port}/api", "no url"):
        monkeypatch.setenv("PREFECT_API_URL", url)
        found = only(check_prefect())
        assert (found.verdict, found.text) == (Verdict.FAULT, f"No Prefect server answers at PREFECT_API_URL={url}")
        assert "unset PREFECT_API_URL" in found.command


@pytest.mark.parametrize(
    ("page", "answer", "text"),
    [
        ("/admin/version", (200, "2.19.0"), "Found incompatible versions: client: "),
        ("/flows/filter", (401, {}), "401 Unauthorized"),
        ("/flows/filter", (403, {}), "403 Forbidden"),
    ],
)
def test_prefect__a_server_must_fit_and_take_flows(
    monkeypatch: pytest.MonkeyPatch, answering: Callable[..., str], page: str, answer: Any, text: str
) -> None:
    pages = {"/health": (200, True), "/admin/version": (200, metadata.version("prefect"))}
    url = answering({**pages, page: answer}).replace("//", "//me:secret@")
    monkeypatch.setenv("PREFECT_API_URL", f"{url}/api")
    found = only(check_prefect())
    assert found.verdict is Verdict.FAULT
    assert text in found.text
    assert "secret" not in found.text
    assert found.command.endswith("unset PREFECT_API_URL")


def test_telemetry__that_the_user_left_on_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(check_telemetry()).text == "off"
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")
    found = only(check_telemetry())
    assert (found.verdict, found.command) == (Verdict.NOTE, "unset MLFLOW_DISABLE_TELEMETRY")


# The command


def call() -> tuple[int, str]:
    result = CliRunner().invoke(app, ["doctor"])
    return result.exit_code, result.output


def test_outside_of_a_project__the_machine_is_still_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, output = call()
    assert code == 0
    assert f"note   project    {tmp_path} is in no project" in output.replace("\n                  ", " ")
    assert "-> dfkd init" in output
    assert all(f"ok     {area}" in output for area in ("versions", "cpu", "memory"))
    assert list(tmp_path.iterdir()) == []


def test_without_torch__all_else_is_still_told(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As Python itself marks a module that must not be imported.
    monkeypatch.setitem(sys.modules, "torch", None)
    code, output = call()
    assert code == 1
    assert [line for line in output.splitlines() if "torch" in line and line.startswith("fault")] != []
    assert "telemetry  off" in output
    assert "cannot be checked" not in output


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
    assert "telemetry  off" in output
    assert "Traceback" not in output


def test_a_check_that_fails__is_a_fault_and_the_others_go_on(project: Path) -> None:
    Path("artifacts/teachers/default/network").mkdir(parents=True)
    Path("artifacts/teachers/default/network/config.json").write_text(json.dumps([]))
    source = {"teacher": {"source": {"model": "torchvision:resnet18"}}, "data": {"dataset": "digits"}}
    names = {"teachers": {"default": {}}, "students": {"default": {"teacher": "default"}}}
    Path("params.yaml").write_text(yaml.safe_dump(source | names))
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
    assert len(output.splitlines()) <= 30
    after = subprocess.run(["git", "status", "--short"], cwd=workspace.path, capture_output=True, text=True).stdout
    assert before == after


# The place


def test_place__a_project_that_can_take_a_run(project: Path) -> None:
    found = {finding.area: finding.verdict for finding in check_place(load_params())}
    assert found == {"dvc": Verdict.OK, "mlflow": Verdict.OK, "git": Verdict.NOTE}


def test_place__faults_of_the_store_and_of_dvc_have_their_commands(project: Path) -> None:
    (project / "mlflow.db").write_text("half")
    (project / "dvc.yaml").write_text("- a")
    found = {finding.area: finding for finding in check_place(load_params())}
    assert found["mlflow"].verdict is found["dvc"].verdict is Verdict.FAULT
    assert found["mlflow"].text == "mlflow.db is damaged: file is not a database"
    assert found["mlflow"].command.endswith("mv mlflow.db mlflow.db.old; dfkd run")
    assert found["dvc"].command == "Correct it, or restore it with: git checkout dvc.yaml"
