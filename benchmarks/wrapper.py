"""Overhead of dfkd's wrapper over the bare module: one synthesis step (forward, gradient to the image) of both.

    python benchmarks/wrapper.py
    python benchmarks/wrapper.py --network torchvision:resnet18 --batch-size 64 --rounds 20

The wrapper normalises the input, selects and converts the output and, with features, reads the modelled layer through a
hook. Both run alternately in one process, with frozen weights; the figures are medians of the ratios per round.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor

from dfkd_core.models.classifier import ModelCard, build_classifier
from dfkd_core.models.teacher import Teacher

CASES = (("lenet5", 1, 500), ("lenet5", 3, 500), ("resnet18_quarter", 3, 128), ("torchvision:resnet18", 3, 64))


def step(forward: Callable[[Tensor], Tensor], images: Tensor) -> float:
    """Return the seconds of one forward pass and the gradient to the images."""
    pixels = images.detach().requires_grad_(True)
    started = time.perf_counter()
    torch.autograd.grad(forward(pixels).square().sum(), pixels)
    return time.perf_counter() - started


def measure(network: str, channels: int, batch_size: int, rounds: int) -> str:
    """Return a line with the overhead for one network."""
    mean, std = (0.4, 0.5, 0.6)[:channels], (0.2, 0.3, 0.4)[:channels]
    card = ModelCard(network=network, in_channels=channels, image_size=32, num_classes=10, mean=mean, std=std, layer="")
    teacher = Teacher(build_classifier(card, seed=0))
    images = torch.rand(batch_size, channels, 32, 32).contiguous(memory_format=torch.channels_last)
    forwards = (
        teacher.network,
        teacher,
        lambda pixels: teacher.forward_with_features(pixels)[0],
    )
    for forward in forwards:
        step(forward, images)
    rows = [[step(forward, images) for forward in forwards] for _ in range(rounds)]
    bare = statistics.median(row[0] for row in rows)
    with_wrapper, with_features = (statistics.median(row[i] / row[0] for row in rows) for i in (1, 2))
    costs = f"wrapped {100 * (with_wrapper - 1):+5.1f} %  with features {100 * (with_features - 1):+5.1f} %"
    return f"{network:22s} {channels} channels {batch_size:4d} images  bare {1000 * bare:7.1f} ms  {costs}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", help="measure this network instead of the usual ones")
    parser.add_argument("--batch-size", type=int, default=64, help="images per step of --network")
    parser.add_argument("--rounds", type=int, default=60, help="number of steps of each kind")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases = ((arguments.network, 3, arguments.batch_size),) if arguments.network else CASES
    for network, channels, batch_size in cases:
        print(measure(network, channels, batch_size, arguments.rounds), flush=True)


if __name__ == "__main__":
    main()
