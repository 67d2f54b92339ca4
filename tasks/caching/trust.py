"""The user's word on factories: which code of others a stored model of this project may call.

The word holds for one factory, one config.json and one source file: if either file changes, it is requested again.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from dfkd_core.common.digests import file_sha256
from dfkd_core.errors import TeacherError
from dfkd_core.models.factories import allows, module_file, split_factory
from dfkd_core.models.storage import CONFIG_FILE, read_card
from dfkd_tasks.caching.words import keep_words, kept_words

__all__ = ["TRUSTED", "allow_factories", "trusted_factories"]

TRUSTED = "trusted_factories.json"
"""File in the folder of the state."""

_KEPT_WORDS = 200


def allow_factories(folder: Path, names: Collection[str]) -> None:
    """Note that the user trusts the factory of a stored model, if it is one of the names.

    Args:
        folder: A stored model; nothing is noted for another folder or file.
        names: Factories that the user has named in params.yaml or on the command line.
    """
    word = _word(folder)
    if word is not None and allows(names, word["factory"]):
        keep_words(TRUSTED, [word], most=_KEPT_WORDS)


def trusted_factories(folder: Path) -> tuple[str, ...]:
    """Return the factory of a stored model if the user trusts it, for `load_model`; nothing is imported."""
    word = _word(folder)
    return (word["factory"],) if word is not None and word in kept_words(TRUSTED) else ()


def _word(folder: Path) -> dict[str, str] | None:
    """Return what would be noted for a folder; None if it is no stored model, and for a network without a factory."""
    try:
        name = read_card(folder).network
        config = file_sha256(folder / CONFIG_FILE)
    except (TeacherError, OSError):
        return None
    if ":" not in name and split_factory(name) is None:
        return None
    module, _ = split_factory(name) or ("", "")
    file = module_file(module) if module else None
    source = file_sha256(file) if file and file.is_file() else ""
    return {"factory": name, "config_sha256": config, "source_sha256": source}
