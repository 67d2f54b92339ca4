"""The report of an export: the two JSON files next to the exported forms.

c channels, h height, w width.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from dfkd_core.common.digests import file_sha256
from dfkd_core.common.json_files import read_json_object
from dfkd_core.export.fidelity import Fidelity
from dfkd_core.export.forms import packages
from dfkd_core.models.classifier import ModelCard

__all__ = [
    "EXPORT_FILE",
    "MADE_BY",
    "PREPROCESSING_FILE",
    "ExportFormat",
    "ExportReport",
    "ExportedForm",
    "FailedForm",
    "Precision",
    "describe_preprocessing",
    "find_versions",
    "processor_features",
    "read_digests",
    "unchanged_files",
]

ExportFormat = Literal["safetensors", "pt2", "onnx"]
Precision = Literal["float32", "int8"]
EXPORT_FILE = "export.json"
PREPROCESSING_FILE = "preprocessing.json"

MADE_BY = "dfkd export"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedForm:
    """One exported form of a student."""

    file: str
    """Its file; `config.json` belongs to `model.safetensors`."""
    format: ExportFormat
    """Program that reads it."""
    precision: Precision
    """int8: int8 weights and uint8 activations in all convolutions and linear layers."""
    input: Literal["unit_range", "normalised"]
    """Its input: float32 images in [0, 1], or the same minus mean, over std."""
    size_bytes: int
    """Size of the file."""
    fidelity: Fidelity
    """Distance from the student on the checked images, with the runtime's default settings."""
    other_settings: Mapping[str, Fidelity]
    """The same for further settings of the runtime, see `ONNX_SETTINGS`; empty except for int8 ONNX files."""
    accuracy: float | None
    """Accuracy on the labelled images; None for float32 and without such images."""
    loads_in_timm: bool = False
    """Whether `timm.create_model("local-dir:FOLDER", pretrained=True)` builds the same network from the folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedForm:
    """A requested form that is not in the folder."""

    file: str
    """The file that it would have."""
    reason: str
    """Why it could not be made, or the check that it failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """Contents of `export.json`; a pure function of the student, the options, the versions and the processor's kind."""

    made_by: str
    """Marks the folder as an export."""
    student_digest: str
    """Digest of the student's weights and card, see `model_digest`."""
    forms: tuple[ExportedForm, ...]
    """The forms in the order in which they were made."""
    failures: tuple[FailedForm, ...]
    """The requested forms that could not be made or failed their check."""
    num_checked_images: int
    """Images on which every form was compared with the student."""
    max_relative_difference: float
    """Largest `relative_difference` that was allowed for a float32 form."""
    num_calibration_images: int
    """Images that determined the ranges of int8; 0 without an int8 form."""
    min_agreement: float
    """Smallest agreement that was allowed for an int8 form."""
    num_labelled_images: int
    """Images on which accuracy was measured."""
    student_accuracy: float | None
    """Accuracy of the float student on them."""
    processor: str
    """Vector instructions of the processor on which the forms were checked, which determine the integer kernels."""
    versions: Mapping[str, str]
    """Versions of the packages that made and checked the forms."""
    sha256: Mapping[str, str]
    """Digest of every file but `export.json`."""


def describe_preprocessing(
    card: ModelCard, forms: Sequence[ExportedForm], digests: Mapping[str, str]
) -> dict[str, Any]:
    """Return the facts that users without this package need to run the files."""
    channels, height, width = card.image_shape
    resize: dict[str, Any] = {"height": height, "width": width, "interpolation": "bilinear", "antialias": True}
    if (height, width) == (32, 32):
        resize["exception"] = "28x28 images are zero-padded by 2 pixels on each side"
    return {
        "image": {
            "shape": [channels, height, width],
            "layout": "NCHW",
            "channel_order": {1: "grey", 3: "RGB"}.get(channels),
            "dtype": "float32",
            "value_range": [0.0, 1.0],
            "from_uint8": "divide by 255",
        },
        "resize": resize,
        "normalised": "(image - mean) / std, channel by channel",
        "mean": list(card.mean),
        "std": list(card.std),
        "output": {"kind": "logits", "num_classes": card.num_classes, "class_names": list(card.class_names)},
        "input_of": {form.file: form.input for form in forms},
        "sha256": dict(digests),
    }


def find_versions(forms: Sequence[ExportedForm]) -> dict[str, str]:
    """Return the versions of the packages that made and read the forms."""
    names = [*(packages("onnx") if any(form.format == "onnx" for form in forms) else ())]
    names += packages("int8") if any(form.precision == "int8" for form in forms) else ()
    return {"torch": torch.__version__, **{name: importlib.metadata.version(name) for name in names}}


def processor_features() -> str:
    """Return the vector instructions that determine this processor's kernels, for example `AVX2, no VNNI`."""
    has_vnni = torch.cpu._is_vnni_supported()
    return f"{torch.backends.cpu.get_cpu_capability()}, {'VNNI' if has_vnni else 'no VNNI'}"


def read_digests(folder: Path) -> dict[str, str] | None:
    """Return the digests of the files of an export, None if the folder is not an export."""
    try:
        content = read_json_object(folder / EXPORT_FILE)
        return dict(content["sha256"]) if content["made_by"] == MADE_BY else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def unchanged_files(folder: Path) -> list[str]:
    """Return the files of an earlier export that nobody has changed since; none if the folder is not an export."""
    digests = (read_digests(folder) or {}).items()
    return [name for name, digest in digests if Path(name).name == name and _has_digest(folder / name, digest)]


def _has_digest(path: Path, digest: str) -> bool:
    return path.is_file() and file_sha256(path) == digest
