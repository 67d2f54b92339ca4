"""`dfkd calibrate`: calibration images for other people's quantisers, in a NumPy archive."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from dfkd_core.common.output_folders import check_output_folder
from dfkd_core.errors import ConfigError
from dfkd_core.export.calibration import ARRAY, Calibration, make_calibration, write_calibration
from dfkd_core.models.classifier import ModelCard
from dfkd_core.models.programs import program_input
from dfkd_core.teachers.loading import WARNING
from dfkd_flows.commands.loading import loaded_teacher
from dfkd_flows.session.display import Display, say
from dfkd_flows.settings.params import Params

__all__ = ["write_calibration_file"]

_SUFFIX = ".npz"
# Starts of notes on the modelled layer, which does not matter here.
_OF_LAYERS = ("modelled layer:", "its layers are not accessible")


def write_calibration_file(params: Params, out: Path, *, num_images: int, trusted: Collection[str] = ()) -> None:
    """Make calibration images for a teacher and write them into a new file.

    Args:
        params: The parameters of the teacher, see `Params.for_teacher`.
        out: The file, which must not exist.
        num_images: Number of images.
        trusted: Factories that a stored teacher may call.

    Raises:
        ConfigError: The file exists, cannot be written or has another suffix, or the number is below 1.
        DfkdError: As `bring_teacher` and `make_calibration`.
    """
    _check_file(out)
    if num_images < 1:
        raise ConfigError(f"--num-images must be at least 1, got {num_images}. Try: --num-images 256")
    with loaded_teacher(params, trusted) as brought, Display("calibrate") as display:
        for note in brought.notes:
            if not note.startswith(_OF_LAYERS):
                say(note[0].upper() + note[1:] if note.startswith(WARNING) else f"Note: {note}")
        made = make_calibration(brought.classifier, num_images, seed=params.seed, on_progress=display.show)
        batch_size = program_input(brought.classifier.network).batch_size
        card = brought.classifier.card
    # Somebody may have made it since.
    _check_file(out)
    write_calibration(out, made)
    say("\n".join(_lines(out, made, card, batch_size)))


def _check_file(out: Path) -> None:
    if out.suffix != _SUFFIX:
        raise ConfigError(f"--out {out} must be the name of a NumPy archive. Try: --out calib{_SUFFIX}")
    if os.path.lexists(out):
        raise ConfigError(f"--out {out} exists and is not replaced. Give another name, or delete it")
    check_output_folder(out.parent)


def _lines(out: Path, made: Calibration, card: ModelCard, batch_size: int | None) -> list[str]:
    shape, dtype = "x".join(map(str, made.inputs.shape)), str(made.inputs.dtype).removeprefix("torch.")
    found = [
        f"Made {out}: the array {ARRAY!r}, {dtype} {shape}, normalised with mean {_numbers(card.mean)} and std "
        f"{_numbers(card.std)}, as the model takes it",
        f"The model gives {sum(map(bool, made.class_counts))} of {card.num_classes} classes to them, the most frequent "
        f"one to {max(made.class_counts)} of {len(made.images)}. No image is of its training data",
    ]
    return [*found, f"The file takes {batch_size} images at once"] if batch_size else found


def _numbers(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
