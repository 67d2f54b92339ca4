"""Networks by name: built in, from torchvision, from timm, or from a function in a package of the user.

    lenet5, lenet5@0.5              built in, see `dfkd_core.models.built_in`
    torchvision:resnet18            torchvision.models.get_model
    timm:vit_tiny_patch16_224       timm.create_model, with the extra dfkd[timm]
    my_package.models:make_net      called with the given arguments and the parameters of the shape that it takes
    torchvision:resnet18@0.5        any of these with half the channels, see `dfkd_core.models.thinning`

The name alone builds the architecture with weights drawn from the global generator; trained weights are loaded later.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dfkd_core.errors import ConfigError
from dfkd_core.models.built_in import build_network as build_built_in
from dfkd_core.models.built_in import is_built_in, network_names
from dfkd_core.models.calls import NotThinnableError
from dfkd_core.models.thinning import make_thinner

__all__ = ["TIMM", "TORCHVISION", "architecture_fault", "build_architecture", "factory_module", "split_width"]

TORCHVISION = "torchvision:"
TIMM = "timm:"
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
    module, separator, function = name.partition(":")
    if separator and module and function.isidentifier() and all(part.isidentifier() for part in module.split(".")):
        return None
    return (
        f"no network {name!r}: it must be one of {', '.join(network_names())}, torchvision:NAME, timm:NAME or "
        "package.module:factory (each also thinner, as lenet5@0.5)"
    )


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
    except ConfigError:
        raise
    except OSError as error:
        raise ConfigError(
            f"{name} cannot be built, since a file that it needs cannot be read or downloaded: {error}. Download the "
            "weights elsewhere and pass the file as --weights"
        ) from error
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError) as error:
        shown = ", ".join(f"{key}={value!r}" for key, value in (shape | given).items())
        raise ConfigError(
            f"{name} cannot be built with {shown}: {error}. Correct its arguments (teacher.source.arguments or "
            "distillation.student_arguments)"
        ) from error
    if not isinstance(network, nn.Module):
        raise ConfigError(f"{name} returns a {type(network).__name__}; it must return a torch.nn.Module")
    return network


def split_width(name: str) -> tuple[str, float]:
    """Return a name without its width multiple, and the multiple; 1 for a name that ends with none."""
    base, _, number = name.rpartition("@")
    try:
        return base, float(number)
    except ValueError:
        return name, 1.0


def _build_torchvision(name: str, shape: Mapping[str, int], given: dict[str, Any]) -> nn.Module:
    from dfkd_core.common.vision import models

    if name not in models.list_models():
        from difflib import get_close_matches

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
        raise ConfigError("timm:NAME needs the package timm. Install it with: pip install 'dfkd[timm]'") from None


def factory(name: str) -> Any:
    """Return the function of `package.module:function`; the current folder is searched too.

    Raises:
        ConfigError: The module or the function does not exist.
    """
    module, _, function = split_width(name)[0].partition(":")
    try:
        found = getattr(factory_module(module), function)
    except AttributeError:
        raise ConfigError(
            f"{module} has no {function!r}, got {name!r}. It has: {', '.join(_public_callables(module)) or 'nothing'}"
        ) from None
    if not callable(found):
        raise ConfigError(f"{name} is a {type(found).__name__}; it must be a function or class that makes a network")
    return found


def factory_file(name: str) -> Path | None:
    """Return the file that defines a factory; None for a network of a package and for a factory without source.

    Raises:
        ConfigError: The module or the function does not exist.
    """
    if ":" not in name or name.startswith((TORCHVISION, TIMM)):
        return None
    file = inspect.getsourcefile(factory(name))
    return Path(file) if file else None


def _public_callables(module: str) -> list[str]:
    """Return the names of the functions and classes that a user's module defines."""
    members = vars(factory_module(module)).items()
    return [name for name, value in members if getattr(value, "__module__", "") == module and not name.startswith("_")]


def look_here() -> None:
    """Make imports search the current folder too, last."""
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)


def factory_module(name: str) -> Any:
    """Import a module of the user; the current folder is searched too.

    Raises:
        ConfigError: It does not exist or its import fails.
    """
    look_here()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"No module {error.name!r} for {name!r}. Install its package, put it into the project's folder, or name "
            "its folder in PYTHONPATH"
        ) from None
    # A script without `if __name__ == "__main__"` ends the process, or parses the arguments of ours.
    except (Exception, SystemExit) as error:
        raise ConfigError(f"Importing {name} fails: {type(error).__name__}: {error}") from error


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


def first_channels(state: Mapping[str, torch.Tensor]) -> int | None:
    """Return the input channels of the first convolution in a state dict, None if there is none."""
    return next((tensor.shape[1] for tensor in state.values() if tensor.dim() == 4), None)


def last_units(state: Mapping[str, torch.Tensor]) -> int | None:
    """Return the units of the last matrix or 1x1 kernel in a state dict, None if there is none."""
    matrices = (tensor for tensor in reversed(list(state.values())) if tensor.dim() in (2, 4))
    return next((len(tensor) for tensor in matrices if tensor[0].numel() == tensor.shape[1]), None)
