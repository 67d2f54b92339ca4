"""Prefect puts the folder of a deployed flow in front of the import path, so its files must not hide other modules."""

import sys

from tasks.caching.code import ROOT


def test_flows__hide_no_module_of_the_standard_library() -> None:
    names = {path.stem for path in (ROOT / "flows").glob("*.py")} - {"__init__"}
    assert names & set(sys.stdlib_module_names) == set()
