"""The decision on a registered student: checked as its users load it, compared by the rules, recorded in MLflow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from dfkd_core.common.digests import canonical_json
from dfkd_core.errors import DfkdError
from dfkd_core.export.run import probe_images
from dfkd_flows.registry.figures import Evaluated, champion_figures, evaluated_images, known_figures
from dfkd_flows.registry.gate import Decision, Figures, Reason, decide
from dfkd_flows.settings.params import Params, RegistryConfig
from dfkd_tasks.caching.stored_models import load_allowed_model
from dfkd_tasks.caching.workspace import StudentFiles
from dfkd_tasks.mlflow_store.aliases import (
    CHAMPION,
    REASON_TAG,
    RULES_TAG,
    Version,
    find_version,
    finish_promotion,
    name_challenger,
    promote,
    refuse,
    version_of,
)
from dfkd_tasks.mlflow_store.publishing import DONE_TAG, MODEL_TAG, VERSION_TAG, Publication, stated_rules
from dfkd_tasks.mlflow_store.registered import check_answers

__all__ = ["continued", "decide_and_record", "decision_on", "record"]


def decide_and_record(
    params: Params,
    model: str,
    number: str,
    metrics: Mapping[str, float],
    *,
    notes: Sequence[str] = (),
) -> Publication:
    """Check a new version, decide on its promotion and record the decision. A killed call can be repeated.

    Args:
        params: Parameters of the student, see `Params.for_student`.
        model: Name of the registered model.
        number: The version.
        metrics: Figures of its evaluation by dotted name.
        notes: Remarks on the student, for the reason.

    Raises:
        DfkdError: The version does not answer like the student, or the evaluated images cannot be read.
    """
    version = find_version(model, number)
    if version is None:
        raise DfkdError(f"Version {number} of {model} is gone. Register the student again with: dfkd run")
    local = load_allowed_model(StudentFiles(params.student_name).network)
    check_answers(version, local, probe_images(local.card.image_shape))
    name_challenger(version)
    evaluated = evaluated_images(params)
    challenger = known_figures(metrics, evaluated.predictions, version=number)
    return record(version, decision_on(version, challenger, evaluated, params.registry), notes)


def decision_on(version: Version, challenger: Figures, evaluated: Evaluated, rules: RegistryConfig) -> Decision:
    """Compare a version with the champion of its model, on the images of the last evaluation.

    Raises:
        DataError: These images cannot be read.
    """
    champion = version_of(version.model, CHAMPION)
    if champion and champion.number == version.number:
        return Decision(promote=True, reasons=(Reason(holds=True, text="the alias was set by hand"),))
    return decide(challenger, champion_figures(champion, evaluated) if champion else None, rules)


def record(version: Version, decision: Decision, notes: Sequence[str] = ()) -> Publication:
    """Write the decision with all reasons into MLflow, and move the aliases."""
    reason = ". ".join([decision.summary, *notes])
    tags = {REASON_TAG: reason, RULES_TAG: canonical_json(decision.reasons)}
    run_tags = {MODEL_TAG: version.model, VERSION_TAG: version.number, DONE_TAG: "true"}
    (promote if decision.promote else refuse)(version, tags, run_tags)
    champion = version_of(version.model, CHAMPION)
    return Publication(
        run_id=version.run_id,
        model=version.model,
        version=version.number,
        promoted=decision.promote,
        reason=reason,
        rules=stated_rules(tags),
        refused=not decision.promote,
        broken=tuple(reason.setting for reason in decision.reasons if not reason.holds),
        champion=champion.number if champion else "",
    )


def continued(found: Publication) -> Publication:
    """Return a publication that was decided before, after its promotion is finished if that was killed.

    An alias that was moved since, by hand or by a rollback, stays where it is.
    """
    version = find_version(found.model, found.version)
    if found.promoted and version and finish_promotion(version):
        return dataclasses.replace(found, champion=found.version, is_earlier=False)
    champion = version_of(found.model, CHAMPION)
    found = dataclasses.replace(found, champion=champion.number if champion else "")
    is_champion = found.champion == found.version
    if found.promoted == is_champion:
        return found
    if is_champion:
        by_hand = f"the alias was set by hand. The rules had decided: {found.reason}"
        return dataclasses.replace(found, promoted=True, refused=False, reason=by_hand)
    now = f"the champion is version {champion.number} now" if champion else "there is no champion now"
    return dataclasses.replace(found, promoted=False, reason=f"{found.reason}. But {now}")
