r"""Tables of students' accuracies; each row has its seeds, spread and seconds.

    python benchmarks/quality.py presets --seeds 0 1 2                  # the presets, both starts
    python benchmarks/quality.py starts --preset digits                 # a preset against real data, both starts
    python benchmarks/quality.py methods --dataset digits               # every method on an equal budget
    python benchmarks/quality.py parts --dataset digits                 # the default, one part changed at a time
    python benchmarks/quality.py questions --dataset digits             # questions that the paper leaves open
    python benchmarks/quality.py colour --set teacher.source.model=nets:resnet20 --set teacher.source.weights=r20.pt \
        --set data.dataset=folder:cifar/test --real folder:cifar/train  # a teacher of yours and its real images

Results of each (row, seed) are cached in `.dfkd/benchmarks/` under a key of all their inputs. Each row is a change to
`params.yaml`; the student of the last epoch is measured, and nothing is chosen on real labels.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import statistics as stats
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from hardware import machine

from dfkd_core.common.compute import Compute
from dfkd_core.common.devices import resolve_device
from dfkd_core.common.digests import json_digest, write_json
from dfkd_core.common.seeding import derive_generator
from dfkd_core.data.datasets import LabelledImages, load_dataset
from dfkd_core.distillation.run import distill_images
from dfkd_core.evaluation.comparison import evaluate
from dfkd_core.evaluation.labelled_images import load_evaluation_data
from dfkd_core.models.classifier import Classifier
from dfkd_core.models.storage import save_model
from dfkd_core.models.teacher import Teacher, load_teacher
from dfkd_core.statistics.estimation import estimate_statistics
from dfkd_core.synthesis.methods import build_synthesizer
from dfkd_core.synthesis.shards import num_shards, synthesize_shard
from dfkd_core.teachers.loading import bring_teacher
from dfkd_core.teachers.training import train_teacher
from dfkd_core.transfer_set.shards import Shard
from dfkd_flows.settings.overrides import apply_overrides, apply_preset
from dfkd_flows.settings.params import ExecutionConfig, Params
from dfkd_tasks.caching.source_files import teacher_digest

CACHE = Path(".dfkd/benchmarks")
REFINEMENT = "synthesis.methods.{}.refinement.{}"
BATCHES_AHEAD = 2
NUM_SOME_REAL = 12_000
STARTS = ("pruned", "random")
PRESETS = ("fast", "default", "best")
PRIOR_STEPS: dict[str, dict[str, Any]] = {
    "pixels": {"learning_rate": 0.1, "smoothing_px": 0.0, "toned_share": 0.0},
    "fourier": {"learning_rate": 0.1, "smoothing_px": 0.0, "toned_share": 0.0},
    "procedural": {"learning_rate": 0.04, "smoothing_px": 1.0, "toned_share": 0.5},
    "mixed": {"learning_rate": 0.04, "smoothing_px": 1.0, "toned_share": 0.5},
}
OTHER_CHANGES: dict[str, dict[str, Any]] = {"noise_engineered": {"distillation.augmentation.shift": 0.0}}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the table."""

    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    preset: str = ""
    """Preset whose synthesis and distillation the row uses, with the same teacher as the other rows."""
    real: str = ""
    """`labels` or `kd` for a student trained on the teacher's training data."""
    num_real: int = 0
    """Number of these images to use at most; 0 uses all."""


def preset_rows(params: Params) -> list[Row]:
    """Return real-data rows with as many steps as the default, and each preset's synthesis and training."""
    rows = start_rows(params)[: -len(STARTS)]
    for preset in PRESETS:
        rows += [Row(name=f"{preset}, {start} start", preset=preset, changes=_start(start)) for start in STARTS]
    return rows


def start_rows(params: Params) -> list[Row]:
    """Return real-data rows and the unchanged settings, with both starts."""
    rows = [Row(name="real labels", real="labels")]
    rows += [Row(name=f"real-data KD, {start} start", real="kd", changes=_start(start)) for start in STARTS]
    some = [
        Row(
            name=f"KD on {NUM_SOME_REAL:,} real images, {start} start",
            real="kd",
            num_real=NUM_SOME_REAL,
            changes=_start(start),
        )
        for start in STARTS
    ]
    return rows + some + [Row(name=f"data-free, {start} start", changes=_start(start)) for start in STARTS]


def method_rows(params: Params) -> list[Row]:
    """Return real labels, real-data KD and every method, with each prior if it uses priors.

    All rows have the same number of images, iterations and training; learning rate and smoothing depend on the prior,
    and every other setting is the method's default.
    """
    default = params.synthesis.methods.soft_target.refinement
    names = ("iterations", "temperature", "refined_share")
    shared = {name: getattr(default, name) for name in names}
    rows = [Row(name="real labels", real="labels"), Row(name="real-data KD", real="kd")]
    rows.append(Row(name="noise", changes={"synthesis.method": "noise"}))
    for method in ("dirichlet", "soft_target"):
        for prior, steps in PRIOR_STEPS.items():
            settings = {**shared, **steps, "prior": prior}
            changes = {REFINEMENT.format(method, name): value for name, value in settings.items()}
            rows.append(Row(name=f"{method}, {prior}", changes={"synthesis.method": method, **changes}))
    for prior in ("procedural", "photos", "mixed"):
        settings = {"refined_share": 0.0, "prior": prior}
        changes = {REFINEMENT.format("soft_target", name): value for name, value in settings.items()}
        rows.append(Row(name=f"{prior} images as drawn", changes=changes))
    has_batch_norm = params.teacher.network.endswith("_bn") or params.teacher.network.startswith("resnet")
    others = ("boundary", "inversion", "noise_engineered") if has_batch_norm else ("boundary",)
    return rows + [Row(name=name, changes={"synthesis.method": name, **OTHER_CHANGES.get(name, {})}) for name in others]


def part_rows(params: Params) -> list[Row]:
    """Return the default, and rows in which one part of it is removed or changed."""
    refinement = partial(REFINEMENT.format, "soft_target")
    other = "pruned" if params.distillation.start == "random" else "random"
    parts: dict[str, dict[str, Any]] = {
        "default": {},
        f"{other} start": _start(other),
        "no feature matching": {"distillation.feature_weight": 0.0},
        f"{other} start, no feature matching": {**_start(other), "distillation.feature_weight": 0.0},
        "temperature 1": {"distillation.temperature": 1.0},
        "no refinement": {refinement("refined_share"): 0.0},
        "all images refined": {refinement("refined_share"): 1.0},
        "no smoothing": {refinement("smoothing_px"): 0.0, refinement("learning_rate"): 0.01},
        "brightness and contrast as drawn": {refinement("toned_share"): 0.0},
        "all images toned": {refinement("toned_share"): 1.0},
        "procedural images alone": {refinement("prior"): "procedural"},
        "crops of photographs alone": {refinement("prior"): "photos"},
        "classes not balanced": {"synthesis.methods.soft_target.balanced": False},
        "statistics from probes": {"statistics.source": "probes"},
        "no augmentation": {"distillation.augmentation.shift": 0.0},
        "scale and rotation too": {
            "distillation.augmentation.scale": 0.1,
            "distillation.augmentation.rotation_degrees": 10.0,
        },
        "MixUp": {"distillation.mixing": "mixup"},
        "CutMix": {"distillation.mixing": "cutmix"},
        "a quarter moved to where student and teacher disagree": {"distillation.disagreement.share": 0.25},
    }
    return [Row(name=name, changes=changes) for name, changes in parts.items()]


STRONG = {"flip": True, "shift": 0.125, "scale": 0.2, "rotation_degrees": 15.0}


def colour_rows(params: Params) -> list[Row]:
    """Return real-data KD, the default and changes of it that helped colour teachers, with both starts."""
    refinement = partial(REFINEMENT.format, "soft_target")
    strong = {f"distillation.augmentation.{name}": value for name, value in STRONG.items()}
    changes: dict[str, dict[str, Any]] = {
        "data-free": {},
        "one draw per image": {refinement("draws_per_image"): 1},
        "four draws per image": {refinement("draws_per_image"): 4},
        "four draws of shaders": {refinement("draws_per_image"): 4, refinement("prior"): "shaders"},
        "four draws, feature weight 2, strong augmentation": {
            refinement("draws_per_image"): 4,
            "distillation.feature_weight": 2.0,
            **strong,
        },
    }
    rows = [Row(name=f"real-data KD, {start} start", real="kd", changes=_start(start)) for start in STARTS]
    return rows + [
        Row(name=f"{name}, {start} start", changes={**_start(start), **change})
        for name, change in changes.items()
        for start in STARTS
    ]


def _start(start: str) -> dict[str, Any]:
    return {"distillation.start": start}


def question_rows(params: Params) -> list[Row]:
    """Return one row per question that the paper leaves open, each a change to the default."""
    rows = [
        Row(name="default"),
        Row(name="starts as drawn", changes={REFINEMENT.format("soft_target", "refined_share"): 0.0}),
    ]
    for side in ("incoming", "outgoing"):
        for layer in ("fc1", "act_fc1"):
            text = f"correlation from {side} weights, {'ReLU' if layer == 'fc1' else 'no ReLU'} after h"
            rows.append(Row(name=text, changes={"statistics.side": side, "teacher.layer": layer}))
    for sigma in (0.5, 1.0, 1.5, 2.0, 3.0, 6.0):
        rows.append(Row(name=f"sigma {sigma}", changes={"statistics.spread": "sigma", "statistics.sigma": sigma}))
    rows += [Row(name=f"confidence {level}", changes={"statistics.confidence": level}) for level in (0.5, 0.7, 0.95)]
    rows.append(Row(name="mean = bias", changes={"statistics.mean": "bias"}))
    rows.append(Row(name="moments of probe images", changes={"statistics.source": "probes"}))
    for weight in (0.05, 0.1):
        changes = {REFINEMENT.format("soft_target", "activation_weight"): weight}
        rows.append(Row(name=f"lambda_a {weight}", changes=changes))
    for count in (10, 60):
        rows.append(Row(name=f"{count} iterations", changes={REFINEMENT.format("soft_target", "iterations"): count}))
    return rows


def measure(
    params: Params, row: Row, seed: int, *, teacher_folder: Path, real: LabelledImages | None
) -> dict[str, float]:
    """Make one student and return its accuracy, agreement and seconds."""
    if row.preset:
        own = apply_preset(row.preset)
        network = params.distillation.student
        params = dataclasses.replace(
            params,
            statistics=own.statistics,
            synthesis=own.synthesis,
            distillation=dataclasses.replace(own.distillation, student=network),
        )
    params = apply_overrides(params, [f"seed={seed}", *(f"{key}={value}" for key, value in row.changes.items())])
    device = resolve_device(params.execution.device)
    teacher = _with_layer(_load(params, teacher_folder, device), params.teacher.layer)
    test = load_evaluation_data(params.data, teacher.card)
    assert test is not None
    start = time.perf_counter()
    if row.real:
        synthesis_seconds = 0.0
        student = _train_on_real(params, row, teacher, real or load_dataset(params.data, "train"))
    else:
        shards = _synthesize(params, teacher_folder)
        synthesis_seconds = time.perf_counter() - start
        images, logits = (torch.cat([getattr(s, name) for s in shards]) for name in ("images", "teacher_logits"))
        compute = Compute(device=device, prefetch=BATCHES_AHEAD)
        student = distill_images(teacher, images, logits, params.distillation, seed=seed, compute=compute).student
    seconds = time.perf_counter() - start
    report = evaluate(student, teacher, data=test)
    assert report.student.scores is not None
    assert report.teacher.scores is not None
    return {
        "accuracy": report.student.scores.accuracy,
        "agreement": report.agreement,
        "teacher_accuracy": report.teacher.scores.accuracy,
        "synthesis_seconds": synthesis_seconds,
        "distillation_seconds": seconds - synthesis_seconds,
    }


def _load(params: Params, folder: Path, device: torch.device | str = "cpu") -> Teacher:
    # The command line named the factory, and may run it.
    return load_teacher(folder, compute=Compute(device=device), trusted_factories=(params.teacher.source.model,))


def read_real(address: str, params: Params, teacher_folder: Path) -> LabelledImages:
    """Return the labelled images of another data set, `folder:PATH` or `file:PATH`, at the teacher's size."""
    card = _load(params, teacher_folder).card
    found = load_evaluation_data(dataclasses.replace(params.data, dataset=address), card)
    assert found is not None
    return LabelledImages(found.images[torch.arange(len(found.images))], found.labels, tuple(found.class_names))


def _with_layer(teacher: Teacher, layer: str) -> Teacher:
    if not layer or layer == teacher.card.layer:
        return teacher
    card = dataclasses.replace(teacher.card, layer=layer)
    return Teacher(Classifier(teacher.network, card), device=teacher.device)


def _synthesize(params: Params, teacher_folder: Path) -> list[Shard]:
    jobs = [(params, teacher_folder, index) for index in range(num_shards(params.synthesis))]
    context = get_context("spawn")
    with ProcessPoolExecutor(params.execution.num_workers, mp_context=context) as pool:
        return list(pool.map(_synthesize_one, jobs))


def _synthesize_one(job: tuple[Params, Path, int]) -> Shard:
    params, teacher_folder, index = job
    torch.set_num_threads(1)
    device = resolve_device(params.execution.device)
    teacher = _with_layer(_load(params, teacher_folder, device), params.teacher.layer)
    statistics = estimate_statistics(teacher, params.statistics, seed=params.seed)
    synthesizer = build_synthesizer(params.synthesis, teacher, statistics)
    return synthesize_shard(synthesizer, teacher, shard_index=index, config=params.synthesis, seed=params.seed)


def _train_on_real(params: Params, row: Row, teacher: Teacher, train: LabelledImages) -> Classifier:
    """Train on real images for as many steps as on the transfer set."""
    distillation = params.distillation
    if row.num_real:
        chosen = torch.randperm(len(train), generator=derive_generator(params.seed, "real"))[: row.num_real]
        train = dataclasses.replace(train, images=train.images[chosen], labels=train.labels[chosen])
    epochs = max(1, round(distillation.epochs * params.synthesis.num_images / len(train.images)))
    if row.real == "kd":
        with torch.no_grad():
            batches = torch.split(train.images, 1000)
            logits = torch.cat([teacher(batch.to(teacher.device) / 255).cpu() for batch in batches])
        shorter = dataclasses.replace(distillation, epochs=epochs)
        compute = Compute(device=teacher.device, prefetch=BATCHES_AHEAD)
        return distill_images(teacher, train.images, logits, shorter, seed=params.seed, compute=compute).student
    config = dataclasses.replace(
        params.teacher,
        network=distillation.student,
        layer="",
        epochs=epochs,
        batch_size=distillation.batch_size,
        learning_rate=distillation.learning_rate,
    )
    return train_teacher(config, train, seed=params.seed, device=teacher.device).classifier


def prepare_teacher(params: Params) -> Path:
    """Train the data set's teacher once (seed 0), or load the one of `teacher.source`; return its folder."""
    if params.teacher.source.model:
        source = params.teacher.source
        folder = CACHE / "teachers" / f"own-{json_digest([source, teacher_digest(source)])[:12]}"
        if not (folder / "config.json").is_file():
            with tempfile.TemporaryDirectory() as scratch:
                save_model(folder, bring_teacher(source, scratch=Path(scratch), layer=params.teacher.layer).classifier)
        return folder
    key = json_digest([params.data, dataclasses.replace(params.teacher, layer="")])[:12]
    folder = CACHE / "teachers" / f"{params.data.dataset}-{key}"
    if not (folder / "config.json").is_file():
        device = resolve_device(params.execution.device)
        result = train_teacher(params.teacher, load_dataset(params.data, "train"), seed=0, device=device)
        save_model(folder, result.classifier)
    return folder


def measured(
    params: Params, rows: list[Row], seeds: list[int], report: Callable[[str], None], *, real: str = ""
) -> Iterator[tuple[Row, list[dict[str, float]]]]:
    """Yield each row with one result per seed, from the cache if possible."""
    folder = prepare_teacher(params)
    digest = _load(params, folder).digest
    images = read_real(real, params, folder) if real else None
    for row in rows:
        results = []
        for seed in seeds:
            # The number of processes does not affect the images, but a GPU computes in another precision.
            is_gpu = resolve_device(params.execution.device).type == "cuda"
            decisive = dataclasses.replace(params, execution=ExecutionConfig(device="cuda" if is_gpu else "auto"))
            address = [decisive, row, seed, digest, torch.__version__]
            path = CACHE / "results" / f"{json_digest(address)}.json"
            if not path.is_file():
                write_json(path, measure(params, row, seed, teacher_folder=folder, real=images))
            results.append(json.loads(path.read_text()))
            report(f"{row.name:40s} seed {seed}: {100 * results[-1]['accuracy']:.2f} %")
        yield row, results


def table(params: Params, found: list[tuple[Row, list[dict[str, float]]]], command: str) -> str:
    """Return the table as Markdown."""
    settings = params.synthesis
    teacher = found[0][1][0]["teacher_accuracy"]
    workers = params.execution.num_workers
    name = params.teacher.source.model or params.teacher.network
    lines = [
        f"### {params.data.dataset}: {name} ({100 * teacher:.2f} %) → {params.distillation.student}",
        "",
        f"`{command}`",
        "",
        f"{settings.num_images:,} images, {params.distillation.epochs} epochs, {len(found[0][1])} seeds, "
        f"{workers} process{'es' if workers > 1 else ''} for synthesis, then one thread and one that labels ahead, on "
        f"{machine(resolve_device(params.execution.device))}; torch {torch.__version__}; last epoch.",
        "",
        "| transfer set | student, % | spread | agreement, % | synthesis, s | distillation, s |",
        "|---|---|---|---|---|---|",
    ]
    for row, results in found:
        accuracy = [100 * result["accuracy"] for result in results]
        spread = stats.stdev(accuracy) if len(accuracy) > 1 else 0.0
        means = [stats.fmean(result[name] for result in results) for name in results[0]]
        figures = dict(zip(results[0], means, strict=True))
        lines.append(
            f"| {row.name} | {stats.fmean(accuracy):.2f} | {spread:.2f} | {100 * figures['agreement']:.2f} "
            f"| {figures['synthesis_seconds']:.0f} | {figures['distillation_seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


TABLES: dict[str, Callable[[Params], list[Row]]] = {
    "colour": colour_rows,
    "presets": preset_rows,
    "starts": start_rows,
    "methods": method_rows,
    "parts": part_rows,
    "questions": question_rows,
}


def _say(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=TABLES, help="table to measure")
    parser.add_argument("--preset", default="default", help="preset that the rows start from")
    parser.add_argument("--dataset", help="data set that replaces the preset's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change for all rows, such as a budget"
    )
    parser.add_argument(
        "--real", default="", help="training images for the rows with real data: folder:PATH or file:PATH"
    )
    parser.add_argument("--rows", nargs="+", help="only rows whose names contain one of these words")
    parser.add_argument("--write", type=Path, help="Markdown file to append the table to")
    arguments = parser.parse_args()
    # The networks are small: more threads are no faster, and with one the bytes do not depend on the number of cores.
    torch.set_num_threads(1)
    changes = list(arguments.set) + ([f"data.dataset={arguments.dataset}"] if arguments.dataset else [])
    params = apply_overrides(apply_preset(arguments.preset), changes)
    rows = TABLES[arguments.table](params)
    if arguments.rows:
        rows = [row for row in rows if any(word in row.name for word in arguments.rows)]
    text = table(
        params,
        list(measured(params, rows, arguments.seeds, _say, real=arguments.real)),
        shlex.join(["python", *sys.argv]),
    )
    print(text)
    if arguments.write:
        with arguments.write.open("a") as stream:
            stream.write(text + "\n")


if __name__ == "__main__":
    main()
