"""Runs `dfkd` many times from one process that has made the slow imports: each time a child runs the same code.

    python benchmarks/fault_fork.py PROJECT

Each line of stdin is a list of arguments and a file for the output, as JSON. Each line of stdout is an exit code.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import traceback
from importlib import import_module

_SLOW = (
    "torch",
    "prefect.main",
    "mlflow",
    "dfkd_flows.pipeline",
    "dfkd_flows.run.command",
    "dfkd_flows.run.publishing",
    "dfkd_flows.commands.exporting",
)


def main(project: str) -> None:
    """Import what is slow, then run commands until stdin ends."""
    os.chdir(project)
    from dfkd_flows.session.environment import enter_project, prepare_environment

    prepare_environment(enter_project())
    for name in _SLOW:
        import_module(name)
    os.chdir("/")
    for line in sys.stdin:
        arguments, output = json.loads(line)
        child = os.fork() or _run(project, arguments, output)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        sys.stdout.flush()


def _run(project: str, arguments: list[str], output: str) -> int:
    """Become the command, and end."""
    os.setsid()
    os.chdir(project)
    written = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, written), (2, written)):
        os.dup2(source, descriptor)
    sys.argv = ["dfkd", *arguments]
    try:
        import_module("dfkd_flows.cli").main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1])
