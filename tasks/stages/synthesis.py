"""Make the shards of a transfer set, one task each, and assemble them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from prefect import task
from prefect.cache_policies import NO_CACHE
from safetensors.torch import load_file, save_file

from dfkd_core.common.compute import CPU, Compute
from dfkd_core.common.digests import canonical_json, write_atomically
from dfkd_core.models.classifier import ModelCard
from dfkd_core.models.teacher import Teacher
from dfkd_core.statistics.axes import NO_AXES, drawn_on_axes, images_on_axes
from dfkd_core.statistics.features import FeatureStatistics, load_statistics
from dfkd_core.synthesis.base import NO_STATE
from dfkd_core.synthesis.guards import check_set
from dfkd_core.synthesis.methods import SynthesisConfig, build_synthesizer, prepare_method
from dfkd_core.synthesis.shards import shard_indices, synthesize_shard
from dfkd_core.transfer_set.manifest import write_manifest
from dfkd_core.transfer_set.reader import TransferSet
from dfkd_core.transfer_set.shards import ShardRecord, shard_name, write_shard
from dfkd_core.transfer_set.summary import SetSummary, summarise_set, write_summary
from dfkd_core.transfer_set.target import replacing_set
from dfkd_tasks.caching.code import code_digest
from dfkd_tasks.caching.policy import cached
from dfkd_tasks.caching.stored_models import load_allowed_teacher
from dfkd_tasks.caching.workspace import SAMPLES_FILE, SUMMARY_FILE, Artifact, place_file, reference
from dfkd_tasks.records.pictures import Sample, write_samples
from dfkd_tasks.records.progress import noting, report
from dfkd_tasks.records.timing import timed

__all__ = ["assemble_transfer_set", "make_shard", "prepare"]

_STATE_FILE = "state.safetensors"
_SHOWN_IMAGES = 48


@task(name="prepare method", **cached("synthesize", "compute"))
def prepare(
    teacher: Artifact, statistics: Artifact, config: SynthesisConfig, *, seed: int, folder: str, compute: Compute
) -> Artifact:
    """Let the method train or search what all its images need, and write the state into `folder`."""
    with timed("synthesize"):
        loaded = load_allowed_teacher(Path(teacher.path), compute=compute)
        features = load_statistics(Path(statistics.path))
        state = prepare_method(config, loaded, features, seed=seed, on_progress=report)
    path = Path(folder, _STATE_FILE)
    with write_atomically(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, temporary)
    return reference(path, {"num_tensors": len(state)})


@task(name="synthesize shard", **cached("synthesize", "compute"))
def make_shard(
    index: int,
    teacher: Artifact,
    statistics: Artifact,
    config: SynthesisConfig,
    *,
    prepared: Artifact | None = None,
    seed: int,
    folder: str,
    compute: Compute,
) -> Artifact:
    """Make the shard at `index` and write it into `folder`.

    `prepared` is what the task `prepare` made, if the method prepares; `compute.memory` is this worker's share.
    """
    # With one thread each, the bytes of a shard do not depend on how many are made at once, unless batches are split.
    torch.set_num_threads(1)
    path = Path(folder, shard_name(index))
    with timed("synthesize"), noting(path.with_suffix(".progress"), len(shard_indices(config, index))) as note:
        loaded = load_allowed_teacher(Path(teacher.path), compute=compute)
        features = load_statistics(Path(statistics.path))
        state = load_file(prepared.path) if prepared else NO_STATE
        synthesizer = build_synthesizer(config, loaded, features, state)
        shard = synthesize_shard(synthesizer, loaded, shard_index=index, config=config, seed=seed, on_progress=note)
        record = write_shard(path, shard)
    return Artifact(path=path.as_posix(), sha256=record.sha256, numbers={"num_images": record.num_images})


@task(name="assemble transfer set", cache_policy=NO_CACHE)
def assemble_transfer_set(
    shards: list[Artifact],
    teacher: Artifact,
    statistics: Artifact,
    config: SynthesisConfig,
    *,
    seed: int,
    folder: str,
    reports: str | None,
    compute: Compute = CPU,
) -> Artifact:
    """Write finished shards and their manifest into `folder` and, with `reports`, a picture and facts into that folder.

    An earlier set in `folder` stays until the new one is complete.
    """
    out = Path(folder)
    loaded = load_allowed_teacher(Path(teacher.path), compute=compute)
    features = load_statistics(Path(statistics.path))
    with replacing_set(out) as staged:
        manifest = write_manifest(
            staged,
            method=config.method,
            method_config=json.loads(canonical_json(config)),
            temperature=config.method_config.target_temperature,
            teacher_digest=loaded.digest,
            statistics_digest=features.digest,
            code_version=code_digest("synthesize"),
            seed=seed,
            shards=[_copy(shard, staged) for shard in shards],
        )
        check_set(manifest.class_histogram, config=config)
    if reports:
        made = TransferSet(out)
        _write_picture(Path(reports, SAMPLES_FILE), made, loaded.card, config)
        write_summary(Path(reports, SUMMARY_FILE), _summary(made, loaded, features, config, seed))
    names = ("num_images", "mean_confidence", "target_agreement")
    return reference(out, {name: getattr(manifest, name) for name in names})


def _write_picture(path: Path, made: TransferSet, card: ModelCard, config: SynthesisConfig) -> None:
    """Write a picture of the first images."""
    first = range(min(_SHOWN_IMAGES, len(made)))
    rows = slice(first.stop)
    confidence, answers = made.teacher_logits[rows].softmax(1).max(1)
    columns = (answers, confidence, made.soft_targets[rows].argmax(1), config.method_config.is_refined(first))
    samples = [
        Sample(pixels=pixels.numpy(), answer=answer, confidence=sure, target=target, is_refined=is_refined)
        for pixels, answer, sure, target, is_refined in zip(
            made.images[rows], *(column.tolist() for column in columns), strict=True
        )
    ]
    shown = f"the first {len(first)} of {len(made):,} images, made by {config.method}"
    write_samples(path, samples, card.class_labels, title=f"Transfer set of the teacher {path.parent.name}: {shown}")


def _summary(
    made: TransferSet, teacher: Teacher, statistics: FeatureStatistics, config: SynthesisConfig, seed: int
) -> SetSummary:
    has_model = config.method_config.uses_statistics
    return summarise_set(
        made,
        is_refined=config.method_config.is_refined,
        drawn_axes=drawn_on_axes(statistics, seed=seed) if has_model else NO_AXES,
        image_axes=images_on_axes(teacher, statistics, made.images) if has_model else NO_AXES,
    )


def _copy(shard: Artifact, folder: Path) -> ShardRecord:
    source = Path(shard.path)
    place_file(source, folder / source.name)
    return ShardRecord(file=source.name, sha256=shard.sha256, num_images=int(shard.numbers["num_images"]))
