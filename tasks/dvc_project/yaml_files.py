"""Reading of the YAML files of DVC."""

from __future__ import annotations

from typing import Any

import yaml

__all__ = ["parse"]

# libyaml, which not every machine has, is ten times as fast; both build plain values alone.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def parse(text: str) -> Any:
    """Return the content of a YAML text.

    Raises:
        yaml.YAMLError: It is no YAML.
    """
    return yaml.load(text, Loader=_LOADER)
