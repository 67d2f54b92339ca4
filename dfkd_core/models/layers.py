"""Addresses of a network's layers, and which of them may be modelled.

An address names a module's output or, with `:input`, its input: `fc1`, `heads.head:input`. `:output` is the output of
the whole classifier, its logits, for networks whose layers cannot be reached.

n images, d units of a layer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dfkd_core.common.seeding import derive_generator
from dfkd_core.errors import TeacherError, first_line

__all__ = [
    "OUTPUT",
    "BatchNorm",
    "LayerAddress",
    "LayerCandidate",
    "find_modelled_layer",
    "forward_with_outputs",
    "layer_candidates",
    "layers_of",
    "parse_layer",
    "recorded",
    "replaced",
    "rest_fault",
    "rounding_of",
    "watched",
    "weight_of",
]

OUTPUT = ":output"
"""Address of the classifier's logits."""

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d
"""Layers that normalise each channel by stored moments; `isinstance` covers subclasses too."""

_INPUT = ":input"
_PARAMETRIZATIONS = "parametrizations"
# Share of the change of the logits between two images: another path to the logits changes them by far more.
_SAME = 1e-3
# Relative to the logits: rounding of float32 on a CPU, and of TF32 or half precision.
_ROUNDING, _COARSE_ROUNDING = 1e-5, 1e-2
_POSITIONS = "positions: its mean is matched, no targets are drawn from it"
_BYPASSED = "cannot be modelled: the logits depend on more than this layer"


@dataclass(frozen=True, slots=True)
class LayerAddress:
    """A module, and whether its input or its output is meant."""

    path: str
    """Module path in the network; empty for the classifier itself."""
    is_input: bool
    """Whether the module's input is meant instead of its output."""

    def module(self, classifier: nn.Module) -> nn.Module:
        """Return the module in a `Classifier`.

        Raises:
            TeacherError: There is no module at the path (the message lists the valid ones), or it receives partial
                batches.
        """
        if not self.path:
            return classifier
        network = classifier.get_submodule("network")
        modules = {name: module for name, module in network.named_modules() if name}
        if self.path not in modules:
            names = ", ".join(list(modules)[:40]) + (", ..." if len(modules) > 40 else "")
            raise TeacherError(f"No layer {self.path!r} in the network. Its layers: {names}. See: dfkd layers")
        if getattr(network, "runs_in_parts", False):
            raise TeacherError(
                f"Layer {self.path!r} cannot be read, since the program takes a fixed number of images and computes a "
                f"batch in parts. Set teacher.layer to {OUTPUT!r}, its logits, or export it with a free batch"
            )
        module: nn.Module = modules[self.path]
        return module


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCandidate:
    """A layer whose feature space can be modelled."""

    address: str
    """Its address, the value of `teacher.layer`."""
    kind: str
    """Class of the module."""
    shape: tuple[int, ...]
    """Shape of the modelled value for one image."""
    note: str
    """Why soft targets cannot be drawn from it; empty if a feature vector determines the logits."""


def parse_layer(address: str) -> LayerAddress:
    """Split an address into path and side."""
    if address == OUTPUT:
        return LayerAddress("", is_input=False)
    return LayerAddress(address.removesuffix(_INPUT), is_input=address.endswith(_INPUT))


@contextmanager
def watched(classifier: nn.Module, address: str, see: Callable[[Any], None]) -> Iterator[None]:
    """Call `see` with the tensor at `address` each time it is computed while the block runs.

    Raises:
        TeacherError: There is no such layer, or the network does not allow reading layers.
    """
    layer = parse_layer(address)
    module = layer.module(classifier)

    def before(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        see(arguments[0] if arguments else None)

    def after(module: nn.Module, arguments: object, output: Any) -> None:
        see(output)

    with _hooked(module, before if layer.is_input else after, is_input=layer.is_input, address=address):
        yield


@contextmanager
def replaced(classifier: nn.Module, address: str, replacement: Tensor) -> Iterator[None]:
    """Replace the tensor at `address` by `replacement` while the block runs."""
    layer = parse_layer(address)

    def before(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return (replacement, *arguments[1:])

    def after(module: nn.Module, arguments: object, output: Any) -> Tensor:
        return replacement

    hook = before if layer.is_input else after
    with _hooked(layer.module(classifier), hook, is_input=layer.is_input, address=address):
        yield


@contextmanager
def recorded(classifier: nn.Module, addresses: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collect the layers' outputs or inputs of the last forward pass in the block, by address."""
    found: dict[str, Tensor] = {}

    def keep(address: str) -> Callable[[Any], None]:
        def see(value: Any) -> None:
            found[address] = value

        return see

    with ExitStack() as stack:
        for address in addresses:
            stack.enter_context(watched(classifier, address, keep(address)))
        yield found


def forward_with_outputs(
    classifier: nn.Module, addresses: Sequence[str], images: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Map images [n, c, h, w] in [0, 1] to logits [n, k] and the values at addresses of layers, in one pass.

    Args:
        classifier: A `Classifier`, in any mode.
        addresses: Addresses of layers.
        images: On the classifier's device.

    Raises:
        TeacherError: There is no such layer, or it cannot be read.
    """
    with recorded(classifier, addresses) as found:
        logits = classifier(images)
    if missing := [address for address in addresses if address not in found]:
        raise TeacherError(
            f"Layer {missing[0]!r} is not called in the network's forward pass, so its value cannot be read. Choose "
            "another teacher.layer; see them with: dfkd layers"
        )
    return logits, [found[address] for address in addresses]


@contextmanager
def _hooked(module: nn.Module, hook: Callable[..., Any], *, is_input: bool, address: str) -> Iterator[None]:
    owner = threading.get_ident()

    def own(*arguments: Any) -> Any:
        # Another thread may run the same network at the same time, such as the one that labels batches ahead.
        return hook(*arguments) if threading.get_ident() == owner else None

    try:
        handle = module.register_forward_pre_hook(own) if is_input else module.register_forward_hook(own)
    except RuntimeError:
        # A compiled program's modules take no hooks.
        raise TeacherError(
            f"Layer {address!r} cannot be read, since the network is a compiled program. Set teacher.layer to "
            f"{OUTPUT!r}, its logits"
        ) from None
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def layer_candidates(classifier: nn.Module, images: Tensor) -> list[LayerCandidate]:
    """List, in the order in which they run, the layers whose features can be modelled; the logits are last.

    Args:
        classifier: A `Classifier`, in eval mode.
        images: Different images [n, c, h, w] in [0, 1], n at least 2.
    """
    logits, values = _run(classifier, images)
    found = [_candidate(classifier, address, value, logits, images) for address, value in values.items()]
    return [*found, LayerCandidate(address=OUTPUT, kind="logits", shape=tuple(logits.shape[1:]), note="")]


def find_modelled_layer(classifier: nn.Module, images: Tensor) -> str:
    """Return the address of the last linear layer's input, the paper's choice; `:output` if it cannot be modelled.

    A linear layer beside the path to the logits, or one of several heads, is passed over.

    Args:
        classifier: A `Classifier`, in eval mode.
        images: Images of the shape [n, c, h, w] that it takes, n at least 2; their content does not matter.
    """
    images = torch.rand(images.shape, generator=derive_generator(0, "layers")).to(images.device)
    _, values = _run(classifier, images)
    for address, value in reversed(values.items()):
        if not address.endswith(_INPUT):
            continue
        weight = weight_of(parse_layer(address).module(classifier))
        # Only a matrix that reads all units at once shows which of them belong together.
        if not _has_one_position(value) or weight is None or weight[0].numel() != value.shape[1]:
            return OUTPUT
        if not rest_fault(classifier, address, images):
            return address
    return OUTPUT


@torch.no_grad()
def rest_fault(classifier: nn.Module, address: str, images: Tensor) -> str:
    """Return why the values of a layer do not determine the logits, empty if they do.

    They do not if something else reaches the logits too: a second head, a shortcut, another call of the same layer.

    Args:
        classifier: A `Classifier`, in eval mode.
        address: A layer with one position.
        images: Different images [n, c, h, w] in [0, 1], n at least 2; the first one is also tried alone.
    """
    for count in (1, len(images)):
        try:
            logits, (values,) = forward_with_outputs(classifier, [address], images[:count])
            fault = _rest_gap(classifier, address, values, logits, torch.zeros_like(images[:1]))
        except Exception as error:  # the network's own code can raise any exception
            return f"the features of {count} images cannot be passed on: {first_line(error, longest=None)}"
        if fault:
            return fault
    return ""


def layers_of(network: nn.Module) -> Iterator[tuple[str, nn.Module, bool]]:
    """Yield path and module of every layer, and whether it is a leaf, which contains no other layer.

    A layer whose weight is computed by `torch.nn.utils.parametrize` is a leaf; the modules that compute the weight are
    left out.
    """
    for path, module in network.named_modules():
        if path and _PARAMETRIZATIONS not in path.split("."):
            yield path, module, all(name == _PARAMETRIZATIONS for name, _ in module.named_children())


def weight_of(module: nn.Module) -> Tensor | None:
    """Return a module's matrix or kernel if it has one, even if the module was exported and has lost its class."""
    weight = getattr(module, "weight", None)
    return weight if isinstance(weight, Tensor) and weight.dim() >= 2 else None


def rounding_of(classifier: nn.Module) -> float:
    """Return the difference that rounding may cause between two ways to compute a value, relative to the largest."""
    tensors = [tensor for tensor in classifier.state_dict().values() if tensor.is_floating_point()]
    exact = all(tensor.device.type == "cpu" and tensor.element_size() >= 4 for tensor in tensors)
    return _ROUNDING if exact else _COARSE_ROUNDING


@torch.no_grad()
def _run(classifier: nn.Module, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the logits, and the values that can be modelled by address, in the order in which they are computed."""
    values: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for path, module, is_leaf in layers_of(classifier.get_submodule("network")):
            reads = weight_of(module) is not None and is_leaf
            for address in (path, path + _INPUT) if reads else (path,):
                try:
                    stack.enter_context(watched(classifier, address, _noting(values, address, len(images))))
                except TeacherError:
                    break
        logits = classifier(images)
    return logits, values


def _noting(values: dict[str, Tensor], address: str, count: int) -> Callable[[Any], None]:
    def see(value: Any) -> None:
        # Two dimensions or a map: in a sequence the dimension of the units is unknown.
        if isinstance(value, Tensor) and value.dim() in (2, 4) and len(value) == count:
            values.pop(address, None)
            # Of a map only the shape is used.
            values[address] = value if _has_one_position(value) else value.to("meta")

    return see


def _candidate(classifier: nn.Module, address: str, value: Tensor, logits: Tensor, images: Tensor) -> LayerCandidate:
    kind = type(parse_layer(address).module(classifier)).__name__
    note = _note(classifier, address, value, logits, images)
    return LayerCandidate(address=address, kind=kind, shape=tuple(value.shape[1:]), note=note)


def _note(classifier: nn.Module, address: str, value: Tensor, logits: Tensor, images: Tensor) -> str:
    if not _has_one_position(value):
        return _POSITIONS
    try:
        return _BYPASSED if _rest_gap(classifier, address, value, logits, torch.zeros_like(images[:1])) else ""
    except Exception:  # the network's own code can raise any exception
        return _BYPASSED


def _rest_gap(classifier: nn.Module, address: str, values: Tensor, logits: Tensor, blank: Tensor) -> str:
    """Return the difference of the logits from what the layers after `address` make of its values, empty if none."""
    with replaced(classifier, address, values):
        found = classifier(blank)
    if found.shape != logits.shape:
        return f"its features lead to an output of shape {tuple(found.shape)} instead of {tuple(logits.shape)}"
    change = (logits - classifier(blank)).abs().max()
    difference = (found - logits).abs()
    if difference.max() <= _SAME * change + rounding_of(classifier) * logits.abs().max():
        return ""
    expected, other = (tensor.flatten()[difference.argmax()].item() for tensor in (logits, found))
    return f"a probe image has the logit {expected:.4g}, and its features lead to {other:.4g}"


def _has_one_position(value: Tensor) -> bool:
    return all(size == 1 for size in value.shape[2:])
