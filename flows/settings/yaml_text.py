"""Reading YAML: numbers like `1e4`, no key twice, and a fault as one sentence with its line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from dfkd_core.errors import ConfigError
from dfkd_tasks.dvc_project.files import merge_marker

__all__ = ["compose_yaml", "parse_yaml", "read_yaml", "value_text"]

_SCIENTIFIC = r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)[eE][-+]?[0-9]+"


class _Loader(yaml.SafeLoader):
    """Builds plain values only."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping, and refuse a key that it has twice; PyYAML would take the last one."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else key
            if name in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {name!r} is there twice", problem_mark=key.start_mark)
            seen.add(name)
        return node


# YAML 1.1, which PyYAML follows, reads 1e4 as text, and 1.0e+4 as a number.
_NUMBER = ("tag:yaml.org,2002:float", re.compile(f"^(?:{_SCIENTIFIC})$"), list("-+.0123456789"))
_Loader.add_implicit_resolver(*_NUMBER)


class _Dumper(yaml.SafeDumper):
    """Puts text in quotes that `_Loader` would read as another type."""


_Dumper.add_implicit_resolver(*_NUMBER)


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file; None if it holds none.

    Raises:
        ConfigError: It cannot be read, or is not YAML.
    """
    restore = f"Correct it, or restore it with: git checkout {path}"
    try:
        # A byte order mark at the start, which some editors write, is no content.
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not YAML, byte {error.start} is not UTF-8 text. {restore}") from None
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror}. Restore it with: git checkout {path}") from None
    line = merge_marker(text)
    if line:
        raise ConfigError(
            f"{path}, line {line}: there are merge markers of git. Choose one side, and delete the markers"
        )
    try:
        return parse_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"{path} is not YAML, {error}. {restore}") from None


_MOST_NODES = 100_000


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML text.

    Raises:
        ConfigError: It is not YAML; the message has the line and the fault, without a full stop.
    """
    _check_size(compose_yaml(text))
    with _faults_in_words():
        return yaml.load(text, _Loader)


def _check_size(root: yaml.Node | None) -> None:
    """Refuse anchors that contain themselves, or that repeat so much that the text becomes huge."""
    waiting = [root] if root else []
    for _ in range(_MOST_NODES):
        if not waiting:
            return
        node = waiting.pop()
        if isinstance(node, yaml.MappingNode):
            waiting += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value
    raise ConfigError(f"its anchors refer to themselves or repeat too much: it has more than {_MOST_NODES:,} values")


def compose_yaml(text: str) -> yaml.Node | None:
    """Return the nodes of a YAML text, with their places in it; None if it has none.

    Raises:
        ConfigError: As for `parse_yaml`.
    """
    with _faults_in_words():
        node: yaml.Node | None = yaml.compose(text, _Loader)
    return node


def value_text(value: Any) -> str:
    """Return a value as YAML on one line."""
    if value == "":
        return '""'
    text: str = yaml.dump(_plain(value), Dumper=_Dumper, default_flow_style=True, sort_keys=False, width=float("inf"))
    return text.removesuffix("\n").removesuffix("\n...")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


@contextmanager
def _faults_in_words() -> Iterator[None]:
    try:
        yield
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        context = f"{error.context}, " if error.context else ""
        raise ConfigError(f"{line}{context}{error.problem}") from None
    except RecursionError:
        raise ConfigError("it is nested too deeply") from None
    # Text that looks like a number or a date and is none fails with a ValueError.
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(" ".join(str(error).split())) from None
