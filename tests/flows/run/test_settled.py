"""`dfkd run` and `dfkd tune` with input that cannot work: one message, and params.yaml byte for byte as it was."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from dfkd_core.common.digests import file_sha256
from dfkd_core.errors import DfkdError, TeacherError
from dfkd_core.models.classifier import ModelCard, build_classifier
from dfkd_core.models.storage import save_model
from dfkd_core.teachers.loading import source_digest
from dfkd_core.teachers.source import SourceConfig
from dfkd_flows.cli import app
from dfkd_flows.settings.parsing import load_params
from dfkd_flows.settings.settling import Plan, planned, settle
from dfkd_tasks.stages.teacher import take_teacher

STUDENTS = """
from torch import nn

def small_images(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))

def three_classes():
    return nn.Sequential(nn.Flatten(), nn.Linear(1024, 3))

def fitting(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(1024, num_classes))
"""


def store_teacher(seed: int = 0) -> None:
    card = ModelCard(
        network="lenet5", in_channels=1, image_size=32, num_classes=10, mean=(0.3,), std=(0.4,), layer="fc1"
    )
    save_model(Path("mine"), build_classifier(card, seed=seed).eval())


@pytest.fixture
def inputs(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put a teacher, students and labelled images into the project."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    store_teacher()
    Path("own_students.py").write_text(STUDENTS)
    images = np.zeros((12, 8, 8), np.uint8)
    np.savez("twelve.npz", images=images, labels=np.arange(12))
    yield
    sys.modules.pop("own_students", None)


def settled(*assignments: str) -> Plan:
    with planned("digits", assignments) as plan:
        settle(plan)
    return plan


BUILT_IN: list[str] = []
EXTERNAL = ["--teacher", "mine"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([*BUILT_IN, "--student", "lenet6"], 2, "no network 'lenet6'"),
        ([*EXTERNAL, "--student", "lenet6"], 2, "no network 'lenet6'"),
        ([*BUILT_IN, "--student", "own_students:small_images"], 2, "small_images rejects images of shape (1, 32, 32)"),
        ([*EXTERNAL, "--student", "own_students:small_images"], 2, "small_images rejects images of shape (1, 32, 32)"),
        ([*BUILT_IN, "--student", "own_students:three_classes"], 2, "answers 2 images with shape (2, 3)"),
        ([*EXTERNAL, "--student", "own_students:three_classes"], 2, "answers 2 images with shape (2, 3)"),
        ([*BUILT_IN, "--student", "own_students:gone"], 2, "own_students has no 'gone'"),
        (
            [*EXTERNAL, "--student", "own_students:fitting", "--set", "distillation.start=pruned"],
            1,
            "cannot start as a thinner copy of the teacher",
        ),
        ([*BUILT_IN, "--set", "teacher.layer=conv9"], 1, "No layer 'conv9' in the network. Its layers: conv1"),
        ([*EXTERNAL, "--set", "teacher.layer=conv9"], 1, "No layer 'conv9' in the network. Its layers: conv1"),
        ([*EXTERNAL, "--set", "data.dataset=folder:nowhere"], 1, "No folder nowhere"),
        ([*EXTERNAL, "--set", "data.dataset=file:gone.npz"], 1, "gone.npz"),
        ([*EXTERNAL, "--set", "data.dataset=file:twelve.npz"], 1, "go up to 11, but the teacher has 10 classes"),
        (["--set", "teacher.dataset=digits", "--set", "data.dataset=folder:nowhere"], 1, "No folder nowhere"),
        (["--set", "teacher.dataset=digits", "--set", "data.dataset=file:twelve.npz"], 1, "go up to 11"),
        (["--teacher", "gone.pt2"], 2, "There is no file or folder gone.pt2"),
        (["--teacher", "own_students:fitting", "--weights", "gone.pt"], 1, "gone.pt"),
        (["--set", "execution.device=cuda:99"], 2, "execution.device is 'cuda:99'"),
        ([*BUILT_IN, "--set", "synthesis.method=inversion"], 1, "inversion method reads BatchNorm statistics"),
        ([*EXTERNAL, "--set", "synthesis.method=noise_engineered"], 1, "method reads BatchNorm statistics"),
        ([*BUILT_IN, "--set", "statistics.source=batchnorm"], 1, "No BatchNorm with"),
        ([*BUILT_IN, "--set", "synthesis.num_images=9"], 2, "the teacher has 10 classes"),
        ([*EXTERNAL, "--set", "synthesis.num_images=9"], 2, "the teacher has 10 classes"),
        ([*BUILT_IN, "--set", "teacher.layer=fc2"], 1, "has no outgoing weights"),
        (["--set", "execution.device=meta"], 2, "device must be auto, cpu, cuda or cuda:N"),
        (["--set", "execution.device=graphics"], 2, "device must be auto, cpu, cuda or cuda:N"),
        (["--set", "synthesis.num_images=0"], 2, "synthesis.num_images: input should be greater than"),
        (["--preset", "quick"], 2, "Presets: best, default, digits, fast"),
    ],
)
def test_run_with_wrong_input__leaves_params_as_they_were(
    inputs: None, arguments: list[str], code: int, message: str
) -> None:
    before = Path("params.yaml").read_bytes()
    result = CliRunner().invoke(app, ["run", "--preset", "digits", *arguments])
    assert (result.exit_code, message in result.output) == (code, True), result.output
    assert "Traceback" not in result.output
    assert Path("params.yaml").read_bytes() == before


def test_tune_with_wrong_input__leaves_params_as_they_were(inputs: None) -> None:
    before = Path("params.yaml").read_bytes()
    result = CliRunner().invoke(app, ["tune", "--preset", "digits", "--set", "distillation.student=lenet6"])
    assert (result.exit_code, "no network 'lenet6'" in result.output) == (2, True), result.output
    assert Path("params.yaml").read_bytes() == before


def test_tune__needs_no_evaluation_data(inputs: None) -> None:
    with planned("digits", ["teacher.source.model=mine", "data.dataset=folder:nowhere"]) as plan:
        settle(plan, with_evaluation=False)
    assert load_params() == plan.params


def test_settled_parameters__are_written_with_the_digest_and_the_comments(inputs: None) -> None:
    before = Path("params.yaml").read_text()
    plan = settled("teacher.source.model=mine", "seed=3")
    assert plan.params.teacher.source.sha256 == source_digest(SourceConfig(model="mine"))
    assert load_params() == plan.params
    assert "seed: 0 -> 3" in map(str, plan.shown())
    assert "sha256" not in "".join(map(str, plan.shown()))
    assert not plan.files_changed
    after = Path("params.yaml").read_text()
    assert [line for line in after.splitlines() if "#" in line] == [line for line in before.splitlines() if "#" in line]


def test_settled_again__changes_nothing_and_does_not_load_the_teacher_again(inputs: None) -> None:
    settled("teacher.source.model=mine")
    written, checked = Path("params.yaml").stat(), Path(".dfkd/checked_teachers/default/inputs.json").stat()
    assert settled("teacher.source.model=mine").changes == ()
    assert Path("params.yaml").stat().st_ino == written.st_ino
    settled("teacher.source.model=mine", "distillation.student=lenet5@0.25")
    assert Path(".dfkd/checked_teachers/default/inputs.json").stat().st_ino == checked.st_ino
    with pytest.raises(DfkdError, match="No layer 'conv9'"):
        settled("teacher.source.model=mine", "teacher.layer=conv9")


def test_teacher_files__that_changed_are_noted_and_those_that_are_gone_are_refused(inputs: None) -> None:
    first = settled("teacher.source.model=mine")
    store_teacher(seed=1)
    with planned(None, []) as plan:
        assert plan.files_changed
        assert [change.path for change in plan.changes] == ["teacher.source.sha256"]
        settle(plan)
    assert load_params().teacher.source.sha256 != first.params.teacher.source.sha256
    before = Path("params.yaml").read_bytes()
    Path("mine/model.safetensors").unlink()
    with planned(None, []) as plan, pytest.raises(TeacherError, match="No weights mine"):
        settle(plan)
    assert Path("params.yaml").read_bytes() == before


def test_take_teacher__refuses_files_that_changed_after_they_were_settled(inputs: None) -> None:
    source = settled("teacher.source.model=mine").params.teacher.source
    take_teacher.fn(source, "", 32, folder="out")
    store_teacher(seed=1)
    with pytest.raises(TeacherError, match=r"have changed \(digest .*\)\. Use them as they are now with: dfkd run"):
        take_teacher.fn(source, "", 32, folder="out")


def test_source_that_is_removed__leaves_no_digest(inputs: None) -> None:
    settled("teacher.source.model=mine")
    assert settled("teacher.source.model=''").params.teacher.source.sha256 == ""


def test_the_file_of_a_student__is_digested_into_params(inputs: None) -> None:
    def digest() -> str:
        with planned("digits", ["distillation.student=own_students:fitting"]) as plan:
            settle(plan)
            assert "distillation.student_sha256" not in [change.path for change in plan.shown()]
        return load_params().distillation.student_sha256

    path = Path("own_students.py")
    first = digest()
    assert first == file_sha256(path)
    path.write_text(path.read_text() + "\n# Another version.\n")
    assert digest() == file_sha256(path) != first
    with planned("digits", []) as plan:
        assert plan.params.distillation.student_sha256 == ""
