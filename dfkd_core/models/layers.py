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

from dfkd_core.errors import TeacherError

__all__ = [
    "OUTPUT",
    "BatchNorm",
    "LayerAddress",
    "LayerCandidate",
    "find_modelled_layer",
    "forward_with_outputs",
    "layer_candidates",
    "parse_layer",
    "recorded",
    "replaced",
    "watched",
    "weight_of",
]

OUTPUT = ":output"
"""Address of the classifier's logits."""

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d
"""Layers that normalise each channel by stored moments; `isinstance` covers subclasses too."""

_INPUT = ":input"


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
    is_exact: bool
    """Whether a feature vector determines the value, so that soft targets can be drawn from it."""


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
        images: Any images [n, c, h, w] in [0, 1], n at least 2, which are passed through it once.
    """
    found: dict[str, LayerCandidate] = {}
    network = classifier.get_submodule("network")
    with ExitStack() as stack:
        for path, module in network.named_modules():
            if not path:
                continue
            reads = weight_of(module) is not None and not any(module.children())
            for address in (path, path + _INPUT) if reads else (path,):
                see = _noting(found, address, type(module).__name__, len(images))
                try:
                    stack.enter_context(watched(classifier, address, see))
                except TeacherError:
                    break
        logits = classifier(images)
    outputs = LayerCandidate(address=OUTPUT, kind="logits", shape=tuple(logits.shape[1:]), is_exact=True)
    return [*found.values(), outputs]


def _noting(found: dict[str, LayerCandidate], address: str, kind: str, count: int) -> Callable[[Any], None]:
    def see(value: Any) -> None:
        # Two dimensions or a map: in a sequence the dimension of the units is unknown.
        if not isinstance(value, Tensor) or value.dim() not in (2, 4) or len(value) != count:
            return
        shape = tuple(value.shape[1:])
        exact = all(size == 1 for size in shape[1:])
        found.pop(address, None)
        found[address] = LayerCandidate(address=address, kind=kind, shape=shape, is_exact=exact)

    return see


def find_modelled_layer(classifier: nn.Module, images: Tensor) -> str:
    """Return the address of the last linear layer's input, the paper's choice; `:output` if it cannot be read.

    Args:
        classifier: A `Classifier`, in eval mode.
        images: As in `layer_candidates`.
    """
    found = layer_candidates(classifier, images)
    weighted = [candidate for candidate in found if candidate.address.endswith(_INPUT)]
    if not weighted or not weighted[-1].is_exact:
        return OUTPUT
    last = weighted[-1]
    weight = weight_of(parse_layer(last.address).module(classifier))
    # Only a matrix that reads all units at once shows which of them belong together.
    reads_all = weight is not None and weight[0].numel() == last.shape[0]
    return last.address if reads_all else OUTPUT


def weight_of(module: nn.Module) -> Tensor | None:
    """Return a module's matrix or kernel if it has one, even if the module was exported and has lost its class."""
    weight = getattr(module, "weight", None)
    return weight if isinstance(weight, Tensor) and weight.dim() >= 2 else None
