"""Cards for people: of an exported student and of a transfer set, in Markdown with the fields of Hugging Face.

Figures are those of metrics/NAME.json, digit by digit.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dfkd_core.common.digests import file_sha256
from dfkd_core.errors import DfkdError
from dfkd_core.export.report import ExportedForm
from dfkd_core.models.classifier import ModelCard
from dfkd_core.models.storage import read_card
from dfkd_core.priors.table import shows_photographs
from dfkd_core.transfer_set.manifest import MANIFEST_NAME, Manifest, read_manifest
from dfkd_flows.settings.params import Params
from dfkd_flows.shown.names import data_label
from dfkd_flows.stages.names import addresses, label
from dfkd_tasks.caching.stored import read_result
from dfkd_tasks.caching.workspace import StudentFiles, TeacherFiles
from dfkd_tasks.dvc_project.status import LOCK, changed_stages, git_commit, results_digest
from dfkd_tasks.records.history import read_start
from dfkd_tasks.report.drawing import printable

__all__ = ["MODEL_CARD", "SET_CARD", "check_results", "model_card", "set_card"]

MODEL_CARD = "README.md"
SET_CARD = "TRANSFER_SET.md"

_TEMPLATES = Path(__file__).parent / "templates"
_NUM_WORST = 5
_MOST_CLASSES = 1000
_MARKS = re.compile(r"([\\`*_{}\[\]<>#|~&])")
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_FIGURES = {
    "accuracy": "accuracy",
    "ece": "expected calibration error",
    "agreement": "same class as the teacher",
    "kl": "KL(teacher, student), nats",
    "num_parameters": "parameters",
    "size_bytes": "size of the weights, bytes",
}


def check_results(params: Params) -> None:
    """Check that a student has figures, and that they are of its present files.

    Args:
        params: Parameters of one student, see `Params.for_student`.

    Raises:
        DfkdError: There are none, or its stages have changed since.
    """
    _read_metrics(params)
    own = {*addresses(params)}
    if LOCK.is_file() and (changed := [address for address in changed_stages() if address in own]):
        older = ", ".join(label(address, params) for address in changed)
        raise DfkdError(f"The figures for the card are older than what they depend on: {older}. Run: dfkd run")


def model_card(params: Params, card: ModelCard, forms: Sequence[ExportedForm]) -> str:
    """Return the card of a student.

    Args:
        params: Parameters of the student, see `Params.for_student`.
        card: Facts about its network.
        forms: Its exported forms.

    Raises:
        DfkdError: A file of the results is missing or damaged.
    """
    metrics = _read_metrics(params)
    shared, own = TeacherFiles(params.teacher_name), StudentFiles(params.student_name)
    manifest = read_manifest(shared.transfer_set)
    is_random = read_start(own.network) == "random"
    is_proxy, data = "proxy" in metrics, data_label(params.data.dataset)
    num_images = int(metrics["num_images"])
    teacher_network = read_card(shared.network).network
    facts = {
        "student_name": _title(params, card),
        "rows": [*_rows(metrics)],
        "is_proxy": is_proxy,
        "num_images": num_images,
        "data": data,
        "worst": _worst_classes(own.reports / "per_class.csv"),
        "channels": card.in_channels,
        "size": card.image_size,
        "mean": [*card.mean],
        "std": [*card.std],
        "num_classes": card.num_classes,
        "class_names": card.class_names if len(card.class_names) <= _MOST_CLASSES else (),
        "takes_unit_range": all(form.input == "unit_range" for form in forms),
        "has_safetensors": any(form.format == "safetensors" for form in forms),
        "loads_in_timm": any(form.loads_in_timm for form in forms),
        "forms": forms,
        "teacher_network": teacher_network,
        "teacher_digest": manifest.teacher_digest,
        "num_synthetic": manifest.num_images,
        "method": manifest.method,
        "photographs": _photographs(manifest),
        "epochs": params.distillation.epochs,
        "start": "from random weights" if is_random else "as a smaller copy of the teacher",
        "manifest_digest": file_sha256(shared.transfer_set / MANIFEST_NAME),
        "seed": params.seed,
        "commit": git_commit(),
        "results": (results_digest(addresses(params)) if LOCK.is_file() else None) or "unknown",
        "notes": metrics.get("notes", []),
    }
    fields = {
        "library_name": "timm" if facts["loads_in_timm"] else "dfkd",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "knowledge-distillation", "data-free", "dfkd"],
        "metrics": [
            name for name in ("accuracy", "ece", "agreement") if name in (metrics.get("proxy") or metrics["student"])
        ],
        "model-index": [_index(_title(params, card), metrics, data, num_images)],
    }
    return _rendered("model_card.md", fields, facts)


def set_card(manifest: Manifest, teacher: ModelCard | None, *, layout: str = "", data_files: str = "") -> str:
    """Return the card of a transfer set.

    Args:
        manifest: Its manifest.
        teacher: Facts about its teacher; None if they are not known.
        layout: Sentence on its files, for a set in another format.
        data_files: Pattern of its files for the package datasets; empty if this does not read them.
    """
    names = (teacher.class_names if teacher else ()) or tuple(map(str, range(manifest.num_classes)))
    facts = {
        "teacher_network": teacher.network if teacher else "a classifier",
        "shape": "x".join(map(str, manifest.image_shape)),
        "photographs": _photographs(manifest),
        "counts": list(zip(names, manifest.class_histogram))[:_MOST_CLASSES],
        "layout": layout,
        **{name: getattr(manifest, name) for name in (
            "num_images", "num_classes", "method", "seed", "mean_confidence", "target_agreement", "teacher_digest",
        )},
    }  # fmt: skip
    fields: dict[str, Any] = {
        "pretty_name": f"Transfer set of {facts['teacher_network']}",
        "task_categories": ["image-classification"],
        "size_categories": [next((name for most, name in _SIZES if manifest.num_images < most), "n>1M")],
        "tags": ["synthetic", "knowledge-distillation", "data-free", "dfkd"],
    }
    if data_files:
        split = {"split": "train", "path": data_files}
        fields["configs"] = [{"config_name": "default", "data_files": [split]}]
    return _rendered("transfer_set_card.md", fields, facts)


def _read_metrics(params: Params) -> dict[str, Any]:
    found = read_result(StudentFiles(params.student_name).metrics, dict[str, Any])
    kinds = {"teacher": dict, "student": dict, "num_images": int}
    lacking = [name for name, kind in kinds.items() if not isinstance(found.get(name), kind)]
    if lacking:
        path = StudentFiles(params.student_name).metrics
        raise DfkdError(f"{path} is damaged: it has no {', '.join(lacking)}. Make it again with: dfkd run")
    return found


def _title(params: Params, card: ModelCard) -> str:
    network = card.network.rpartition(":")[2]
    return f"{params.registry.model_name} ({network})"


def _rows(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield the name, the teacher's and the student's figure as they are in the JSON file."""
    joint = metrics.get("proxy", {})
    for name, text in _FIGURES.items():
        of_teacher, of_student = metrics["teacher"].get(name, ""), metrics["student"].get(name, joint.get(name, ""))
        if of_teacher != "" or of_student != "":
            yield f"{text}{' (proxy)' if name in joint else ''}", str(of_teacher), str(of_student)


def _worst_classes(path: Path) -> list[tuple[str, str, str]]:
    """Return the classes with the largest loss of accuracy, the largest first; none without labels."""
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            found = [(row["class"], row["teacher_accuracy"], row["student_accuracy"]) for row in csv.DictReader(stream)]
        lost = [row for row in found if float(row[2]) < float(row[1])]
        return sorted(lost, key=lambda row: float(row[2]) - float(row[1]))[:_NUM_WORST]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise DfkdError(f"{path} cannot be read: {error}. Make it again with: dfkd run") from error


def _photographs(manifest: Manifest) -> str:
    # Sets that were made without the pipeline may hold the settings of their method alone.
    settings = manifest.method_config.get("methods", {}).get(manifest.method, manifest.method_config)
    steps = [value for value in settings.values() if isinstance(value, Mapping) and "prior" in value]
    if any(shows_photographs(str(found["prior"])) for found in steps):
        return "Some images contain crops of two public photographs that scikit-learn ships; all others are drawn."
    return "All images are drawn; none contains a photograph."


def _index(name: str, metrics: Mapping[str, Any], data: str, num_images: int) -> dict[str, Any]:
    """Return the entry of Hugging Face's model-index."""
    is_proxy = "proxy" in metrics
    figures = {**metrics["student"], **metrics.get("proxy", {})}
    dataset = (
        {"name": f"{num_images} synthetic images (proxy)", "type": "synthetic"}
        if is_proxy
        else {"name": data, "type": data, "split": "test"}
    )
    found = [
        {"type": kind, "value": figures[kind], "name": f"{_FIGURES[kind]}{' (proxy)' if is_proxy else ''}"}
        for kind in ("accuracy", "ece", "agreement", "kl")
        if kind in figures
    ]
    task = {"type": "image-classification", "name": "Image Classification"}
    return {"name": name, "results": [{"task": task, "dataset": dataset, "metrics": found}]}


def _rendered(template: str, fields: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # Markdown, not HTML: names from outside go through `md`.
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=False
    )
    environment.filters["md"] = _plain
    head = yaml.safe_dump(dict(fields), sort_keys=False, allow_unicode=True)
    body = re.sub(r"\n{3,}", "\n\n", environment.get_template(template).render(**facts))
    return f"---\n{head}---\n\n{body.strip()}\n"


def _plain(value: object) -> str:
    """Return a text from outside as Markdown that shows it as it is, in one line."""
    return _MARKS.sub(r"\\\1", printable(" ".join(str(value).split())))
