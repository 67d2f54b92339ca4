"""Networks by name: built in, from torchvision, from timm, or from a factory of the user.

    lenet5, lenet5@0.5              built in, see `dfkd_core.models.built_in`
    torchvision:resnet18            torchvision.models.get_model
    timm:vit_tiny_patch16_224       timm.create_model, with the extra dfkd[timm]
    my_package.models:make_net      see `dfkd_core.models.factories`; called with the given arguments and the parameters
                                    of the shape that it takes
    torchvision:resnet18@0.5        any of these with half the channels, see `dfkd_core.models.thinning`

The name alone builds the architecture with weights drawn from the global generator; trained weights are loaded later.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

from torch import nn

from dfkd_core.errors import ConfigError, DfkdError, first_line
from dfkd_core.installing import install_command
from dfkd_core.models.built_in import build_network as build_built_in
from dfkd_core.models.built_in import is_built_in, network_names
from dfkd_core.models.calls import NotThinnableError
from dfkd_core.models.factories import FORMS, factory, nearest_factory, split_factory, split_width
from dfkd_core.models.lazy_layers import initialised
from dfkd_core.models.thinning import make_thinner

__all__ = [
    "TIMM",
    "TORCHVISION",
    "ShapeParameter",
    "architecture_fault",
    "argument_fault",
    "build_architecture",
    "is_plain_name",
    "shape_parameters",
]

TORCHVISION = "torchvision:"
TIMM = "timm:"
_PLAIN = re.compile(r"[A-Za-z0-9_.]+")
# Arguments by which the two packages read, fetch or unpickle files.
_LOADING = (
    *("cache_dir", "checkpoint_path", "pretrained", "pretrained_backbone", "pretrained_cfg", "pretrained_cfg_overlay"),
    *("pretrained_filter_fn", "pretrained_model_args", "weights", "weights_backbone"),
)
# Names that factories use for the shape.
_SHAPE_NAMES = {
    "in_channels": ("in_channels", "in_chans", "input_channels", "num_channels", "channels"),
    "image_size": ("image_size", "img_size", "input_size"),
    "num_classes": ("num_classes", "n_classes", "num_labels"),
}


def architecture_fault(name: str) -> str | None:
    """Return the fault in the form of a name, None if it is well formed; nothing is imported."""
    if is_built_in(name):
        return None
    name, multiple = split_width(name)
    if not 0 < multiple <= 1:
        return f"the width multiple of {name!r} must be a number above 0 and up to 1, as in {name}@0.5"
    if name.startswith((TORCHVISION, TIMM)) and name.partition(":")[2]:
        return None
    if split_factory(name):
        return None
    near = nearest_factory(name) or next(iter(get_close_matches(name, network_names(), n=1, cutoff=0.75)), None)
    meant = f"; did you mean {near}" if near else ""
    place = ", with its arguments in teacher.source.arguments or distillation.student_arguments" if "(" in name else ""
    return (
        f"no network {name!r}{meant}{place}{'?' if near else ':'} it must be one of {', '.join(network_names())}, "
        f"torchvision:NAME, timm:NAME, {FORMS} (each also thinner, as lenet5@0.5)"
    )


def is_plain_name(name: str) -> bool:
    """Return whether a name can only mean a network whose code is in dfkd, torchvision or timm, without their files."""
    if is_built_in(name):
        return True
    name, _ = split_width(name)
    if name.startswith(TORCHVISION):
        return name.removeprefix(TORCHVISION) in _classifiers()
    # timm loads names such as hf-hub:OWNER/NAME and local-dir:FOLDER from elsewhere.
    return name.startswith(TIMM) and bool(_PLAIN.fullmatch(name.removeprefix(TIMM)))


def argument_fault(name: str, arguments: Mapping[str, Any]) -> str | None:
    """Return the argument of a network of torchvision or timm that makes it load a file, None if there is none."""
    if not name.startswith((TORCHVISION, TIMM)):
        return None
    for key, value in arguments.items():
        if key in _LOADING and value not in (None, False):
            return (
                f"{key}={value!r} makes {name} load a file while it is built. Leave it out, and name weights as "
                "teacher.source.weights or --weights"
            )
    return None


def build_architecture(
    name: str, *, in_channels: int, image_size: int, num_classes: int, arguments: Mapping[str, Any] | None = None
) -> nn.Module:
    """Build a network, with weights drawn from the global generator.

    Args:
        name: As above.
        in_channels: Channels c of an input image.
        image_size: Height and width of an input image in pixels.
        num_classes: Number of outputs k.
        arguments: Keyword arguments for the function that builds it; they override the shape.

    Raises:
        ConfigError: The name is unknown, its package is missing, or the network cannot be built with these arguments.
    """
    given = dict(arguments or {})
    shape = {"in_channels": in_channels, "image_size": image_size, "num_classes": num_classes}
    if is_built_in(name):
        if given:
            raise ConfigError(f"{name} takes no arguments, got {', '.join(given)}. Leave them out")
        return build_built_in(name, **shape)
    if fault := architecture_fault(name):
        raise ConfigError(fault[0].upper() + fault[1:])
    base, multiple = split_width(name)
    if base != name:
        network = build_architecture(base, **shape, arguments=given)
        try:
            return make_thinner(network, multiple, (in_channels, image_size, image_size))
        except NotThinnableError as error:
            raise ConfigError(
                f"{base} cannot be made thinner: {error}. Choose another network, or an argument of its function that "
                "sets the widths"
            ) from error
    try:
        if name.startswith(TORCHVISION):
            network = _build_torchvision(name.removeprefix(TORCHVISION), shape, given)
        elif name.startswith(TIMM):
            network = _build_timm(name.removeprefix(TIMM), shape, given)
        else:
            network = _call(factory(name), shape, given)
    except DfkdError:
        raise
    except OSError as error:
        raise ConfigError(
            f"{name} cannot be built, since a file that it needs cannot be read or downloaded: {error}. Download the "
            "weights elsewhere and pass the file as --weights"
        ) from error
    # The code of a factory and of a package can raise any exception, or end the process.
    except (Exception, SystemExit) as error:
        shown = ", ".join(f"{key}={value!r}" for key, value in (shape | given).items() if value != 0)
        raise ConfigError(
            f"{name} cannot be built with {shown}: {first_line(error, longest=None)}. Correct its arguments "
            "(teacher.source.arguments or distillation.student_arguments)"
        ) from error
    if not isinstance(network, nn.Module):
        raise ConfigError(f"{name} returns a {type(network).__name__}; it must return a torch.nn.Module")
    return initialised(network.float(), (in_channels, image_size, image_size))


class ShapeParameter(NamedTuple):
    """A parameter of a network's function that takes a part of the shape."""

    name: str
    """Its own name, for example `n_classes`."""
    is_required: bool
    """Whether it has no default."""


def shape_parameters(name: str) -> dict[str, ShapeParameter]:
    """Return a network's parameters for the shape, by `in_channels`, `image_size` and `num_classes`.

    Raises:
        ConfigError: The function does not exist.
    """
    if is_built_in(name):
        return {}
    if name.startswith((TORCHVISION, TIMM)):
        names = {"num_classes": "num_classes"}
        names |= {"image_size": "image_size"} if name.startswith(f"{TORCHVISION}vit_") else {}
        names |= {"in_channels": "in_chans", "image_size": "img_size"} if name.startswith(TIMM) else {}
        return {what: ShapeParameter(own, is_required=False) for what, own in names.items()}
    try:
        parameters = inspect.signature(factory(name)).parameters
    except (TypeError, ValueError):  # a function without a signature in Python
        return {}
    return {
        what: ShapeParameter(own, is_required=parameters[own].default is inspect.Parameter.empty)
        for what, names in _SHAPE_NAMES.items()
        for own in reversed(names)
        if own in parameters
    }


def _build_torchvision(name: str, shape: Mapping[str, int], given: dict[str, Any]) -> nn.Module:
    from dfkd_core.common.vision import models

    if name not in models.list_models():
        close = get_close_matches(name, models.list_models(), n=3)
        raise ConfigError(f"torchvision has no model {name!r}. Close: {', '.join(close) or 'none'}")
    arguments = {"weights": None, "num_classes": shape["num_classes"]} | given
    if "googlenet" in name or "inception" in name:
        # In eval mode their auxiliary heads do not run.
        arguments = {"aux_logits": False, "init_weights": True} | arguments
    if name.startswith("vit_"):
        arguments = {"image_size": shape["image_size"]} | arguments
    network: nn.Module = models.get_model(name, **arguments)
    _set_channels(network, shape["in_channels"])
    return network


def _classifiers() -> list[str]:
    """Return torchvision's networks that classify images; others, such as detectors, fetch weights of a part."""
    from dfkd_core.common.vision import models

    return list(models.list_models(module=models))


def _build_timm(name: str, shape: Mapping[str, int], given: dict[str, Any]) -> nn.Module:
    timm = import_timm()
    arguments = {"in_chans": shape["in_channels"], "num_classes": shape["num_classes"]} | given
    if "img_size" not in arguments:
        try:
            # Transformers need the image size; convolutional networks take no such argument.
            return timm.create_model(name, img_size=shape["image_size"], **arguments)  # type: ignore[no-any-return]
        except TypeError:
            pass
    return timm.create_model(name, **arguments)  # type: ignore[no-any-return]


def import_timm() -> Any:
    """Return the package timm.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        # timm imports torchvision, which `common.vision` must load first.
        importlib.import_module("dfkd_core.common.vision")
        return importlib.import_module("timm")
    except ModuleNotFoundError:
        raise ConfigError(f"timm:NAME needs the package timm. Install it with: {install_command('timm')}") from None


def _call(function: Any, shape: Mapping[str, int], given: dict[str, Any]) -> Any:
    """Call a factory with the given arguments and with those of the shape for which it has parameters."""
    parameters = inspect.signature(function).parameters
    taken = {
        own: shape[name] for name, names in _SHAPE_NAMES.items() for own in names if own in parameters and shape[name]
    }
    return function(**(taken | given))


def _set_channels(network: nn.Module, in_channels: int) -> None:
    """Replace the first convolution by one with another number of channels."""
    for path, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            if module.in_channels != in_channels:
                options = ("stride", "padding", "dilation", "groups", "padding_mode")
                kept = {option: getattr(module, option) for option in options}
                has_bias = module.bias is not None
                size: Any = module.kernel_size
                fresh = nn.Conv2d(in_channels, module.out_channels, size, bias=has_bias, **kept)
                network.set_submodule(path, fresh)
            return
