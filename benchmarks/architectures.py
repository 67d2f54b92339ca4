"""What works with public architectures, as a Markdown table: one row per network, one column per capability.

    python benchmarks/architectures.py                     # all; about half an hour on one thread
    python benchmarks/architectures.py resnet mobilenet    # those whose names contain one of these words

Weights are random and images are drawn, since neither decides what works. A cell is `yes` or a number, which refers to
the reason below the table.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from architecture_exports import EXPORT_COLUMNS

from dfkd_core.common.pixels import quantise
from dfkd_core.distillation.config import DistillationConfig
from dfkd_core.distillation.students import build_student
from dfkd_core.errors import DfkdError
from dfkd_core.models.architectures import build_architecture
from dfkd_core.models.built_in import half_as_wide
from dfkd_core.models.classifier import build_classifier
from dfkd_core.models.teacher import Teacher
from dfkd_core.teachers.loading import bring_teacher
from dfkd_core.teachers.preflight import probe_images
from dfkd_core.teachers.source import SourceConfig

NUM_CLASSES = 10
NUM_IMAGES = 60
NUM_PASSES = 20
MOST_WEIGHTS = 500_000
# Above the length of any useful reason.
SHOWN = 160


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A network, by the name that `--teacher` takes, and the shape of its images."""

    name: str
    image_size: int = 64
    in_channels: int = 3
    arguments: Mapping[str, object] = field(default_factory=dict)


ARCHITECTURES = (
    *(Architecture(name=f"torchvision:{name}") for name in ("resnet18", "resnet50", "resnext50_32x4d", "alexnet")),
    *(Architecture(name=f"torchvision:{name}") for name in ("densenet121", "googlenet", "squeezenet1_1")),
    Architecture(name="torchvision:inception_v3", image_size=96),
    *(Architecture(name=f"torchvision:{name}") for name in ("mobilenet_v2", "mobilenet_v3_small", "mnasnet0_5")),
    *(Architecture(name=f"torchvision:{name}") for name in ("shufflenet_v2_x0_5", "efficientnet_b0")),
    *(Architecture(name=f"torchvision:{name}") for name in ("regnet_y_400mf", "convnext_tiny", "swin_t")),
    *(Architecture(name=f"timm:{name}") for name in ("test_resnet", "test_convnext", "test_vit", "test_nfnet")),
    *(Architecture(name=f"timm:{name}") for name in ("test_efficientnet", "test_byobnet", "test_mambaout")),
    *(Architecture(name=f"timm:{name}") for name in ("ghostnet_100", "mobilenetv4_conv_small", "lcnet_050")),
    *(Architecture(name=f"timm:{name}") for name in ("dla34", "ese_vovnet19b_dw", "res2net50_26w_4s")),
    *(Architecture(name=f"timm:{name}") for name in ("rexnet_100", "repvgg_a0", "poolformer_s12")),
    *(Architecture(name=f"timm:{name}") for name in ("edgenext_xx_small", "levit_128s")),
    *(
        Architecture(name=f"hand_written:{name}", image_size=32)
        for name in (
            "Checked",
            "Looped",
            "Named",
            "PreActivated",
            "Squeezed",
            "ChannelNormed",
            "Shuffled",
            "Functional",
        )
    ),
    *(Architecture(name=name, image_size=32) for name in ("lenet5_bn", "resnet18_quarter", "alexnet_half")),
)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A loaded network with random weights, as a teacher."""

    architecture: Architecture
    teacher: Teacher
    scratch: Path
    """Folder for temporary files."""


def thinner_start(subject: Subject) -> str:
    """Return why a student of half the widths cannot start as a copy of the teacher; empty if it can.

    A large teacher is thinned itself first: what works does not depend on the widths, and the time does.
    """
    teacher = subject.teacher
    size = sum(weight.numel() for weight in teacher.network.parameters())
    if size > MOST_WEIGHTS:
        multiple = max(0.125, (MOST_WEIGHTS / size) ** 0.5)
        card = dataclasses.replace(teacher.card, network=f"{teacher.card.network}@{multiple:.3g}", layer="")
        classifier = build_classifier(card, seed=0)
        _settle(classifier, teacher.card.image_shape)
        teacher = Teacher(classifier)
    card = teacher.card
    config = DistillationConfig(student=half_as_wide(card.network), student_arguments=card.arguments)
    images = quantise(probe_images(card.image_shape, NUM_IMAGES))
    return build_student(teacher, images, config, seed=0).reason


COLUMNS: Mapping[str, Callable[[Subject], str]] = {"thinner start": thinner_start, **EXPORT_COLUMNS}
"""Column of the table after "loaded", and the check that returns the reason of a "no", or an empty text for "yes".
A `DfkdError` counts as a "no" with its message."""


def main() -> None:
    """Print the table and the reasons."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("words", nargs="*", help="only networks whose names contain one of these words")
    words = parser.parse_args().words
    torch.set_num_threads(1)
    chosen = [found for found in ARCHITECTURES if not words or any(word in found.name for word in words)]
    reasons: list[str] = []
    counts = dict.fromkeys(("loaded", *COLUMNS), 0)
    print("| network | pixels | " + " | ".join(counts) + " | seconds |")
    print("|---|---" + "|---" * len(counts) + "|---|")
    for architecture in chosen:
        start = time.perf_counter()
        cells = []
        for column, reason in _row(architecture).items():
            counts[column] += not reason
            cells.append(_cell(reason, reasons))
        seconds = time.perf_counter() - start
        print(
            f"| `{architecture.name}` | {architecture.image_size} | {' | '.join(cells)} | {seconds:.0f} |", flush=True
        )
    print(f"| **of {len(chosen)}** | | " + " | ".join(str(count) for count in counts.values()) + " | |\n")
    for number, reason in enumerate(reasons, start=1):
        print(f"{number}. {reason}")


def _row(architecture: Architecture) -> dict[str, str]:
    """Return the reason of each column, empty for "yes"; if the network is not loaded, all columns have its reason."""
    with TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        found: dict[str, str] = {}
        try:
            subject = _loaded(architecture, Path(scratch))
        except DfkdError as error:
            return dict.fromkeys(("loaded", *COLUMNS), _short(str(error)))
        found["loaded"] = ""
        for column, check in COLUMNS.items():
            try:
                found[column] = _short(check(subject))
            except DfkdError as error:
                found[column] = _short(str(error))
    return found


def _loaded(architecture: Architecture, scratch: Path) -> Subject:
    channels, size = architecture.in_channels, architecture.image_size
    network = build_architecture(
        architecture.name, in_channels=channels, image_size=size, num_classes=NUM_CLASSES,
        arguments=architecture.arguments,
    )  # fmt: skip
    _settle(network, (channels, size, size))
    weights = scratch / f"{len(list(scratch.iterdir()))}.pth"
    torch.save(network.state_dict(), weights)
    source = SourceConfig(
        model=architecture.name, weights=str(weights), in_channels=channels, image_size=size, num_classes=NUM_CLASSES,
        arguments=architecture.arguments,
    )  # fmt: skip
    brought = bring_teacher(source, scratch=scratch, image_size_hint=size)
    return Subject(architecture=architecture, teacher=Teacher(brought.classifier), scratch=scratch)


@torch.no_grad()
def _settle(network: torch.nn.Module, image_shape: tuple[int, int, int]) -> None:
    """Give BatchNorm statistics: with those of a new one, some deep networks answer all images alike."""
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            # The mean over all passes, in place of one that forgets.
            module.reset_running_stats()
            module.momentum = None
    network.train()
    for number in range(NUM_PASSES):
        network(probe_images(image_shape, 16 + number))
    network.eval()


def _short(reason: str) -> str:
    line = " ".join(reason.split())
    return line if len(line) <= SHOWN else f"{line[:SHOWN]} ..."


def _cell(reason: str, reasons: list[str]) -> str:
    if not reason:
        return "yes"
    if reason not in reasons:
        reasons.append(reason)
    return f"[{reasons.index(reason) + 1}]"


if __name__ == "__main__":
    main()
