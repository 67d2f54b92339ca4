"""Changes values in the text of a YAML file: comments, line ends and all other text stay as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from dfkd_flows.settings.yaml_text import compose_yaml, value_text

__all__ = ["edit_yaml"]


@dataclass(frozen=True, slots=True)
class _Edit:
    start: int
    end: int
    text: str
    """Replaces the characters from `start` to `end`."""


class _Section(dict[str, Any]):
    """Changes in one section by key: a value, or the changes in a section within it."""


def edit_yaml(text: str, values: Mapping[str, Any]) -> str:
    """Return the text with new values; keys that it does not have are added at the end of their sections.

    An alias is not followed correctly, so compare the values of the result with those that are wanted.

    Args:
        text: A YAML document; its root is a mapping, or it is empty.
        values: New values by dotted path.

    Raises:
        ConfigError: It is not YAML.
    """
    root, changes = compose_yaml(text), _section(values)
    if not isinstance(root, yaml.MappingNode):
        end = "\n" if text and not text.endswith("\n") else ""
        return f"{text}{end}{_block(changes, 0)}\n"
    # From the end to the start.
    for edit in sorted(_edits(text, root, changes), key=_place, reverse=True):
        text = text[: edit.start] + edit.text + text[edit.end :]
    return text


def _place(edit: _Edit) -> tuple[int, bool, int]:
    """Return the order of edits; of those at one place, a line comes after other text and after deeper lines."""
    return edit.start, edit.text.startswith("\n"), len(edit.text.lstrip()) - len(edit.text)


def _section(values: Mapping[str, Any]) -> _Section:
    root = _Section()
    for path, value in values.items():
        *sections, name = path.split(".")
        section = root
        for each in sections:
            section = section.setdefault(each, _Section())
        section[name] = value
    return root


def _edits(text: str, node: yaml.MappingNode, changes: _Section) -> Iterator[_Edit]:
    pairs = {key.value: (key, value) for key, value in node.value}
    for name in changes.keys() & pairs.keys():
        (key, value), new = pairs[name], changes[name]
        if isinstance(new, _Section) and isinstance(value, yaml.MappingNode):
            yield from _edits(text, value, new)
        else:
            yield _replacement(text, key, value, _flow(new))
    missing = _Section((name, new) for name, new in changes.items() if name not in pairs)
    if missing:
        yield _addition(text, node, missing)


def _replacement(text: str, key: yaml.Node, value: yaml.Node, new: str) -> _Edit:
    start, end = value.start_mark.index, _end(key, value)
    if isinstance(value, yaml.CollectionNode) and not value.flow_style:
        # A block begins on a later line, perhaps at the key's own column.
        start = text.index(":", key.end_mark.index) + 1
    tail = "\n" if text[start:end].endswith("\n") else ""
    return _Edit(start, end, f"{'' if text[start - 1] in ' [' else ' '}{new}{tail}")


def _addition(text: str, node: yaml.MappingNode, missing: _Section) -> _Edit:
    if node.flow_style or not node.value:
        end = node.end_mark.index - 1
        filled = text[:end].rstrip()
        comma = "" if filled.endswith("{") else " " if filled.endswith(",") else ", "
        return _Edit(end, end, comma + _flow(missing)[1:-1])
    last = _end(*node.value[-1])
    line_end = text.find("\n", last - 1 if text[last - 1] == "\n" else last)
    end = len(text) if line_end < 0 else line_end
    return _Edit(end, end, "\n" + _block(missing, node.value[0][0].start_mark.column))


def _end(key: yaml.Node, value: yaml.Node) -> int:
    """Return where the text of a value ends; a block's own mark is behind the comments that follow it."""
    if value.start_mark.index < key.end_mark.index:
        # An alias: its marks are those of the value that it repeats.
        return int(key.end_mark.index)
    if isinstance(value, yaml.CollectionNode) and not value.flow_style and value.value:
        last = value.value[-1]
        return _end(*last) if isinstance(value, yaml.MappingNode) else _end(key, last)
    return int(value.end_mark.index)


def _flow(value: Any) -> str:
    if isinstance(value, _Section):
        return "{" + ", ".join(f"{value_text(name)}: {_flow(new)}" for name, new in value.items()) + "}"
    return value_text(value)


def _block(section: _Section, column: int) -> str:
    lines = []
    for name, new in section.items():
        start = f"{' ' * column}{value_text(name)}:"
        lines.append(f"{start}\n{_block(new, column + 2)}" if isinstance(new, _Section) else f"{start} {_flow(new)}")
    return "\n".join(lines)
