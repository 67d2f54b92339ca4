"""The text of params.yaml from the defaults and the docstrings of the fields.

Print it into the file with `python -m dfkd_flows.settings.file_text`.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

from dfkd_core.sections import OneOf
from dfkd_flows.settings.params import Params
from dfkd_flows.settings.yaml_text import value_text

__all__ = ["params_text"]

_WIDTH = 119
_HEAD = """\
# All settings of a run. Change them here, with `dfkd run --set KEY=VALUE` or with `dfkd run --preset NAME`; `dfkd run`
# then repeats only the affected stages. An unknown key or a value out of range is an error.
"""
_LOW = {Ge: "{} or more", Gt: "above {}"}
_HIGH = {Le: "{}", Lt: "below {}"}


def params_text(params: Params | None = None) -> str:
    """Return the whole file: every key with its value, by default the default, its documentation and its range."""
    return _HEAD + "\n" + "\n".join(_lines(params or Params(), 0)) + "\n"


def _lines(section: Any, depth: int) -> Iterator[str]:
    hints = get_type_hints(type(section), include_extras=True)
    docs = _field_docs(type(section))
    for position, field in enumerate(dataclasses.fields(section)):
        value = getattr(section, field.name)
        nested = dataclasses.is_dataclass(value)
        if depth == 0 and position:
            yield ""
        text = docs.get(field.name) or _prose(type(value).__doc__ or "")
        yield from _comment(text if nested else text + _allowed(hints[field.name]), depth)
        pad = "  " * depth
        if nested:
            yield f"{pad}{field.name}:"
            yield from _lines(value, depth + 1)
        elif depth == 0 and isinstance(value, Mapping):
            yield f"{field.name}:"
            yield from _members(value)
        else:
            yield f"{pad}{field.name}: {value_text(value)}"


def _members(members: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield the lines of teachers or students, one line per value for users to add to."""
    for name, changes in members.items():
        yield f"  {name}:" if changes else f"  {name}: {{}}"
        yield from (f"    {key}: {value_text(value)}" for key, value in changes.items())


def _comment(text: str, depth: int) -> list[str]:
    start = "  " * depth + "# "
    return textwrap.wrap(text, _WIDTH, initial_indent=start, subsequent_indent=start)


def _prose(docstring: str) -> str:
    """Return a docstring on one line, without its example."""
    return " ".join(docstring.partition("Example:")[0].split())


def _field_docs(cls: type) -> dict[str, str]:
    found = {}
    for line, after in itertools.chain.from_iterable(itertools.pairwise(body) for body in _class_bodies(cls)):
        if isinstance(line, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            assert isinstance(line.target, ast.Name)
            found[line.target.id] = " ".join(str(after.value.value).split())
    return found


def _class_bodies(cls: type) -> Iterator[list[ast.stmt]]:
    """Yield the statements of a section's class and of its base classes, the most basic class first."""
    for part in reversed([c for c in cls.__mro__ if dataclasses.is_dataclass(c)]):
        parsed = ast.parse(textwrap.dedent(inspect.getsource(part))).body[0]
        assert isinstance(parsed, ast.ClassDef)
        yield parsed.body


def _allowed(hint: Any) -> str:
    if hint is bool:
        return " One of: true | false."
    if get_origin(hint) is Literal:
        return f" One of: {' | '.join(map(str, get_args(hint)))}."
    if get_origin(hint) is not Annotated:
        return ""
    if names := [name for bound in get_args(hint)[1:] if isinstance(bound, OneOf) for name in bound.names()]:
        return f" One of: {' | '.join(names)}."
    low = high = ""
    for bound in get_args(hint)[1:]:
        for kind, form in (_LOW | _HIGH).items():
            if isinstance(bound, kind):
                limit = form.format(getattr(bound, kind.__name__.lower()))
                low, high = (limit, high) if kind in _LOW else (low, limit)
    if not high:
        return f" Range: {low}."
    return f" Range: {low.removesuffix(' or more') if low.endswith('or more') else low} to {high}."


if __name__ == "__main__":
    Path("params.yaml").write_text(params_text(), encoding="utf-8")
