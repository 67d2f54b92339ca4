"""`dfkd layers` and `dfkd inspect`: the properties of a teacher, without a run. Nothing is written."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from dfkd_core.inspection import Fit, Inspection, inspect_teacher
from dfkd_core.models.layers import layer_candidates
from dfkd_core.models.teacher import Teacher
from dfkd_core.teachers.loading import WARNING, BroughtTeacher
from dfkd_core.teachers.preflight import probe_images
from dfkd_flows.commands.loading import loaded_teacher
from dfkd_flows.settings.params import Params

__all__ = ["describe_teacher", "list_layers"]


def list_layers(params: Params, *, trusted: Collection[str] = ()) -> str:
    """Return a table of the layers of a teacher that can be modelled.

    `params` are those of one teacher, see `Params.for_teacher`. `trusted` are the factories that the user allows a
    stored teacher to call.
    """
    with loaded_teacher(params, trusted) as brought:
        classifier = brought.classifier
        found = layer_candidates(classifier, probe_images(classifier.card.image_shape, 2))
        chosen = classifier.card.layer
    rows = [("", "layer", "kind", "shape", "")]
    for candidate in found:
        mark = "*" if candidate.address == chosen else ""
        rows.append((mark, candidate.address, candidate.kind, "x".join(map(str, candidate.shape)), candidate.note))
    return "\n".join([*_aligned(rows), "", "* is used. Choose another layer with: --set teacher.layer=LAYER"])


def describe_teacher(params: Params, *, trusted: Collection[str] = ()) -> str:
    """Return the properties of the parameters' teacher, one a line; arguments as in `list_layers`."""
    with loaded_teacher(params, trusted) as brought:
        found = inspect_teacher(Teacher(brought.classifier), params.statistics, params.synthesis, seed=params.seed)
        lines = [f"{name:<24}{value}" for name, value in _facts(brought, found)]
        warnings = [note for note in brought.notes if note.startswith(WARNING)]
        notes = [f"  {note}" for note in brought.notes if note not in warnings]
    shown = [*lines, *(["", "Detected and assumed:", *notes] if notes else [])]
    return "\n".join([*shown, *(["", *(note[0].upper() + note[1:] for note in warnings)] if warnings else [])])


def _facts(brought: BroughtTeacher, found: Inspection) -> Iterator[tuple[str, str]]:
    card = brought.classifier.card
    yield "network", card.network + (f" {dict(card.arguments)}" if card.arguments else "")
    yield "parameters", f"{found.num_parameters:,}"
    yield (
        "images",
        f"{'x'.join(map(str, card.image_shape))} in [0, 1], mean {_round(card.mean)}, std {_round(card.std)}",
    )
    yield "classes", f"{card.num_classes}" + (f": {', '.join(card.class_names[:5])}, ..." if card.class_names else "")
    yield "answers with", card.outputs.replace("_", " ") + (f" at {card.output_key!r}" if card.output_key else "")
    yield "normalisation layers", ", ".join(f"{n} {kind}" for kind, n in found.normalisations.items()) or "none"
    yield "modelled layer", f"{card.layer}, {found.num_features} units"
    yield "statistics", _fits(found.statistics)
    yield "synthesis methods", _fits(found.methods)
    for name, fit in {**found.statistics, **found.methods}.items():
        if fit.reason:
            yield f"  not {name}", fit.reason
    if found.seconds_per_1000_images is not None:
        yield "synthesis here", f"{found.seconds_per_1000_images:,.1f} s per 1,000 images on one core, {found.method}"
    passes = f"{found.images_per_pass} images in a pass of {found.bytes_per_pass / 2**20:,.0f} MiB"
    yield "memory", f"{passes}; 1,000 images take {found.bytes_per_1000_images / 1e6:,.1f} MB on disk"


def _fits(fits: dict[str, Fit]) -> str:
    return ", ".join(name for name, fit in fits.items() if not fit.reason) or "none"


def _round(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
