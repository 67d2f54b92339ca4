"""Pictures of the priors' starts and of the methods' images.

    python benchmarks/grids.py                                      # everything, with a teacher for the digits
    python benchmarks/grids.py --only priors
    python benchmarks/grids.py --only methods --teacher .dfkd/models/teacher

Writes docs/images/prior_NAME.png (one channel on the left, three on the right) and docs/images/method_NAME.png (starts
on the left, refined images on the right, in the same order; a single block for methods without gradient steps).
"""

from __future__ import annotations

import argparse
import dataclasses
import io
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from dfkd_core.common.vision import make_grid
from dfkd_core.data.datasets import DataConfig, load_dataset
from dfkd_core.errors import TeacherError
from dfkd_core.models.teacher import Teacher, load_teacher
from dfkd_core.priors.table import PriorName, build_prior, prior_names
from dfkd_core.statistics.estimation import StatisticsConfig, estimate_statistics
from dfkd_core.synthesis.methods import MethodSettings, SynthesisConfig, build_synthesizer, method_names
from dfkd_core.teachers.training import TeacherConfig, train_teacher

ROWS, COLUMNS = 4, 5
SIZE_PX = 32
GAP_PX = 10
MAX_BYTES = 60_000
# Fields that control how far images are changed; 0 keeps the starts.
MOVING_FIELDS = ("iterations",)


def draw_prior(name: PriorName, seed: int) -> torch.Tensor:
    """Return a picture of the prior's starts in one and three channels."""
    indices = range(ROWS * COLUMNS)
    blocks = []
    for channels in (1, 3):
        prior = build_prior(name, (channels, SIZE_PX, SIZE_PX))
        blocks.append(prior.decode(prior.start(indices, seed=seed)))
    return side_by_side(*blocks)


def draw_method(name: str, teacher: Teacher, seed: int) -> torch.Tensor:
    """Return a picture of the method's images before and after the gradient steps."""
    settings = MethodSettings()
    still = dataclasses.replace(settings, **{name: without_moves(getattr(settings, name))})
    return side_by_side(*(make_images(name, methods, teacher, seed) for methods in (still, settings)))


def make_images(name: str, methods: MethodSettings, teacher: Teacher, seed: int) -> torch.Tensor:
    """Return the first images of a transfer set."""
    config = SynthesisConfig(method=name, methods=methods)
    statistics = estimate_statistics(teacher, StatisticsConfig(), seed=seed)
    synthesizer = build_synthesizer(config, teacher, statistics)
    # A whole batch, since an image depends on its batch with some methods.
    return synthesizer.synthesize(range(config.batch_size), seed=seed).images[: ROWS * COLUMNS]


def without_moves(section: Any) -> Any:
    """Return a copy of a configuration section, including nested ones, in which images keep their starts."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = without_moves(value)
        elif field.name in MOVING_FIELDS:
            changes[field.name] = 0
    return dataclasses.replace(section, **changes)


def side_by_side(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return a picture [3, h, w] of two blocks of images [n, c, h, w], or of one if both are the same."""
    blocks: list[torch.Tensor] = [make_grid(images, COLUMNS, padding=2, pad_value=1) for images in (left, right)]
    if torch.equal(left, right):
        return blocks[0]
    white = torch.ones(3, blocks[0].shape[1], GAP_PX)
    return torch.cat([blocks[0], white, blocks[1]], 2)


def save_picture(path: Path, picture: torch.Tensor) -> None:
    """Write a PNG of at most MAX_BYTES; with 256 colours, a pixel takes one byte."""
    pixels = (picture * 255).round().byte().movedim(0, 2).numpy()
    image = Image.fromarray(pixels)
    is_grey = bool((picture == picture[:1]).all())
    content = _png(image.convert("L") if is_grey else image)
    if len(content) > MAX_BYTES:
        palette = image.quantize(256)
        content = _png(image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    print(f"{path}  {len(content) / 1000:.0f} kB")


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def digits_teacher(seed: int) -> Teacher:
    """Return a LeNet-5 with BatchNorm, which every method can use, trained in seconds on scikit-learn's digits."""
    data = load_dataset(DataConfig(dataset="digits"), "train")
    return Teacher(train_teacher(TeacherConfig(network="lenet5_bn"), data, seed=seed).classifier)


def main() -> None:
    """Draw the requested pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("priors", "methods"), help="draw only these")
    parser.add_argument("--teacher", type=Path, help="folder of a stored teacher (default: one trained on the digits)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("docs/images"))
    arguments = parser.parse_args()
    # The networks are small: several threads would mostly wait for each other.
    torch.set_num_threads(1)
    if arguments.only != "methods":
        for prior in prior_names():
            save_picture(arguments.folder / f"prior_{prior}.png", draw_prior(prior, arguments.seed))
    if arguments.only != "priors":
        teacher = load_teacher(arguments.teacher) if arguments.teacher else digits_teacher(arguments.seed)
        for method in method_names():
            if method == "noise_engineered":
                # Its images are those of `noise`; only the labels differ.
                continue
            try:
                save_picture(arguments.folder / f"method_{method}.png", draw_method(method, teacher, arguments.seed))
            except TeacherError as error:
                print(f"method_{method}.png left out: {error}")


if __name__ == "__main__":
    main()
