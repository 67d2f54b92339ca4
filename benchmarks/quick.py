"""The seconds around the computation, of this build and of another one: a run's orchestration, a repeated run, inspect.

    python benchmarks/quick.py --against ../earlier     # 10 to 20 minutes on two cores; the other checkout's folder

Each build works in a copy of its checkout, with the packages of this environment. Runs of the two builds alternate, and
the table has medians. CPU seconds also cover the processes that a command waits for. CONTRIBUTING.md has the set-up.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from hardware import processor_name

HERE = Path(__file__).resolve().parents[1]
SMALL = (
    "data.dataset=digits",
    "teacher.epochs=2",
    "synthesis.num_images=400",
    "synthesis.images_per_shard=100",
    "synthesis.methods.soft_target.refinement.iterations=5",
    "distillation.epochs=2",
    "evaluation.num_latency_runs=3",
    "execution.device=cpu",
)
ORCHESTRATION = re.compile(r"^orchestration +([\d.]+) s", re.MULTILINE)
MODULES = ("dfkd_flows.cli", "flows.cli")


@dataclass(frozen=True)
class Build:
    """A copy of a checkout that is used through its command."""

    folder: Path
    command: Path
    environment: dict[str, str]

    def run(self, *arguments: str) -> tuple[float, float, str]:
        """Run a command of dfkd; return its wall seconds, its CPU seconds and its output."""
        before, start = _cpu_seconds(), time.perf_counter()
        done = subprocess.run(
            [str(self.command), *arguments],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return time.perf_counter() - start, _cpu_seconds() - before, done.stdout


def copy_build(checkout: Path, folder: Path) -> Build:
    """Copy the files of a checkout that git knows, and make its command."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=checkout, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (checkout / name).exists() and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(checkout / name, folder / name, follow_symlinks=False)
    for arguments in (
        ["init", "-q"],
        ["add", "-A"],
        ["-c", "user.name=x", "-c", "user.email=x@y", "commit", "-qm", "-"],
    ):
        subprocess.run(["git", *arguments], cwd=folder, check=True)
    module = MODULES[0] if (folder / "src").is_dir() else MODULES[1]
    command = folder / ".venv" / "bin" / "dfkd"
    command.parent.mkdir(parents=True)
    # The workers of a stage import it too.
    lines = (f"#!{sys.executable}", "import sys", f"from {module} import main", "if __name__ == '__main__':")
    command.write_text("\n".join([*lines, "    sys.exit(main())\n"]))
    command.chmod(0o755)
    packages = folder / "src" if module == MODULES[0] else folder
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    return Build(folder, command, {**os.environ, "PYTHONPATH": str(packages), "PATH": path})


def measure(build: Build, seed: int) -> dict[str, float]:
    """Return the seconds of each kind after a change that concerns all stages."""
    settings = [part for assignment in (*SMALL, f"seed={seed}") for part in ("--set", assignment)]
    wall, cpu, output = build.run("run", *settings)
    found = ORCHESTRATION.search(output)
    assert found, output
    build.run("run")
    again, again_cpu, _ = build.run("run")
    look, look_cpu, _ = build.run("inspect", "--teacher", "lenet5")
    return {
        "run, all, wall": wall,
        "run, orchestration, wall": float(found[1]),
        "run, all, CPU": cpu,
        "run with nothing to do, wall": again,
        "run with nothing to do, CPU": again_cpu,
        "inspect, wall": look,
        "inspect, CPU": look_cpu,
    }


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, required=True, help="folder of the other checkout")
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args()
    print(f"{os.cpu_count()} cores of {processor_name()}, load {os.getloadavg()[0]:.1f} before")
    with tempfile.TemporaryDirectory(prefix="dfkd-quick-") as scratch:
        checkouts = (chosen.against.resolve(), HERE)
        builds = [copy_build(checkout, Path(scratch, str(place))) for place, checkout in enumerate(checkouts)]
        rounds = [[measure(build, seed) for build in builds] for seed in range(1, chosen.repeats + 1)]
    print("| seconds, median | other | this | this / other |\n|---|---|---|---|")
    for name in rounds[0][0]:
        other, this = (statistics.median(pair[place][name] for pair in rounds) for place in (0, 1))
        ratio = statistics.median(pair[1][name] / pair[0][name] for pair in rounds)
        print(f"| {name} | {other:.1f} | {this:.1f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
