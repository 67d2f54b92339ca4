"""The only import of torchvision, which also works with a CPU build of torch.

PyPI's torchvision is linked to CUDA. With a CPU build of torch its compiled operators cannot be loaded, and its import
fails when it describes `nms` to the compiler. The schemas of the missing operators are then declared and the import is
repeated: transforms, data sets and `make_grid` work, `torchvision.ops.nms` and `torchvision.io` do not. Worker
processes must also import this module before they unpickle anything of torchvision.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

import torch

from dfkd_core.common.compiler import deferred_compiler

__all__ = ["datasets", "functional_v2", "make_grid", "models", "transforms_v2"]

_MISSING_OPERATOR = "operator torchvision::nms does not exist"
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_WHEN_USED = {"functional_v2": "torchvision.transforms.v2.functional", "transforms_v2": "torchvision.transforms.v2"}
# A library's definitions are removed with the object, so it is kept as long as the module.
_declarations: list[torch.library.Library] = []


def _import_torchvision() -> None:
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if _MISSING_OPERATOR not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        _declare_operators()
        importlib.import_module("torchvision")


def _declare_operators() -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for schema in _SCHEMAS:
        library.define(schema)  # type: ignore[no-untyped-call]
    _declarations.append(library)


with deferred_compiler():
    _import_torchvision()

from torchvision import datasets, models  # noqa: E402
from torchvision.utils import make_grid  # noqa: E402

if TYPE_CHECKING:
    from torchvision.transforms import v2 as transforms_v2
    from torchvision.transforms.v2 import functional as functional_v2


def __getattr__(name: str) -> Any:
    """Import the transforms when they are used, since they import torch's compiler, which takes seconds."""
    if name in _WHEN_USED:
        return importlib.import_module(_WHEN_USED[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
