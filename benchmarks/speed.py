"""Speed of synthesis and distillation on this machine.

    python benchmarks/speed.py
    python benchmarks/speed.py --num-images 4000 --write .dfkd/benchmarks/speed.json
    python benchmarks/speed.py --network resnet18_quarter --channels 3 --batch-size 64 --only steps

Times vary between runs on a shared machine, so some figures are printed with the ratio to a baseline of the same run:
plain memory layout against channels-last, one process against two. Each figure is the best of three runs, or of nine
for single steps. The teacher has random weights, since speed does not depend on them.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from hardware import processor_name
from torch import nn

from dfkd_core.common.digests import write_json
from dfkd_core.data.datasets import dataset_spec
from dfkd_core.distillation.config import DistillationConfig
from dfkd_core.distillation.run import distill_images
from dfkd_core.models.built_in import default_layer
from dfkd_core.models.classifier import ModelCard, build_classifier
from dfkd_core.models.storage import save_model
from dfkd_core.models.teacher import Teacher, load_teacher
from dfkd_core.priors.table import prior_names
from dfkd_core.statistics.estimation import StatisticsConfig, estimate_statistics
from dfkd_core.synthesis.methods import MethodSettings, SynthesisConfig, build_synthesizer
from dfkd_core.synthesis.refinement import RefinementConfig
from dfkd_core.synthesis.shards import num_shards, synthesize_shard
from dfkd_core.synthesis.soft_target import SoftTargetConfig
from dfkd_core.training.augmentation import AugmentationConfig

REPEATS = 3


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured time."""

    what: str
    seconds: float
    per_second: float
    unit: str
    ratio: float | None = None
    """Speed relative to the baseline of the same run."""


def best_seconds(work: Callable[[], object]) -> float:
    """Return the seconds of the shortest of a few runs."""
    return best_in_turn([work], rounds=REPEATS)[0]


def best_in_turn(works: Sequence[Callable[[], object]], *, rounds: int) -> list[float]:
    """Return the seconds of the shortest run of each, run alternately."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(rounds):
        for work, own in zip(works, times, strict=True):
            start = time.perf_counter()
            work()
            own.append(time.perf_counter() - start)
    return [min(own) for own in times]


def synthesis_config(method: str, prior: str, iterations: int, num_images: int) -> SynthesisConfig:
    """Return a configuration with the same number of gradient steps for all methods."""
    refinement = RefinementConfig(prior=prior, iterations=iterations)
    settings = MethodSettings()
    settings = replace(
        settings,
        soft_target=SoftTargetConfig(refinement=refinement),
        dirichlet=replace(settings.dirichlet, refinement=refinement),
    )
    return SynthesisConfig(method=method, num_images=num_images, images_per_shard=num_images // 4, methods=settings)


def synthesize(teacher: Teacher, config: SynthesisConfig) -> None:
    """Make all images in this process, not as shards, whose checks reject an untrained teacher's outputs on noise."""
    statistics = estimate_statistics(teacher, StatisticsConfig(), seed=0)
    synthesizer = build_synthesizer(config, teacher, statistics)
    for first in range(0, config.num_images, config.batch_size):
        synthesizer.synthesize(range(first, min(first + config.batch_size, config.num_images)), seed=0)


def _warm_up(folder: Path) -> None:
    torch.set_num_threads(1)
    load_teacher(folder)


def _shard_job(job: tuple[Path, SynthesisConfig, int]) -> None:
    folder, config, index = job
    teacher = load_teacher(folder)
    statistics = estimate_statistics(teacher, StatisticsConfig(), seed=0)
    synthesize_shard(build_synthesizer(config, teacher, statistics), teacher, shard_index=index, config=config, seed=0)


def _all_shards(pool: ProcessPoolExecutor, jobs: Sequence[tuple[Path, SynthesisConfig, int]]) -> None:
    for _ in pool.map(_shard_job, jobs):
        pass


def measure_methods(teacher: Teacher, num_images: int) -> list[Figure]:
    """Time every method and prior."""
    refined = RefinementConfig().iterations
    cases = [("noise", "pixels", 0)]
    cases += [("soft_target", prior, count) for prior in prior_names() for count in (0, refined)]
    cases.append(("dirichlet", "procedural", refined))
    figures = []
    for method, prior, iterations in cases:
        config = synthesis_config(method, prior, iterations, num_images)
        seconds = best_seconds(partial(synthesize, teacher, config))
        what = "noise" if method == "noise" else f"{method}, {prior}, {iterations} iterations"
        figures.append(Figure(what=what, seconds=seconds, per_second=num_images / seconds, unit="images"))
    return figures


def untrained_teacher(network: str, *, channels: int) -> Teacher:
    """Return a teacher for 32-pixel images: a built-in network with random weights."""
    spec = dataset_spec("fashion_mnist")
    card = ModelCard(
        network=network,
        in_channels=channels,
        image_size=32,
        num_classes=spec.num_classes,
        mean=spec.mean * channels,
        std=spec.std * channels,
        layer=default_layer(network),
    )
    return Teacher(build_classifier(card, seed=0))


def plain_copy(teacher: Teacher) -> Teacher:
    """Return the teacher with PyTorch's own layers and memory layout instead of the project's."""
    classifier = copy.deepcopy(teacher.classifier)
    for module in classifier.modules():
        for own in (nn.Conv2d, nn.MaxPool2d):
            if isinstance(module, own):
                module.__class__ = own
    classifier.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # torch's stubs lack it
    return Teacher(classifier)


def measure_steps(teacher: Teacher, batch_size: int) -> list[Figure]:
    """Time one refinement step (forward, gradient to the image) and the forward pass alone, in batches of `batch_size`.

    The teacher's weights are frozen in both.
    """
    steps = 10
    variants = (
        ("plain", plain_copy(teacher), torch.contiguous_format),
        ("ours", teacher.merged(), torch.channels_last),
    )
    figures: list[Figure] = []
    for what, needs_gradient in (("refinement step", True), ("teacher forward", False)):

        def work(model: Teacher, images: torch.Tensor, wanted: bool = needs_gradient) -> None:
            for _ in range(steps):
                x = images.detach().requires_grad_(wanted)
                with torch.set_grad_enabled(wanted):
                    total = model(x).square().sum()
                if wanted:
                    torch.autograd.grad(total, x)

        works = []
        for _, model, layout in variants:
            images = torch.rand(batch_size, *teacher.card.image_shape).contiguous(memory_format=layout)
            works.append(partial(work, model, images))
        for (name, _, _), seconds in zip(variants, best_in_turn(works, rounds=3 * REPEATS), strict=True):
            ratio = figures[-1].seconds / seconds if name == "ours" else None
            rate = steps * batch_size / seconds
            figures.append(Figure(what=f"{what}, {name}", seconds=seconds, per_second=rate, unit="images", ratio=ratio))
    return figures


def measure_growth(teacher: Teacher, num_images: int) -> list[Figure]:
    """Measure time and memory of a synthesis of one, two and four times as many images, each in its own process."""
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as scratch:
        save_model(Path(scratch), teacher.classifier)
        for times in (1, 2, 4):
            config = replace(
                synthesis_config("soft_target", "procedural", 10, times * num_images), images_per_shard=1000
            )
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                list(pool.map(_warm_up, [Path(scratch)]))
                start = time.perf_counter()
                list(pool.map(_shard_job, [(Path(scratch), config, index) for index in range(num_shards(config))]))
                seconds = time.perf_counter() - start
                peak_mib = pool.submit(_peak_mib).result()
            what = f"soft_target, {config.num_images:,} images, at most {peak_mib:,.0f} MiB"
            figures.append(Figure(what=what, seconds=seconds, per_second=config.num_images / seconds, unit="images"))
    return figures


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_processes(teacher: Teacher, num_images: int) -> list[Figure]:
    """Time a whole synthesis in one and in two processes that are already running."""
    refinement = RefinementConfig()
    config = synthesis_config("soft_target", refinement.prior, refinement.iterations, 2 * num_images)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        save_model(folder, teacher.classifier)
        jobs = [(folder, config, index) for index in range(num_shards(config))]
        for workers in (1, 2):
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
                list(pool.map(_warm_up, [folder] * 2 * workers))
                seconds = best_seconds(partial(_all_shards, pool, jobs))
            ratio = figures[0].seconds / seconds if figures else None
            what = f"soft_target in {workers} {'process' if workers == 1 else 'processes'}"
            rate = config.num_images / seconds
            figures.append(Figure(what=what, seconds=seconds, per_second=rate, unit="images", ratio=ratio))
    return figures


def epoch_seconds(teacher: Teacher, images: torch.Tensor, logits: torch.Tensor, config: DistillationConfig) -> float:
    """Return the seconds of the shortest epoch after the first, in which views are made."""
    ends: list[float] = []
    config = replace(config, epochs=1 + REPEATS)
    distill_images(teacher, images, logits, config, seed=0, on_progress=lambda _: ends.append(time.perf_counter()))
    return min(after - before for before, after in pairwise(ends[1:]))


def measure_distillation(teacher: Teacher, num_images: int) -> list[Figure]:
    """Time one epoch of distillation with stored labels, with the defaults, and with stored views."""
    images = torch.randint(0, 256, (num_images, *teacher.card.image_shape), dtype=torch.uint8)
    logits = teacher.label(images / 255)
    student = "resnet18_eighth" if teacher.card.network.startswith("resnet") else "lenet5_half"
    default = DistillationConfig(student=student, start="random")
    cases = {
        "stored labels": replace(default, augmentation=AugmentationConfig(), feature_weight=0.0),
        "moved images, features matched": default,
        "the same, stored views": replace(default, views=1),
    }
    # In turn, so that a change of the machine's speed meets all of them.
    rounds = [[epoch_seconds(teacher, images, logits, config) for config in cases.values()] for _ in range(REPEATS)]
    figures: list[Figure] = []
    for what, times in zip(cases, zip(*rounds, strict=True), strict=True):
        seconds = min(times)
        ratio = figures[-1].seconds / seconds if "views" in what else None
        rate = num_images / seconds
        named = f"distillation epoch, {what}"
        figures.append(Figure(what=named, seconds=seconds, per_second=rate, unit="images", ratio=ratio))
    return figures


PARTS: dict[str, Callable[[Teacher, argparse.Namespace], list[Figure]]] = {
    "steps": lambda teacher, given: measure_steps(teacher, given.batch_size),
    "processes": lambda teacher, given: measure_processes(teacher, given.num_images),
    "growth": lambda teacher, given: measure_growth(teacher, given.num_images),
    "methods": lambda teacher, given: measure_methods(teacher, given.num_images),
    "distillation": lambda teacher, given: measure_distillation(teacher, given.num_images),
}


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="lenet5", help="the teacher's network")
    parser.add_argument("--num-images", type=int, default=2000, help="images per measurement")
    parser.add_argument("--channels", type=int, default=1, help="channels of an image")
    parser.add_argument("--batch-size", type=int, default=500, help="images per refinement step")
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--num-threads", type=int, default=1, help="threads of one step")
    parser.add_argument("--write", type=Path, default=Path(".dfkd/benchmarks/speed.json"), help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.num_threads)
    teacher = untrained_teacher(arguments.network, channels=arguments.channels)
    figures = [
        figure for name, part in PARTS.items() if arguments.only in (None, name) for figure in part(teacher, arguments)
    ]
    for figure in figures:
        ratio = f"  {figure.ratio:.2f} times the line above" if figure.ratio else ""
        print(f"{figure.what:50s} {figure.seconds:7.2f} s {figure.per_second:10,.0f} {figure.unit}/s{ratio}")
    machine = {
        "machine": platform.machine(),
        "processor": processor_name(),
        "num_cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    write_json(arguments.write, {"machine": machine, "figures": [asdict(figure) for figure in figures]})
    print(f"Written to {arguments.write}: {json.dumps(machine)}")


if __name__ == "__main__":
    main()
