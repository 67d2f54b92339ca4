"""Pictures of any number of classes and images stay pictures, with names that a font has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dfkd_core.training.loop import EpochRecord
from dfkd_tasks.records.history import write_history
from dfkd_tasks.records.pictures import (
    Confusion,
    Sample,
    shown_names,
    write_accuracy_picture,
    write_confusion_picture,
    write_curves,
    write_samples,
)

MOST_PX = 4000
# Formulas of matplotlib, letters without a glyph, long, empty and broken lines.
ODD_NAMES = ["$a$ $", "犬", "x" * 200, "", "a\nb", r"\frac", "<script>", "naïve", "7", "0"]


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        picture.load()
        return picture.size


def colours_of(path: Path) -> set[object]:
    with Image.open(path) as picture:
        return {colour for _, colour in picture.convert("RGB").getcolors(2**24) or ()}


def test_shown_names__are_short_legible_lines() -> None:
    shown = shown_names(ODD_NAMES)
    assert shown[:2] == ["$a$ $", "class 1"]
    assert shown[3:6] == ["class 3", "a b", r"\frac"]
    assert max(map(len, shown)) == len(shown[2]) < 30


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 32, 32), (3, 48, 100), (3, 300, 300), (2, 16, 16), (4, 16, 16)])
@pytest.mark.parametrize("count", [1, 13])
def test_samples__are_of_one_width_and_differ_by_what_they_are(
    tmp_path: Path, shape: tuple[int, int, int], count: int
) -> None:
    pixels = np.full(shape, 200, np.uint8)

    def write(name: str, *, target: int, is_refined: bool) -> bytes:
        sample = Sample(pixels=pixels, target=target, answer=2, confidence=0.934, is_refined=is_refined)
        write_samples(tmp_path / name, [sample] * count, ODD_NAMES, title="Transfer set: 犬 $x$")
        return (tmp_path / name).read_bytes()

    first = write("a", target=2, is_refined=True)
    assert first == write("b", target=2, is_refined=True)
    assert len({first, write("c", target=2, is_refined=False), write("d", target=0, is_refined=True)}) == 3
    width, height = size_of(tmp_path / "a")
    assert width == 1308
    assert height == 60 + 12 + 138 * (1 if count == 1 else 2)


@pytest.mark.parametrize(("num_classes", "num_models"), [(2, 2), (20, 1), (40, 2), (101, 2), (1000, 1)])
def test_confusion__of_any_number_of_classes_repeats_to_the_byte(
    tmp_path: Path, num_classes: int, num_models: int
) -> None:
    counts = (9 * np.eye(num_classes, dtype=int)[::-1] + np.eye(num_classes, dtype=int)).tolist()
    names = [f"class {number}" for number in range(num_classes)]
    models = [Confusion(title=f"model {number}", counts=counts) for number in range(num_models)]
    write_confusion_picture(tmp_path / "one", models, names, title="digits: 100 labelled images")
    assert max(size_of(tmp_path / "one")) < MOST_PX
    if num_classes in (2, 101):
        write_confusion_picture(tmp_path / "two", models, names, title="digits: 100 labelled images")
        assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_confusion__takes_classes_without_images_and_odd_names(tmp_path: Path) -> None:
    counts = np.zeros((10, 10), int).tolist()
    write_confusion_picture(tmp_path / "a", [Confusion(title="$", counts=counts)], ODD_NAMES, title="犬 $ $x$")
    assert len(colours_of(tmp_path / "a")) > 10


@pytest.mark.parametrize("num_classes", [0, 1, 10, 1000])
def test_accuracies__of_any_number_of_classes(tmp_path: Path, num_classes: int) -> None:
    names = [ODD_NAMES[number % 10] for number in range(num_classes)]
    shares = [None if number == 3 else number / num_classes for number in range(num_classes)]
    write_accuracy_picture(tmp_path / "a", names, shares, shares[::-1] if num_classes != 10 else shares, title="digits")
    assert max(size_of(tmp_path / "a")) < MOST_PX


def history(*losses: float, terms: int) -> list[EpochRecord]:
    return [
        EpochRecord(
            epoch=number, loss=loss, learning_rate=0.1, terms={f"term{place}": loss / terms for place in range(terms)}
        )
        for number, loss in enumerate(losses, start=1)
    ]


@pytest.mark.parametrize("losses", [(), (1.0,), (1.0, 0.5, 0.0), tuple(range(60, 0, -1))])
def test_curves__of_any_number_of_epochs(tmp_path: Path, losses: tuple[float, ...]) -> None:
    write_history(tmp_path / "epochs.csv", history(*losses, terms=2))
    write_curves(tmp_path / "a", tmp_path / "epochs.csv", title="student on 60,000 images")
    assert max(size_of(tmp_path / "a")) < MOST_PX


def test_curves__show_every_term_of_the_loss(tmp_path: Path) -> None:
    own = [(31, 119, 180), (255, 127, 14), (44, 160, 44)]
    for terms in (1, 2, 3):
        write_history(tmp_path / "epochs.csv", history(1.0, 0.5, 0.25, terms=terms))
        write_curves(tmp_path / "a", tmp_path / "epochs.csv", title="student")
        # A single term is the loss itself.
        assert [colour for colour in own if colour in colours_of(tmp_path / "a")] == own[: terms if terms > 1 else 0]
