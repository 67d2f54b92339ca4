"""`dfkd promote`, `dfkd rollback` and `dfkd history`: the registered versions of a student, and their champion."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator

from dfkd_core.errors import ConfigError, DfkdError
from dfkd_flows.registry.figures import evaluated_images, figures_again, known_figures
from dfkd_flows.registry.gate import Decision
from dfkd_flows.registry.promotion import decision_on, record
from dfkd_flows.session.display import say
from dfkd_flows.settings.choosing import student_option
from dfkd_flows.settings.params import Params
from dfkd_tasks.mlflow_store.aliases import (
    CHAMPION,
    DECISION_TAG,
    REASON_TAG,
    ROLLED_BACK_TAG,
    Version,
    list_versions,
    roll_back,
    version_before,
    version_of,
)
from dfkd_tasks.mlflow_store.publishing import one_publication, stated_rules, use_filled_store
from dfkd_tasks.mlflow_store.readiness import check_store
from dfkd_tasks.mlflow_store.registered import load_registered, logged_metrics

__all__ = ["promote_version", "roll_back_champion", "show_history"]


def promote_version(params: Params, model: str, number: str | None, *, dry_run: bool) -> str | None:
    """Evaluate a version again, decide on it by the rules, and make it the champion if it passes.

    A refusal by this command changes nothing.

    Args:
        params: The project's parameters, with the rules.
        model: Name of the registered model.
        number: The version; None for the newest one.
        dry_run: Whether nothing is changed in any case.

    Returns:
        The new champion's version, None if nothing was changed.

    Raises:
        ConfigError: There is no such version.
        DfkdError: The version is refused or cannot be loaded, or nothing was evaluated yet.
    """
    with one_publication():
        version = _chosen(_versions(params, model), number, student_option(params))
        if CHAMPION in version.aliases:
            say(f"{_name(version)} is the champion already.")
            return None
        decision = _decision(params, version)
        for reason in decision.reasons:
            say(f"  {'' if reason.holds else 'broken: '}{reason.text}")
        if not decision.promote:
            raise DfkdError(
                f"{_name(version)} is refused; the champion stays. Promote it nevertheless with: dfkd promote "
                f"{version.number}{student_option(params)} --set registry.enforce_rules=false"
            )
        if dry_run:
            again = f"dfkd promote {version.number}{student_option(params)}"
            say(f"{_name(version)} would become the champion. Promote it with: {again}")
            return None
        record(version, decision)
        say(f"{_name(version)} is the champion now. Go back with: dfkd rollback{student_option(params)}")
        return version.number


def _decision(params: Params, version: Version) -> Decision:
    evaluated = evaluated_images(params)
    logged = known_figures(logged_metrics(version) or {}, None)
    found = dataclasses.replace(
        figures_again(version, evaluated), latency_ms=logged.latency_ms, size_bytes=logged.size_bytes
    )
    return decision_on(version, found, evaluated, params.registry)


def roll_back_champion(params: Params, model: str) -> str:
    """Make the previous champion the champion again, after a check that it can be loaded; return its version.

    Raises:
        DfkdError: There is no champion or none before it, or that one cannot be loaded.
    """
    with one_publication():
        _versions(params, model)
        champion = version_of(model, CHAMPION)
        if champion is None:
            raise DfkdError(f"{model} has no champion. Choose one with: dfkd promote VERSION{student_option(params)}")
        target = version_before(champion)
        if target is None:
            raise DfkdError(
                f"{model} has no champion before version {champion.number}. Choose another one with: dfkd promote "
                f"VERSION{student_option(params)}; dfkd history{student_option(params)} shows all versions"
            )
        load_registered(target)
        roll_back(champion, target)
    say(
        f"{_name(target)} is the champion again, in place of version {champion.number}. Undo this with: dfkd promote "
        f"{champion.number}{student_option(params)}"
    )
    return target.number


def show_history(params: Params, model: str) -> None:
    """Print all versions with dates, figures, decisions, reasons and aliases, the newest first.

    Raises:
        DfkdError: Nothing is registered yet.
    """
    versions = _versions(params, model)
    say(model)
    say(f"{'version':<9}{'registered':<18}{'accuracy':>9}{'agreement':>11}  {'decision':<20}aliases")
    for version in versions:
        for line in _lines(version):
            say(line)


def _lines(version: Version) -> Iterator[str]:
    made = time.strftime("%Y-%m-%d %H:%M", time.localtime(version.created))
    found = known_figures(logged_metrics(version) or {}, None)
    accuracy, agreement = ("" if found.is_proxy else _share(found.score)), _share(found.agreement)
    proxy = " (proxy)" if found.is_proxy else ""
    line = (
        f"{version.number:<9}{made:<18}{accuracy:>9}{agreement:>11}  {_state(version):<20}{', '.join(version.aliases)}"
    )
    yield f"{line.rstrip()}{proxy}"
    for text in stated_rules(version.tags) or filter(None, [version.tags.get(REASON_TAG)]):
        yield f"         {text}"


def _state(version: Version) -> str:
    if number := version.tags.get(ROLLED_BACK_TAG):
        return f"rolled back to {number}"
    return {"true": "promoted", "false": "refused"}.get(version.tags.get(DECISION_TAG, ""), "not decided")


def _share(value: float | None) -> str:
    return "not known" if value is None else f"{value:.2%}"


def _versions(params: Params, model: str) -> list[Version]:
    """Return all versions, at least one.

    Raises:
        DfkdError: Nothing is registered yet, or MLflow's store has a fault.
    """
    use_filled_store()
    check_store(params.registry.experiment)
    found = list_versions(model)
    if not found:
        raise DfkdError(f"No version of {model} is registered yet. Make and register one with: dfkd run")
    return found


def _chosen(versions: list[Version], number: str | None, option: str) -> Version:
    if number is None:
        return versions[0]
    found = next((version for version in versions if version.number == number), None)
    if found is None:
        numbers = ", ".join(version.number for version in versions[:10])
        more = f" and {len(versions) - 10} more" if len(versions) > 10 else ""
        raise ConfigError(
            f"{versions[0].model} has no version {number!r}. Versions: {numbers}{more}, see: dfkd history{option}"
        )
    return found


def _name(version: Version) -> str:
    return f"Version {version.number} of {version.model}"
