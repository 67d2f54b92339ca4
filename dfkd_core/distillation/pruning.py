"""A thinner copy of the teacher as the student's first weights: channels are removed and the others compensate for it.

`dfkd_core.models.channels` finds which channels belong together, `dfkd_core.distillation.channel_choice` chooses those
that are kept. The layers that read them are then fitted by least squares on their inputs in the student (He et al.,
2017, arXiv 1707.06168, equation 5), see `dfkd_core.distillation.copying`. Both steps use synthetic images alone. Only
the sampled positions are random, drawn from a stream with a fixed seed. Both networks run their own `forward`, so
checks, loops and reshapes in it do no harm. If the student has fewer blocks, the teacher is made shorter first, see
`dfkd_core.distillation.depth`.

n images, c channels, h height, w width, k classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dfkd_core.common.pixels import grey_images, load_batch
from dfkd_core.common.rows import Rows
from dfkd_core.distillation.copying import Pairing, copy_layers
from dfkd_core.distillation.depth import find_rows, first_fitting, is_inside, make_shorter
from dfkd_core.errors import DistillationError, TeacherError
from dfkd_core.models.access import Inspectable
from dfkd_core.models.calls import NotThinnableError
from dfkd_core.models.channels import find_channels, is_depthwise
from dfkd_core.models.outputs import find_output_key, select_output
from dfkd_core.models.passes import LABELLING_SHARE

__all__ = ["check_copy", "check_thinner", "fill_copy", "no_copy", "prune_into"]

_MAX_IMAGES = 5000
_MIN_IMAGES = 200
# Limits memory: values of all images in the network's largest map.
_MAX_MAP_VALUES = 2**25
# Maps of both networks together that are in memory during the residual sum of a block.
_MAPS_AT_ONCE = 5
_CHECKED_IMAGES = 200
# Images on which blocks are left out for a trial, and values of pixels that limit them.
_MIN_TRIALS, _MAX_TRIALS = 16, 64
_TRIAL_VALUES = 2**20
# Largest difference from the teacher of a copy that is as wide, as a share of the largest output.
_SAME = 1e-3
# Largest squared error of a thinner copy, as a share of the variance of the teacher's outputs. A constant reaches 1.
_WORST = 1.5
# Settings of a convolution that do not depend on its width.
_SETTINGS = ("kernel_size", "stride", "padding", "dilation", "padding_mode")


def prune_into(teacher: Inspectable, student: nn.Module, images: Rows) -> None:
    """Fill a network's weights and BatchNorm buffers, in place, with a thinner copy of the teacher.

    Both networks must have the same modules under the same paths, and no width of the student may be larger. Only the
    student's rows of blocks (`nn.Sequential`, `nn.ModuleList`, `nn.ModuleDict`) may be shorter. With equal widths and
    depths, the student becomes the teacher up to rounding: its outputs differ by at most a thousandth of the largest
    one. Least squares are solved in float64 on the CPU.

    Args:
        teacher: The network to copy from.
        student: The network to fill; takes normalised images, as the teacher's does. Its mode and device do not change.
        images: uint8 images [n, c, h, w], of which the first 5,000 are used; fewer if the teacher's maps are large, and
            fewer than 200 only if memory is short.

    Raises:
        DistillationError: The student cannot be a thinner copy of the teacher. Its weights may have changed.
    """
    try:
        fill_copy(teacher, student, images)
    except NotThinnableError as error:
        raise no_copy(str(error)) from error


def check_thinner(network: nn.Module, thin: nn.Module) -> None:
    """Check that `thin` differs from `network` only in widths and in the length of rows, and that none is larger.

    Raises:
        DistillationError: There are other differences; names them.
    """
    if faults := _differences(network, thin):
        raise no_copy("; ".join(faults[:5]))


def check_copy(teacher: Inspectable, student: nn.Module) -> None:
    """Check that `prune_into` can copy the teacher into this network; neither is changed.

    Raises:
        DistillationError: It cannot; names the reason.
    """
    check_thinner(teacher.network, student)
    is_training = student.training
    network = teacher.network
    try:
        network = _as_short(teacher, student, lambda: grey_images(2, teacher.card.image_shape, teacher.device))
        _paired(teacher, network, student.to(teacher.device).eval())
    except NotThinnableError as error:
        if not _is_as_wide(network, student):
            raise no_copy(str(error)) from error
    finally:
        student.train(is_training)


def no_copy(reason: str) -> DistillationError:
    """Return the error for a student that cannot start as a copy."""
    return DistillationError(
        f"The student cannot start as a thinner copy of the teacher: {reason}. Choose a distillation.student that can "
        "(the teacher's network with a width multiple, as lenet5@0.5), or set distillation.start: random"
    )


@torch.no_grad()
def fill_copy(teacher: Inspectable, student: nn.Module, images: Rows) -> None:
    """Do the work of `prune_into`.

    Raises:
        NotThinnableError: The student cannot be a copy; the message is the reason alone.
    """
    if faults := _differences(teacher.network, student):
        raise NotThinnableError("; ".join(faults[:5]))
    weight = next(student.parameters(), None)
    if weight is None:
        raise NotThinnableError("the student has no weights")
    device, is_training = weight.device, student.training
    student.to(teacher.device).eval()
    network = _as_short(teacher, student, lambda: _pixels(teacher, images, _num_trials(teacher)))
    try:
        _fill(teacher, network, student, images)
    except NotThinnableError:
        if not _is_as_wide(network, student):
            raise
        # The state alone makes a network of the same code and widths the same.
        student.load_state_dict(network.state_dict())
        probes = _normalised(teacher, images, _CHECKED_IMAGES)
        key = teacher.card.output_key
        _check_same(select_output(network(probes), key), _output_of_student(student(probes), key))
    finally:
        student.to(device).train(is_training)


def _as_short(teacher: Inspectable, student: nn.Module, pixels: Callable[[], Tensor]) -> nn.Module:
    """Return the teacher's network, or a copy with as few blocks as the student, chosen on images in [0, 1]."""
    network = teacher.network
    if not find_rows(network, student):
        return network
    inputs, key = teacher.normalise(pixels()), teacher.card.output_key
    return make_shorter(network, student, lambda short: select_output(short(inputs), key), _fits)


def _fits(own: nn.Module, block: nn.Module) -> bool:
    return not _differences(block, own)


def _paired(teacher: Inspectable, network: nn.Module, student: nn.Module) -> Pairing:
    probes = teacher.normalise(grey_images(2, teacher.card.image_shape, teacher.device))
    whole = _whole_groups(network, student)
    return Pairing(*(find_channels(net, probes, whole_groups=whole) for net in (network, student)))


def _fill(teacher: Inspectable, network: nn.Module, student: nn.Module, images: Rows) -> None:
    pairing = _paired(teacher, network, student)
    pixels = _normalised(teacher, images, _num_images(teacher, pairing.wide.largest))
    key = teacher.card.output_key
    wanted = select_output(copy_layers(network, student, pairing, pixels), key)[:_CHECKED_IMAGES]
    found = _output_of_student(student(pixels[:_CHECKED_IMAGES]), key)
    if pairing.is_whole:
        _check_same(wanted, found)
    else:
        _check_near(wanted, found)


def _output_of_student(answer: Any, key: str) -> Tensor:
    """Return the student's output: at the teacher's key, or at its own if it answers in another form."""
    try:
        return select_output(answer, key)
    except TeacherError:
        return select_output(answer, find_output_key(answer, role="student"))


def _check_same(wanted: Tensor, found: Tensor) -> None:
    difference = _relative_difference(wanted, found)
    if not difference <= _SAME:
        raise NotThinnableError(
            f"a copy as wide as the teacher differs from it by {difference:.2g} of the largest output, so the two "
            "networks compute different things"
        )


def _relative_difference(wanted: Tensor, found: Tensor) -> float:
    if wanted.shape != found.shape:
        return float("inf")
    return float((found - wanted).abs().max() / wanted.abs().max().clamp_min(torch.finfo(wanted.dtype).tiny))


def _check_near(wanted: Tensor, found: Tensor) -> None:
    spread = (wanted - wanted.mean(0)).square().mean()
    error = (found - wanted).square().mean()
    if not error <= _WORST * spread + 1e-6 * wanted.square().mean():
        raise NotThinnableError(
            f"the copy's outputs have a squared error of {float(error / spread):.2g} of the teacher's variance"
        )


def _is_as_wide(network: nn.Module, thin: nn.Module) -> bool:
    shapes = [{name: tensor.shape for name, tensor in net.state_dict().items()} for net in (network, thin)]
    return shapes[0] == shapes[1]


def _whole_groups(network: nn.Module, thin: nn.Module) -> frozenset[str]:
    """Return the convolutions whose groups are kept or removed whole: depthwise ones, and those with fewer groups."""
    own = dict(thin.named_modules())
    return frozenset(
        path
        for path, module in network.named_modules()
        if isinstance(module, nn.Conv2d)
        and (is_depthwise(module.weight, module.groups) or module.groups != getattr(own[path], "groups", None))
    )


def _differences(network: nn.Module, thin: nn.Module) -> list[str]:
    rows = find_rows(network, thin)
    own, wide = ({p: leaf for p, leaf in _leaves(net) if not is_inside(p, rows)} for net in (thin, network))
    faults = [f"the student has no {path}" for path in wide if path not in own]
    faults += [f"the teacher has no {path}" for path in own if path not in wide]
    faults += [fault for path in wide if path in own for fault in _module_differences(path, wide[path], own[path])]
    return faults + [fault for path in rows for fault in _row_differences(network, thin, path)]


def _row_differences(network: nn.Module, thin: nn.Module, path: str) -> Iterator[str]:
    """Yield the fault of a row of blocks of which the student has fewer."""
    blocks, own = (list(net.get_submodule(path).children()) for net in (network, thin))
    if first_fitting(own, blocks, _fits) is None:
        yield f"the {len(own)} blocks of {path} are no choice of the teacher's {len(blocks)}, in their order"


def _leaves(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((path, module) for path, module in network.named_modules() if not any(module.children()))


def _module_differences(path: str, module: nn.Module, small: nn.Module) -> Iterator[str]:
    if type(module) is not type(small):
        yield f"{path} is {type(small).__name__} in the student and {type(module).__name__} in the teacher"
        return
    if isinstance(module, nn.Conv2d) and isinstance(small, nn.Conv2d):
        for name in _SETTINGS:
            if getattr(module, name) != getattr(small, name):
                yield f"{name} of {path} is {getattr(small, name)}, the teacher's is {getattr(module, name)}"
        if module.groups != small.groups and _group_widths(module) != _group_widths(small):
            yield f"{path} has {small.groups} groups, the teacher's {module.groups} of another width"
    state, small_state = module.state_dict(), small.state_dict()
    if state.keys() != small_state.keys():
        yield f"{path} holds {', '.join(sorted(small_state))}, the teacher's holds {', '.join(sorted(state))}"
        return
    for name, tensor in small_state.items():
        if any(size > wide for size, wide in zip(tensor.shape, state[name].shape, strict=True)):
            yield f"{path}.{name} is {tuple(tensor.shape)}, larger than the teacher's {tuple(state[name].shape)}"


def _group_widths(module: nn.Conv2d) -> tuple[int, int]:
    return module.in_channels // module.groups, module.out_channels // module.groups


def _pixels(teacher: Inspectable, images: Rows, count: int) -> Tensor:
    """Return the first images in [0, 1], [n, c, h, w]."""
    return load_batch(images, torch.arange(min(count, len(images))), teacher.device)


def _normalised(teacher: Inspectable, images: Rows, count: int) -> Tensor:
    """Return the input of the teacher's network for the first images, [n, c, h, w]."""
    return teacher.normalise(_pixels(teacher, images, count))


def _num_trials(teacher: Inspectable) -> int:
    """Return the number of images on which blocks are left out for a trial: many passes, so few images."""
    channels, height, width = teacher.card.image_shape
    return max(_MIN_TRIALS, min(_MAX_TRIALS, _TRIAL_VALUES // (channels * height * width)))


def _num_images(teacher: Inspectable, largest: int) -> int:
    """Return the number of images that memory allows if the largest map has this number of values."""
    count = _MAX_MAP_VALUES // largest
    if count < _MIN_IMAGES:
        room = LABELLING_SHARE * teacher.passes.memory
        count = max(count, min(_MIN_IMAGES, int(room) // (4 * _MAPS_AT_ONCE * largest)), 1)
    return min(_MAX_IMAGES, count)
