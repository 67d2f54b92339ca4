"""Declaration of a configuration section: a frozen dataclass whose annotations carry the ranges."""

from __future__ import annotations

import dataclasses
import math
import operator
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from numbers import Integral, Real
from typing import Annotated, Any, Literal, TypeVar, Union, dataclass_transform, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

from dfkd_core.errors import ConfigError

__all__ = ["Fraction", "NonNegative", "NonNegativeInt", "OneOf", "Positive", "PositiveInt", "config_section"]

PositiveInt = Annotated[int, Ge(1)]
NonNegativeInt = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Ge(0), Le(1)]

T = TypeVar("T")

_INTEGERS_END = 2**63


@dataclasses.dataclass(frozen=True, slots=True)
class OneOf:
    """Annotation of a text that must be a name in a table."""

    names: Callable[[], Iterable[str]]
    """Returns the names, in the order in which messages and params.yaml list them; called when a value is checked."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> dict[str, Any]:
        """Return pydantic's description of a literal, so that the fault of a file names the field; needs no import."""
        return {"type": "literal", "expected": list(self.names())}


_NUMBERS: dict[Any, type] = {int: Integral, float: Real}
_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    Mapping: "a mapping from names to values",
}
_PLURALS: dict[Any, str] = {int: "whole numbers", float: "numbers", str: "texts"}
_BOUNDS: dict[type, tuple[str, str, Callable[[Any, Any], bool]]] = {
    Ge: ("at least", "ge", operator.ge),
    Gt: ("greater than", "gt", operator.gt),
    Le: ("at most", "le", operator.le),
    Lt: ("less than", "lt", operator.lt),
}


@dataclass_transform(frozen_default=True, kw_only_default=True)
def config_section(cls: type[T]) -> type[T]:
    """Make `cls` a frozen keyword-only dataclass that checks the types and the ranges in its annotations.

    A rule that involves several fields belongs in a method `faults(self) -> Iterator[str]` of the class.

    Raises:
        ConfigError: On construction, with all faults of the section in one message.
    """

    def check(self: Any) -> None:
        # Ranges and rules of values of another type would fail with an error of Python.
        found = [*_type_faults(self)] or [*_range_faults(self), *getattr(self, "faults", list)()]
        if found:
            raise ConfigError("; ".join(found))

    cls.__post_init__ = check  # type: ignore[attr-defined]
    made = dataclasses.dataclass(frozen=True, slots=True, kw_only=True)(cls)
    # Pydantic reads it when it parses a YAML file: an unknown key is an error. No import needed here.
    made.__pydantic_config__ = {"extra": "forbid"}  # type: ignore[attr-defined]
    return made


def _type_faults(section: Any) -> Iterator[str]:
    for name, hint in get_type_hints(type(section)).items():
        value = getattr(section, name)
        if not _is_of(hint, value):
            yield f"{name} must be {_words(hint)}, got {value!r}"


def _is_of(hint: Any, value: Any) -> bool:
    """Return whether a value has the annotated type; numbers of NumPy count, and lists for tuples."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_is_of(option, value) for option in inner)
    if origin is tuple:
        if not isinstance(value, (tuple, list)):
            return False
        kinds = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        return len(kinds) == len(value) and all(map(_is_of, kinds, value))
    if origin is Mapping:
        if not isinstance(value, Mapping):
            return False
        return all(_is_of(inner[0], key) and _is_of(inner[1], item) for key, item in value.items())
    if hint in _NUMBERS:
        return isinstance(value, _NUMBERS[hint]) and not isinstance(value, bool)
    return hint is Any or not isinstance(hint, type) or isinstance(value, hint)


def _words(hint: Any) -> str:
    """Return a type in words, for a message."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(map(_words, inner))
    if origin is tuple:
        return f"a list of {'' if inner[-1] is Ellipsis else f'{len(inner)} '}{_PLURALS.get(inner[0], 'values')}"
    return _WORDS.get(origin or hint, getattr(hint, "__name__", str(hint)))


def _range_faults(section: Any) -> Iterator[str]:
    for name, hint in get_type_hints(type(section), include_extras=True).items():
        value = getattr(section, name)
        if get_origin(hint) is Literal and value not in get_args(hint):
            yield f"{name} must be one of {', '.join(map(repr, get_args(hint)))}, got {value!r}"
        if isinstance(value, float) and not math.isfinite(value):
            yield f"{name} must be a finite number, got {value!r}"
        if isinstance(value, int) and abs(value) >= _INTEGERS_END:
            # Libraries fail in many ways on integers that need more than 64 bits.
            yield f"{name} must be below 2**63"
        if get_origin(hint) is not Annotated:
            continue
        for bound in get_args(hint)[1:]:
            if isinstance(bound, OneOf):
                if value not in (names := tuple(bound.names())):
                    yield f"{name} must be one of {', '.join(map(repr, names))}, got {value!r}"
                continue
            words, attribute, holds = _BOUNDS[type(bound)]
            limit = getattr(bound, attribute)
            if not holds(value, limit):
                yield f"{name} must be {words} {limit}, got {value!r}"
