"""Students of every method on equal budgets: the same number of images, of refinement iterations and of training steps.

    python benchmarks/quality.py --dataset digits --seeds 0 1 2
    python benchmarks/quality.py --dataset fashion_mnist --seeds 0 1 2 --write docs/benchmarks.md
    python benchmarks/quality.py --dataset digits --ablation

A (row, seed) that was measured before is not measured again: results are kept in `.dfkd/benchmarks/`, addressed by
everything that decides them. Each row is a change to `params.yaml`; the last epoch counts and nothing is chosen on
real labels.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import shlex
import statistics as stats
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from dfkd_core.config import ExecutionConfig, Params
from dfkd_core.data import LabelledImages, load_dataset
from dfkd_core.digests import json_digest, write_json
from dfkd_core.distillation import distill_images
from dfkd_core.models import Classifier, save_model
from dfkd_core.statistics import estimate_statistics
from dfkd_core.synthesis.methods import build_synthesizer
from dfkd_core.synthesis.shards import num_shards, synthesize_shard
from dfkd_core.teacher import Teacher, load_teacher
from dfkd_core.training import train_teacher
from dfkd_core.transfer_set import Shard
from flows.overrides import apply_overrides, apply_preset

CACHE = Path(".dfkd/benchmarks")
REFINEMENT = "synthesis.methods.{}.refinement.{}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    real: str = ""
    """`labels` or `kd` for a student that is trained on the teacher's training data."""


def equal_budget_rows(params: Params) -> list[Row]:
    """Return real labels, real-data KD, the floor, the yardstick and the paper's method with each prior."""
    default = params.synthesis.methods.soft_target.refinement
    shared = {name: getattr(default, name) for name in ("iterations", "num_candidates", "loss", "temperature")}
    equal = {REFINEMENT.format("dirichlet", name): value for name, value in shared.items()}
    rows = [
        Row(name="real labels", real="labels"),
        Row(name="real-data KD", real="kd"),
        Row(name="noise", changes={"synthesis.method": "noise"}),
    ]
    for method in ("dirichlet", "soft_target"):
        for prior in ("pixels", "fourier", "procedural"):
            changes = {"synthesis.method": method, REFINEMENT.format(method, "prior"): prior}
            rows.append(Row(name=f"{method}, {prior}", changes=changes | (equal if method == "dirichlet" else {})))
    untouched = {
        REFINEMENT.format("soft_target", "iterations"): 0,
        REFINEMENT.format("soft_target", "num_candidates"): 1,
    }
    rows.append(Row(name="procedural images as drawn", changes=untouched))
    return rows


def ablation_rows() -> list[Row]:
    """Return one row per open question about the paper, each a change to the default."""
    rows = [
        Row(name="default"),
        Row(name="starts as drawn", changes={REFINEMENT.format("soft_target", "iterations"): 0}),
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
    for count in (1, 8):
        rows.append(
            Row(name=f"{count} candidates", changes={REFINEMENT.format("soft_target", "num_candidates"): count})
        )
    for count in (10, 60):
        rows.append(Row(name=f"{count} iterations", changes={REFINEMENT.format("soft_target", "iterations"): count}))
    return rows


def measure(params: Params, row: Row, seed: int, *, teacher_folder: Path) -> dict[str, float]:
    """Make one student and return its accuracy, agreement and seconds."""
    params = apply_overrides(params, [f"seed={seed}", *(f"{key}={value}" for key, value in row.changes.items())])
    teacher = _with_layer(load_teacher(teacher_folder), params.teacher.layer)
    train, test = load_dataset(params.data, "train"), load_dataset(params.data, "test")
    start = time.perf_counter()
    if row.real:
        synthesis_seconds = 0.0
        student = _train_on_real(params, row, teacher, train)
    else:
        shards = _synthesize(params, teacher_folder)
        synthesis_seconds = time.perf_counter() - start
        images, logits = (torch.cat([getattr(s, name) for s in shards]) for name in ("images", "teacher_logits"))
        student = distill_images(teacher, images, logits, params.distillation, seed=seed).student
    seconds = time.perf_counter() - start
    with torch.no_grad():
        answers = student.eval()(test.images / 255).argmax(1)
        expected = teacher(test.images / 255).argmax(1)
    return {
        "accuracy": (answers == test.labels).double().mean().item(),
        "agreement": (answers == expected).double().mean().item(),
        "teacher_accuracy": (expected == test.labels).double().mean().item(),
        "synthesis_seconds": synthesis_seconds,
        "distillation_seconds": seconds - synthesis_seconds,
    }


def _with_layer(teacher: Teacher, layer: str) -> Teacher:
    if not layer or layer == teacher.card.layer:
        return teacher
    card = dataclasses.replace(teacher.card, layer=layer)
    return Teacher(Classifier(teacher.classifier.network, card))


def _synthesize(params: Params, teacher_folder: Path) -> list[Shard]:
    jobs = [(params, teacher_folder, index) for index in range(num_shards(params.synthesis))]
    context = get_context("spawn")
    with ProcessPoolExecutor(params.execution.num_workers, mp_context=context) as pool:
        return list(pool.map(_synthesize_one, jobs))


def _synthesize_one(job: tuple[Params, Path, int]) -> Shard:
    params, teacher_folder, index = job
    torch.set_num_threads(1)
    teacher = _with_layer(load_teacher(teacher_folder), params.teacher.layer)
    statistics = estimate_statistics(teacher, params.statistics, seed=params.seed)
    synthesizer = build_synthesizer(params.synthesis, teacher, statistics)
    return synthesize_shard(synthesizer, teacher, shard_index=index, config=params.synthesis, seed=params.seed)


def _train_on_real(params: Params, row: Row, teacher: Teacher, train: LabelledImages) -> Classifier:
    """Train on real images for as many steps as the transfer set gives."""
    distillation = params.distillation
    epochs = max(1, round(distillation.epochs * params.synthesis.num_images / len(train.images)))
    if row.real == "kd":
        with torch.no_grad():
            logits = torch.cat([teacher(batch / 255) for batch in train.images.split(1000)])
        config = dataclasses.replace(distillation, epochs=epochs)
        return distill_images(teacher, train.images, logits, config, seed=params.seed).student
    config = dataclasses.replace(
        params.teacher,
        network=distillation.student,
        layer="",
        epochs=epochs,
        batch_size=distillation.batch_size,
        learning_rate=distillation.learning_rate,
    )
    return train_teacher(config, train, seed=params.seed).classifier


def prepare_teacher(params: Params) -> Path:
    """Train the data set's teacher once (seed 0); return its folder."""
    key = json_digest([params.data, dataclasses.replace(params.teacher, layer="")])[:12]
    folder = CACHE / "teachers" / f"{params.data.dataset}-{key}"
    if not (folder / "config.json").is_file():
        result = train_teacher(params.teacher, load_dataset(params.data, "train"), seed=0)
        save_model(folder, result.classifier)
    return folder


def measured(
    params: Params, rows: list[Row], seeds: list[int], report: Callable[[str], None]
) -> Iterator[tuple[Row, list[dict[str, float]]]]:
    """Yield each row with one result per seed, from the cache where it is there."""
    folder = prepare_teacher(params)
    digest = load_teacher(folder).digest
    for row in rows:
        results = []
        for seed in seeds:
            # How many processes made the images decides none of them.
            decisive = dataclasses.replace(params, execution=ExecutionConfig())
            address = [decisive, row, seed, digest, torch.__version__]
            path = CACHE / "results" / f"{json_digest(address)}.json"
            if not path.is_file():
                write_json(path, measure(params, row, seed, teacher_folder=folder))
            results.append(json.loads(path.read_text()))
            report(f"{row.name:40s} seed {seed}: {100 * results[-1]['accuracy']:.2f} %")
        yield row, results


def table(params: Params, found: list[tuple[Row, list[dict[str, float]]]], command: str) -> str:
    """Return the table as Markdown."""
    settings = params.synthesis
    teacher = found[0][1][0]["teacher_accuracy"]
    lines = [
        f"### {params.data.dataset}: {params.teacher.network} ({100 * teacher:.2f} %) → {params.distillation.student}",
        "",
        f"`{command}`",
        "",
        f"{settings.num_images:,} images, {params.distillation.epochs} epochs, {len(found[0][1])} seeds, "
        f"{torch.get_num_threads()} threads of {platform.machine()}, torch {torch.__version__}, last epoch.",
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


def _say(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="default", help="preset that the rows change")
    parser.add_argument("--dataset", help="data set, with the preset's other settings")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change to the budget")
    parser.add_argument("--rows", nargs="+", help="only rows whose name contains one of these words")
    parser.add_argument("--ablation", action="store_true", help="the paper's open questions instead of the methods")
    parser.add_argument("--write", type=Path, help="Markdown file that the table is appended to")
    arguments = parser.parse_args()
    # The networks are small: a second thread makes them no faster, and with one the bytes depend on no machine.
    torch.set_num_threads(1)
    changes = list(arguments.set) + ([f"data.dataset={arguments.dataset}"] if arguments.dataset else [])
    params = apply_overrides(apply_preset(arguments.preset), changes)
    rows = ablation_rows() if arguments.ablation else equal_budget_rows(params)
    if arguments.rows:
        rows = [row for row in rows if any(word in row.name for word in arguments.rows)]
    text = table(params, list(measured(params, rows, arguments.seeds, _say)), shlex.join(["python", *sys.argv]))
    print(text)
    if arguments.write:
        with arguments.write.open("a") as stream:
            stream.write(text + "\n")


if __name__ == "__main__":
    main()
