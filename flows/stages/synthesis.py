"""Stage 3: the transfer set. Its shards are made in parallel and resumed separately."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.futures import PrefectFuture
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

from dfkd_core.common.output_folders import check_output_folder
from dfkd_core.models.storage import read_card
from dfkd_core.progress import Progress
from dfkd_core.synthesis.guards import balance_note
from dfkd_core.synthesis.shards import num_shards
from dfkd_core.transfer_set.manifest import read_manifest
from dfkd_core.transfer_set.target import check_target
from dfkd_flows.settings.params import ExecutionConfig, Params
from dfkd_flows.shown import log
from dfkd_flows.shown.names import teacher_label
from dfkd_flows.stages.caching import FLOW_OPTIONS, compute_for, run_cached
from dfkd_flows.stages.only_student import check_only_student
from dfkd_flows.stages.statistics import estimate
from dfkd_tasks.caching.workspace import Artifact, TeacherFiles, is_intact, reference, work_folder
from dfkd_tasks.processes.worker import start_worker
from dfkd_tasks.records.progress import count_noted, report
from dfkd_tasks.stages.synthesis import assemble_transfer_set, make_shard, prepare

__all__ = ["shard_runner", "synthesize", "synthesize_anywhere"]

_SECONDS_BETWEEN_LOOKS = 0.5


def synthesize(params: Params) -> str:
    """Make the transfer set of a teacher and write it into its folder, see `TeacherFiles`."""
    files = TeacherFiles(params.teacher_name)
    check_only_student(read_card(files.network), params)
    # A link can lead to files that are not the project's.
    if files.transfer_set.is_symlink():
        check_target(files.transfer_set)
    else:
        check_output_folder(files.transfer_set)
    run = _synthesize.with_options(task_runner=shard_runner(params.execution))
    return run(params, reference(files.network), reference(files.statistics), files.transfer_set, files.reports)


def synthesize_anywhere(params: Params, teacher_folder: Path, statistics_folder: Path | None, out: Path) -> str:
    """Make a transfer set of any teacher in any folder, outside of DVC.

    Args:
        params: Settings of the set.
        teacher_folder: A stored teacher.
        statistics_folder: Its statistics; None estimates them first.
        out: Folder of the transfer set; new, empty or an earlier set.
    """
    run = _synthesize_anywhere.with_options(task_runner=shard_runner(params.execution))
    return run(params, teacher_folder, statistics_folder, out)


def shard_runner(config: ExecutionConfig) -> TaskRunner[Any]:
    """Return the task runner of the parameters."""
    if config.task_runner == "threads":
        return ThreadPoolTaskRunner(max_workers=config.num_workers)
    start = (os.getpid(), "synthesize")
    return ProcessPoolTaskRunner(max_workers=config.num_workers, initializer=start_worker, initargs=start)


@flow(name="synthesize anywhere", **FLOW_OPTIONS)
def _synthesize_anywhere(params: Params, teacher_folder: Path, statistics_folder: Path | None, out: Path) -> str:
    statistics = reference(statistics_folder) if statistics_folder else estimate(params, teacher_folder)
    return _make_set(params, reference(teacher_folder), statistics, out, None)


@flow(name="synthesize", **FLOW_OPTIONS)
def _synthesize(params: Params, teacher: Artifact, statistics: Artifact, out: Path, reports: Path) -> str:
    log.show_run(f"synthesize {teacher_label(params)}", params)
    return _make_set(params, teacher, statistics, out, reports)


def _make_set(params: Params, teacher: Artifact, statistics: Artifact, out: Path, reports: Path | None) -> str:
    inputs = {
        "teacher": teacher.sha256,
        "statistics": statistics.sha256,
        "config": params.synthesis,
        "seed": params.seed,
    }
    folder = work_folder("synthesize", inputs)
    settings: dict[str, Any] = {
        "teacher": teacher,
        "statistics": statistics,
        "config": params.synthesis,
        "seed": params.seed,
        "folder": folder.as_posix(),
    }
    prepared = None
    if params.synthesis.method_config.prepares:
        prepared = run_cached(prepare, **settings, compute=compute_for(params.execution))
    with _showing(folder, params.synthesis.num_images):
        shards = _make_shards({**settings, "prepared": prepared}, num_shards(params.synthesis), params.execution)
    reports_path = reports.as_posix() if reports else None
    made = assemble_transfer_set(
        shards,
        **{**settings, "folder": out.as_posix()},
        reports=reports_path,
        compute=compute_for(params.execution),
    )
    num_images, confidence, reached = (
        made.numbers[name] for name in ("num_images", "mean_confidence", "target_agreement")
    )
    manifest = read_manifest(out)
    note = balance_note(manifest.class_histogram, method=manifest.method, method_config=manifest.method_config)
    summary = (
        f"{num_images:.0f} images by {params.synthesis.method}, mean confidence {confidence:.3f}, "
        f"{reached:.0%} reach the class of their target"
    )
    return log.logged(f"{summary}; {note}" if note else summary)


def _make_shards(settings: dict[str, Any], count: int, execution: ExecutionConfig) -> list[Artifact]:
    task = make_shard.with_options(retries=execution.num_retries)
    compute = compute_for(execution, num_workers=min(execution.num_workers, count))

    def submit(index: int, *, refresh: bool) -> PrefectFuture[Artifact]:
        run = task.with_options(refresh_cache=True) if refresh else task
        future: PrefectFuture[Artifact] = run.submit(index, **settings, compute=compute)
        return future

    futures = [submit(index, refresh=False) for index in range(count)]
    shards = [future.result() for future in futures]
    cached = [future.state.name == "Cached" for future in futures]
    intact = [is_intact(shard) for shard in shards]
    if any(cached):
        log.note(f"{sum(map(all, zip(cached, intact)))} of {count} shards reused")
    again = {index: submit(index, refresh=True) for index in range(count) if not intact[index]}
    return [again[index].result() if index in again else shard for index, shard in enumerate(shards)]


@contextmanager
def _showing(folder: Path, num_images: int) -> Iterator[None]:
    """Report the number of finished images, in whole and in unfinished shards, while the block runs."""
    finished = threading.Event()

    def look() -> None:
        while not finished.wait(_SECONDS_BETWEEN_LOOKS):
            done = min(count_noted(folder), num_images)
            report(Progress(stage="synthesize", done=done, total=num_images, unit="images"))

    looker = threading.Thread(target=look, name="shard progress", daemon=True)
    looker.start()
    try:
        yield
    finally:
        finished.set()
        looker.join()
