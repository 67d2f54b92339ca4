"""Correlation of the data-free proxy with the real accuracy, over students of many recipes.

    python benchmarks/proxy.py digits --forms          # candidate forms of the proxy; it was chosen from these
    python benchmarks/proxy.py digits fashion_mnist    # table and picture of 48 students each; half an hour on one core

Recipes are drawn at random: method, prior, iterations, images, epochs, rates, first weights and more. Students are
cached in `.dfkd/benchmarks/proxy` under a key of all their inputs; the proxy is computed again on each run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import pearsonr, spearmanr
from torch import Tensor

from dfkd_core.common.digests import json_digest, write_atomically, write_json
from dfkd_core.common.seeding import derive_generator
from dfkd_core.compression import make_student
from dfkd_core.data.datasets import DataConfig, LabelledImages, load_dataset
from dfkd_core.evaluation.metrics import mean_kl
from dfkd_core.evaluation.proxy import held_out_logits, proxy_score, weighted_agreement
from dfkd_core.models.classifier import Classifier
from dfkd_core.models.storage import load_model, save_model
from dfkd_core.models.teacher import Teacher, load_teacher
from dfkd_core.statistics.estimation import estimate_statistics
from dfkd_core.teachers.training import train_teacher
from dfkd_flows.settings.overrides import apply_overrides, apply_preset
from dfkd_flows.settings.params import Params

CACHE = Path(".dfkd/benchmarks/proxy")
PICTURE = Path("docs/images/proxy.png")
BEGIN, END = "<!-- {}: written by benchmarks/proxy.py -->", "<!-- end -->"
DATASETS = ("digits", "fashion_mnist")
STEPS: dict[str, dict[str, Any]] = {
    "pixels": {"learning_rate": 0.1, "smoothing_px": 0.0},
    "fourier": {"learning_rate": 0.1, "smoothing_px": 0.0},
    "procedural": {"learning_rate": 0.03, "smoothing_px": 1.0},
    "photos": {"learning_rate": 0.03, "smoothing_px": 1.0},
    "mixed": {"learning_rate": 0.03, "smoothing_px": 1.0},
}
"""Settings of the refinement for each prior."""
PRIORS = ("mixed", "mixed", "photos", "procedural", "fourier", "pixels")
METHODS = (*["soft_target"] * 8, "dirichlet", "dirichlet", "boundary", "boundary", "noise")
NUM_IMAGES = {"digits": (500, 1000, 2000), "fashion_mnist": (4000, 8000, 12_000)}
PAIR_LIMITS = (0.0, 0.01, 0.02, 0.05, 1.0)
CHOICES: dict[str, Sequence[Any]] = {
    "distillation.epochs": (5, 10, 20, 40),
    "distillation.temperature": (1.0, 2.0, 4.0, 8.0, 20.0),
    "distillation.augmentation.shift": (0.0, 0.0625),
    "distillation.mixing": ("none", "none", "mixup", "cutmix"),
    "distillation.start": ("random", "random", "random", "pruned"),
    "distillation.feature_weight": (0.0, 0.0, 1.0),
}


def draw_recipe(dataset: str, number: int) -> dict[str, Any]:
    """Return the changed parameters of one recipe; each data set has its own recipes."""
    generator = derive_generator(0, "recipe", dataset, number)

    def pick(choices: Sequence[Any]) -> Any:
        return choices[int(torch.randint(len(choices), (1,), generator=generator))]

    recipe = {path: pick(choices) for path, choices in CHOICES.items()}
    recipe["synthesis.num_images"] = pick(NUM_IMAGES[dataset])
    recipe["distillation.learning_rate"] = round(10 ** (-3 + 1.3 * torch.rand(1, generator=generator).item()), 5)
    method = recipe["synthesis.method"] = pick(METHODS)
    prior, iterations, share = pick(PRIORS), pick((5, 15, 30)), pick((0.0, 0.25, 1.0))
    if method == "noise":
        return recipe
    part = f"synthesis.methods.{method}.{'descent' if method == 'boundary' else 'refinement'}"
    steps = {"prior": prior, "iterations": iterations, **STEPS[prior]}
    if method != "boundary":
        steps["refined_share"] = share
    return recipe | {f"{part}.{name}": value for name, value in steps.items()}


def teacher_settings(dataset: str) -> Params:
    """Return the parameters that recipes start from: the data set's preset, with small batches for small sets."""
    budget = ["distillation.batch_size=64", "synthesis.images_per_shard=2000"]
    return apply_overrides(apply_preset("digits" if dataset == "digits" else "default"), budget)


def prepare_teacher(params: Params) -> Teacher:
    """Return the data set's teacher, which is trained on the first call."""
    folder = CACHE / "teachers" / f"{params.data.dataset}-{json_digest([params.data, params.teacher])[:12]}"
    if not (folder / "config.json").is_file():
        save_model(folder, train_teacher(params.teacher, load_dataset(params.data, "train"), seed=0).classifier)
    return load_teacher(folder)


def real_images(config: DataConfig) -> LabelledImages:
    """Return images that no student was trained on: the test set, and for the small `digits` the training set too."""
    test = load_dataset(config, "test")
    if config.dataset != "digits":
        return test
    train = load_dataset(config, "train")
    return LabelledImages(
        torch.cat([test.images, train.images]), torch.cat([test.labels, train.labels]), test.class_names
    )


@torch.no_grad()
def accuracy(model: Classifier | Teacher, data: LabelledImages) -> float:
    """Return the share of correct predictions."""
    batches = zip(torch.split(data.images, 1000), torch.split(data.labels, 1000))
    right = [int((model(images / 255).argmax(1) == labels).sum()) for images, labels in batches]
    return sum(right) / len(data)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One recipe's student."""

    recipe: dict[str, Any]
    teacher: Teacher
    student: Classifier
    accuracy: float
    """Share of correct predictions on real images."""
    seconds: float
    """Duration of synthesis and distillation."""


def students(dataset: str, count: int) -> Iterator[Measured]:
    """Yield the measured students of the data set's first recipes."""
    params = teacher_settings(dataset)
    teacher = prepare_teacher(params)
    for number in range(count):
        recipe = draw_recipe(dataset, number)
        own = apply_overrides(params, [f"{path}={value}" for path, value in recipe.items()])
        address = [own.synthesis, own.statistics, own.distillation, own.seed, teacher.digest, torch.__version__]
        folder = CACHE / "students" / json_digest(address)[:24]
        if not (folder / "figures.json").is_file():
            start = time.perf_counter()
            statistics = estimate_statistics(teacher, own.statistics, seed=own.seed)
            save_model(folder, make_student(teacher, statistics, own.synthesis, own.distillation, seed=own.seed))
            seconds = time.perf_counter() - start
            real = accuracy(load_model(folder), real_images(params.data))
            write_json(folder / "figures.json", {"accuracy": real, "seconds": seconds})
        figures = json.loads((folder / "figures.json").read_text())
        print(f"{dataset} {number}: {100 * figures['accuracy']:.2f} % in {figures['seconds']:.0f} s", flush=True)
        yield Measured(recipe=recipe, teacher=teacher, student=load_model(folder), **figures)


def by_class(values: Tensor, answers: Tensor) -> float:
    """Return the mean over the occurring classes of the mean value of each class."""
    return torch.stack([values[answers == k].mean() for k in torch.unique(answers)]).mean().item()


def is_same(teacher: Tensor, student: Tensor) -> Tensor:
    return (teacher.argmax(1) == student.argmax(1)).double()


def margin(logits: Tensor) -> Tensor:
    largest = logits.topk(2, dim=1).values
    return largest[:, 0] - largest[:, 1]


def agreement_at_margin(teacher: Tensor, student: Tensor) -> float:
    chosen = margin(teacher) >= margin(teacher).median()
    return is_same(teacher, student)[chosen].mean().item()


def shared_mass(teacher: Tensor, student: Tensor) -> float:
    shared = torch.minimum(teacher.softmax(1), student.softmax(1)).sum(1)
    return by_class(shared, teacher.argmax(1))


def negative_kl(teacher: Tensor, student: Tensor, temperature: float) -> float:
    return -mean_kl(teacher / temperature, student / temperature)


def explained_variance(teacher: Tensor, student: Tensor) -> float:
    teacher, student = (logits - logits.mean(1, keepdim=True) for logits in (teacher, student))
    return 1 - ((teacher - student).square().sum() / (teacher - teacher.mean(0)).square().sum()).item()


FORMS: dict[str, Callable[[Tensor, Tensor], float]] = {
    "agreement": lambda t, s: is_same(t, s).mean().item(),
    "agreement where the teacher's margin is in its upper half": agreement_at_margin,
    "agreement, each class alike": lambda t, s: by_class(is_same(t, s), t.argmax(1)),
    "agreement weighted by the margin": lambda t, s: ((is_same(t, s) * margin(t)).sum() / margin(t).sum()).item(),
    "**agreement weighted by the margin, each class alike**": weighted_agreement,
    "shared probability mass, each class alike": shared_mass,
    "-KL at temperature 1": partial(negative_kl, temperature=1.0),
    "-KL at temperature 4": partial(negative_kl, temperature=4.0),
    "explained variance of the logits": explained_variance,
}
"""Candidates for the proxy: functions of the logits [n, k] of teacher and student on held-out images."""


def correlations(scores: Sequence[float], accuracies: Sequence[float], half_by: Sequence[float]) -> list[float]:
    """Return r and rho over all students, then over the half with the larger `half_by`."""
    best = np.argsort(half_by)[len(half_by) // 2 :]
    pairs = [(np.array(scores), np.array(accuracies)), (np.array(scores)[best], np.array(accuracies)[best])]
    return [measure(*pair).statistic for pair in pairs for measure in (pearsonr, spearmanr)]


def pairs_put_right(scores: Sequence[float], accuracies: Sequence[float], low: float, high: float) -> str:
    """Count the pairs in the more accurate half, with scores this far apart, that the proxy orders correctly."""
    middle = float(np.median(accuracies))
    good = [pair for pair in zip(scores, accuracies, strict=True) if pair[1] >= middle]
    right = [
        (score > other_score) == (real > other_real)
        for (score, real), (other_score, other_real) in itertools.combinations(good, 2)
        if low <= abs(score - other_score) < high and real != other_real
    ]
    return f"{100 * np.mean(right):.0f} % of {len(right)}" if right else "none"


def forms_table(dataset: str, count: int) -> str:
    """Return the forms' correlations with the real accuracy, over all students and the half with the best accuracy."""
    made = list(students(dataset, count))
    logits = [held_out_logits(one.teacher, one.student) for one in made]
    accuracies = [one.accuracy for one in made]
    lines = ["| form | r, all | rho, all | r, better half | rho, better half |", "|---|---|---|---|---|"]
    for name, form in FORMS.items():
        found = correlations([form(*pair) for pair in logits], accuracies, accuracies)
        lines.append(f"| {name} | {' | '.join(f'{value:.3f}' for value in found)} |")
    return "\n".join(lines)


def students_table(found: Mapping[str, list[tuple[Measured, float]]], seconds: Mapping[str, float]) -> str:
    """Return a table with one column per data set: correlations, the student that the proxy picks, and durations."""
    columns = {dataset: list(_column(dataset, pairs, seconds[dataset])) for dataset, pairs in found.items()}
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for rows in zip(*columns.values(), strict=True):
        lines.append(f"| {rows[0][0]} | {' | '.join(text for _, text in rows)} |")
    return "\n".join(lines)


def _column(dataset: str, pairs: list[tuple[Measured, float]], seconds: float) -> Iterator[tuple[str, str]]:
    accuracies, scores = [one.accuracy for one, _ in pairs], [score for _, score in pairs]
    by_proxy, by_accuracy = (correlations(scores, accuracies, values) for values in (scores, accuracies))
    picked = accuracies[int(np.argmax(scores))]
    teacher = accuracy(pairs[0][0].teacher, real_images(teacher_settings(dataset).data))
    yield "students", str(len(pairs))
    yield "accuracy of the teacher, %", f"{100 * teacher:.2f}"
    yield "accuracy of the students, %", f"{100 * min(accuracies):.2f} to {100 * max(accuracies):.2f}"
    yield "r, all", f"{by_proxy[0]:.3f}"
    yield "rho, all", f"{by_proxy[1]:.3f}"
    yield "r, better half by the proxy", f"{by_proxy[2]:.3f}"
    yield "rho, better half by the proxy", f"{by_proxy[3]:.3f}"
    yield "r, better half by accuracy", f"{by_accuracy[2]:.3f}"
    yield "rho, better half by accuracy", f"{by_accuracy[3]:.3f}"
    for low, high in itertools.pairwise(PAIR_LIMITS):
        text = f"scores {low} to {high} apart" if high < 1 else f"scores more than {low} apart"
        right = pairs_put_right(scores, accuracies, low, high)
        yield f"pairs of the better half by accuracy ranked correctly, {text}", right
    yield "student that the proxy picks, %", f"{100 * picked:.2f}"
    yield "best student, %", f"{100 * max(accuracies):.2f}"
    yield "mean of all students, %", f"{100 * np.mean(accuracies):.2f}"
    yield "seconds to make a student, mean", f"{np.mean([one.seconds for one, _ in pairs]):.1f}"
    yield "seconds to score a student, mean", f"{seconds / len(pairs):.1f}"


def draw_picture(found: Mapping[str, list[tuple[Measured, float]]], path: Path) -> None:
    """Write one panel per data set: proxy against real accuracy of every student."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(found), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    for position, (dataset, pairs) in enumerate(found.items(), start=1):
        axes = figure.add_subplot(1, len(found), position, title=dataset, xlabel="proxy", ylabel="real accuracy, %")
        for start, colour in (("random", "tab:blue"), ("pruned", "tab:orange")):
            chosen = [(s, 100 * one.accuracy) for one, s in pairs if one.recipe["distillation.start"] == start]
            if chosen:
                scores, accuracies = zip(*chosen)
                axes.scatter(scores, accuracies, s=18, color=colour, alpha=0.7, linewidths=0, label=f"{start} start")
        picked, score = max(pairs, key=lambda pair: pair[1])
        axes.scatter(
            [score], [100 * picked.accuracy], s=90, facecolors="none", edgecolors="black", label="what the proxy picks"
        )
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right", fontsize=8)
    with write_atomically(path) as temporary:
        figure.savefig(temporary, format="png", dpi=90, metadata={"Software": None})


def write_between(path: Path, name: str, text: str) -> None:
    """Replace the text between the two marks of `name` in a Markdown file."""
    head, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN.format(name))
    _, end, tail = rest.partition(END)
    if not begin or not end:
        sys.exit(f"{path} has no {BEGIN.format(name)!r} followed by {END!r}. Put them where the table belongs")
    with write_atomically(path) as temporary:
        temporary.write_text(f"{head}{begin}\n\n{text}\n\n{end}{tail}", encoding="utf-8")


def main() -> None:
    """Measure, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", choices=DATASETS, nargs="+")
    parser.add_argument("--count", type=int, default=48, help="number of students per data set")
    parser.add_argument("--forms", action="store_true", help="compare candidate forms of the proxy")
    parser.add_argument(
        "--write", type=Path, help="Markdown file in which to replace the marked table; also writes the picture"
    )
    arguments = parser.parse_args()
    # With one thread, the bytes do not depend on the number of cores.
    torch.set_num_threads(1)
    command = shlex.join(["python", *sys.argv])
    if arguments.forms:
        text = "\n\n".join(forms_table(dataset, arguments.count) for dataset in arguments.datasets)
    else:
        found, seconds = {}, {}
        for dataset in arguments.datasets:
            made = list(students(dataset, arguments.count))
            start = time.perf_counter()
            found[dataset] = [(one, proxy_score(one.teacher, one.student)) for one in made]
            seconds[dataset] = time.perf_counter() - start
        text = students_table(found, seconds)
    text = f"`{command}`\n\n{text}"
    print(text)
    if arguments.write:
        write_between(arguments.write, "forms" if arguments.forms else "students", text)
        if not arguments.forms:
            draw_picture(found, PICTURE)


if __name__ == "__main__":
    main()
