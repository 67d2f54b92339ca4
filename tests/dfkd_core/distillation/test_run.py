import dataclasses
import json
import math
import re
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from dfkd_core.common.compute import Compute
from dfkd_core.common.pixels import load_batch
from dfkd_core.common.rows import ShardedRows
from dfkd_core.distillation.config import DistillationConfig
from dfkd_core.distillation.disagreement import DisagreementConfig
from dfkd_core.distillation.feature_matching import FeatureMatcher, normalised_mse
from dfkd_core.distillation.run import distill, distill_images
from dfkd_core.distillation.steps import step_cost
from dfkd_core.errors import ConfigError, DistillationError, TransferSetError
from dfkd_core.models.classifier import ModelCard, build_classifier
from dfkd_core.models.layers import forward_with_outputs
from dfkd_core.models.passes import PassSizes
from dfkd_core.models.storage import model_digest
from dfkd_core.models.teacher import Teacher
from dfkd_core.progress import Progress
from dfkd_core.training import checkpoints
from dfkd_core.training.augmentation import AugmentationConfig
from dfkd_core.transfer_set.manifest import write_manifest
from dfkd_core.transfer_set.reader import TransferSet
from dfkd_core.transfer_set.shards import Shard, write_shard

CARD = ModelCard(network="lenet5", in_channels=1, image_size=32, num_classes=3, mean=(0.3,), std=(0.3,), layer="fc1")
MOVED = AugmentationConfig(shift=1 / 32, flip=True)
DISPUTED = DisagreementConfig(share=0.5)


def make_teacher(seed=0, layer="fc1"):
    return Teacher(build_classifier(dataclasses.replace(CARD, layer=layer), seed=seed))


def make_images(num_images=24):
    return torch.randint(0, 256, (num_images, 1, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def run(
    *,
    teacher=None,
    layer="fc1",
    images=None,
    seed=0,
    key="set",
    checkpoint=None,
    on_progress=None,
    logits=None,
    prefetch=0,
    **changes,
):
    teacher = teacher or make_teacher(layer=layer)
    images = make_images() if images is None else images
    logits = teacher(load_batch(images, torch.arange(len(images)))) if logits is None and len(images) else logits
    logits = torch.empty(0, 3) if logits is None else logits
    plain: dict[str, Any] = {
        "start": "random",
        "epochs": 4,
        "batch_size": 8,
        "feature_weight": 0.0,
        "checkpoint_every_epochs": 1,
    }
    config = DistillationConfig(**({"augmentation": AugmentationConfig()} | plain | changes))
    options: dict[str, Any] = {"compute": Compute(prefetch=prefetch)}
    options |= {"on_progress": on_progress} if on_progress else {}
    return distill_images(teacher, images, logits, config, key=key, seed=seed, checkpoint=checkpoint, **options)


def interrupt_after(epochs):
    def on_progress(progress):
        if progress.done == epochs:
            raise KeyboardInterrupt

    return on_progress


def test_the_student_comes_nearer_to_the_teacher():
    reports: list[Progress] = []
    result = run(epochs=10, on_progress=reports.append)
    assert result.history[-1].loss < 0.7 * result.history[0].loss
    assert set(result.history[0].terms) == {"kl"}
    assert not result.student.training
    assert result.student.card == dataclasses.replace(CARD, network="lenet5_half", layer="fc1")
    assert [report.done for report in reports] == list(range(11))
    assert dict(reports[-1].metrics) == {"loss": result.history[-1].loss}


def test_the_seed_decides_every_bit_and_the_global_generator_is_not_touched():
    state = torch.get_rng_state()
    first, again, other = (run(seed=seed, epochs=2, augmentation=MOVED) for seed in (0, 0, 1))
    assert model_digest(first.student) == model_digest(again.student)
    assert model_digest(first.student) != model_digest(other.student)
    assert torch.equal(torch.get_rng_state(), state)


def test_stored_logits_are_the_labels_without_augmentation_and_unused_with_it():
    others = torch.randn(24, 3)
    assert model_digest(run(epochs=1).student) != model_digest(run(epochs=1, logits=others).student)
    moved, moved_with_others = run(epochs=1, augmentation=MOVED), run(epochs=1, augmentation=MOVED, logits=others)
    assert model_digest(moved.student) == model_digest(moved_with_others.student)


@pytest.mark.parametrize("epochs_done", [1, 3])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"augmentation": MOVED},
        {"student": "lenet5_half_bn", "weight_decay": 0.1},
        {"feature_weight": 1.0},
        {"feature_weight": 1.0, "layer": "conv2"},
        {"mixing": "mixup", "prefetch": 2},
        {"mixing": "cutmix", "augmentation": MOVED},
        {"start": "pruned", "feature_weight": 1.0},
        {"views": 2, "feature_weight": 1.0, "augmentation": MOVED, "mixing": "mixup", "prefetch": 2},
        {"disagreement": DISPUTED, "student": "lenet5_half_bn", "feature_weight": 1.0, "augmentation": MOVED},
    ],
)
def test_a_resumed_run_ends_with_the_bits_of_an_undisturbed_one(tmp_path, changes, epochs_done):
    undisturbed, path = run(**changes), tmp_path / "checkpoint.safetensors"
    reports: list[Progress] = []
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=path, on_progress=interrupt_after(epochs_done), **changes)
    resumed = run(checkpoint=path, on_progress=reports.append, **changes)
    assert reports[0].done == epochs_done
    assert resumed.history == undisturbed.history
    assert model_digest(resumed.student) == model_digest(undisturbed.student)


def test_a_finished_checkpoint_is_returned_at_once_and_holds_no_pickle(tmp_path):
    path = tmp_path / "work" / "checkpoint.safetensors"
    reports: list[Progress] = []
    first = run(checkpoint=path)
    before = path.read_bytes()
    again = run(checkpoint=path, on_progress=reports.append)
    assert [(report.done, report.total) for report in reports] == [(4, 4)]
    assert (again.history, model_digest(again.student)) == (first.history, model_digest(first.student))
    assert path.read_bytes() == before
    assert [item.name for item in path.parent.iterdir()] == [path.name]
    assert {name.partition(".")[0] for name in load_file(path)} == {"network", "optimizer", "start"}
    with safe_open(path, framework="pt") as file:
        assert len(json.loads(file.metadata()["checkpoint"])["history"]) == 4


def test_a_checkpoint_every_few_epochs_and_at_the_end(tmp_path):
    path, saved = tmp_path / "checkpoint.safetensors", []

    def on_progress(progress):
        if path.exists():
            with safe_open(path, framework="pt") as file:
                saved.append((progress.done, len(json.loads(file.metadata()["checkpoint"])["history"])))

    run(epochs=5, checkpoint_every_epochs=2, checkpoint=path, on_progress=on_progress)
    assert saved == [(2, 2), (3, 2), (4, 4), (5, 5)]


@pytest.mark.parametrize("harm", ["truncated", "flipped", "header", "empty", "missing"])
def test_a_damaged_checkpoint_is_ignored_and_the_run_starts_again(tmp_path, harm):
    path = tmp_path / "checkpoint.safetensors"
    reports: list[Progress] = []
    first = run(checkpoint=path, epochs=2)
    content = path.read_bytes()
    head = content.index(b"history") - 3
    damaged = {
        "header": content[:head] + b"!" + content[head + 1 :],
        "truncated": content[:-100],
        "flipped": content[:-1] + bytes([content[-1] ^ 1]),
    }
    path.write_bytes(damaged.get(harm, b""))
    if harm == "missing":
        path = tmp_path / "other" / "checkpoint.safetensors"
    again = run(checkpoint=path, epochs=2, on_progress=reports.append)
    assert reports[0].done == 0
    assert model_digest(again.student) == model_digest(first.student)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "changes", [{"seed": 1}, {"key": "other"}, {"temperature": 2.0}, {"epochs": 3}, {"student": "lenet5"}]
)
def test_a_checkpoint_of_something_else_is_ignored(tmp_path, changes):
    path = tmp_path / "checkpoint.safetensors"
    reports: list[Progress] = []
    run(checkpoint=path, epochs=2)
    run(checkpoint=path, **({"epochs": 2} | changes), on_progress=reports.append)
    assert reports[0].done == 0


def test_a_checkpoint_of_another_teacher_is_ignored_but_not_one_of_another_interval(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    reports: list[Progress] = []
    run(checkpoint=path, epochs=2)
    run(checkpoint=path, epochs=2, checkpoint_every_epochs=7, on_progress=reports.append)
    assert reports[0].done == 2
    reports.clear()
    run(checkpoint=path, epochs=2, teacher=make_teacher(seed=1), on_progress=reports.append)
    assert reports[0].done == 0


def test_a_checkpoint_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(DistillationError, match=r"checkpoint\.safetensors.*No space left"):
        run(checkpoint=tmp_path / "checkpoint.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_not_finite_is_named_with_epoch_step_and_term():
    logits = torch.zeros(24, 3)
    logits[5] = math.nan
    with pytest.raises(DistillationError, match=r"term kl is nan in epoch 1, step \d of 3"):
        run(logits=logits)


def test_inputs_that_do_not_fit_are_named():
    with pytest.raises(DistillationError, match="no images"):
        run(images=make_images(0))
    with pytest.raises(DistillationError, match=r"\(24, 4\).*\(24, 3\)"):
        run(logits=torch.zeros(24, 4))
    with pytest.raises(DistillationError, match=r"\(3, 32, 32\).*\(1, 32, 32\)"):
        run(images=make_images().expand(24, 3, 32, 32), logits=torch.zeros(24, 3))


@pytest.mark.parametrize("values", [{"student": "lenet6"}, {"epochs": 0}, {"temperature": 0.0}, {"mixing": "blend"}])
def test_a_value_out_of_range_is_named(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        DistillationConfig(**values)


def test_a_stored_transfer_set_gives_the_student_of_its_tensors(tmp_path):
    teacher, images = make_teacher(), make_images()
    logits = teacher(load_batch(images, torch.arange(24)))
    shard = Shard(images=images, teacher_logits=logits, soft_targets=logits.softmax(1), image_index=torch.arange(24))
    record = write_shard(tmp_path / "shard-00000.safetensors", shard)
    write_manifest(
        tmp_path,
        method="noise",
        method_config={"methods": {"noise": {}}},
        temperature=1.0,
        teacher_digest=teacher.digest,
        statistics_digest=None,
        code_version="",
        seed=0,
        shards=[record],
    )
    config = DistillationConfig(epochs=2, batch_size=8)
    stored = distill(teacher, TransferSet(tmp_path), config, seed=0)
    given = distill_images(teacher, images, logits, config, seed=0)
    assert model_digest(stored.student) == model_digest(given.student)
    with pytest.raises(TransferSetError, match="belongs to teacher"):
        distill(make_teacher(seed=1), TransferSet(tmp_path), config, seed=0)


def test_feature_weight__brings_the_inner_outputs_nearer():
    def distance(**changes):
        teacher = make_teacher()
        student = run(epochs=10, **changes).student
        images = load_batch(make_images(), torch.arange(24))
        _, hints = forward_with_outputs(teacher.classifier, ["fc1"], images)
        _, own = forward_with_outputs(student, ["fc1"], images)
        return normalised_mse(own[0], hints[0]).item()

    result = run(feature_weight=2.0)
    assert set(result.history[0].terms) == {"kl", "features"}
    assert result.history[-1].terms["features"] < 0.9 * result.history[0].terms["features"]
    assert distance(feature_weight=2.0) < 0.5 * distance()


def test_feature_weight__the_map_between_widths_is_trained_kept_in_checkpoints_and_dropped(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    result = run(feature_weight=1.0, layer="conv2", checkpoint=path)
    stored = load_file(path)
    assert stored["matcher.projection.weight"].shape == (16, 8)
    first = FeatureMatcher(make_teacher(layer="conv2"), result.student, seed=0).projection.weight
    assert not torch.equal(stored["matcher.projection.weight"], first)
    assert {f"network.{name}" for name in result.student.network.state_dict()} <= stored.keys()


def test_feature_weight__a_thinner_copys_map_between_widths_starts_fitted():
    images = make_images(64) * torch.linspace(0, 1, 64).view(-1, 1, 1, 1)
    settings = {"epochs": 1, "feature_weight": 1.0, "layer": "conv2", "learning_rate": 1e-9}
    pruned, drawn = (run(images=images.byte(), start=start, **settings).history[0] for start in ("pruned", "random"))
    assert pruned.terms["features"] < 0.1 < drawn.terms["features"]


def test_feature_weight__counts_with_stored_logits_and_with_moved_images():
    for augmentation in (AugmentationConfig(), MOVED):
        with_it, without = (run(epochs=1, feature_weight=w, augmentation=augmentation) for w in (1.0, 0.0))
        assert model_digest(with_it.student) != model_digest(without.student)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"augmentation": MOVED, "mixing": "mixup"},
        {"feature_weight": 1.0, "student": "lenet5_half_bn"},
        {"feature_weight": 1.0, "disagreement": DISPUTED},
    ],
)
def test_prefetch__does_not_change_a_bit(changes):
    alone, ahead = run(epochs=2, **changes), run(epochs=2, prefetch=2, **changes)
    assert ahead.history == alone.history
    assert model_digest(ahead.student) == model_digest(alone.student)


@pytest.mark.parametrize("mixing", ["mixup", "cutmix"])
def test_mixing__the_teacher_labels_the_mixed_images(mixing):
    mixed, plain = run(epochs=1, mixing=mixing), run(epochs=1)
    assert model_digest(mixed.student) != model_digest(plain.student)
    others = run(epochs=1, mixing=mixing, logits=torch.randn(24, 3))
    assert model_digest(others.student) == model_digest(mixed.student)


def test_start__pruned_is_nearer_to_the_teacher_than_random_and_happens_once(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    pruned, drawn = (run(epochs=1, learning_rate=1e-9, start=start) for start in ("pruned", "random"))
    assert pruned.history[0].loss < 0.5 * drawn.history[0].loss
    run(epochs=2, start="pruned", checkpoint=path)
    again = run(epochs=2, start="pruned", checkpoint=path)
    assert model_digest(again.student) == model_digest(run(epochs=2, start="pruned").student)


def make_batch_norm_teacher():
    card = dataclasses.replace(make_teacher().card, network="lenet5_bn", layer="fc1")
    teacher = Teacher(build_classifier(card, seed=3))
    with torch.no_grad():
        teacher.classifier.network.get_buffer("bn1.running_mean").fill_(0.25)
    return teacher


def test_start__a_thinner_copy_keeps_its_batch_norm_statistics_and_trains_the_rest():
    settings = {"teacher": make_batch_norm_teacher(), "student": "lenet5_half_bn", "start": "pruned", "epochs": 2}
    first, last = (run(learning_rate=rate, **settings).student.network.bn1 for rate in (1e-9, 8e-3))
    assert first.running_mean.mean().item() != 0.0
    assert torch.equal(last.running_mean, first.running_mean)
    assert torch.equal(last.running_var, first.running_var)
    assert not torch.allclose(last.weight, first.weight)


def test_start__random_learns_its_batch_norm_statistics():
    settings = {"teacher": make_batch_norm_teacher(), "student": "lenet5_half_bn", "start": "random", "epochs": 2}
    assert run(**settings).student.network.bn1.num_batches_tracked.item() == 2 * 3


@pytest.mark.parametrize(
    ("student", "start", "factor"),
    [("lenet5_half_bn", "pruned", 0.5), ("lenet5_half_bn", "random", 1.0), ("lenet5_half", "pruned", 1.0)],
)
def test_batch_norm_rate_factor__counts_for_thinner_copies_with_batch_norm_alone(student, start, factor):
    teacher = make_batch_norm_teacher() if student.endswith("_bn") else make_teacher()
    settings = {"teacher": teacher, "student": student, "start": start, "epochs": 1, "warmup_fraction": 1.0}
    result = run(learning_rate=4e-3, **settings)
    # The warm-up ends with the last step.
    assert result.history[-1].learning_rate == pytest.approx(factor * 4e-3)
    plain = run(learning_rate=factor * 4e-3, batch_norm_rate_factor=1.0, **settings)
    assert model_digest(plain.student) == model_digest(result.student)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"augmentation": MOVED, "mixing": "cutmix"},
        {"start": "pruned", "feature_weight": 1.0, "prefetch": 2},
    ],
)
def test_images_in_pieces_give_the_student_of_one_tensor_to_the_bit(changes):
    images = make_images()
    logits = make_teacher()(load_batch(images, torch.arange(24)))
    whole = run(images=images, logits=logits, **changes)
    pieces = run(images=ShardedRows(images.split(7)), logits=ShardedRows(logits.split(7)), **changes)
    assert pieces.history == whole.history
    assert model_digest(pieces.student) == model_digest(whole.student)


def test_passes_that_memory_limits_change_the_students_labels_by_rounding_alone(limit_passes):
    changes = {"augmentation": MOVED, "feature_weight": 1.0, "disagreement": DISPUTED}
    whole, teacher = run(**changes), make_teacher()
    limit_passes(teacher, 3)
    parts = run(teacher=teacher, **changes)
    for before, after in zip(whole.history, parts.history, strict=True):
        assert after.loss == pytest.approx(before.loss, rel=1e-3)


def test_a_batch_that_does_not_fit_is_refused_before_anything_else_with_the_size_that_does():
    teacher = make_teacher()
    reports: list[Progress] = []
    teacher.passes = PassSizes(teacher.classifier, memory=2**21)
    with pytest.raises(
        DistillationError, match=r"lenet5_half on 24 images .*Set distillation.batch_size: (\d+),"
    ) as raised:
        run(teacher=teacher, batch_size=256, on_progress=reports.append)
    assert reports == []
    [number] = re.findall(r"batch_size: (\d+)", str(raised.value))
    fitting = int(number)
    assert 2 <= fitting < 24
    run(teacher=teacher, batch_size=fitting, epochs=1)
    teacher.passes = PassSizes(teacher.classifier, memory=1)
    with pytest.raises(DistillationError, match="Not even 2 fit"):
        run(teacher=teacher)


def test_batches_that_wait_count():
    teacher = make_teacher()
    options: dict[str, Any] = {"seed": 0, "device": torch.device("cpu")}
    config = DistillationConfig(feature_weight=0.0, augmentation=MOVED)
    costs = [step_cost(teacher, make_images(), torch.zeros(24, 3), config, prefetch=n, **options) for n in (0, 2)]
    assert costs[1].per_image - costs[0].per_image == 2 * 4 * (32 * 32 + 3)
