"""Inject faults into a small copy of the project, for real, and count what they lead to.

    python benchmarks/faults.py
    python benchmarks/faults.py --only kills --number 8 --seed 3

The three groups run at the same time, each in a workspace of its own. Each fault starts from the same state. After a
kill, `dfkd run` must end with the same digests as without. A damaged file that dfkd can make again must be made again;
another must be refused with the next step. At the end are the numbers of faults with the same digests, duplicates in
MLflow, processes that live on after 5 s, half files, and messages without a next step.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from fault_inputs import input_trials
from fault_kills import kill_trials
from fault_places import place_trials
from fault_workspace import Outcome, Workspace, ends_alone, make_workspace

GROUPS = ("kills", "inputs", "places")
NUM_KILLS = 16


def main() -> int:
    """Run the chosen faults; the exit code is 1 if any of them left something behind."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=GROUPS, help="one group of faults; all at the same time if not given")
    parser.add_argument("--number", type=int, help="so many faults of each group")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments of the kills")
    parser.add_argument("--match", default="", help="only faults whose names match this regular expression")
    parser.add_argument("--keep", type=Path, help="folder in which the workspaces are kept, and used again")
    arguments = parser.parse_args()
    # Also then disks are unmounted.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="dfkd-faults-") as folder:
        root = (arguments.keep or Path(folder)).resolve()
        return _one_group(root / "faults", arguments) if arguments.only else _all_groups(root)


def _all_groups(root: Path) -> int:
    """Run each group in a process and a workspace of its own: a run uses about one core."""
    command = [sys.executable, *sys.argv]
    groups = [subprocess.Popen([*command, "--only", group, "--keep", str(root / group)]) for group in GROUPS]
    try:
        return max(group.wait() for group in groups)
    finally:
        for group in groups:
            group.terminate()


def _one_group(root: Path, arguments: argparse.Namespace) -> int:
    start = time.monotonic()
    workspace = make_workspace(root)
    print(f"{arguments.only}: workspace made in {time.monotonic() - start:.0f} s", flush=True)
    try:
        outcomes = list(_shown(arguments.only, _trials(workspace, arguments)))
    finally:
        ends_alone(workspace)
    _print_counts(arguments.only, outcomes)
    return int(not all(outcome.is_good for outcome in outcomes))


def _trials(workspace: Workspace, arguments: argparse.Namespace) -> Iterator[Outcome]:
    if arguments.only == "kills":
        return kill_trials(workspace, arguments.match, arguments.number or NUM_KILLS, arguments.seed)
    trials = input_trials if arguments.only == "inputs" else place_trials
    return trials(workspace, arguments.match, arguments.number)


def _shown(group: str, outcomes: Iterator[Outcome]) -> Iterator[Outcome]:
    for outcome in outcomes:
        text = f"{group}: {'ok    ' if outcome.is_good else 'FAILED'} {outcome.seconds:5.1f} s  {outcome.name}"
        # In one piece, as other groups write too.
        print(text if outcome.is_good else f"{text}\n       {outcome.faults()}\n{outcome.note}", flush=True)
        yield outcome


def _print_counts(group: str, outcomes: list[Outcome]) -> None:
    seconds = sum(outcome.seconds for outcome in outcomes)
    print(
        f"{group}: {len(outcomes)} tried in {seconds:.0f} s: {sum(outcome.same for outcome in outcomes)} the same, "
        f"{sum(outcome.duplicates for outcome in outcomes)} duplicates, "
        f"{sum(len(outcome.orphans) for outcome in outcomes)} orphans, "
        f"{sum(len(outcome.half_files) for outcome in outcomes)} half files, "
        f"{sum(outcome.no_next_command for outcome in outcomes)} messages without a next step"
    )


if __name__ == "__main__":
    raise SystemExit(main())
