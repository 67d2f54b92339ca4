"""The entry point of `dfkd` and `python -m dfkd_flows`, with or without the packages of the pipeline."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line, or report in one sentence how to install what it needs."""
    try:
        from dfkd_flows.cli import main as run

        run()
    except ModuleNotFoundError:
        from dfkd_core.installing import pipeline_fault

        fault = pipeline_fault()
        if not fault:
            raise
        sys.exit(f"dfkd: {fault}")


if __name__ == "__main__":
    main()
