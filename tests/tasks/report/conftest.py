"""Facts of a page, made of random numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from dfkd_core.evaluation.disagreements import find_disagreements
from dfkd_core.evaluation.predictions import Predictions
from dfkd_core.transfer_set.summary import SetSummary
from dfkd_tasks.report.facts import FigureRow, History, Number, Rule, StageRow, StudentReport, Verdict

HOSTILE = ("<script>alert(1)</script>", "$100", "snow\x00man\n\u202e☃")
NUM_IMAGES = 600


@pytest.fixture(scope="session")
def make_facts() -> Callable[..., StudentReport]:
    """Return a function that makes the facts of a page."""

    def make(names: Sequence[str] = HOSTILE, *, is_proxy: bool = False, **changes: Any) -> StudentReport:
        draws = torch.Generator().manual_seed(0)
        size = len(names)
        labels = torch.randint(size, (NUM_IMAGES,), generator=draws)
        teacher, student = (_mostly(labels, share, size, draws) for share in (0.9, 0.8))
        sure = [torch.rand(NUM_IMAGES, generator=draws).tolist() for _ in range(2)]
        predictions = Predictions(
            student=tuple(student.tolist()),
            teacher=tuple(teacher.tolist()),
            labels=None if is_proxy else tuple(labels.tolist()),
            images_sha256="0" * 64,
            student_confidence=tuple(sure[0]),
            teacher_confidence=tuple(sure[1]),
        )
        images = torch.randint(256, (NUM_IMAGES, 3, 8, 8), generator=draws, dtype=torch.uint8)
        values: dict[str, Any] = {
            "title": "teacher <b>on</b> data",
            "data": "data",
            "is_proxy": is_proxy,
            "verdict": Verdict(
                answer="ship", title="ship it", sentences=("It is good.",), rules=(Rule(holds=True, text="a < b"),)
            ),
            "champion": "no other champion",
            "rows": (
                FigureRow(
                    name="calibration error",
                    meaning="of its confidence",
                    teacher=Number(text="1.23%", value=0.0123456789, within="1.00% to 1.50%"),
                ),
            ),
            "warnings": ("uneven <classes>",),
            "class_names": tuple(names),
            "predictions": predictions,
            "num_bins": 15,
            "disagreements": find_disagreements(predictions, images),
            "transfer_set": _summary(size, draws),
            "real_axes": np.ones((3, 2), np.float32),
            "histories": {
                "teacher": History(epochs=(), losses={}),
                "student": History(epochs=(1, 2), losses={"loss": (2.0, 1.0), "soft_$": (1.0, 0.0)}),
            },
            "stages": (StageRow(name="distill", seconds="1.0 s", rate="12"),),
            "machine": (("processor", "some"),),
            "versions": (("torch", "2"),),
            "lineage": (("git commit", "abc"),),
            "settings": (),
            "command": "dfkd run --set 'a=\"<b>\"'",
        }
        return StudentReport(**{**values, **changes})

    return make


def _mostly(labels: torch.Tensor, share: float, size: int, draws: torch.Generator) -> torch.Tensor:
    others = torch.randint(size, labels.shape, generator=draws)
    return torch.where(torch.rand(len(labels), generator=draws) < share, labels, others)


def _summary(size: int, draws: torch.Generator) -> SetSummary:
    counts = torch.randint(1, 50, (size,), generator=draws)
    return SetSummary(
        class_counts=counts,
        target_counts=counts.flip(0),
        confidence_counts=torch.randint(50, (20,), generator=draws),
        sample_images=torch.randint(256, (24, 3, 8, 8), generator=draws, dtype=torch.uint8),
        sample_index=torch.arange(24),
        sample_targets=torch.rand(24, size, generator=draws).softmax(1),
        sample_logits=torch.randn(24, size, generator=draws),
        sample_is_refined=torch.arange(24) % 4 == 0,
        pair_images=torch.randint(256, (6, 2, 3, 8, 8), generator=draws, dtype=torch.uint8),
        pair_index=torch.arange(12).view(6, 2),
        pair_distance=torch.rand(6, generator=draws),
        num_duplicates=1,
        num_compared=500,
        drawn_axes=torch.randn(500, 2, generator=draws),
        image_axes=torch.randn(500, 2, generator=draws),
    )
