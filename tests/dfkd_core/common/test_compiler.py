from __future__ import annotations

import subprocess
import sys

COMPILER = "torch._dynamo"


def run(code: str) -> None:
    """Run code in a new process, since the compiler may be imported in this one."""
    subprocess.run([sys.executable, "-c", f"import sys, torch\n{code}"], check=True)


def test_vision__does_not_import_the_compiler_but_it_can_be_used_later() -> None:
    run(f"""
from dfkd_core.common import vision
assert {COMPILER!r} not in sys.modules
# As the operators of torchvision that have a compiled form do.
assert sys.modules["torchvision.ops.roi_align"].is_compile_supported("cpu") in (True, False)
import torch._dynamo
assert torch._dynamo.utils is sys.modules["torch._dynamo.utils"] and torch._dynamo.utils.counters is not None
""")


def test_deferred_compiler__gives_another_import_in_the_block_the_module_itself() -> None:
    run("""
from dfkd_core.common.compiler import deferred_compiler
with deferred_compiler():
    from torch._dynamo.utils import counters
    import torch._dynamo
assert counters is torch._dynamo.utils.counters
""")
