"""A student's result in the words in which MLflow shows it: name of the run, descriptions, tags, inputs, digests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dfkd_core.common.digests import file_sha256
from dfkd_core.data.datasets import NO_DATA, is_built_in
from dfkd_core.evaluation.predictions import read_predictions
from dfkd_core.models.storage import read_card
from dfkd_core.transfer_set.manifest import Manifest, read_manifest
from dfkd_flows.run.figures import intervals, measured_times, numbers
from dfkd_flows.run.lineage import lineage_of
from dfkd_flows.run.table import table_rows
from dfkd_flows.settings.members import GROUPS
from dfkd_flows.settings.params import Params
from dfkd_flows.settings.parsing import flatten
from dfkd_flows.shown.names import data_label, result_name, teacher_label
from dfkd_tasks.caching.workspace import StudentFiles, TeacherFiles
from dfkd_tasks.dvc_project.status import LOCK
from dfkd_tasks.mlflow_store.aliases import IMAGES_TAG
from dfkd_tasks.mlflow_store.inputs import Images
from dfkd_tasks.mlflow_store.publishing import RESULTS_TAG, STUDENT_TAG, TEACHER_TAG
from dfkd_tasks.mlflow_store.results import DISAGREEMENTS_FILE, LINEAGE_FILE, Result
from dfkd_tasks.records.history import read_start

__all__ = ["described_result", "evaluated_on", "model_note"]

# The registry's limit for a description is 5000.
_LONGEST_NOTE = 4900
# In a table of Markdown, the mark itself ends a cell.
_BAR = "&#124;"


def described_result(params: Params, found: Mapping[str, Any], results_sha256: str) -> Result:
    """Return the present result of a student as MLflow gets it.

    Args:
        params: Parameters of one student, see `Params.for_student`.
        found: Its figures, see `read_metrics`.
        results_sha256: Digest of its results.

    Raises:
        DfkdError: A file of the result is missing or damaged.
    """
    teacher, student = TeacherFiles(params.teacher_name), StudentFiles(params.student_name)
    manifest, predictions = read_manifest(teacher.transfer_set), read_predictions(student.predictions)
    figures = numbers(found)
    own = {"lock_sha256": file_sha256(LOCK), "results_sha256": results_sha256}
    lineage = dict(sorted((lineage_of(params, manifest, predictions) | own).items()))
    return Result(
        teacher=teacher,
        student=student,
        name=result_name(params, read_card(student.network).network, read_start(student.network)),
        note=_clipped("\n".join(_note(params, found))),
        params=_settings(params),
        figures={**figures, **measured_times(params)},
        tags={**_short_tags(params, figures), **_found_by(lineage)},
        lineage=lineage,
        transfer_set=_transfer_set(params, manifest, lineage["transfer_set_sha256"]),
        evaluated=evaluated_on(
            params.data.dataset,
            predictions.images_sha256,
            num_images=len(predictions.truth),
            image_shape=read_card(teacher.network).image_shape,
        ),
        pictures="resize" if is_built_in(_dataset(params)) else "resize_and_crop",
    )


def evaluated_on(dataset: str, images_sha256: str, *, num_images: int, image_shape: tuple[int, int, int]) -> Images:
    """Return the images of an evaluation as MLflow lists them.

    Args:
        dataset: As in `data.dataset`.
        images_sha256: Digest of images and labels.
        num_images: Their number n.
        image_shape: Shape (c, h, w) of an image.
    """
    return Images(
        label="held-out synthetic images" if dataset == NO_DATA else f"{data_label(dataset)}, test images",
        sha256=images_sha256,
        source=dataset,
        num_images=num_images,
        image_shape=image_shape,
        context="evaluation",
    )


def model_note(params: Params, name: str) -> str:
    """Return the description of the registered model: what its versions are, and how they are used.

    Args:
        params: Parameters of one student, see `Params.for_student`.
        name: Name of the registered model.
    """
    dataset = params.data.dataset
    data = "without real images" if dataset == NO_DATA else f"on **{data_label(dataset)}**"
    return f"""Students of the teacher **{teacher_label(params)}**, trained without its training images and evaluated \
{data}. `champion` is the version in use, `challenger` the newest one that was not \
refused, `previous` the champion before. The description of a version has its figures.

```python
student = mlflow.pyfunc.load_model("models:/{name}@champion")
student.predict(images)  # [n, c, h, w] in [0, 1], or a list of PNG or JPEG files in base64
```

The answer has a row for each image: `label`, `probability` and `logits`. `student.metadata.metadata` has the names of \
the classes and the shape of an image. A server: `mlflow models serve -m models:/{name}@champion --env-manager local`"""


def _note(params: Params, found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the run's description, in Markdown."""
    (data, *headings), *rows = table_rows(params)
    yield f"{_headline(params, numbers(found))}\n"
    if "proxy" in found:
        yield "**Only a proxy is known:** the two were compared on synthetic images, and on no real ones.\n"
    yield _row(data, *headings)
    yield "|---|---|---|"
    yield from (_row(*row) for row in [*rows, *intervals(params)])
    yield from (f"\nNote: {note}" for note in found.get("notes", []))
    yield f"\nFiles of the run: digests and commit in `{LINEAGE_FILE}`, the images that the two answer differently in"
    yield f"`{DISAGREEMENTS_FILE}`, curves and pictures in `reports`."


def _headline(params: Params, figures: Mapping[str, float]) -> str:
    """Return the figures that matter most, which MLflow's page shows before a click."""
    is_proxy = "proxy.agreement" in figures
    where = "synthetic images" if is_proxy else data_label(params.data.dataset)
    accuracy = ""
    if "student.accuracy" in figures:
        accuracy = f"**Accuracy {figures['student.accuracy']:.2%}**, the teacher's {figures['teacher.accuracy']:.2%}. "
    share = figures["proxy.agreement" if is_proxy else "student.agreement"]
    agreement = f"**Agreement {share:.2%}** with the teacher {teacher_label(params)}, on {where}. "
    own, others = (f"{figures[f'{model}.size_bytes'] / 1000:,.0f} kB" for model in ("student", "teacher"))
    size = f"Size {own}, the teacher's {others}. "
    return f"{accuracy}{agreement}{size}Trained without the teacher's training images."


def _row(*cells: str) -> str:
    return " | ".join(["", *(cell.replace("|", _BAR) for cell in cells), ""]).strip()


def _clipped(note: str) -> str:
    return note if len(note) <= _LONGEST_NOTE else f"{note[:_LONGEST_NOTE]} ..."


def _short_tags(params: Params, figures: Mapping[str, float]) -> dict[str, str]:
    """Return tags for readers: shares in percent as in the table, and the data."""
    proxy = figures.get("proxy.agreement")
    agreement = f"{figures['student.agreement']:.2%}" if proxy is None else f"{proxy:.2%} (proxy)"
    accuracy = {"accuracy": f"{figures['student.accuracy']:.2%}"} if "student.accuracy" in figures else {}
    return {**accuracy, "agreement": agreement, "data": data_label(params.data.dataset)}


def _found_by(lineage: Mapping[str, str]) -> dict[str, str]:
    """Return the tags by which dfkd finds results; all other digests are in the file alone."""
    tags = {RESULTS_TAG: "results_sha256", IMAGES_TAG: "images_sha256", TEACHER_TAG: "teacher", STUDENT_TAG: "student"}
    return {tag: lineage[name] for tag, name in tags.items()}


def _settings(params: Params) -> dict[str, Any]:
    """Return the settings of a result by dotted name; the changes of the teacher and the student are made in them."""
    others = {*GROUPS, "notify"}
    return {name: value for name, value in flatten(params).items() if name.partition(".")[0] not in others}


def _dataset(params: Params) -> str:
    """Return the data set whose pictures the student takes: that of the evaluation or, without one, of the teacher."""
    own = params.data.dataset
    return params.teacher.dataset if own == NO_DATA else own


def _transfer_set(params: Params, manifest: Manifest, sha256: str) -> Images:
    return Images(
        label=f"transfer set of {teacher_label(params)}, {manifest.method}",
        sha256=sha256,
        source=TeacherFiles(params.teacher_name).transfer_set.as_posix(),
        num_images=manifest.num_images,
        image_shape=manifest.image_shape,
        context="training",
    )
