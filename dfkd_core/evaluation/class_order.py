"""The check that a data set's labels count the classes in the teacher's order, and the search for their order if not.

Sorted folder names, labels from 1 and a background class in front are common, and make the accuracy of every model
meaningless. benchmarks/class_order.py measures how reliable the search is, see docs/data.md.

n images, k classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from torch import Tensor

from dfkd_core.errors import DataError

__all__ = [
    "FoundOrder",
    "check_class_order",
    "describe_unknown",
    "find_class_order",
    "have_common_names",
    "order_by_name",
]

_MOST_NAMES = 5

_MOST_ERRORS_LEFT = 2 / 3
_LEAST_SIGMAS = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundOrder:
    """An order of the classes under which the teacher is right much more often."""

    order: tuple[int, ...]
    """The teacher's class of each label."""
    accuracy: float
    """The teacher's accuracy with the labels unchanged."""
    accuracy_in_order: float
    """Its accuracy with the labels in this order."""
    num_unseen: int
    """Labels without an image, which take the remaining classes."""


def order_by_name(data_names: Sequence[str], teacher_names: Sequence[str]) -> tuple[int, ...] | None:
    """Return the teacher's class of each label, None unless every class of the data set is one of the teacher's.

    If names differ, they are compared without case and punctuation: a folder cannot be named `T-shirt/top`.

    Args:
        data_names: Names of the data set's classes in the order of its labels; may be empty.
        teacher_names: Names of the teacher's classes in the order of its logits; may be empty.
    """
    spelled = ([*map(_spelling, names)] for names in (data_names, teacher_names))
    return _positions(data_names, teacher_names) or _positions(*spelled)


def _positions(data_names: Sequence[str], teacher_names: Sequence[str]) -> tuple[int, ...] | None:
    positions = {name: position for position, name in enumerate(teacher_names)}
    are_unique = len(positions) == len(teacher_names) and len(set(data_names)) == len(data_names)
    if not data_names or not are_unique or not positions.keys() >= set(data_names):
        return None
    return tuple(positions[name] for name in data_names)


def have_common_names(data_names: Sequence[str], teacher_names: Sequence[str]) -> bool:
    """Return whether a class of the data set has the name of one of the teacher's, apart from case and punctuation.

    Arguments as in `order_by_name`.
    """
    return not {_spelling(name) for name in data_names}.isdisjoint(map(_spelling, teacher_names))


def describe_unknown(data_names: Sequence[str], teacher_names: Sequence[str]) -> str:
    """Return the first classes of the data set that the teacher lacks, with its nearest names; empty if it lacks none.

    Arguments as in `order_by_name`.
    """
    unknown = [name for name in data_names if name not in teacher_names]
    shown = [f"{name!r}{_nearest(name, teacher_names)}" for name in unknown[:_MOST_NAMES]]
    return ", ".join(shown) + (f" and {len(unknown) - len(shown)} more" if len(unknown) > len(shown) else "")


def _spelling(name: str) -> str:
    return "".join(filter(str.isalnum, name.casefold())) or name


def _nearest(name: str, teacher_names: Sequence[str]) -> str:
    by_spelling = {_spelling(known): known for known in teacher_names}
    close = get_close_matches(_spelling(name), by_spelling, n=2, cutoff=0.5)
    return f" (nearest: {', '.join(repr(by_spelling[found]) for found in close)})" if close else ""


def check_class_order(predicted: Tensor, labels: Tensor, num_classes: int) -> None:
    """Refuse labels that count the classes in another order than the teacher.

    Args:
        predicted: The teacher's class of each image, int64 [n] in [0, k).
        labels: Labels of the data set, int64 [n] in [0, k).
        num_classes: Classes k.

    Raises:
        DataError: `find_class_order` finds another order; the message contains it.
    """
    found = find_class_order(predicted, labels, num_classes)
    if found:
        as_is = ",".join(map(str, range(num_classes))) if num_classes <= 10 else f"0,1,...,{num_classes - 1}"
        unseen = f", {found.num_unseen} of them unknown, since their labels have no image" if found.num_unseen else ""
        raise DataError(
            f"The teacher is right on {found.accuracy:.2%} of the {len(labels)} images with the labels as they are, "
            f"and on {found.accuracy_in_order:.2%} with another order of the {num_classes} classes: "
            f"{_in_words(found.order)}{unseen}. Use that order, the teacher's class of each label, with\n"
            f"  data.class_order: [{','.join(map(str, found.order))}]\n"
            f"or keep the labels with data.class_order: [{as_is}]"
        )


def find_class_order(predicted: Tensor, labels: Tensor, num_classes: int) -> FoundOrder | None:
    """Return an order of the classes under which the teacher is right much more often, None if there is none.

    Two kinds are tried: labels shifted by a constant, and the best one-to-one assignment of classes to labels (the
    Hungarian method on the confusion matrix). An assignment is judged on images that were not used to choose it: each
    half of every label's images judges the order chosen on the other half. An order is found if

    - at most two thirds of the errors are left, and
    - the images that become right outnumber those that become wrong by four standard deviations of chance.

    Weak and untrained teachers fail the first test, small data sets the second.

    Arguments as in `check_class_order`.
    """
    halves = _halves(predicted, labels, num_classes)
    confusion = halves[0] + halves[1]
    shift = _best_shift(confusion)
    chosen = shift if _is_much_better([(shift, confusion)]) else _best_assignment(confusion)
    crossed = [(_best_assignment(half), other) for half, other in (halves, halves[::-1])]
    if chosen is not shift and not _is_much_better(crossed):
        return None
    return FoundOrder(
        order=tuple(chosen.tolist()),
        accuracy=int(confusion.diagonal().sum()) / len(labels),
        accuracy_in_order=_hits(chosen, confusion) / len(labels),
        num_unseen=int((confusion.sum(1) == 0).sum()),
    )


def _halves(predicted: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Count the images by label (row) and prediction (column), separately for even and odd images of each label."""
    by_label = labels.argsort(stable=True)
    counts = labels.bincount(minlength=num_classes)
    first = counts.cumsum(0) - counts
    in_second = (torch.arange(len(labels)) - first[labels[by_label]]) % 2 == 1
    cells = (labels * num_classes + predicted)[by_label]
    shape = (num_classes, num_classes)
    first_half, second_half = (
        cells[chosen].bincount(minlength=num_classes**2).view(shape) for chosen in (~in_second, in_second)
    )
    return first_half, second_half


def _best_shift(confusion: Tensor) -> Tensor:
    """Return the order [k] that adds a constant to each label, modulo k, and is right on the most images."""
    labels = torch.arange(len(confusion))
    orders = ((labels + shift) % len(confusion) for shift in range(len(confusion)))
    return max(orders, key=lambda order: _hits(order, confusion))


def _best_assignment(confusion: Tensor) -> Tensor:
    """Return the order [k] that is right on the most images; among equals, the one that moves the fewest labels."""
    # Imported here: scipy takes a while to import, and most evaluations do not need it.
    from scipy.optimize import linear_sum_assignment

    num_classes = len(confusion)
    value = confusion * (num_classes + 1) + torch.eye(num_classes, dtype=confusion.dtype)
    _, order = linear_sum_assignment(value.numpy(), maximize=True)
    return torch.from_numpy(order)


def _hits(order: Tensor, confusion: Tensor) -> int:
    return int(confusion[torch.arange(len(order)), order].sum())


def _is_much_better(orders: Sequence[tuple[Tensor, Tensor]]) -> bool:
    """Compare orders with the unchanged labels, each on the confusion matrix [k, k] paired with it."""
    num_images = wrong_before = wrong_after = discordant = 0
    for order, confusion in orders:
        size, before, after = int(confusion.sum()), int(confusion.diagonal().sum()), _hits(order, confusion)
        num_images += size
        wrong_before += size - before
        wrong_after += size - after
        kept = int(confusion.diagonal()[order == torch.arange(len(order))].sum())
        discordant += before + after - 2 * kept
    gained = wrong_before - wrong_after
    return wrong_after <= _MOST_ERRORS_LEFT * wrong_before and gained > _LEAST_SIGMAS * discordant**0.5


def _in_words(order: Sequence[int]) -> str:
    shift = order[0]
    if all(teachers == (label + shift) % len(order) for label, teachers in enumerate(order)):
        by = f"plus {shift}" if shift <= len(order) // 2 else f"minus {len(order) - shift}"
        return f"each label {by}, modulo {len(order)}"
    moved = sum(teachers != label for label, teachers in enumerate(order))
    return f"{moved} of them moved"
