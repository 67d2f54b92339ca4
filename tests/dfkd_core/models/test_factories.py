import sys
from pathlib import Path

import pytest
from torch import nn

from dfkd_core.errors import ConfigError
from dfkd_core.models.architectures import architecture_fault, build_architecture
from dfkd_core.models.factories import allows, factory, factory_file, nearest_factory, split_factory

MODULE = """
from __future__ import annotations
import functools
import os
import shutil
import subprocess
from os import system
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any, Optional, Self, TypeVar

from torch import nn

if TYPE_CHECKING:
    from torch.nn import Module

Kind = TypeVar("Kind", bound=nn.Module)
CALLED = []


class Net(nn.Sequential):
    def __init__(self, num_classes: int = 3) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, num_classes))

    @classmethod
    def small(cls) -> Self:
        return cls(2)

    @staticmethod
    def large() -> Net:
        return Net(9)


class Other:
    def __init__(self, **options):
        CALLED.append("Other")

    @classmethod
    def net(cls) -> nn.Module:
        return Net()

    def method(self) -> nn.Module:
        return Net()


def annotated(num_classes: int) -> nn.Module:
    return Net(num_classes)


def annotated_as_text() -> "Net | nn.Linear":
    return Net()


def of_a_kind() -> Kind:
    return Net()


def unannotated():
    return Net()


def for_checkers_alone() -> Module:
    return Net()


def anything() -> Any:
    return Net()


def wrapped(function):
    @functools.wraps(function)
    def inner(*args, **options):
        return function(*args, **options)
    return inner


@wrapped
def decorated():
    return Net()


def number() -> int:
    CALLED.append("number")
    return 1


def perhaps() -> Optional[nn.Module]:
    CALLED.append("perhaps")


async def later() -> nn.Module:
    CALLED.append("later")


def many() -> nn.Module:
    CALLED.append("many")
    yield Net()


def raising() -> nn.Module:
    raise ZeroDivisionError("by zero")


def leaving() -> nn.Module:
    raise SystemExit(3)


partial = functools.partial(unannotated)
cached = functools.lru_cache(unannotated)
instance = Net()
bound = Other().method
CALLED.clear()
"""


@pytest.fixture(autouse=True)
def own_module(tmp_path, monkeypatch):
    """Write a module of the user's own into the current folder, one into a package, and one that notes its import."""
    (tmp_path / "own_nets.py").write_text(MODULE)
    (tmp_path / "nets" / "inner").mkdir(parents=True)
    (tmp_path / "nets" / "inner" / "net.py").write_text(MODULE)
    (tmp_path / "noting.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'imported')!r}).touch()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("own_nets", "nets", "noting", "installed_nets"):
            del sys.modules[name]


def build(name, **arguments):
    return build_architecture(name, in_channels=1, image_size=8, num_classes=4, arguments=arguments)


@pytest.mark.parametrize(
    ("name", "num_classes"),
    [
        ("own_nets:Net", 4),
        ("own_nets.Net", 4),
        ("own_nets:Net.small", 2),
        ("own_nets:Net.large", 9),
        ("own_nets:Other.net", 3),
        ("own_nets:annotated", 4),
        ("own_nets:annotated_as_text", 3),
        ("own_nets:of_a_kind", 3),
        ("own_nets:unannotated", 3),
        ("own_nets:for_checkers_alone", 3),
        ("own_nets:anything", 3),
        ("own_nets:decorated", 3),
        ("nets.inner.net:Net", 4),
        ("nets.inner.net.Net", 4),
    ],
)
def test_a_factory__makes_a_network(name, num_classes):
    assert architecture_fault(name) is None
    assert build(name)[1].out_features == num_classes
    assert factory_file(name).name == ("net.py" if "inner" in name else "own_nets.py")


def test_functions_of_packages__are_factories_if_they_say_so():
    assert isinstance(build("torchvision.models:squeezenet1_1"), nn.Module)
    assert isinstance(build("torch.nn.Identity"), nn.Identity)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        *((f"own_nets:{name}", "is a builtin_function_or_method") for name in ("system", "os.system", "os.remove")),
        *(
            (f"own_nets:{name}", "does not say that it makes a network, so a function of a package is not called")
            for name in ("rmtree", "shutil.rmtree", "subprocess.run", "functools.wraps")
        ),
        *((name, "is a builtin_function_or_method") for name in ("os:system", "builtins:exec", "posix:system")),
        ("shutil:rmtree", "does not say that it makes a network"),
        ("subprocess:Popen", "is a class, but none of networks"),
        ("own_nets:Path", "is a class, but none of networks"),
        ("own_nets:Other", "is a class, but none of networks"),
        ("own_nets:number", "says that it returns int and no network"),
        ("own_nets:perhaps", r"says that it returns .*Optional.* and no network"),
        ("own_nets:later", "returns a coroutine or a generator"),
        ("own_nets:many", "returns a coroutine or a generator"),
        ("own_nets:partial", "is a partial"),
        ("own_nets:cached", "is a _lru_cache_wrapper"),
        ("own_nets:instance", "is a Net; it must be a function or class"),
        ("own_nets:bound", "is a method of an object"),
        ("own_nets:CALLED", "is a list"),
        ("own_nets:nn", "is a module"),
    ],
)
def test_what_is_no_factory__is_not_called(name, message, own_module):
    with pytest.raises(ConfigError, match=f"{message}.*-> torch.nn.Module"):
        build(name)
    if name.startswith("own_nets"):
        assert sys.modules["own_nets"].CALLED == []


def test_an_unannotated_function__is_called_from_the_users_own_files_alone(own_module, monkeypatch):
    packages = own_module / "lib" / "site-packages"
    packages.mkdir(parents=True)
    (packages / "installed_nets.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(packages))
    assert isinstance(build("installed_nets:annotated"), nn.Module)
    with pytest.raises(ConfigError, match="a function of a package is not called"):
        build("installed_nets:unannotated")


@pytest.mark.parametrize(
    ("name", "message"), [("raising", "by zero"), ("leaving", r"its code calls sys.exit\(3\), which ends the program")]
)
def test_an_exception_of_a_factory__is_one_sentence(name, message):
    with pytest.raises(ConfigError, match=f"own_nets:{name} cannot be built with .*: {message}. Correct its arguments"):
        build(f"own_nets:{name}")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("own_nets:Net()", "own_nets:Net"),
        ("own_nets:Net(num_classes=3)", "own_nets:Net"),
        ("own_nets.Net()", "own_nets:Net"),
        ("own_nets.py:Net", "own_nets:Net"),
        ("./own_nets.py:Net", "own_nets:Net"),
        ("nets/inner/net.py:Net", "nets.inner.net:Net"),
        ("nets/inner/net:Net", "nets.inner.net:Net"),
        ("own_nets.py", "own_nets:NAME"),
        ("own_nets:Net:small", "own_nets:Net.small"),
        ("own_nets::Net", "own_nets:Net"),
        ("own_nets: Net", "own_nets:Net"),
        ("own_nets.Net.small", "own_nets:Net.small"),
        ("lenet6", "lenet5"),
    ],
)
def test_a_wrong_form__is_corrected(name, near):
    fault = architecture_fault(name) or ""
    assert f"no network {name!r}; did you mean {near}" in fault
    assert "torchvision:NAME, timm:NAME, package.module:factory or package.module:Class.method" in fault
    if "NAME" not in near:
        assert architecture_fault(near) is None
    assert nearest_factory(near) is None


def test_the_absolute_path_of_a_file__is_corrected_in_the_current_folder_alone(own_module):
    assert nearest_factory(f"{own_module}/own_nets.py:Net") == "own_nets:Net"
    assert nearest_factory(f"{own_module.parent}/own_nets.py:Net") is None


@pytest.mark.parametrize("name", ["nope", "nope.Net", "own-nets:Net", "own_nets:", ":Net", "own_nets", "", "a b", "9:"])
def test_a_name_that_is_no_network__is_refused(name):
    assert f"no network {name!r}" in (architecture_fault(name) or "")
    with pytest.raises(ConfigError, match="No network"):
        build(name)


def test_the_form_of_a_name__is_checked_without_an_import(own_module):
    for name in ("noting:Net", "noting.Net", "noting.py:Net", "noting:Net()"):
        architecture_fault(name)
        split_factory(name)
        allows(["noting.Net"], name)
    assert not (own_module / "imported").exists()
    assert "noting" not in sys.modules
    with pytest.raises(ConfigError, match="noting has no 'Net'"):
        factory("noting:Net")
    assert (own_module / "imported").exists()


def test_the_forms_of_a_name__mean_the_same():
    assert allows(["own_nets.Net"], "own_nets:Net")
    assert allows(["own_nets:Net"], "own_nets.Net")
    assert not allows(["own_nets:Net"], "own_nets:Net.small")
    assert not allows(["own_nets"], "own_nets:Net")
    assert factory_file("own_nets.Net") == factory_file("own_nets:Net") == Path.cwd() / "own_nets.py"
