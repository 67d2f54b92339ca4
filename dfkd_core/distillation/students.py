"""The untrained student: its network, a check that it can be trained, and its first weights."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, cast

import torch
from torch import Tensor

from dfkd_core.common.digests import canonical_json
from dfkd_core.common.pixels import grey_images
from dfkd_core.common.rows import Rows
from dfkd_core.common.sameness import difference
from dfkd_core.common.seeding import derive_generator
from dfkd_core.distillation.config import AUTO, DistillationConfig
from dfkd_core.distillation.pruning import check_copy, fill_copy, no_copy
from dfkd_core.distillation.soft_labels import distillation_loss
from dfkd_core.distillation.training_output import find_training_key
from dfkd_core.errors import ConfigError, DfkdError, first_line
from dfkd_core.models.access import Inspectable, Labeller, has_access
from dfkd_core.models.architectures import architecture_fault, build_architecture
from dfkd_core.models.built_in import build_network, half_as_wide
from dfkd_core.models.calls import NotThinnableError
from dfkd_core.models.classifier import Classifier, ModelCard, build_classifier, describe, in_memory_format
from dfkd_core.models.layers import OUTPUT
from dfkd_core.models.outputs import OutputKind, find_output_key, find_output_kind, is_from_sigmoid, select_output
from dfkd_core.models.storage import save_model
from dfkd_core.training.loop import build_optimizer

__all__ = [
    "Start", "UntrainedStudent", "build_student", "check_start", "check_student", "drawn_student", "student_card",
]  # fmt: skip

Start = Literal["random", "pruned"]
"""The kind of a student's first weights: drawn, or a thinner copy of the teacher."""

_NUM_PROBES = 4
# Small networks that take images of any number of channels, largest first.
_BUILT_IN = ("lenet5_half", "alexnet_half", "resnet18_quarter")
_FALLBACK = "resnet18_quarter"


def student_card(teacher: ModelCard, config: DistillationConfig) -> ModelCard:
    """Return the card of a student of this teacher: same input and classes, its own network, no modelled layer yet."""
    network, arguments = config.student, config.student_arguments
    if network == AUTO:
        network, reason = _default_network(teacher)
        arguments = arguments if reason else {**teacher.arguments, **arguments}
    return dataclasses.replace(
        teacher,
        network=network,
        arguments=arguments,
        layer="",
        outputs="logits",
        output_key="",
        program_sha256="",
    )


def drawn_student(teacher: ModelCard, config: DistillationConfig, *, seed: int) -> Classifier:
    """Build the student with drawn weights, and detect the kind of its output and its modelled layer.

    Args:
        teacher: The teacher's card.
        config: The student's network.
        seed: Seed of the weights.

    Raises:
        ConfigError: The network cannot be built, rejects the teacher's images, or does not return logits or
            probabilities of the teacher's classes.
    """
    card = student_card(teacher, config)
    # With a layer, nothing is detected yet, and the weights keep their layout.
    student = build_classifier(dataclasses.replace(card, layer=OUTPUT, channels_last=False), seed=seed)
    key, kind = _output_form(student, teacher)
    student.card = dataclasses.replace(card, outputs=kind, output_key=key)
    try:
        describe(student)
        student.training_key = _training_key(student)
    except DfkdError as error:
        raise ConfigError(f"{error}. {_proposal(teacher)}") from error
    return in_memory_format(student)


def _output_form(student: Classifier, teacher: ModelCard) -> tuple[str, OutputKind]:
    """Return the key and the kind of a student's output."""
    name, is_training = student.card.network, student.training
    try:
        # Only the graph of gradients distinguishes sigmoids from logits.
        with torch.enable_grad():
            answer = student.eval().answer(_probes(teacher))
        key = find_output_key(answer, role="student")
        output = select_output(answer, key, role="student")
        kind = find_output_kind(output, role="student")
    except DfkdError as error:
        raise ConfigError(f"The student {name} cannot be used. {error}. {_proposal(teacher)}") from error
    except Exception as error:  # the forward of a user's network can raise anything
        raise ConfigError(
            f"The student {name} rejects images of shape {teacher.image_shape}: {first_line(error)}. "
            f"{_proposal(teacher)}"
        ) from error
    finally:
        student.train(is_training)
    if output.dim() == 1 or output.shape[1:] == (1,):
        # Drawn weights alone do not show whether one number is a logit or a probability.
        kind = "binary_probability" if is_from_sigmoid(output) else "binary_logit"
    return key, kind


def _training_key(student: Classifier) -> str | None:
    """Return the key of the output in training mode; None if the network fails, which a step reports better."""
    try:
        return find_training_key(student, _probes(student.card))
    except DfkdError:
        raise
    except Exception:  # the forward of a user's network can raise anything
        return None


def _default_network(teacher: ModelCard) -> tuple[str, str]:
    """Return the default student: the teacher's network with half the widths, or else a built-in one and the reason."""
    shape = (teacher.in_channels, teacher.image_size, teacher.num_classes)
    if architecture_fault(teacher.network):
        return _FALLBACK, f"the teacher ({teacher.network}) has no name from which a thinner one can be built"
    half = half_as_wide(teacher.network)
    reason = _thinner_fault(half, shape, canonical_json(teacher.arguments))
    return (_FALLBACK, reason) if reason else (half, "")


@cache
def _thinner_fault(network: str, shape: tuple[int, int, int], arguments: str) -> str:
    """Return why a network cannot be built, empty if it can; `arguments` is JSON."""
    in_channels, image_size, num_classes = shape
    try:
        with torch.random.fork_rng(devices=[]):
            build_architecture(
                network,
                in_channels=in_channels,
                image_size=image_size,
                num_classes=num_classes,
                arguments=json.loads(arguments),
            )
    except ConfigError as error:
        return str(error)
    return ""


def _proposal(teacher: ModelCard) -> str:
    """Return a sentence with students that fit a teacher's images and classes."""
    found, reason = _default_network(teacher)
    names = [] if reason else [found]
    for name in _BUILT_IN:
        try:
            # Only shapes are needed: nothing is allocated or drawn.
            with torch.device("meta"):
                build_network(
                    name,
                    in_channels=teacher.in_channels,
                    image_size=teacher.image_size,
                    num_classes=teacher.num_classes,
                )
        except ConfigError:
            continue
        names.append(name)
    fitting = ", ".join(dict.fromkeys(names)) or "a network of your own, as package.module:factory"
    return f"Choose another distillation.student; these fit the teacher's images and classes: {fitting}"


def check_student(teacher: ModelCard, config: DistillationConfig) -> None:
    """Check, before any expensive work, that the student can be built for this teacher, trained and stored.

    Takes one step of the optimizer on a few drawn images.

    Args:
        teacher: The teacher's card.
        config: The student's network and the settings of its training.

    Raises:
        ConfigError: The student cannot be built, trained or stored, or its output is not one logit per class.
    """
    student = drawn_student(teacher, config, seed=0)
    name, num_classes = student.card.network, teacher.num_classes
    for count in (2, 1):
        with torch.no_grad():
            shape = tuple(student.eval()(grey_images(count, teacher.image_shape)).shape)
        if shape != (count, num_classes):
            raise ConfigError(
                f"The student {name} answers {count} {'images' if count > 1 else 'image'} with shape {shape}; for the "
                f"teacher's {num_classes} classes, it must be {(count, num_classes)}. Set "
                f"distillation.student_arguments. {_proposal(teacher)}"
            )
    if fault := _weights_fault(student) or _step_fault(student, config) or _storage_fault(student, teacher, config):
        raise ConfigError(f"The student {name} cannot be trained: {fault}. {_proposal(teacher)}")


def _weights_fault(student: Classifier) -> str:
    weights = dict(student.network.named_parameters())
    unusual = [name for name, weight in weights.items() if not weight.is_floating_point()]
    if unusual:
        return f"its weight {unusual[0]} is {weights[unusual[0]].dtype}, and it must be of real floating-point numbers"
    if not any(weight.requires_grad for weight in weights.values()):
        return "none of its weights is trained (requires_grad is False for all)"
    return ""


def _step_fault(student: Classifier, config: DistillationConfig) -> str:
    """Return why a step in training mode fails, empty if it does not."""
    images = _probes(student.card)
    wanted = torch.randn(len(images), student.card.num_classes, generator=derive_generator(0, "student targets"))
    optimizer = build_optimizer(student, learning_rate=config.learning_rate, weight_decay=config.weight_decay)
    try:
        # Dropout draws from the global generator.
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            logits = student.train()(images)
            if logits.shape != wanted.shape:
                return f"in training mode it answers {len(images)} images with shape {tuple(logits.shape)}"
            if not logits.requires_grad:
                return "no gradient reaches its weights: something in its forward detaches them"
            loss = distillation_loss(logits.float(), wanted, temperature=config.temperature)
            torch.autograd.backward(loss)
            optimizer.step()
            with torch.no_grad():
                after = student.eval()(images)
    except Exception as error:  # the forward of a user's network can raise anything
        return f"a training step on {len(images)} images fails ({first_line(error)})"
    trained = [weight for weight in student.parameters() if weight.grad is not None]
    if not any(bool(weight.grad.any()) for weight in trained if weight.grad is not None):
        return "no gradient reaches its weights"
    is_finite = bool(torch.isfinite(loss)) and bool(torch.isfinite(after).all())
    return "" if is_finite else "its outputs are NaN or Inf after a training step"


@torch.no_grad()
def _storage_fault(student: Classifier, teacher: ModelCard, config: DistillationConfig) -> str:
    """Return why the student cannot be stored and built again, empty if it can."""
    images = _probes(teacher)
    again = drawn_student(teacher, config, seed=1).eval()
    try:
        with TemporaryDirectory() as folder:
            save_model(Path(folder), student)
        again.network.load_state_dict(student.network.state_dict())
        fault = difference(again(images), student.eval()(images))
    except Exception as error:  # a user's network can have hooks that raise anything
        fault = first_line(error)
    return f"it cannot be stored and built again from its name, arguments and weights ({fault})" if fault else ""


def _probes(card: ModelCard) -> Tensor:
    """Return different images in [0, 1], few, but more than one for BatchNorm."""
    return torch.rand(_NUM_PROBES, *card.image_shape, generator=derive_generator(0, "student probes"))


@dataclass(frozen=True, slots=True)
class UntrainedStudent:
    """A student with its first weights."""

    classifier: Classifier
    start: Start
    """The kind of its first weights."""
    reason: str
    """Why `distillation.start: auto` could not copy the teacher; empty if it could, and for other settings."""


def check_start(teacher: Inspectable, config: DistillationConfig) -> None:
    """Check, before any expensive work, that the student can start as a thinner copy of the teacher.

    Raises:
        DistillationError: It cannot; names the reason.
    """
    check_copy(teacher, drawn_student(teacher.card, config, seed=0).network)


def build_student(teacher: Labeller, images: Rows, config: DistillationConfig, *, seed: int) -> UntrainedStudent:
    """Return the student with its first weights.

    Args:
        teacher: The network to copy from. If its layers are not accessible, the weights are drawn.
        images: uint8 images [n, c, h, w] on which a thinner copy is fitted.
        config: The student's network and its start.
        seed: Seed of drawn weights.

    Raises:
        DistillationError: The start is `pruned` and the student cannot be a thinner copy of the teacher.
    """
    student = drawn_student(teacher.card, config, seed=seed)
    if config.start == "random":
        return UntrainedStudent(student, "random", "")
    try:
        if not has_access(teacher, "layers"):
            raise NotThinnableError("the teacher's layers and weights cannot be read")
        fill_copy(cast(Inspectable, teacher), student.network, images)
    except NotThinnableError as error:
        if config.start == "pruned":
            raise no_copy(str(error)) from error
        reason = (config.student == AUTO and _default_network(teacher.card)[1]) or str(error)
        # The copy may have been begun.
        return UntrainedStudent(drawn_student(teacher.card, config, seed=seed), "random", reason)
    return UntrainedStudent(student, "pruned", "")
