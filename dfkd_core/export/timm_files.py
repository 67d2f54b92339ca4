"""What timm needs to build a student again from an exported folder: `timm.create_model("local-dir:FOLDER")`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from dfkd_core.common.digests import write_json
from dfkd_core.common.json_files import read_json_object
from dfkd_core.export.fidelity import TOLERANCE, measure_fidelity, predict_all
from dfkd_core.models.architectures import TIMM, import_timm
from dfkd_core.models.classifier import Classifier, ModelCard
from dfkd_core.models.factories import split_width
from dfkd_core.models.storage import CONFIG_FILE

__all__ = ["add_timm_fields"]


def add_timm_fields(folder: Path, student: Classifier, images: Tensor, logits: Tensor) -> bool:
    """Add timm's fields to `config.json` of a stored student if timm then builds a network that answers as it does.

    Args:
        folder: The student as `save_model` writes it.
        student: The same in memory.
        images: uint8 [n, c, h, w], on which both are compared.
        logits: The student's logits [n, k] for them.

    Returns:
        Whether timm builds it. If not, `config.json` is as before: the network is not timm's own, as with a multiple of
        its widths, or its output is not a tensor of logits.
    """
    card = student.card
    base, multiple = split_width(card.network)
    if not base.startswith(TIMM) or multiple != 1 or card.outputs != "logits" or card.output_key:
        return False
    plain = read_json_object(folder / CONFIG_FILE)
    for fields in _candidates(card, base.removeprefix(TIMM)):
        write_json(folder / CONFIG_FILE, {**plain, **fields})
        if _answers_alike(folder, student, images, logits):
            return True
    write_json(folder / CONFIG_FILE, plain)
    return False


def _candidates(card: ModelCard, name: str) -> Iterator[dict[str, Any]]:
    """Yield fields with the size of the images, which transformers need, and without, as other networks take none."""
    shape = {"in_chans": card.in_channels, "num_classes": card.num_classes}
    for size in ({"img_size": card.image_size}, {}):
        yield {
            # Without the tag of published weights.
            "architecture": name.partition(".")[0],
            "model_args": {**size, **shape, **card.arguments},
            "pretrained_cfg": {
                "input_size": list(card.image_shape),
                "fixed_input_size": bool(size),
                "mean": list(card.mean),
                "std": list(card.std),
                "num_classes": card.num_classes,
                "interpolation": "bilinear",
                "crop_pct": 1.0,
                **({"label_names": list(card.class_names)} if card.class_names else {}),
            },
        }


def _answers_alike(folder: Path, student: Classifier, images: Tensor, logits: Tensor) -> bool:
    try:
        network = import_timm().create_model(f"local-dir:{folder}", pretrained=True).eval()
        found = predict_all(network, images, prepare=student.normalise)
        return measure_fidelity(found, logits).relative_difference <= TOLERANCE
    # timm raises any error for arguments that a network does not take.
    except Exception:
        return False
