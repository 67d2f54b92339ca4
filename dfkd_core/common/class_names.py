"""Names of classes: each class has one, and no two have the same."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["class_names_fault", "distinct_names"]


def class_names_fault(names: Sequence[str]) -> str:
    """Return what is wrong with the names of classes 0, 1, ..., empty if nothing is.

    Example:
        >>> from dfkd_core.common.class_names import class_names_fault
        >>> class_names_fault(("cat", "dog", "cat"))
        "the classes 0 and 2 have the same name 'cat'"
        >>> class_names_fault(("cat", " ")), class_names_fault(("cat", "dog"))
        ('class 1 has an empty name', '')
    """
    first: dict[str, int] = {}
    for position, name in enumerate(names):
        if not name.strip():
            return f"class {position} has an empty name"
        if first.setdefault(name, position) != position:
            return f"the classes {first[name]} and {position} have the same name {name!r}"
    return ""


def distinct_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of classes 0, 1, ...; those that several classes share get the number of the class."""
    return tuple(f"{name} ({label})" if names.count(name) > 1 else name for label, name in enumerate(names))
