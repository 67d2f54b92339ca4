"""What a run shows in Prefect: its table and its delivery in the log, and artefacts of each student.

The keys of the artefacts are fixed, so that Prefect keeps their history: they contain the name of the registered model.
"""

from __future__ import annotations

import base64
import io
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact

from dfkd_core.common.digests import json_digest
from dfkd_core.errors import DfkdError
from dfkd_flows.run.delivery import described_delivery
from dfkd_flows.run.figures import intervals
from dfkd_flows.run.outcome import Made
from dfkd_flows.run.results import results_of
from dfkd_flows.run.table import figures_text, table_rows
from dfkd_flows.settings.params import Params
from dfkd_flows.shown.log import log
from dfkd_flows.shown.names import run_name
from dfkd_flows.stages.names import addresses
from dfkd_tasks.caching.workspace import StudentFiles, TeacherFiles
from dfkd_tasks.mlflow_store.addresses import page_command, version_page
from dfkd_tasks.records.foreign import is_foreign, reason
from dfkd_tasks.records.timing import described_seconds

if TYPE_CHECKING:
    from dfkd_tasks.mlflow_store.publishing import Publication

__all__ = ["show_results", "show_trial", "show_trial_run"]

# Small enough for the database of a server, and for the page, which also prints the address.
_PICTURE_WIDTH = 900
_PICTURE_QUALITY = 70


def show_results(made: Made) -> Made:
    """Log the table and the delivery, and make the artefacts. What cannot be shown is logged; no result depends on it.

    Call it within a flow.

    Returns:
        What was made, with the text on the results.
    """
    finished = [name for name in made.params.students if name not in made.failed]
    with _harmless():
        if finished:
            results = results_of(made.params, made.failed)
            made = replace(made, results=results)
            log(results.text())
        log(described_delivery(made, made.params))
        for name in finished:
            _show_student(made.params.for_student(name), made.published.get(name))
    return made


@contextmanager
def _harmless() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not isinstance(error, DfkdError) and not is_foreign(error):
            raise
        log(f"The results cannot be shown in Prefect: {reason(error)}", level=logging.WARNING)


def show_trial(params: Params) -> str:
    """Log the table of a student that a trial made, and make artefacts of it, marked as those of a trial.

    Call it within a flow, in the folder with the student. As with `show_results`, no result depends on it.

    Args:
        params: Parameters of the student, see `Params.for_student`.

    Returns:
        The name of its model, for `show_trial_run`; empty if nothing could be shown.
    """
    with _harmless():
        about = _about_trial(params)
        log(f"{about}, which is not registered\n{figures_text(params)}")
        model = f"{_model(params)} trial"
        _show_figures(params, model, about)
        return model
    return ""


def show_trial_run(params: Params, model: str, run_id: str, changes: Sequence[str], again: str) -> None:
    """Make an artefact with the changed values of a trial, its run in MLflow, and the command that keeps it.

    Call it within a flow, in the folder of the project.

    Args:
        params: Parameters of the student, see `Params.for_student`.
        model: Result of `show_trial`.
        run_id: Its run in MLflow.
        changes: The values that differ from params.yaml.
        again: The command that makes it in the project.
    """
    with _harmless():
        about = _about_trial(params)
        text = "\n".join(_trial(about, run_id, changes, again))
        create_markdown_artifact(text, key=_key(model, "run"), description=about)


def _about_trial(params: Params) -> str:
    return f"Trial of {run_name(params)}"


def _trial(about: str, run_id: str, changes: Sequence[str], again: str) -> Iterator[str]:
    from dfkd_tasks.mlflow_store.publishing import page_of

    yield f"## {about}\n"
    yield "It is not registered, and params.yaml and the results of the project stay as they are.\n"
    yield from (f"- `{change}`" for change in changes)
    page = page_of(run_id)
    yield f"\nMLflow: {f'[run]({page})' if page else f'run {run_id}, shown by `{page_command()}`'}\n"
    yield f"Keep it with: `{again}`"


def _show_student(params: Params, published: Publication | None) -> None:
    model, about = published.model if published else _model(params), run_name(params)
    _show_figures(params, model, about)
    if published:
        create_markdown_artifact(
            "\n".join(_promotion(published, params)), key=_key(model, "promotion"), description=about
        )


def _show_figures(params: Params, model: str, about: str) -> None:
    create_table_artifact(list(_table(params)), key=_key(model, "figures"), description=about)
    picture = TeacherFiles(params.teacher_name).reports / "samples.png"
    if picture.is_file():
        create_image_artifact(_inline(picture), key=_key(model, "samples"), description=f"Transfer set of {about}")


def _model(params: Params) -> str:
    # MLflow takes seconds to import, and is not needed before the results are made.
    from dfkd_flows.run.publishing import registered_name

    return registered_name(params)


def _table(params: Params) -> Iterator[dict[str, Any]]:
    """Yield the figures of teacher and student, each with its interval of 95 %, and the seconds of the stages."""
    (data, *_), *rows = table_rows(params)
    for name, teacher, student in [("evaluated on", "", data), *rows, *intervals(params)]:
        yield {"figure": name, "teacher": teacher, "student": student}
    for address in addresses(params):
        name = f"time of {address.partition('@')[0]}"
        yield {"figure": name, "teacher": "", "student": described_seconds(address)}


def _promotion(published: Publication, params: Params) -> Iterator[str]:
    outcome = "refused" if published.refused else "is the champion" if published.promoted else "is not the champion"
    yield f"## {published.model} version {published.version} {outcome}\n"
    yield f"{published.reason}\n"
    yield from (f"- {rule}" for rule in published.rules)
    yield f"\nChampion: version {published.champion}\n" if published.champion else "\nThere is no champion.\n"
    page = version_page(published.model, published.version)
    links = [f"[{name}]({address})" for name, address in (("run", published.page), ("version", page)) if address]
    if (report := StudentFiles(params.student_name).report).is_file():
        yield f"Report: {_report_link(published, report)}\n"
    yield f"MLflow: {', '.join(links)}" if links else f"MLflow: run {published.run_id}, shown by `{page_command()}`"


def _report_link(published: Publication, report: Path) -> str:
    """Return a link to the page of a student in MLflow, or its path: browsers follow no link to a local file."""
    return f"[report]({published.page}/artifacts/{report.name})" if published.page else f"`{report.resolve()}`"


def _inline(picture: Path) -> str:
    """Return a small copy of a picture as an address that holds it; Prefect's pages show no other local file."""
    with Image.open(picture) as image:
        small = image.convert("RGB")
    small.thumbnail((_PICTURE_WIDTH, _PICTURE_WIDTH))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=_PICTURE_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _key(model: str, kind: str) -> str:
    """Return the key of an artefact: Prefect allows lower-case letters, digits and dashes."""
    name = re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")
    return f"{name if name == model else f'{name}-{json_digest(model)[:6]}'}-{kind}"
