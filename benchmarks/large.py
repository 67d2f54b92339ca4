"""Memory of the stages with a large teacher, and with a transfer set that is larger than the memory used.

    python benchmarks/large.py --memory-gib 8
    python benchmarks/large.py --only set

There are two cases, each in its own process. The first runs statistics, synthesis, distillation and evaluation with
tiny settings and a ResNet-50 with random weights, 224 pixels and 1,000 classes. The second runs one epoch of a tiny
student on 2 GiB of random 32-pixel images. For each stage the script reports seconds, the peak resident memory
(including pages of mapped shards, which the kernel can reclaim) and the peak of the process's own memory. It then
compares the CPU time of an epoch on 60,000 images in files and in memory.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from hardware import processor_name
from torch import nn

from dfkd_core.common.compute import Compute
from dfkd_core.common.digests import write_json
from dfkd_core.common.memory import GIB
from dfkd_core.common.rows import Rows
from dfkd_core.common.vision import models
from dfkd_core.data.datasets import LabelledImages
from dfkd_core.distillation.config import DistillationConfig
from dfkd_core.distillation.run import distill, distill_images
from dfkd_core.evaluation.comparison import evaluate
from dfkd_core.models.classifier import Classifier, ModelCard, build_classifier
from dfkd_core.models.teacher import Teacher
from dfkd_core.priors.table import build_prior
from dfkd_core.statistics.estimation import StatisticsConfig, estimate_statistics
from dfkd_core.synthesis.methods import MethodSettings, SynthesisConfig, build_synthesizer
from dfkd_core.synthesis.shards import num_shards, synthesize_shard
from dfkd_core.training.augmentation import AugmentationConfig
from dfkd_core.transfer_set.manifest import write_manifest
from dfkd_core.transfer_set.reader import TransferSet
from dfkd_core.transfer_set.shards import Shard, ShardRecord, shard_name, write_shard

STUDENT = "torchvision:resnet18"
REPEATS = 5
_STATUS = Path("/proc/self/status")
_SECONDS_BETWEEN_LOOKS = 0.02


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Time and memory of one stage."""

    what: str
    seconds: float
    resident_gib: float
    """Peak resident memory, including mapped files."""
    own_gib: float
    """Peak of the process's own memory, which is not backed by a file."""


class Meter:
    """Measures stages one after another; Linux only."""

    def __init__(self) -> None:
        self.figures: list[Figure] = []

    @contextmanager
    def stage(self, what: str) -> Iterator[None]:
        """Measure the block."""
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        done, own = threading.Event(), [_status("RssAnon")]

        def look() -> None:
            while not done.wait(_SECONDS_BETWEEN_LOOKS):
                own.append(_status("RssAnon"))

        looker = threading.Thread(target=look, daemon=True)
        looker.start()
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        done.set()
        looker.join()
        figure = Figure(what=what, seconds=seconds, resident_gib=_status("VmHWM") / GIB, own_gib=max(own) / GIB)
        self.figures.append(figure)
        print(
            f"{what:44s} {seconds:7.1f} s  resident {figure.resident_gib:5.2f} GiB, own {figure.own_gib:5.2f} GiB",
            flush=True,
        )


def _status(name: str) -> int:
    lines = _STATUS.read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def large_teacher(memory: int) -> Teacher:
    """Return a ResNet-50 with random weights and BatchNorm statistics of a few images, so that its outputs differ."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = models.resnet50(num_classes=1000)
    card = ModelCard(
        network="torchvision:resnet50",
        in_channels=3,
        image_size=224,
        num_classes=1000,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        layer="fc:input",
    )
    classifier = Classifier(network, card)
    classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        classifier.train()(build_prior("mixed", card.image_shape).start(range(16), seed=1))
    return Teacher(classifier, memory=memory)


def run_teacher(memory: int, num_images: int, num_threads: int) -> list[Figure]:
    """Run the stages with a large teacher."""
    torch.set_num_threads(num_threads)
    meter = Meter()
    with meter.stage("teacher: build and check"):
        teacher = large_teacher(memory)
    with meter.stage("statistics, weights"):
        statistics = estimate_statistics(teacher, StatisticsConfig(), seed=0)
    with meter.stage("statistics, 64 probes"):
        estimate_statistics(teacher, StatisticsConfig(source="probes", num_probes=64), seed=0)
    refined, labelled = (teacher.passes.images_per_pass(500, with_gradient=wanted) for wanted in (True, False))
    print(f"of a batch of 500 images at once: {refined} refined, {labelled} labelled", flush=True)
    settings = MethodSettings()
    refinement = replace(settings.soft_target.refinement, iterations=1)
    config = SynthesisConfig(
        num_images=num_images,
        images_per_shard=num_images // 2,
        methods=replace(settings, soft_target=replace(settings.soft_target, refinement=refinement)),
    )
    with tempfile.TemporaryDirectory(dir=".dfkd") as scratch:
        folder = Path(scratch)
        with meter.stage(f"synthesis, {num_images:,} images, a quarter refined"):
            synthesizer = build_synthesizer(config, teacher, statistics)
            records = []
            for index in range(num_shards(config)):
                shard = synthesize_shard(synthesizer, teacher, shard_index=index, config=config, seed=0)
                records.append(write_shard(folder / shard_name(index), shard))
            del shard
            store_manifest(folder, teacher, records)
        distillation = DistillationConfig(student=STUDENT, start="random", epochs=1, batch_size=64)
        with meter.stage("distillation to ResNet-18, 1 epoch"):
            student = distill(teacher, TransferSet(folder), distillation, seed=0, compute=Compute(prefetch=1)).student
    names = tuple(map(str, range(1000)))
    images = torch.randint(0, 256, (200, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with meter.stage("evaluation, 200 images"):
        evaluate(student, teacher, data=LabelledImages(images, torch.arange(200), names))
    return meter.figures


def store_manifest(folder: Path, teacher: Teacher, records: list[ShardRecord]) -> None:
    """Write a minimal manifest."""
    write_manifest(
        folder,
        method="soft_target",
        method_config={},
        temperature=1.0,
        teacher_digest=teacher.digest,
        statistics_digest=None,
        code_version="benchmark",
        seed=0,
        shards=records,
    )


def write_random_set(folder: Path, card: ModelCard, num_images: int) -> None:
    """Write random images with random logits for `tiny_teacher(card)` as shards of 20,000."""
    generator, shape, num_classes = torch.Generator().manual_seed(0), card.image_shape, card.num_classes
    records = []
    for index, first in enumerate(range(0, num_images, 20_000)):
        n = min(20_000, num_images - first)
        logits = torch.randn(n, num_classes, generator=generator)
        shard = Shard(
            images=torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=generator),
            teacher_logits=logits,
            soft_targets=logits.softmax(1),
            image_index=torch.arange(first, first + n),
        )
        records.append(write_shard(folder / shard_name(index), shard))
    store_manifest(folder, tiny_teacher(card), records)


def tiny_teacher(card: ModelCard) -> Teacher:
    """Return a tiny teacher with random weights."""
    return Teacher(build_classifier(card, seed=0))


def run_set(num_images: int, num_threads: int) -> list[Figure]:
    """Run epochs of a tiny student on random images in files."""
    torch.set_num_threads(num_threads)
    meter = Meter()
    config = DistillationConfig(epochs=1, start="random", feature_weight=0.0, augmentation=AugmentationConfig())
    for channels, count in ((3, num_images // 16), (3, num_images), (1, 60_000)):
        card = ModelCard(
            network="lenet5",
            in_channels=channels,
            image_size=32,
            num_classes=10,
            mean=(0.5,) * channels,
            std=(0.3,) * channels,
            layer="fc1",
        )
        teacher = tiny_teacher(card)
        with tempfile.TemporaryDirectory(dir=".dfkd") as scratch:
            # In another process, so that its memory is not counted here.
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                pool.submit(write_random_set, Path(scratch), card, count).result()
            images = TransferSet(Path(scratch))
            gib = sum(path.stat().st_size for path in Path(scratch).iterdir()) / GIB
            if channels == 3:
                with meter.stage(f"1 epoch, {count:,} images in {gib:.2f} GiB"):
                    distill(teacher, images, config, seed=0)
            else:
                compare_access(teacher, images, config)
    return meter.figures


def compare_access(teacher: Teacher, stored: TransferSet, config: DistillationConfig) -> None:
    """Time epochs on the same images in memory and in files alternately; print the best of each and their ratio."""
    in_each: list[tuple[Rows, Rows]] = [
        (stored.images[:], stored.teacher_logits[:]),
        (stored.images, stored.teacher_logits),
    ]
    best = [float("inf")] * 2
    for _ in range(REPEATS):
        for place, (images, logits) in enumerate(in_each):
            # CPU time, so that other processes do not count.
            start = time.process_time()
            distill_images(teacher, images, logits, config, seed=0)
            best[place] = min(best[place], time.process_time() - start)
    in_memory, in_files = best
    print(
        f"1 epoch, {len(stored):,} images of {stored.images.shape[1:].numel():,} bytes: {in_memory:.2f} s of one core "
        f"from memory, {in_files:.2f} s from files, {in_files / in_memory:.3f} times as long"
    )


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--memory-gib", type=float, default=8, help="memory that passes may use, as execution.memory_gib"
    )
    parser.add_argument("--num-images", type=int, default=1000, help="transfer images of the large teacher")
    parser.add_argument("--set-images", type=int, default=660_000, help="transfer images of the tiny student")
    parser.add_argument("--num-threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--only", choices=["teacher", "set"], help="run only this case")
    parser.add_argument("--write", type=Path, default=Path(".dfkd/benchmarks/large.json"), help="JSON file to write")
    arguments = parser.parse_args()
    Path(".dfkd").mkdir(exist_ok=True)
    memory = int(arguments.memory_gib * GIB)
    figures = []
    for case, run, values in (
        ("teacher", run_teacher, (memory, arguments.num_images, arguments.num_threads)),
        ("set", run_set, (arguments.set_images, arguments.num_threads)),
    ):
        if arguments.only in (None, case):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                figures += pool.submit(run, *values).result()
    machine = {"processor": processor_name(), "torch": torch.__version__, "memory_gib": arguments.memory_gib}
    write_json(arguments.write, {"machine": machine, "figures": [asdict(figure) for figure in figures]})
    print(f"Written to {arguments.write}")


if __name__ == "__main__":
    main()
