from __future__ import annotations

import signal
from pathlib import Path

import pytest

from dfkd_tasks.processes.endings import count_oom_kills, ending, signal_of


@pytest.fixture
def system(tmp_path: Path) -> dict[str, Path]:
    """Return folders like /proc and /sys/fs/cgroup, of a container with a limit."""
    proc, group = tmp_path / "proc", tmp_path / "cgroup" / "job"
    (proc / "self").mkdir(parents=True)
    group.mkdir(parents=True)
    (proc / "self" / "cgroup").write_text("0::/job\n")
    (proc / "meminfo").write_text(f"MemTotal: {16 * 2**20} kB\n")
    (proc / "vmstat").write_text("pgfault 3\noom_kill 0\n")
    (group / "memory.max").write_text(f"{2 * 2**30}\n")
    (group / "memory.events").write_text("oom 0\noom_kill 4\n")
    return {"proc": proc, "cgroups": tmp_path / "cgroup"}


@pytest.mark.parametrize(
    ("status", "number"),
    [
        (0, None),
        (1, None),
        (127, None),
        (255, None),
        (-9, signal.SIGKILL),
        (137, signal.SIGKILL),
        (143, signal.SIGTERM),
    ],
)
def test_signal__of_a_process_and_of_a_shell(status: int, number: signal.Signals | None) -> None:
    assert signal_of(status) is number


def test_kill_for_memory__is_named_with_the_memory_and_a_remedy(system: dict[str, Path]) -> None:
    before = count_oom_kills(**system)
    (system["cgroups"] / "job" / "memory.events").write_text("oom 1\noom_kill 5\n")
    text = ending("The stage distill", signal.SIGKILL, before, **system)
    assert text.startswith("The stage distill was ended by SIGKILL (signal 9). There was too little memory")
    assert "The machine has 16.0 GiB of memory, its control group 2.0 GiB." in text
    assert "dfkd run --set execution.num_workers=1" in text


def test_kill_without_a_count__names_both_causes(system: dict[str, Path]) -> None:
    text = ending("dvc repro", signal.SIGKILL, count_oom_kills(**system), **system)
    assert "too little memory, or a scheduler; Linux counted no out-of-memory kill" in text


def test_other_signals__have_their_own_causes(system: dict[str, Path]) -> None:
    texts = {number: ending("It", number, 0, **system) for number in (signal.SIGTERM, signal.SIGBUS, signal.SIGSEGV)}
    assert "limit of time" in texts[signal.SIGTERM]
    assert "df -h" in texts[signal.SIGBUS]
    assert "dfkd doctor" in texts[signal.SIGSEGV]
    assert not any("GiB" in text for text in texts.values())


def test_count__without_linux_files_is_zero(tmp_path: Path) -> None:
    assert count_oom_kills(proc=tmp_path, cgroups=tmp_path) == 0
