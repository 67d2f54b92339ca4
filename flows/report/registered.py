"""What MLflow knows of a student: the decision on it, and the champion that it is compared with."""

from __future__ import annotations

from functools import partial

from dfkd_core.evaluation.predictions import Predictions
from dfkd_flows.report.rows import Champion, count_operations
from dfkd_flows.report.verdict import Decided
from dfkd_flows.run.table import is_published, published_note
from dfkd_flows.settings.params import Params
from dfkd_tasks.caching.stored import read_note

__all__ = ["champion_of", "decided"]


def decided(params: Params) -> Decided | None:
    """Return the decision on a student's present results, None if they are not registered.

    Args:
        params: Parameters of one student, see `Params.for_student`.
    """
    return read_note(published_note(params), Decided) if is_published(params) else None


def champion_of(made: Decided, predictions: Predictions) -> Champion | None:
    """Return the champion, or the one before if the student itself is the champion; None if there is none.

    Args:
        made: The decision on the student.
        predictions: Its answers.
    """
    # Imported late: MLflow takes seconds.
    from dfkd_tasks.mlflow_store.addresses import use_store
    from dfkd_tasks.mlflow_store.aliases import CHAMPION, IMAGES_TAG, REPLACES_TAG, Version, find_version, version_of
    from dfkd_tasks.mlflow_store.registered import load_registered, logged_metrics, logged_predictions

    use_store()
    champion: Version | None = version_of(made.model, CHAMPION)
    is_before = champion is not None and champion.number == made.version
    if champion and is_before:
        champion = find_version(made.model, champion.tags.get(REPLACES_TAG, ""))
    if champion is None:
        return None
    is_same = champion.tags.get(IMAGES_TAG) == predictions.images_sha256
    return Champion(
        heading=f"{'champion before' if is_before else 'champion'}, version {champion.number}"
        + ("" if is_same else ", evaluated on other images"),
        figures=logged_metrics(champion) or {},
        predictions=logged_predictions(champion),
        operations=count_operations(partial(load_registered, champion)),
    )
