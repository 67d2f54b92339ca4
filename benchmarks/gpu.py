"""Speed of refinement and distillation on a GPU, and its utilisation.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --networks lenet5 --num-images 1250 5000 --write .dfkd/benchmarks/gpu.json

Refinement and distillation are timed with each kernel launched from Python and with the step recorded once and
replayed; refinement in float32 with PyTorch's own layers and in bf16 with the project's. Variants run alternately, and
each figure is the best of several. The kernel share is the sum of the profiler's kernel times over the wall-clock time
of a run without the profiler. The teachers have random weights, since speed does not depend on them.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from hardware import machine
from speed import best_in_turn, plain_copy, untrained_teacher
from torch.profiler import ProfilerActivity, profile

from dfkd_core.common.compute import Compute
from dfkd_core.common.devices import autocast_on_gpu, resolve_device
from dfkd_core.common.digests import write_json
from dfkd_core.compression import make_transfer_set
from dfkd_core.distillation.config import DistillationConfig
from dfkd_core.distillation.run import distill_images
from dfkd_core.models.teacher import Teacher
from dfkd_core.priors.table import build_prior
from dfkd_core.statistics.estimation import StatisticsConfig, estimate_statistics
from dfkd_core.synthesis import descent
from dfkd_core.synthesis.methods import SynthesisConfig
from dfkd_core.synthesis.refinement import target_losses
from dfkd_core.training import loop
from dfkd_core.transfer_set.shards import Shard

ROUNDS = 5
SHORT, LONG = 2, 8
TEMPERATURE = 20.0
STUDENTS = {"lenet5": "lenet5_half", "lenet5_bn": "lenet5_half_bn", "resnet18": "resnet18_half"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured time."""

    what: str
    seconds: float
    images: int
    ratio: float | None = None
    """Speed relative to the first variant of the same run."""
    kernels_share: float | None = None
    """Share of the time during which a kernel runs."""

    def __str__(self) -> str:
        ratio = f"  {self.ratio:6.2f} times plain" if self.ratio else ""
        share = f"  {100 * self.kernels_share:3.0f} % in kernels" if self.kernels_share else ""
        return (
            f"{self.what:62s} {1000 * self.seconds:9.1f} ms {self.images / self.seconds:11,.0f} images/s{ratio}{share}"
        )


def kernel_seconds(work: Callable[[], object]) -> float:
    """Return the seconds that a run spends in kernels, from the profiler."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        work()
        torch.cuda.synchronize()
    return float(sum(event.self_device_time_total for event in profiled.key_averages())) / 1e6


@contextlib.contextmanager
def launched_one_by_one() -> Iterator[None]:
    """Turn off recording within the block."""
    with (
        patch.object(descent, "recorded_on_gpu", lambda work, device: work),
        patch.object(loop, "recorded_on_gpu", lambda work, device: work),
    ):
        yield


def refine(teacher: Teacher, starts: torch.Tensor, config: descent.DescentConfig, *, is_bf16: bool) -> None:
    """Refine images towards arbitrary soft targets."""
    targets = torch.full((len(starts), teacher.card.num_classes), 1 / teacher.card.num_classes, device=teacher.device)

    def objective(images: torch.Tensor, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        with autocast_on_gpu(teacher.device) if is_bf16 else contextlib.nullcontext():
            logits = teacher(images)
        return {"kl": target_losses(logits, targets, temperature=TEMPERATURE)}

    descent.descend(
        build_prior("pixels", teacher.card.image_shape),
        starts,
        objective,
        image_indices=range(len(starts)),
        descent=config,
        device=teacher.device,
    )


def measure_refinement(teacher: Teacher, device: torch.device, num_images: int) -> Iterator[Figure]:
    """Time the refinement of `num_images` images at once, as the default refines them."""
    config = descent.DescentConfig(prior="pixels", iterations=30, learning_rate=0.03, smoothing_px=1.0)
    starts = torch.rand(num_images, *teacher.card.image_shape, generator=torch.Generator().manual_seed(0))
    own = Teacher(teacher.merged().classifier, device=device)
    plain = Teacher(plain_copy(teacher).classifier, device=device)

    def run(model: Teacher, *, is_bf16: bool, is_recorded: bool) -> None:
        with contextlib.nullcontext() if is_recorded else launched_one_by_one():
            refine(model, starts, config, is_bf16=is_bf16)

    variants = {
        "plain, float32": partial(run, plain, is_bf16=False, is_recorded=False),
        "ours, bf16, launched one by one": partial(run, own, is_bf16=True, is_recorded=False),
        "ours, bf16, recorded": partial(run, own, is_bf16=True, is_recorded=True),
    }
    for work in variants.values():
        work()
    times = best_in_turn(list(variants.values()), rounds=ROUNDS)
    for (name, work), seconds in zip(variants.items(), times, strict=True):
        yield Figure(
            what=f"{teacher.card.network}, {num_images:,} images, 30 steps, {name}",
            seconds=seconds,
            images=num_images,
            ratio=times[0] / seconds if name != next(iter(variants)) else None,
            kernels_share=kernel_seconds(work) / seconds,
        )


def measure_whole(teacher: Teacher, device: torch.device, num_images: int) -> Iterator[Figure]:
    """Time a synthesis and an epoch of distillation with the defaults, in this process."""
    on_gpu = Teacher(teacher.classifier, device=device)
    statistics = estimate_statistics(on_gpu, StatisticsConfig(), seed=0)
    config = SynthesisConfig(num_images=num_images)
    # An untrained teacher predicts one class for all images, which the checks of a shard would reject.
    with patch("dfkd_core.synthesis.shards.check_shard"):
        start = time.perf_counter()
        made = make_transfer_set(on_gpu, statistics, config, seed=0)
        seconds = time.perf_counter() - start
    network = teacher.card.network
    yield Figure(what=f"{network}, synthesis of the default, one process", seconds=seconds, images=num_images)
    yield from measure_distillation(on_gpu, made, device, num_images)


def measure_distillation(teacher: Teacher, made: Shard, device: torch.device, num_images: int) -> Iterator[Figure]:
    """Time an epoch of distillation with the defaults: a long training less a short one, over the epochs between."""

    def distil(epochs: int) -> None:
        config = DistillationConfig(student=STUDENTS[teacher.card.network], start="random", epochs=epochs)
        distill_images(teacher, made.images, made.teacher_logits, config, seed=0, compute=Compute(device=device))

    plain = None
    for name, mode in (("launched one by one", launched_one_by_one), ("recorded", contextlib.nullcontext)):
        with mode():
            distil(SHORT)
            trainings = [partial(distil, epochs) for epochs in (SHORT, LONG)]
            short, long = best_in_turn(trainings, rounds=3)
            in_kernels = kernel_seconds(trainings[1]) - kernel_seconds(trainings[0])
        plain = plain or long - short
        yield Figure(
            what=f"{teacher.card.network}, epoch of the default's distillation, {name}",
            seconds=(long - short) / (LONG - SHORT),
            images=num_images,
            ratio=plain / (long - short) if name == "recorded" else None,
            kernels_share=in_kernels / (long - short),
        )


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=STUDENTS, default=["lenet5", "resnet18"])
    parser.add_argument(
        "--num-images", type=int, nargs="+", default=[125, 1250, 5000], help="numbers of images refined at once"
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--write", type=Path, default=Path(".dfkd/benchmarks/gpu.json"), help="JSON file to write")
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    # One thread, as in a run.
    torch.set_num_threads(1)
    print(f"{machine(device)}; torch {torch.__version__}", flush=True)
    figures = []
    for network in arguments.networks:
        teacher = untrained_teacher(network, channels=3 if network.startswith("resnet") else 1)
        for num_images in arguments.num_images:
            for figure in measure_refinement(teacher, device, num_images):
                figures.append(figure)
                print(figure, flush=True)
        for figure in measure_whole(teacher, device, 10_000):
            figures.append(figure)
            print(figure, flush=True)
    named = {"machine": machine(device), "torch": torch.__version__}
    write_json(arguments.write, {"machine": named, "figures": [dataclasses.asdict(figure) for figure in figures]})
    print(f"Written to {arguments.write}")


if __name__ == "__main__":
    main()
