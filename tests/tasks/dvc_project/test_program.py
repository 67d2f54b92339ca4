"""The process that runs DVC, in a project of one stage."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dfkd_core.errors import DfkdError
from dfkd_tasks.caching.code import PACKAGES
from dfkd_tasks.dvc_project.remote import check_remote, described_remote
from dfkd_tasks.dvc_project.status import changed_stages, git_commit, run_dvc

Made = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """Return a function that makes a project, without git, whose stage runs a command."""

    def made(command: str, *, dependency: str = "") -> Path:
        (tmp_path / ".dvc").mkdir()
        (tmp_path / ".dvc" / "config").write_text("[core]\n    analytics = false\n    remote = far\n"
                                                  "['remote \"far\"']\n    url = ../far\n")  # fmt: skip
        deps = f"    deps: [{dependency}]\n" if dependency else ""
        (tmp_path / "dvc.yaml").write_text(f"stages:\n  one:\n    cmd: {command}\n{deps}    outs: [made.txt]\n")
        return tmp_path

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(PACKAGES))
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    monkeypatch.setenv("SHELL", "/bin/sh")
    return made


def dvc(command: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "dfkd_tasks.dvc_project.program", command]
    return subprocess.run(program, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)


def test_project_without_git__is_made_and_found_unchanged(make: Made) -> None:
    project = make("echo a > made.txt")
    assert changed_stages() == ["one"]
    assert dvc("repro").returncode == 0
    assert (project / "made.txt").read_text() == "a\n"
    assert changed_stages() == []


@pytest.mark.parametrize(("number", "name"), [(9, "SIGKILL"), (15, "SIGTERM")])
def test_killed_stage__is_named_with_its_signal(make: Made, number: int, name: str) -> None:
    make(f"kill -{number} $$")
    done = dvc("repro")
    assert done.returncode == 1
    assert f"The stage one was ended by {name} (signal {number})." in done.stderr
    assert "Continue with the same command." in done.stderr


def test_failed_stage__reports_itself_alone(make: Made) -> None:
    make("echo its own reason >&2; exit 2")
    done = dvc("repro")
    assert (done.returncode, done.stderr) == (1, "its own reason\n")


def test_failed_stage__does_not_stop_those_that_do_not_need_it(make: Made) -> None:
    project = make("kill -9 $$")
    (project / "dvc.yaml").write_text(
        "stages:\n"
        "  one:\n    foreach: {a: kill -9 $$, b: echo b > b.txt}\n"
        "    do:\n      cmd: ${item}\n      outs: ['${key}.txt']\n"
        "  needy:\n    cmd: echo > needy.txt\n    deps: [a.txt]\n    outs: [needy.txt]\n"
    )
    done = dvc("repro")
    assert done.returncode == 1
    assert "The stage one (a) was ended by SIGKILL" in done.stderr
    assert (project / "b.txt").read_text() == "b\n"
    assert not (project / "needy.txt").exists()
    assert changed_stages() == ["needy", "one@a"]


def test_failure_of_dvc__is_printed_with_its_causes(make: Made) -> None:
    make("echo", dependency="missing.txt")
    done = dvc("repro")
    assert done.returncode == 1
    assert "failed to reproduce 'one'" in done.stderr
    assert done.stderr.endswith("missing.txt'. Restore or make it, then continue with the same command\n")
    assert "Traceback" not in done.stderr


def test_failed_push__has_the_whole_message_of_dvc(make: Made) -> None:
    project = make("echo a > made.txt")
    assert dvc("repro").returncode == 0
    (project / "far").write_text("a file")
    with pytest.raises(DfkdError, match=r"dvc push failed: .*far"):
        run_dvc("push")


def test_cache_of_runs__may_lack_the_entry_that_a_killed_dvc_began(make: Made) -> None:
    project = make("cp given.txt made.txt", dependency="given.txt")
    (project / "given.txt").write_text("a\n")
    assert dvc("repro").returncode == 0
    [entry] = (project / ".dvc/cache/runs").glob("*/*/*")
    for path in (entry, project / "dvc.lock", project / "made.txt"):
        path.unlink()
    assert dvc("repro").returncode == 0
    assert (project / "made.txt").read_text() == "a\n"
    assert entry.is_file()


def test_damaged_notes_of_dvc_on_files__are_made_again(make: Made) -> None:
    project = make("echo a > made.txt")
    assert dvc("repro").returncode == 0
    notes = list((project / "site").rglob("*.db"))
    assert notes
    for path in notes:
        path.write_text("<html>Not Found</html>\n")
    done = dvc("repro")
    assert (done.returncode, done.stderr) == (0, "")
    assert changed_stages() == []


def test_commit__without_the_program_git_is_unknown(make: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    assert git_commit() == "unknown"


def test_check__writes_into_the_remote_and_leaves_nothing(make: Made) -> None:
    project = make("true")
    assert dvc("check").returncode == 0
    assert list((project / "../far").resolve().rglob("*")) == []
    config = project / ".dvc" / "config"
    config.write_text(config.read_text().replace("../far", "/proc/far"))
    done = dvc("check")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert done.stderr.startswith("dvc: ")


def test_check_remote__that_cannot_be_written_is_a_sentence_without_passwords(make: Made, closed_port: int) -> None:
    project = make("true")
    check_remote()
    config = project / ".dvc" / "config"
    url = f"http://me:secret@127.0.0.1:{closed_port}/store"
    config.write_text(config.read_text().replace("../far", url))
    with pytest.raises(DfkdError) as caught:
        check_remote()
    assert str(caught.value).startswith(
        f"DVC's remote 'far' at http://127.0.0.1:{closed_port}/store cannot be written: "
    )
    assert str(caught.value).endswith("or set another one with: dvc remote modify far url PATH")
    assert "secret" not in str(caught.value)
    assert described_remote() == f"far, http://127.0.0.1:{closed_port}/store"
