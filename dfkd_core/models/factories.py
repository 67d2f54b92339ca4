"""Factories: functions and classes of the user's own code that make a network.

    package.module:make_net        a function, with the return annotation `-> torch.nn.Module`
    package.module:Net             a class of networks
    package.module:Net.small       a class method or a static method
    package.module.Net             the last dot counts as the colon

Looking at a name imports nothing; `factory` imports its module, which runs the module's code.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import inspect
import os
import re
import sys
import sysconfig
import types
import typing
from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import nn

from dfkd_core.errors import ConfigError

__all__ = [
    "FORMS",
    "allows",
    "factory",
    "factory_file",
    "factory_module",
    "look_here",
    "module_file",
    "nearest_factory",
    "split_factory",
    "split_width",
]

FORMS = "package.module:factory or package.module:Class.method"
# Prefixes of names that are no modules of factories, and endings of files.
_RESERVED = ("timm", "torchvision")
_FILE_ENDINGS = "bin ckpt npz onnx pkl pt pt2 pth py safetensors torchscript ts zip".split()
_ANNOTATE = "Annotate a function with `-> torch.nn.Module`, or name a class derived from torch.nn.Module"


def split_width(name: str) -> tuple[str, float]:
    """Return a name without its width multiple, and the multiple; 1 for a name that ends with none."""
    base, _, number = name.rpartition("@")
    try:
        return base, float(number)
    except ValueError:
        return name, 1.0


def split_factory(name: str) -> tuple[str, str] | None:
    """Return the module and the name in it of a factory; None if the name has not the form of one.

    A width multiple is left out. Without a colon, the last dot counts as one if the part before it is a module. Nothing
    is imported.

    Example:
        >>> from dfkd_core.models.factories import split_factory
        >>> split_factory("my_nets:Net.small"), split_factory("torch.nn.Flatten"), split_factory("lenet5")
        (('my_nets', 'Net.small'), ('torch.nn', 'Flatten'), None)
    """
    name, _ = split_width(name)
    module, separator, path = name.partition(":")
    if not separator:
        module, separator, path = name.rpartition(".")
        if not _is_path(name) or path in _FILE_ENDINGS or not separator or module_file(module) is None:
            return None
    is_module = _is_path(module) and module not in _RESERVED and not module.endswith(".py")
    return (module, path) if is_module and _is_path(path) else None


def allows(names: Collection[str], name: str) -> bool:
    """Return whether a factory is among names, each in any of its forms."""
    return name in names or (split_factory(name) or name) in {split_factory(item) or item for item in names}


def nearest_factory(name: str) -> str | None:
    """Return the right form for a factory in a wrong one, such as a call or the path of a file; None if there is none.

    Example:
        >>> from dfkd_core.models.factories import nearest_factory
        >>> nearest_factory("nets/net.py:Net"), nearest_factory("my_nets:Net(10)"), nearest_factory("net.py")
        ('nets.net:Net', 'my_nets:Net', 'net:NAME')
    """
    text = re.sub(r"\s+|\(.*", "", name)
    module, separator, path = text.partition(":")
    is_file = module.endswith(".py")
    folder = os.path.relpath(module) if is_file else module
    module = folder.removesuffix(".py").strip("./").replace("/", ".").replace("\\", ".")
    path = path.strip(":.").replace(":", ".") if separator else ""
    if is_file and not path:
        path = "NAME"
    elif not separator:
        module, path = _known_prefix(module)
    wanted = f"{module}:{path}"
    return wanted if wanted != name and _is_path(module) and _is_path(path) and not folder.startswith("..") else None


def _known_prefix(dotted: str) -> tuple[str, str]:
    """Return the longest part of a dotted name that is a module, and the rest."""
    parts = dotted.split(".")
    for length in range(len(parts) - 1, 0, -1):
        if _is_path(module := ".".join(parts[:length])) and module_file(module) is not None:
            return module, ".".join(parts[length:])
    return "", ""


def _is_path(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))


def module_file(module: str) -> Path | None:
    """Return the file or, without `__init__.py`, the folder of a module; None if there is none. Nothing is imported."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # a module that was made in memory
        spec = None
    spec = spec or importlib.machinery.PathFinder.find_spec(top, [os.getcwd()])
    if spec is None:
        return None
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    if not rest:
        return Path(spec.origin) if spec.has_location and spec.origin else next(iter(folders), Path(top))
    places = [folder.joinpath(*rest) for folder in folders]
    files = [file for place in places for file in (place / "__init__.py", place.with_name(f"{place.name}.py"))]
    return next((path for path in (*files, *places) if path.exists()), None)


def factory(name: str) -> Any:
    """Import and return the function or class of a factory's name; the current folder is searched too.

    Raises:
        ConfigError: The module or the function does not exist, or it is no function or class that makes a network.
    """
    module, path = split_factory(name) or ("", "")
    if not module:
        raise ConfigError(f"{name!r} names no factory. Write it as {FORMS}")
    found: Any = factory_module(module)
    owner: Any = None
    for part in path.split("."):
        try:
            owner, found = found, getattr(found, part)
        except AttributeError:
            raise ConfigError(
                f"{module} has no {path!r}, got {name!r}. It has: {', '.join(_public_callables(module)) or 'nothing'}"
            ) from None
    if fault := _fault(found, owner):
        raise ConfigError(f"{name} {fault}")
    return found


def factory_file(name: str) -> Path | None:
    """Return the file that defines a factory; None for a network of a package and for a factory without source.

    Raises:
        ConfigError: As `factory`.
    """
    if split_factory(name) is None:
        return None
    file = inspect.getsourcefile(factory(name))
    return Path(file) if file else None


def _fault(found: Any, owner: Any) -> str | None:
    """Return why something may not be called to make a network, None if it may."""
    if isinstance(found, type):
        if issubclass(found, nn.Module):
            return None
        return f"is a class, but none of networks, so it is not called. {_ANNOTATE}"
    function = found.__func__ if inspect.ismethod(found) else found
    if inspect.ismethod(found) and not isinstance(found.__self__, type):
        return f"is a method of an object, so it is not called. {_ANNOTATE}"
    if not isinstance(function, types.FunctionType):
        return f"is a {type(found).__name__}; it must be a function or class that makes a network. {_ANNOTATE}"
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(inspect.unwrap(function)):
        return f"returns a coroutine or a generator and no network. {_ANNOTATE}"
    said = _return_annotation(function, owner)
    if said is None:
        if _is_users_own(function):
            return None
        return f"does not say that it makes a network, so a function of a package is not called. {_ANNOTATE}"
    if _says_network(said):
        return None
    shown = said.__name__ if isinstance(said, type) else str(said)
    return f"says that it returns {shown} and no network, so it is not called. {_ANNOTATE}"


def _return_annotation(function: types.FunctionType, owner: Any) -> Any:
    """Return what a function says that it returns; None if it says nothing that can be read."""
    if "return" not in function.__annotations__:
        return None
    said = types.SimpleNamespace(__annotations__={"return": function.__annotations__["return"]})
    scope = getattr(inspect.unwrap(function), "__globals__", {})
    try:
        found = typing.get_type_hints(said, scope)["return"]
    except Exception:  # a text that names something that is only imported for type checkers, or no type at all
        return None
    if found is typing.Any:
        return None
    is_self = getattr(found, "__name__", getattr(found, "_name", "")) == "Self"
    return owner if is_self and isinstance(owner, type) else found


def _says_network(said: Any) -> bool:
    if isinstance(said, typing.TypeVar):
        return said.__bound__ is not None and _says_network(said.__bound__)
    if typing.get_origin(said) in (typing.Union, types.UnionType):
        return all(map(_says_network, typing.get_args(said)))
    kind = typing.get_origin(said) or said
    return isinstance(kind, type) and issubclass(kind, nn.Module)


def _is_users_own(function: types.FunctionType) -> bool:
    """Return whether a function is from a file that is neither Python's nor an installed package's."""
    file = inspect.getsourcefile(inspect.unwrap(function))
    if file is None:
        return False
    path = Path(file).resolve()
    schemes = sysconfig.get_paths()
    places = [Path(schemes[name]).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    is_installed = any(part in ("site-packages", "dist-packages") for part in path.parts)
    return not is_installed and not any(path.is_relative_to(place) for place in places)


def _public_callables(module: str) -> list[str]:
    """Return the names of the functions and classes that a user's module defines."""
    members = vars(factory_module(module)).items()
    return [name for name, value in members if getattr(value, "__module__", "") == module and not name.startswith("_")]


def look_here() -> None:
    """Make imports search the current folder too, last."""
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)


def factory_module(name: str) -> Any:
    """Import a module of the user; the current folder is searched too.

    Raises:
        ConfigError: It does not exist or its import fails.
    """
    look_here()
    try:
        return _import(name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"No module {error.name!r} for {name!r}. Install its package, put it into the project's folder, or name "
            "its folder in PYTHONPATH"
        ) from None
    # A script without `if __name__ == "__main__"` ends the process, or parses the arguments of ours.
    except (Exception, SystemExit) as error:
        raise ConfigError(f"Importing {name} fails: {type(error).__name__}: {error}") from error


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    # Its own import of torchvision fails beside a CPU build of torch, see `common.vision`.
    importlib.import_module("dfkd_core.common.vision")
    return importlib.import_module(name)
