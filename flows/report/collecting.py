"""The facts of a student's page, from the project's files and from MLflow. A file that is missing has no fact."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from dfkd_core.evaluation.disagreements import read_disagreements
from dfkd_core.evaluation.predictions import read_predictions
from dfkd_core.models.storage import read_card
from dfkd_core.statistics.axes import NO_AXES, read_real_axes
from dfkd_core.transfer_set.manifest import MANIFEST_NAME, read_manifest
from dfkd_core.transfer_set.summary import read_summary
from dfkd_flows.report.fitting import check_disagreements, check_manifest, check_predictions, check_summary
from dfkd_flows.report.origin import lineage, machine, own_settings, repeating_command, stage_rows, versions
from dfkd_flows.report.registered import champion_of, decided
from dfkd_flows.report.rows import count_operations, figure_rows
from dfkd_flows.report.suspicions import suspicions
from dfkd_flows.report.verdict import verdict
from dfkd_flows.run.figures import measured_times, numbers
from dfkd_flows.run.table import read_metrics
from dfkd_flows.settings.params import Params
from dfkd_flows.shown.names import data_label, run_name
from dfkd_tasks.caching.stored_models import load_allowed_model
from dfkd_tasks.caching.workspace import StudentFiles, TeacherFiles
from dfkd_tasks.records.history import read_history
from dfkd_tasks.report.facts import History, StudentReport

__all__ = ["collect"]

T = TypeVar("T")
_NO_LOSSES = ("epoch", "learning_rate")


def collect(params: Params) -> StudentReport:
    """Return the facts of a student's page.

    Args:
        params: Parameters of one student, see `Params.for_student`.

    Raises:
        DfkdError: There are no results yet, or a file of them is damaged.
    """
    shared, own = TeacherFiles(params.teacher_name), StudentFiles(params.student_name)
    metrics, predictions = read_metrics(own), read_predictions(own.predictions)
    manifest, card = read_manifest(shared.transfer_set), read_card(shared.network)
    check_predictions(own.predictions, predictions, card.num_classes)
    check_manifest(shared.transfer_set / MANIFEST_NAME, manifest, card.num_classes)
    figures = numbers(metrics) | measured_times(params)
    names = card.class_labels
    data = data_label(params.data.dataset)
    made = decided(params)
    champion = champion_of(made, predictions) if made else None
    operations = {
        model: count_operations(partial(load_allowed_model, files.network))
        for model, files in (("teacher", shared), ("student", own))
    }
    summary = _known(read_summary, shared.summary)
    disagreements = _known(read_disagreements, own.disagreements)
    check_summary(shared.summary, summary, card.num_classes)
    check_disagreements(own.disagreements, disagreements, len(predictions.student))
    num_bins = params.evaluation.num_bins
    axes = _known(read_real_axes, own.real_axes)
    return StudentReport(
        title=run_name(params),
        data=data,
        is_proxy=predictions.labels is None,
        verdict=verdict(made, figures, data=data, operations=operations),
        champion=champion.heading if champion else "no other champion",
        rows=tuple(figure_rows(figures, predictions, champion, num_bins=num_bins, operations=operations)),
        warnings=tuple(suspicions(metrics, predictions, manifest, summary, names)),
        class_names=names,
        predictions=predictions,
        num_bins=num_bins,
        disagreements=disagreements,
        transfer_set=summary,
        real_axes=(NO_AXES if axes is None else axes).numpy(),
        histories={"teacher": _history(shared.reports), "student": _history(own.reports)},
        stages=tuple(stage_rows(params, manifest, predictions)),
        machine=tuple(machine()),
        versions=tuple(versions()),
        lineage=tuple(lineage(params, manifest, predictions)),
        settings=tuple(own_settings(params)),
        command=repeating_command(params),
    )


def _known(read: Callable[[Path], T], path: Path) -> T | None:
    """Return what a file holds, None if it is missing: results of an earlier version have fewer.

    Raises:
        DfkdError: It is damaged, or no file.
    """
    return read(path) if os.path.lexists(path) else None


def _history(reports: Path) -> History:
    """Return a training; without epochs if it was none, or its table is missing."""
    columns = _known(read_history, reports / "epochs.csv") or {}
    losses = {name: values for name, values in columns.items() if name not in _NO_LOSSES}
    return History(epochs=tuple(map(int, columns.get("epoch", ()))), losses=losses)
