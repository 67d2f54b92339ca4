"""The run time of a forward pass."""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor

from dfkd_core.common.pixels import grey_images
from dfkd_core.models.classifier import Classifier

__all__ = ["measure_latency"]


@torch.inference_mode()
def measure_latency(
    classifier: Classifier,
    *,
    batch_sizes: tuple[int, ...] = (1, 64),
    num_runs: int = 50,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Return the median milliseconds of a forward pass as `{"batch_1_ms": ..., "batch_64_ms": ...}`.

    These are the only figures that differ from run to run, so they are separate from `EvaluationReport`.

    Args:
        classifier: It is moved to `device` and put into eval mode.
        batch_sizes: Images per forward pass.
        num_runs: Timed passes per batch size, after a tenth as many that are not timed.
        device: Device to compute on.
    """
    classifier = classifier.to(device).eval()
    medians = {}
    for size in batch_sizes:
        images = grey_images(size, classifier.card.image_shape, device)
        images = images.contiguous(memory_format=torch.channels_last)
        seconds = [_time_forward(classifier, images) for _ in range(num_runs + num_runs // 10 + 1)]
        medians[f"batch_{size}_ms"] = 1000 * statistics.median(seconds[-num_runs:])
    return medians


def _time_forward(classifier: Classifier, images: Tensor) -> float:
    started = time.perf_counter()
    classifier(images)
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    return time.perf_counter() - started
