"""Checks, before any expensive work, that a network can be a teacher. Each fault is one sentence.

n images, c channels, h height, w width, k classes.
"""

from __future__ import annotations

import inspect
import traceback
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.parameter import is_lazy

from dfkd_core.common.seeding import normal_rows
from dfkd_core.errors import DfkdError, TeacherError, first_line
from dfkd_core.models.classifier import Classifier
from dfkd_core.models.outputs import find_output_key, select_output

__all__ = ["PassError", "check_rows", "check_teacher", "check_tensors", "probe_images", "try_forward"]

_NUM_PROBES = 16
# Of an image; 16 probes of this size take 1 GiB.
_MOST_NUMBERS = 2**24
# Relative to the outputs' scale: above the rounding of another order of sums, below the effect of dropout.
_SAME = 1e-4
_CONSTANT = 1e-6
_LONGEST_CAUSE = 200
_SCRIPT_ERROR = "The following operation failed in the TorchScript interpreter"


def probe_images(image_shape: tuple[int, int, int], num_images: int = _NUM_PROBES) -> Tensor:
    """Return fixed images in [0, 1], float32 [n, c, h, w]: one half soft blots, the other half noise.

    Raises:
        TeacherError: An image has more numbers than any classifier takes.
    """
    channels, height, width = image_shape
    if channels * height * width > _MOST_NUMBERS:
        raise TeacherError(
            f"Images of {channels}x{height}x{width} have more than {_MOST_NUMBERS:,} numbers each. Correct "
            "teacher.source.in_channels and image_size"
        )
    blots = normal_rows(0, "preflight blots", range(num_images - num_images // 2), (channels, 4, 4))
    noise = normal_rows(0, "preflight noise", range(num_images // 2), image_shape)
    drawn = torch.cat([functional.interpolate(blots, (height, width), mode="bilinear"), noise])
    return (0.5 + 0.25 * drawn).clamp(0, 1)


def try_forward(network: torch.nn.Module, images: Tensor, *, with_graph: bool = False) -> object:
    """Call a network the way a teacher is called, and return its answer, which may be of any type.

    Args:
        network: In eval mode.
        images: Images [n, c, h, w].
        with_graph: Whether the answer has an autograd graph that begins at the images.

    Raises:
        PassError: Its forward raises an error.
        TeacherError: It does not take a single tensor of images.
    """
    try:
        with torch.set_grad_enabled(with_graph):
            return network(images.clone().requires_grad_(with_graph))
    except DfkdError:
        raise
    # The code of a network can raise any exception, or end the process.
    except (Exception, SystemExit) as error:
        if not _takes_one_argument(network):
            raise TeacherError(
                f"The network cannot be called with images alone: {first_line(error)}. A teacher's forward takes one "
                "tensor of images; wrap a network that needs more inputs in a module that fixes them"
            ) from error
        raise PassError(tuple(images.shape[1:]), _cause(error)) from error


class PassError(TeacherError):
    """A network's forward raises an error on images."""

    def __init__(self, image_shape: tuple[int, ...], cause: str) -> None:
        """Note the shape of the images, and the network's own error."""
        super().__init__(f"The network rejects float images of shape {image_shape}: {cause}")
        self.image_shape, self.cause = image_shape, cause
        """The shape (c, h, w), and the network's own error in one line."""


def _takes_one_argument(network: torch.nn.Module) -> bool:
    try:
        inspect.signature(network.forward).bind(None)
    except TypeError:
        return False
    except ValueError:  # a forward without a signature in Python
        return True
    return True


def _cause(error: BaseException) -> str:
    """Return a network's error in one line; an error without a text is shown with the code that raised it."""
    lines = str(error).strip().splitlines()
    if isinstance(error, SystemExit):
        return first_line(error)
    if lines and lines[0].startswith(_SCRIPT_ERROR):
        return lines[-1][:_LONGEST_CAUSE]
    if lines and isinstance(error, RuntimeError | ValueError):
        return lines[0][:_LONGEST_CAUSE].rstrip(".!")
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = lines[0] if lines else f"{place.line} ({Path(place.filename).name}, line {place.lineno})"
    return f"{type(error).__name__}: {text}"[:_LONGEST_CAUSE].rstrip(".!")


def check_tensors(network: torch.nn.Module) -> None:
    """Check that a network's state consists of tensors on the CPU, since nothing else is stored.

    Raises:
        TeacherError: It holds other values, or tensors elsewhere.
    """
    state = network.state_dict().items()
    others = [f"{name}: {type(value).__name__}" for name, value in state if not isinstance(value, Tensor)]
    if others:
        raise TeacherError(
            f"The network's state_dict() holds values that are not tensors ({', '.join(others[:3])}): quantised "
            "weights or an extra state, perhaps. Use the network before quantisation, or without them"
        )
    for name, tensor in state:
        if tensor.is_meta and not is_lazy(tensor):
            raise TeacherError(
                f"The network's tensor {name} is on the device meta, without data. Load its weights first"
            )
        if tensor.device.type != "cpu":
            raise TeacherError(f"The network's tensor {name} is on the device {tensor.device}. Move it: network.cpu()")


def check_rows(answer: object, images: Tensor, key: str) -> None:
    """Check that a network's answer has one row for each image.

    Args:
        answer: The answer.
        images: The images [n, c, h, w].
        key: Key or index of the logits in the answer; empty detects it.

    Raises:
        TeacherError: It has more or fewer rows, or lost the dimension of the images.
    """
    output = select_output(answer, key or find_output_key(answer))
    if not output.numel():
        raise TeacherError(f"The network returns shape {tuple(output.shape)}, which holds no numbers")
    is_one_number = len(images) == output.numel() == 1
    if is_one_number or (output.dim() and len(output) == len(images)):
        return
    shape, count = tuple(output.shape), len(images)
    size = "x".join(map(str, images.shape[1:]))
    if count == 1:
        raise TeacherError(
            f"The network returns shape {shape} for one image of {size}, without the dimension of the images: a "
            "squeeze() of all dimensions, perhaps. Use flatten(1) there"
        )
    raise TeacherError(
        f"The network returns shape {shape} for {count} images of {size}; a classifier returns one row for each. Set "
        "teacher.source.image_size and in_channels, or output_key if it returns several tensors"
    )


def check_teacher(classifier: Classifier, images: Tensor) -> list[str]:
    """Check that a classifier in eval mode can be a teacher, and return notes on oddities that do not prevent it.

    Args:
        classifier: The network and its properties.
        images: Different images [n, c, h, w] in [0, 1], see `probe_images`.

    Raises:
        TeacherError: The number of rows is not that of the images, an output is not finite, changes from call to call,
            is the same for all images, or has no gradient with respect to the image; or a pass changes a tensor.
    """
    check_tensors(classifier.network)
    before = {name: tensor.clone() for name, tensor in classifier.network.state_dict().items()}
    with torch.no_grad():
        logits, alone, _ = (_checked_logits(classifier, images[:count]) for count in (len(images), 1, 2))
        _check_unchanged(classifier, before)
        again = _from_another_random_state(classifier, images)
    if not torch.isfinite(logits).all():
        bad = int((~torch.isfinite(logits)).any(1).sum())
        raise TeacherError(
            f"The teacher's output is NaN or Inf for {bad} of {len(images)} probe images. Check its weights and the "
            "range of its input (teacher.source.value_range, mean, std)"
        )
    scale = logits.abs().amax().clamp_min(1e-12)
    change = float((logits - again).abs().amax() / scale)
    if change > _SAME:
        raise TeacherError(
            f"The teacher's output for the same images changes by {change:.2%} from call to call, so it draws random "
            "numbers in eval mode (a dropout that is always on, perhaps). Turn that off in its forward"
        )
    if float(logits.std(0).amax() / scale) < _CONSTANT:
        raise TeacherError(
            "The teacher's output is the same for all probe images, so nothing can be learnt from it. Check that its "
            "weights were loaded, and the range of its input (teacher.source.value_range, mean, std)"
        )
    _check_gradient(classifier, images)
    notes = []
    if float((alone - logits[:1]).abs().amax() / scale) > 100 * _SAME:
        notes.append(
            "an image's output depends on the other images of its batch (a BatchNorm without running statistics, "
            "perhaps), so results depend on synthesis.batch_size"
        )
    return notes


def _checked_logits(classifier: Classifier, images: Tensor) -> Tensor:
    logits: Tensor = classifier(images).float()
    wanted = (len(images), classifier.card.num_classes)
    if tuple(logits.shape) != wanted:
        raise TeacherError(
            f"The teacher answers {len(images)} {'image' if len(images) == 1 else 'images'} with shape "
            f"{tuple(logits.shape)}; with {wanted[1]} classes, it must be {wanted}. Correct a view or squeeze in its "
            "forward that does not keep the images apart, or teacher.source.num_classes"
        )
    return logits


def _check_unchanged(classifier: Classifier, before: dict[str, Tensor]) -> None:
    after = classifier.network.state_dict()
    changed = [name for name, tensor in after.items() if name not in before or not _is_same(before[name], tensor)]
    if changed:
        raise TeacherError(
            f"A pass in eval mode changes the teacher's own tensors ({', '.join(changed[:5])}), so its answers depend "
            "on earlier images. Update them only if self.training is true"
        )


def _is_same(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and bool(((first == second) | (first != first)).all())


def _from_another_random_state(classifier: Classifier, images: Tensor) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        logits: Tensor = classifier(images).float()
    return logits


def _check_gradient(classifier: Classifier, images: Tensor) -> None:
    pixels = images.clone().requires_grad_(True)
    reason = ""
    gradient = None
    try:
        logits = classifier(pixels)
        # Unequal weights, since the gradient of the plain sum of outputs can be zero.
        weights = torch.linspace(-1, 1, logits.shape[1], device=logits.device)
        (gradient,) = torch.autograd.grad((logits * weights).sum(), pixels, allow_unused=True)
    except (RuntimeError, ValueError) as error:
        reason = f" ({(str(error).splitlines() or [''])[0][:150]})"
    if gradient is None or not gradient.abs().sum() > 0:
        raise TeacherError(
            f"No gradient reaches the image through the teacher{reason}, so images cannot be moved towards a target. "
            "Something in its forward detaches it (no_grad, detach, rounding, a quantised layer): load it without that"
        )
