"""The training programs of others on an exported transfer set: timm's distillation, and torchdistill's loss."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

from dfkd_core.export.forms import write_safetensors
from dfkd_core.export.run import probe_images
from dfkd_core.export.sets import SetFormat, write_set
from dfkd_core.export.timm_files import add_timm_fields
from dfkd_core.models.architectures import import_timm
from dfkd_core.models.classifier import Classifier, ModelCard, build_classifier
from dfkd_core.transfer_set.manifest import write_manifest
from dfkd_core.transfer_set.reader import TransferSet
from dfkd_core.transfer_set.shards import Shard, shard_name, write_shard

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore:unclosed file:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
    ),
]


def make_teacher() -> Classifier:
    card = ModelCard(
        network="timm:test_resnet",
        in_channels=3,
        image_size=32,
        num_classes=4,
        mean=(0.4,) * 3,
        std=(0.3,) * 3,
        layer="",
    )
    return build_classifier(card, seed=0).eval()


@torch.no_grad()
def exported(teacher: Classifier, folder: Path, format: SetFormat) -> Path:
    """Export a transfer set of a teacher."""
    images = probe_images(teacher.card.image_shape)
    logits = teacher(images / 255)
    shard = Shard(
        images=images, teacher_logits=logits, soft_targets=logits.softmax(1), image_index=torch.arange(len(images))
    )
    write_manifest(
        folder / "set", method="noise", method_config={}, temperature=1.0, teacher_digest="a1", statistics_digest=None,
        code_version="", seed=0, shards=[write_shard(folder / "set" / shard_name(0), shard)],
    )  # fmt: skip
    (folder / "out").mkdir()
    write_set(TransferSet(folder / "set"), folder / "out", format)
    return folder / "out"


def train(student: torch.nn.Module, batches: Any, loss_of: Any) -> tuple[float, float]:
    """Train for a few epochs and return the loss of the first and of the last one."""
    optimiser = torch.optim.AdamW(student.parameters(), lr=3e-3)
    means = []
    for _ in range(6):
        losses = []
        for batch in batches():
            loss = loss_of(*batch)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        means.append(sum(losses) / len(losses))
    return means[0], means[-1]


def test_timm__distils_on_the_folder_with_the_exported_network_as_teacher(tmp_path: Path) -> None:
    teacher = make_teacher()
    out = exported(teacher, tmp_path, "imagefolder")
    stored = tmp_path / "teacher"
    write_safetensors(teacher, stored)
    images = probe_images(teacher.card.image_shape)[:20]
    with torch.no_grad():
        assert add_timm_fields(stored, teacher, images, teacher(images / 255))
    timm = import_timm()
    torch.manual_seed(0)
    of_timm = timm.create_model(f"local-dir:{stored}", pretrained=True)
    student = timm.create_model("test_resnet", num_classes=4)
    data = timm.data.create_dataset("", root=str(out), split="train", class_map=str(out / "class_map.txt"))
    loader = timm.data.create_loader(
        data, input_size=(3, 32, 32), batch_size=64, is_training=True, no_aug=True, use_prefetcher=False, num_workers=0,
        mean=teacher.card.mean, std=teacher.card.std, device=torch.device("cpu"),
    )  # fmt: skip
    task = importlib.import_module("timm.task").LogitDistillationTask(
        student, of_timm, criterion=torch.nn.CrossEntropyLoss(), distill_loss_weight=1.0, task_loss_weight=0.1,
        temperature=2.0, device=torch.device("cpu"), verbose=False,
    )  # fmt: skip
    first, last = train(student, lambda: loader, lambda images, labels: task(images, labels)["loss"])
    assert last < first


def test_torchdistill__learns_from_the_stored_logits_of_webdataset(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    pytest.importorskip("torchdistill")
    teacher = make_teacher()
    out = exported(teacher, tmp_path, "webdataset")
    from torchdistill.losses.mid_level import KDLoss

    torch.manual_seed(0)
    student = import_timm().create_model("test_resnet", num_classes=4)
    criterion = KDLoss("fc", "output", "fc", "output", temperature=4.0, alpha=0.5)
    stream = webdataset.WebDataset(str(out / "train-000000.tar"), shardshuffle=False).decode("torchrgb")
    rows = stream.to_tuple("png", "cls", "logits.npy").batched(64)

    def loss_of(images: Any, labels: Any, logits: Any) -> torch.Tensor:
        answers = {"fc": {"output": student(images)}}, {"fc": {"output": torch.as_tensor(logits)}}
        found: torch.Tensor = criterion(*answers, torch.as_tensor(labels))
        return found

    first, last = train(student, lambda: rows, loss_of)
    assert last < first
