"""The classes that student and teacher predict for each evaluated image, how sure they are, and a digest of the images.

Two students are compared image by image if both were evaluated on the same images.

n images, c channels, h height, w width, k classes.
"""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save_file
from torch import Tensor

from dfkd_core.common.archives import check_safetensors
from dfkd_core.common.digests import write_atomically
from dfkd_core.common.pixels import dequantise, move_batch
from dfkd_core.common.regular_files import read_regular
from dfkd_core.common.rows import Rows
from dfkd_core.errors import DataError
from dfkd_core.models.classifier import Classifier
from dfkd_core.models.passes import PassSizes, joined

__all__ = ["ImagesDigest", "Predictions", "predict_images", "read_predictions", "write_predictions"]

_DIGEST = "images_sha256"
_CONFIDENCES = ("student_confidence", "teacher_confidence")
_HEX = re.compile("[0-9a-f]{64}")


class ImagesDigest:
    """SHA-256 over images and labels in their order; equal for any split into batches."""

    def __init__(self) -> None:
        """Start without images."""
        self._digest = hashlib.sha256()

    def add(self, pixels: Tensor) -> None:
        """Add images uint8 [m, c, h, w]."""
        self._digest.update(pixels.cpu().contiguous().numpy().tobytes())

    def of(self, images: Rows, labels: Tensor | None) -> str:
        """Return 64 hex digits for the images that were added.

        Args:
            images: The whole set, for its shape.
            labels: True classes [n]; None without labels.
        """
        whole = self._digest.copy()
        whole.update(f"{tuple(images.shape)}\0{labels is not None}\0".encode())
        if labels is not None:
            whole.update(labels.cpu().to(torch.int64).contiguous().numpy().tobytes())
        return whole.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """Predicted classes of an evaluation and their probabilities, image by image."""

    student: tuple[int, ...]
    """The student's classes [n]."""
    teacher: tuple[int, ...]
    """The teacher's classes [n]."""
    labels: tuple[int, ...] | None
    """True classes [n]; None without labels."""
    images_sha256: str
    """Digest of the images and labels, see `ImagesDigest`."""
    student_confidence: tuple[float, ...] = ()
    """The student's largest probability, in [0, 1], as float32 [n]; empty in a file of an earlier version."""
    teacher_confidence: tuple[float, ...] = ()
    """The teacher's, likewise."""

    @property
    def truth(self) -> tuple[int, ...]:
        """Classes [n] that the student should predict: the labels or, without them, the teacher's classes."""
        return self.teacher if self.labels is None else self.labels


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write predictions as a safetensors file, whole or not at all; equal predictions give equal bytes."""
    found = {"student": predictions.student, "teacher": predictions.teacher, "labels": predictions.labels}
    tensors = {name: torch.tensor(classes, dtype=torch.int32) for name, classes in found.items() if classes is not None}
    sure = (predictions.student_confidence, predictions.teacher_confidence)
    tensors |= {name: torch.tensor(values) for name, values in zip(_CONFIDENCES, sure, strict=True) if values}
    with write_atomically(path) as temporary:
        save_file(tensors, str(temporary), metadata={_DIGEST: predictions.images_sha256})


def read_predictions(path: Path) -> Predictions:
    """Read the file of `write_predictions`.

    Raises:
        DataError: The file is missing or damaged.
    """
    try:
        content = read_regular(path)
        header = check_safetensors(io.BytesIO(content))
        tensors = load(content)
        _check(tensors, header.metadata)
    except FileNotFoundError:
        raise DataError(f"There are no predictions: {path} is missing. Make them with: dfkd run") from None
    except Exception as error:  # safetensors raises a class that it does not export for typing
        raise DataError(f"{path} is damaged: {error}. Make it again with: rm {path}; dfkd run") from error
    values: dict[str, Any] = {name: tuple(tensor.tolist()) for name, tensor in tensors.items()}
    return Predictions(**{"labels": None} | values, images_sha256=header.metadata[_DIGEST])


def _check(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    allowed = {"student", "teacher", "labels", *_CONFIDENCES}
    found = [tensors[name] for name in _CONFIDENCES if name in tensors]
    if not {"student", "teacher"} <= tensors.keys() <= allowed or len(found) == 1:
        raise ValueError(f"it has the tensors {', '.join(sorted(tensors)) or 'none'}")
    if len({tuple(tensor.shape) for tensor in tensors.values()}) > 1 or tensors["student"].dim() != 1:
        raise ValueError("its tensors do not have one class per image")
    if any(tensor.dtype != torch.int32 for name, tensor in tensors.items() if name not in _CONFIDENCES):
        raise ValueError("its tensors are not classes")
    if any(sure.dtype != torch.float32 or not bool(((sure >= 0) & (sure <= 1)).all()) for sure in found):
        raise ValueError("its confidences are not from 0 to 1")
    if not len(tensors["student"]):
        raise ValueError("it has no images")
    if not _HEX.fullmatch(metadata.get(_DIGEST, "")):
        raise ValueError("it has no digest of its images")


@torch.inference_mode()
def predict_images(
    classifier: Classifier,
    images: Rows,
    *,
    batch_size: int,
    device: torch.device | str = "cpu",
    memory: int | None = None,
) -> tuple[Tensor, ImagesDigest]:
    """Return the logits [n, k] of a classifier on the CPU, and the digest of the images.

    Args:
        classifier: It is moved to `device` and put into eval mode.
        images: uint8 [n, c, h, w], at least one.
        batch_size: Images per forward pass; does not change the logits beyond rounding.
        device: Device to compute on.
        memory: Bytes that a pass may use; None for what is free.
    """
    classifier = classifier.to(device).eval()
    passes, digest, parts = PassSizes(classifier, memory=memory), ImagesDigest(), []
    for first in range(0, len(images), batch_size):
        pixels = images[torch.arange(first, min(first + batch_size, len(images)))]
        digest.add(pixels)
        batch = dequantise(move_batch(pixels, device), memory_format=torch.channels_last)
        parts.append(joined([classifier(part).cpu() for part in passes.split(batch)]))
    return torch.cat(parts), digest
