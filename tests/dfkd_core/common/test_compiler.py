from __future__ import annotations

import subprocess
import sys

import pytest

COMPILER = "torch._dynamo"
CODE = {
    "vision": f"""
from dfkd_core.common import vision
assert {COMPILER!r} not in sys.modules
# As the operators of torchvision that have a compiled form do.
assert sys.modules["torchvision.ops.roi_align"].is_compile_supported("cpu") in (True, False)
import torch._dynamo
assert torch._dynamo.utils is sys.modules["torch._dynamo.utils"] and torch._dynamo.utils.counters is not None
""",
    "deferred": """
from dfkd_core.common.compiler import deferred_compiler
with deferred_compiler():
    from torch._dynamo.utils import counters
    import torch._dynamo
assert counters is torch._dynamo.utils.counters
""",
}
# The compiler may be imported in this process. A copy of a new one, which has imported torch once, runs each code.
COPIES = f"""
import os, sys, torch
for name, code in {CODE!r}.items():
    if not os.fork():
        exec(code)
        print("passed", name, flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def passed() -> str:
    """Return the names of the codes that ran to their ends."""
    return subprocess.run([sys.executable, "-c", COPIES], check=False, stdout=subprocess.PIPE, text=True).stdout


def test_vision__does_not_import_the_compiler_but_it_can_be_used_later(passed: str) -> None:
    assert "passed vision\n" in passed


def test_deferred_compiler__gives_another_import_in_the_block_the_module_itself(passed: str) -> None:
    assert "passed deferred\n" in passed
