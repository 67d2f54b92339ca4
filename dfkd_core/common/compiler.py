"""An import of torchvision without torch's compiler, which takes seconds and which dfkd does not use."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

__all__ = ["deferred_compiler"]

_UTILS = "torch._dynamo.utils"


@contextmanager
def deferred_compiler() -> Iterator[None]:
    """Let imports of the compiler's helper functions in the block load it only when one of them is used."""
    if _UTILS in sys.modules:
        yield
        return
    sys.modules[_UTILS] = deferred = _Deferred(_UTILS)
    try:
        yield
    finally:
        if sys.modules.get(_UTILS) is deferred:
            del sys.modules[_UTILS]


class _Deferred(ModuleType):
    """Stands for the compiler's module of helper functions."""

    def is_compile_supported(self, *arguments: Any) -> Any:
        """Load the module and call its function."""
        return _load(self).is_compile_supported(*arguments)

    def __getattr__(self, name: str) -> Any:
        """Return anything else from the module itself, which another thread may import meanwhile."""
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_load(self), name)


def _load(deferred: ModuleType) -> ModuleType:
    if sys.modules.get(_UTILS) is deferred:
        del sys.modules[_UTILS]
    return importlib.import_module(_UTILS)
