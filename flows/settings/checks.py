"""Checks of a run's inputs, made before params.yaml is written and before anything is computed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from dfkd_core.common.devices import resolve_device
from dfkd_core.common.digests import json_digest, write_json
from dfkd_core.data.datasets import DataConfig, dataset_spec, ensure_dataset, is_built_in, open_dataset
from dfkd_core.distillation.config import DistillationConfig
from dfkd_core.distillation.students import check_start, check_student
from dfkd_core.errors import DfkdError
from dfkd_core.evaluation.labelled_images import load_evaluation_data
from dfkd_core.models.built_in import default_layer
from dfkd_core.models.classifier import Classifier, ModelCard, build_classifier
from dfkd_core.models.storage import CONFIG_FILE, read_card
from dfkd_core.models.teacher import Teacher
from dfkd_core.statistics.estimation import estimate_statistics
from dfkd_core.synthesis.methods import build_synthesizer, check_num_images
from dfkd_core.teachers.loading import bring_teacher
from dfkd_core.teachers.source import SourceConfig
from dfkd_flows.settings.params import Params
from dfkd_tasks.caching.stored import read_note
from dfkd_tasks.caching.trust import trusted_factories
from dfkd_tasks.caching.workspace import STATE

__all__ = ["check_device", "check_run"]

_CHECKED = STATE / "checked_teachers"
_INPUTS = "inputs.json"
_OWN_DATA = ("folder:", "file:")


def check_run(
    params: Params, source: SourceConfig, scratch: Path, *, with_evaluation: bool = True, fetches: bool = True
) -> None:
    """Check device, teacher, layer, statistics, method, students and data.

    Args:
        params: Parameters of one teacher and its students, see `Params.for_teacher`, with the digest of its files.
        source: `teacher.source` with local files instead of MLflow's addresses.
        scratch: Folder for temporary files.
        with_evaluation: Whether the run reads the evaluation data.
        fetches: Whether data sets that are missing are fetched, after the other checks; else only data of the user's
            own is checked.

    Raises:
        ConfigError: The device does not exist, or a network is unknown, cannot be built or does not fit the teacher.
        TeacherError: The teacher cannot be read or is unsuitable, or has no such layer.
        DistillationError: A student must start as a thinner copy of the teacher and is none.
        DataError: A data set is missing or corrupt, or its classes are not the teacher's.
    """
    check_device(params.execution.device)
    training = params.training_data
    card = _check_trained(params, training) if training else _check_external(params, source, scratch)
    if with_evaluation and (fetches or params.data.dataset.startswith(_OWN_DATA)):
        load_evaluation_data(params.data, card)
    if fetches and training and is_built_in(training.dataset):
        ensure_dataset(training, "train")


def check_device(name: str) -> str:
    """Return the device that `execution.device` selects on this machine.

    Raises:
        ConfigError: It is no device, or the machine does not have it.
    """
    return str(resolve_device(name))


def _check_trained(params: Params, data: DataConfig) -> ModelCard:
    """Check the network of a teacher that the run will train, with random weights."""
    config = params.teacher
    channels, names = _training_shape(data)
    card = ModelCard(
        network=config.network,
        in_channels=channels,
        image_size=data.image_size,
        num_classes=len(names),
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
        layer=config.layer or default_layer(config.network),
        class_names=names,
    )
    _check_networks(build_classifier(card, seed=0), params)
    return card


def _training_shape(data: DataConfig) -> tuple[int, tuple[str, ...]]:
    """Return the channels and the class names that training images have, see `load_dataset`."""
    if is_built_in(data.dataset):
        spec = dataset_spec(data.dataset)
        return data.channels or spec.in_channels, spec.class_names
    raw = open_dataset(data, "train")
    channels = data.channels or next(iter(raw.read([0]))).shape[1]
    return channels, tuple(raw.class_names) or tuple(map(str, range(int(raw.labels.max()) + 1)))


def _check_external(params: Params, source: SourceConfig, scratch: Path) -> ModelCard:
    """Check a teacher from elsewhere. If it passed before, its card is enough, unless its weights are to be copied."""
    inputs, noted = _teacher_inputs(params), _CHECKED / params.teacher_name
    needs_weights = any(student.start == "pruned" for student in _students(params))
    if not needs_weights and (card := _card_checked_before(inputs, noted)):
        for student in _students(params):
            check_student(card, student)
        check_num_images(params.synthesis, card)
        return card
    layer, size = params.teacher.layer, params.data.image_size
    trusted = trusted_factories(Path(source.model))
    classifier = bring_teacher(
        source, scratch=scratch, layer=layer, image_size_hint=size, trusted_factories=trusted
    ).classifier
    _check_networks(classifier, params)
    (noted / _INPUTS).unlink(missing_ok=True)
    write_json(noted / CONFIG_FILE, classifier.card)
    write_json(noted / _INPUTS, inputs)
    return classifier.card


def _students(params: Params) -> list[DistillationConfig]:
    return [params.for_student(name).distillation for name in params.students]


def _teacher_inputs(params: Params) -> str:
    config = params.teacher
    return json_digest(
        {
            "source": config.source,
            "layer": config.layer,
            "image_size": params.data.image_size,
            "statistics": params.statistics,
            "method": params.synthesis.method,
        }
    )


def _card_checked_before(inputs: str, noted: Path) -> ModelCard | None:
    if read_note(noted / _INPUTS, str) != inputs:
        return None
    try:
        return read_card(noted)
    except DfkdError:
        # Damaged: the teacher is checked again.
        return None


def _check_networks(classifier: Classifier, params: Params) -> None:
    """Check the layer, the source of statistics, the method, the students, and their start as a thinner teacher."""
    teacher, students = Teacher(classifier), _students(params)
    for student in students:
        check_student(teacher.card, student)
    # Without probes and without the search for sigma, which takes long and depends on trained weights.
    quick = dataclasses.replace(params.statistics, spread="sigma", num_probes=2)
    build_synthesizer(params.synthesis, teacher, estimate_statistics(teacher, quick, seed=params.seed))
    for student in students:
        if student.start == "pruned":
            check_start(teacher, student)
