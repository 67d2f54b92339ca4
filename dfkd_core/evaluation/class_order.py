"""Whether the labels of a data set count the classes as the teacher does, and how they do if not.

Sorted folder names, labels from 1 and a background class in front are common, and give every model an accuracy that
says nothing. How well the rule does is measured by benchmarks/class_order.py, see docs/data.md.

n images, k classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dfkd_core.errors import DataError

__all__ = ["FoundOrder", "check_class_order", "find_class_order", "order_by_name"]

_MOST_ERRORS_LEFT = 2 / 3
_LEAST_SIGMAS = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundOrder:
    """An order of the classes under which the teacher is right much more often."""

    order: tuple[int, ...]
    """The teacher's class of each label."""
    accuracy: float
    """The teacher's accuracy with the labels as they are."""
    accuracy_in_order: float
    """Its accuracy with the labels in this order."""
    num_unseen: int
    """Labels without an image, which take the classes that are left."""


def order_by_name(data_names: Sequence[str], teacher_names: Sequence[str]) -> tuple[int, ...] | None:
    """Return the teacher's class of each label, None where the names do not tell it: both must be the same set.

    Args:
        data_names: Names of the data set's classes in the order of its labels; may be empty.
        teacher_names: Names of the teacher's classes in the order of its logits; may be empty.
    """
    positions = {name: position for position, name in enumerate(teacher_names)}
    unique = len(positions) == len(teacher_names) == len(data_names)
    if not data_names or not unique or positions.keys() != set(data_names):
        return None
    return tuple(positions[name] for name in data_names)


def check_class_order(predicted: Tensor, labels: Tensor, num_classes: int) -> None:
    """Refuse labels that count the classes in another order than the teacher.

    Args:
        predicted: The teacher's class of each image, int64 [n] in [0, k).
        labels: Labels as they are, int64 [n] in [0, k).
        num_classes: Classes k.

    Raises:
        DataError: `find_class_order` finds another order; the message tells it.
    """
    found = find_class_order(predicted, labels, num_classes)
    if found:
        as_is = ",".join(map(str, range(num_classes))) if num_classes <= 10 else f"0,1,...,{num_classes - 1}"
        unseen = f", {found.num_unseen} of them without an image to tell" if found.num_unseen else ""
        raise DataError(
            f"The teacher is right on {found.accuracy:.2%} of the {len(labels)} images with the labels as they are, "
            f"and on {found.accuracy_in_order:.2%} with another order of the {num_classes} classes: "
            f"{_in_words(found.order)}{unseen}. Use that order, the teacher's class of each label, with\n"
            f"  data.class_order: [{','.join(map(str, found.order))}]\n"
            f"or keep the labels with data.class_order: [{as_is}]"
        )


def find_class_order(predicted: Tensor, labels: Tensor, num_classes: int) -> FoundOrder | None:
    """Return an order of the classes under which the teacher is right much more often, None where there is none.

    Two kinds are tried: labels shifted by a constant, and the best one-to-one assignment of classes to labels (the
    Hungarian method on the confusion matrix). An assignment is judged on images that it was not chosen on, each half of
    every label's images on the other. An order is found if

    - at most two thirds of the errors are left, and
    - the images that become right outnumber those that become wrong by four standard deviations of chance.

    Weak and untrained teachers fail the first test, few images the second.

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
    """Count the images by label (row) and prediction (column), every other image of each label apart."""
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
    """Return the order [k] that adds the constant to each label, modulo k, with which most images are right."""
    labels = torch.arange(len(confusion))
    orders = ((labels + shift) % len(confusion) for shift in range(len(confusion)))
    return max(orders, key=lambda order: _hits(order, confusion))


def _best_assignment(confusion: Tensor) -> Tensor:
    """Return the order [k] with which most images are right; of equal ones, that which moves the fewest labels."""
    # Imported here: scipy takes a while that most evaluations do not need.
    from scipy.optimize import linear_sum_assignment

    num_classes = len(confusion)
    value = confusion * (num_classes + 1) + torch.eye(num_classes, dtype=confusion.dtype)
    _, order = linear_sum_assignment(value.numpy(), maximize=True)
    return torch.from_numpy(order)


def _hits(order: Tensor, confusion: Tensor) -> int:
    return int(confusion[torch.arange(len(order)), order].sum())


def _is_much_better(orders: Sequence[tuple[Tensor, Tensor]]) -> bool:
    """Compare orders with the labels as they are, each on the confusion matrix [k, k] beside it."""
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
