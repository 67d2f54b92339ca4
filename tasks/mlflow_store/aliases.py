"""Versions of a registered model, their aliases, and the order of the writes that move one.

`challenger` is the newest version that was not refused, `champion` the one in use, `previous` the one before it. Each
change can be repeated after a kill at any point, and moves `champion` with its last write.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow.entities import RunTag
from mlflow.exceptions import MlflowException

from dfkd_core.common.digests import json_digest, write_atomically
from dfkd_tasks.caching.workspace import STATE

__all__ = [
    "CHALLENGER",
    "CHAMPION",
    "DECISION_TAG",
    "IMAGES_TAG",
    "MISSING",
    "PREVIOUS",
    "PROMOTED_TAG",
    "REASON_TAG",
    "REPLACES_TAG",
    "ROLLED_BACK_TAG",
    "RULES_TAG",
    "RUN_TAG",
    "Version",
    "find_version",
    "finish_promotion",
    "list_versions",
    "name_challenger",
    "promote",
    "refuse",
    "roll_back",
    "version_before",
    "version_of",
]

CHALLENGER, CHAMPION, PREVIOUS = "challenger", "champion", "previous"

DECISION_TAG = "dfkd.promoted"
"""Tag of a run and a version: `true` or `false` once it is decided."""
PROMOTED_TAG = "promoted"
"""The same for readers: `yes` or `no`."""
REASON_TAG = "dfkd.promotion_reason"
RULES_TAG = "dfkd.promotion_rules"
"""Tag of a run and a version with the outcome of every rule, as JSON."""
RUN_TAG = "dfkd.run_id"
IMAGES_TAG = "dfkd.images_sha256"
"""Tag of a run and a version with the digest of the images and labels that they were evaluated on."""
REPLACES_TAG = "dfkd.replaces"
"""Tag of a promoted version with the number of the champion that it replaced."""
ROLLED_BACK_TAG = "dfkd.rolled_back_to"
"""Tag of a version that a rollback replaced, with the number of the champion after it."""

MISSING = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""Codes of MLflow for what does not exist: a missing alias, and an id that is none, are invalid parameter values."""

_PENDING = STATE / "promotions"


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """A version of a registered model."""

    model: str
    number: str
    created: float
    """Seconds since the epoch."""
    run_id: str
    """Its run; empty if it was registered without one."""
    tags: Mapping[str, str]
    aliases: tuple[str, ...]
    """Sorted by name."""


def list_versions(model: str) -> list[Version]:
    """Return all versions of a registered model, the newest first; none if there is no such model."""
    client = mlflow.MlflowClient()
    try:
        aliases = dict(client.get_registered_model(model).aliases)
    except MlflowException as error:
        if error.error_code in MISSING:
            return []
        raise
    found = [
        Version(
            model=model,
            number=str(version.version),
            created=version.creation_timestamp / 1000,
            run_id=version.tags.get(RUN_TAG) or version.run_id or "",
            tags=dict(version.tags),
            aliases=tuple(sorted(name for name, number in aliases.items() if str(number) == str(version.version))),
        )
        for version in client.search_model_versions(f"name = '{model}'")
    ]
    return sorted(found, key=lambda version: int(version.number), reverse=True)


def find_version(model: str, number: str) -> Version | None:
    """Return a version by its number, None if there is none."""
    return next((version for version in list_versions(model) if version.number == number), None)


def version_of(model: str, alias: str) -> Version | None:
    """Return the version with an alias, None if there is none."""
    return next((version for version in list_versions(model) if alias in version.aliases), None)


def name_challenger(version: Version) -> None:
    """Give a version the alias `challenger`."""
    mlflow.MlflowClient().set_registered_model_alias(version.model, CHALLENGER, version.number)


def refuse(version: Version, tags: Mapping[str, str], run_tags: Mapping[str, str]) -> None:
    """Record that a version does not become the champion, and take the alias `challenger` from it.

    Args:
        version: The version.
        tags: Tags of version and run with the reasons.
        run_tags: Further tags of the run.
    """
    _pending(version).unlink(missing_ok=True)
    decided = {**tags, DECISION_TAG: "false", PROMOTED_TAG: "no"}
    _tag_version(version, decided)
    _drop_alias(version, CHALLENGER)
    _tag_run(version, {**decided, **run_tags})


def promote(version: Version, tags: Mapping[str, str], run_tags: Mapping[str, str]) -> None:
    """Record the promotion of a version, name the champion before it `previous`, and move the alias `champion`.

    Moving it is the last write to MLflow. A note in the project tells a promotion that was killed just before from an
    alias that somebody has moved back.

    Args:
        version: The version.
        tags: Tags of version and run with the reasons.
        run_tags: Further tags of the run.
    """
    champion = version_of(version.model, CHAMPION)
    if champion and champion.number != version.number:
        tags = {**tags, REPLACES_TAG: champion.number}
        mlflow.MlflowClient().set_registered_model_alias(version.model, PREVIOUS, champion.number)
    decided = {**tags, DECISION_TAG: "true", PROMOTED_TAG: "yes"}
    _tag_version(version, decided)
    if ROLLED_BACK_TAG in version.tags:
        mlflow.MlflowClient().delete_model_version_tag(version.model, version.number, ROLLED_BACK_TAG)
    with write_atomically(_pending(version)) as temporary:
        temporary.write_text(champion.number if champion else "")
    _tag_run(version, {**decided, **run_tags})
    _move_champion(version)


def finish_promotion(version: Version) -> bool:
    """Move the alias `champion` if the promotion of the version was killed just before; return whether it was."""
    try:
        replaced = _pending(version).read_text()
    except OSError:
        return False
    champion = version_of(version.model, CHAMPION)
    if (champion.number if champion else "") not in (replaced, version.number):
        # Somebody else has moved it in between.
        _pending(version).unlink()
        return False
    _move_champion(version)
    return True


def version_before(champion: Version) -> Version | None:
    """Return the version that a rollback of the champion leads to, None if there is none.

    It is the one with the alias `previous`, or the one that the champion replaced if nothing else has that alias.
    """
    if unfinished := champion.tags.get(ROLLED_BACK_TAG):
        return find_version(champion.model, unfinished)
    previous = version_of(champion.model, PREVIOUS)
    if previous and previous.number != champion.number:
        return previous
    return _replaced_by(champion)


def roll_back(champion: Version, target: Version) -> None:
    """Make the target the champion again, in place of the present one, and the version before it `previous`.

    Args:
        champion: The present champion.
        target: Its `version_before`.
    """
    client = mlflow.MlflowClient()
    _tag_version(champion, {ROLLED_BACK_TAG: target.number})
    _drop_alias(champion, CHALLENGER)
    before = _replaced_by(target)
    if before and before.number != champion.number:
        client.set_registered_model_alias(champion.model, PREVIOUS, before.number)
    elif previous := version_of(champion.model, PREVIOUS):
        client.delete_registered_model_alias(previous.model, PREVIOUS)
    client.set_registered_model_alias(champion.model, CHAMPION, target.number)


def _replaced_by(version: Version) -> Version | None:
    number = version.tags.get(REPLACES_TAG, "")
    return find_version(version.model, number) if number not in ("", version.number) else None


def _move_champion(version: Version) -> None:
    mlflow.MlflowClient().set_registered_model_alias(version.model, CHAMPION, version.number)
    _pending(version).unlink(missing_ok=True)


def _pending(version: Version) -> Path:
    """Return the file that exists while the alias `champion` is about to move to a version, with the old one's number.

    The run is part of the name: a store that was made anew counts its versions from 1 again.
    """
    return _PENDING / json_digest([version.model, version.number, version.run_id])[:32]


def _drop_alias(version: Version, alias: str) -> None:
    holder = version_of(version.model, alias)
    if holder and holder.number == version.number:
        mlflow.MlflowClient().delete_registered_model_alias(version.model, alias)


def _tag_version(version: Version, tags: Mapping[str, str]) -> None:
    for name, value in _new(tags, version.tags):
        mlflow.MlflowClient().set_model_version_tag(version.model, version.number, name, value)


def _new(tags: Mapping[str, str], known: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    return ((name, value) for name, value in tags.items() if known.get(name) != value)


def _tag_run(version: Version, tags: Mapping[str, str]) -> None:
    """Set tags of a version's run in one write, unless it has none or it is gone."""
    if not version.run_id:
        return
    try:
        mlflow.MlflowClient().log_batch(version.run_id, tags=[RunTag(name, value) for name, value in tags.items()])
    except MlflowException as error:
        if error.error_code not in MISSING:
            raise
