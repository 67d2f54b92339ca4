"""A new prior, a new source of statistics and a new method are each one new file and one row of a table."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dfkd_core.models.classifier import ModelCard, build_classifier
from dfkd_core.models.storage import save_model
from dfkd_core.transfer_set.manifest import verify_transfer_set
from dfkd_core.transfer_set.reader import TransferSet
from dfkd_tasks.caching.code import PACKAGES

ROOT = Path(__file__).resolve().parents[2]

Extend = Callable[[str, str, str, str], None]

PRIOR = '''
"""Images of one grey level each."""

import torch

from dfkd_core.common.seeding import uniform_rows
from dfkd_core.priors.pixels import PixelPrior


class FlatPrior(PixelPrior):
    def start(self, image_indices, *, seed, stream="prior"):
        levels = uniform_rows(seed, stream, image_indices, (1, 1, 1))
        return levels.expand(-1, *self._image_shape).clone()
'''
SOURCE = '''
"""Features that do not depend on each other."""

import torch

from dfkd_core.statistics.features import FeatureStatistics


def from_nothing(teacher, config, seed):
    return FeatureStatistics(torch.zeros(teacher.num_features), config.sigma * torch.eye(teacher.num_features))
'''
METHOD = '''
"""Images of one level, which is found before any image is drawn."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from dfkd_core.progress import ignore
from dfkd_core.sections import Fraction, config_section
from dfkd_core.synthesis.base import NO_STATE, MethodConfig, SynthesizedBatch


@config_section
class ToyConfig(MethodConfig):
    """One level and its neighbours."""

    prepares: ClassVar[bool] = True

    level: Fraction = 0.25
    """Where the search starts."""

    def prepare(self, teacher, statistics, *, seed, on_progress=ignore):
        return {"level": torch.tensor([2 * self.level])}

    def build(self, teacher, statistics, state=NO_STATE):
        return ToySynthesizer(teacher, state["level"])


@dataclass(frozen=True)
class ToySynthesizer:
    teacher: object
    level: torch.Tensor

    def synthesize(self, image_indices, *, seed, on_progress=ignore):
        shape = self.teacher.card.image_shape
        steps = torch.tensor([index % 40 for index in image_indices]) / 255
        images = (self.level + steps[:, None, None, None]).expand(-1, *shape).contiguous()
        return SynthesizedBatch(images, self.teacher.label(images).softmax(1))
'''


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A copy of the product that may be changed."""
    folder = tmp_path / "code"
    for name in ("dfkd_core", "dfkd_tasks", "dfkd_flows"):
        shutil.copytree(PACKAGES / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture
def extend(code: Path) -> Extend:
    """Return a function that adds a file, and to a table the import of what it holds and one row."""

    def add(file: str, text: str, table: str, row: str) -> None:
        (code / file).write_text(text.lstrip())
        path = code / table
        before, mark, after = path.read_text().partition(row.partition("|")[0])
        assert mark, f"{table} has no {row.partition('|')[0]!r}"
        module = file.removesuffix(".py").replace("/", ".")
        _, new, imported = row.split("|")
        text = f"{before}{mark}\n{new}{after}"
        first_import = text.index("from dfkd_core")
        path.write_text(f"{text[:first_import]}from {module} import {imported}\n{text[first_import:]}")

    return add


def run(code: Path, *command: str) -> str:
    environment = {"PYTHONPATH": str(code), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, *command], cwd=code, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def store_teacher(code: Path) -> None:
    card = ModelCard(
        network="lenet5", in_channels=1, image_size=32, num_classes=10, mean=(0.3,), std=(0.25,), layer="fc1"
    )
    save_model(code / "teacher", build_classifier(card, seed=0))


def test_a_prior(code: Path, extend: Extend) -> None:
    table = "dfkd_core/priors/table.py"
    extend("dfkd_core/priors/flat.py", PRIOR, table, 'ImagePrior]] = {|    "flat": FlatPrior,|FlatPrior')
    script = (
        "from dfkd_flows.settings.parsing import parse_params\n"
        "from dfkd_core.priors.table import build_prior\n"
        "steps = {'methods': {'soft_target': {'refinement': {'prior': 'flat'}}}}\n"
        "config = parse_params({'synthesis': steps}, source='a test').synthesis\n"
        "prior = build_prior(config.method_config.steps.prior, (1, 4, 4))\n"
        "print(prior.decode(prior.start(range(3), seed=0)).flatten(1).std(1).tolist())\n"
    )
    assert run(code, "-c", script).split() == ["[0.0,", "0.0,", "0.0]"]


def test_a_source_of_statistics(code: Path, extend: Extend) -> None:
    table = "dfkd_core/statistics/estimation.py"
    extend("dfkd_core/statistics/none.py", SOURCE, table, 'Source] = {|    "none": Source(from_nothing),|from_nothing')
    store_teacher(code)
    script = (
        "from pathlib import Path\n"
        "from dfkd_core import StatisticsConfig, estimate_statistics, load_teacher\n"
        "config = StatisticsConfig(source='none', sigma=2.0)\n"
        "found = estimate_statistics(load_teacher(Path('teacher')), config, seed=0)\n"
        "print(found.covariance.diagonal().unique().tolist(), found.rank)\n"
    )
    assert run(code, "-c", script).strip() == "[4.0] 84"


@pytest.mark.slow
def test_a_method_that_prepares_something__through_the_whole_synthesis(code: Path, extend: Extend) -> None:
    table = "dfkd_core/synthesis/methods.py"
    row = 'under the method\'s name."""\n|    toy: ToyConfig = field(default_factory=ToyConfig)|ToyConfig'
    extend("dfkd_core/synthesis/toy.py", METHOD, table, row)
    store_teacher(code)
    changes = ("method=toy", "num_images=50", "images_per_shard=25", "methods.toy.level=0.125")
    options = [option for change in changes for option in ("--set", f"synthesis.{change}")]
    run(
        code,
        "-m",
        "dfkd_flows",
        "synthesize",
        "--teacher",
        "teacher",
        "--out",
        "set",
        *options,
        "--set",
        "execution.task_runner=threads",
    )
    assert verify_transfer_set(code / "set").method == "toy"
    images = TransferSet(code / "set").images
    # Twice the level of the settings: the state came from `prepare`, once for both shards.
    assert images[:].amin(dim=(1, 2, 3)).tolist() == [64 + index % 40 for index in range(50)]
    assert len(list((code / ".dfkd" / "work" / "synthesize").rglob("state.safetensors"))) == 1
