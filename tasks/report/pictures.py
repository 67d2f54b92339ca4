"""Images of the page: pixels of tensors as PNG inside of the page. No file of anybody else is put there.

m images, c channels, h height, w width, k classes.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from dfkd_core.evaluation.disagreements import Disagreements
from dfkd_core.evaluation.predictions import Predictions
from dfkd_core.transfer_set.summary import SetSummary
from dfkd_tasks.records.forms import share

__all__ = ["Picture", "disagreeing_pictures", "pair_pictures", "sample_pictures"]

# Small images are enlarged by whole factors, so that their pixels stay sharp.
_SHOWN_PX = 96


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An image, or a pair of images side by side, with what is known about it."""

    address: str
    """Address that holds the PNG."""
    width: int
    height: int
    alternative: str
    lines: tuple[str, ...]
    """Lines below it."""
    mark: str = ""
    """A word on its kind, empty if all are alike."""


def disagreeing_pictures(found: Disagreements, predictions: Predictions, names: Sequence[str]) -> Iterator[Picture]:
    """Yield the images on which the models differ most, with the answers of both."""
    is_real = predictions.labels is not None
    for image, index in zip(found.images, found.index.tolist()):
        teacher, student = names[predictions.teacher[index]], names[predictions.student[index]]
        sure = (predictions.teacher_confidence[index], predictions.student_confidence[index])
        lines = [f"teacher: {teacher}, {share(sure[0])}", f"student: {student}, {share(sure[1])}"]
        if predictions.labels is not None:
            lines.insert(0, f"true: {names[predictions.labels[index]]}")
        yield _picture(
            [image],
            alternative=f"Image {index}: {'; '.join(lines)}",
            lines=lines,
            mark="real image" if is_real else "synthetic, held out",
        )


def sample_pictures(found: SetSummary, names: Sequence[str]) -> Iterator[Picture]:
    """Yield samples of the transfer set with target and answer."""
    for place, (image, index) in enumerate(zip(found.sample_images, found.sample_index.tolist())):
        answer = found.sample_logits[place].double().softmax(0)
        lines = [_likely("target", found.sample_targets[place], names), _likely("teacher", answer, names)]
        mark = "refined" if bool(found.sample_is_refined[place]) else "as drawn"
        alternative = f"Image {index} of the transfer set, {mark}: {'; '.join(lines)}"
        yield _picture([image], alternative=alternative, lines=lines, mark=mark)


def pair_pictures(found: SetSummary) -> Iterator[Picture]:
    """Yield the nearest pairs of the transfer set."""
    pairs = zip(found.pair_images, found.pair_index.tolist(), found.pair_distance.tolist())
    for images, (first, second), distance in pairs:
        lines = [f"images {first} and {second}", f"distance {distance:.4f}"]
        yield _picture(list(images), alternative=f"Two similar {', '.join(lines)}", lines=lines)


def _likely(what: str, probabilities: Tensor, names: Sequence[str]) -> str:
    best = int(probabilities.argmax())
    return f"{what}: {names[best]}, {share(float(probabilities[best]))}"


def _picture(images: Sequence[Tensor], *, alternative: str, lines: Sequence[str], mark: str = "") -> Picture:
    from PIL import Image

    pixels = np.concatenate([_pixels(image) for image in images], 1)
    picture = Image.fromarray(pixels)
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    factor = max(1, _SHOWN_PX // pixels.shape[0])
    return Picture(
        address=f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}",
        width=factor * pixels.shape[1],
        height=factor * pixels.shape[0],
        alternative=alternative,
        lines=tuple(lines),
        mark=mark,
    )


def _pixels(image: Tensor) -> np.ndarray:
    """Return an image uint8 [c, h, w] as uint8 [h, w, 3]; of other than three channels the first one is shown."""
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    return pixels if pixels.shape[2] == 3 else np.repeat(pixels[:, :, :1], 3, axis=2)
