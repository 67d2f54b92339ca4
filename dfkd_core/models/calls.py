"""Follows a network through one real run: each use of a layer's weights, and every other call on tensors.

Nothing is traced symbolically, so checks of shapes, loops and conditions in `forward` run as they are.

n images, c channels, o outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import TorchFunctionMode

__all__ = ["Calls", "Layer", "NotThinnableError", "Window", "call_name"]

_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_LINEAR = ("input", "weight", "bias")
_NORM = ("input", "running_mean", "running_var", "weight", "bias")


class NotThinnableError(ValueError):
    """A network cannot be made or copied thinner; the message is the reason. It never leaves `dfkd_core`."""


@dataclass(frozen=True, slots=True)
class Window:
    """How a convolution moves over a map."""

    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, ...]
    """As `functional.pad` takes it: left, right, top, bottom."""
    mode: str
    """Kind of padding, `constant` for zeros."""
    groups: int


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution or a linear layer at the moment of its use, as a module or as a function."""

    name: str
    """Name of its weight in the state dict, without `.weight`; the first one if it has several."""
    weight: Tensor
    """[o, c, h, w] of a convolution, [o, c] of a linear layer."""
    bias: Tensor | None
    window: Window | None
    """None for a linear layer."""
    module: nn.Module | None
    """None if a function was called with the weights."""

    @property
    def is_computed(self) -> bool:
        """Whether the weight is computed from other tensors before each use."""
        return not isinstance(self.weight, nn.Parameter)

    @property
    def settings(self) -> str:
        """What must be equal in a thinner copy: kind, kernel, stride, padding."""
        if self.window is None:
            return "linear"
        window = self.window
        kernel = tuple(self.weight.shape[2:])
        return f"kernel {kernel}, stride {window.stride}, dilation {window.dilation}, padding {window.padding}"

    def plain(self, inputs: Tensor) -> Tensor:
        """Return what a layer of this kind computes with these weights."""
        if self.window is None:
            return functional.linear(inputs, self.weight, self.bias)
        padded = functional.pad(inputs, self.window.padding, mode=self.window.mode)
        stride, dilation, groups = self.window.stride, self.window.dilation, self.window.groups
        return functional.conv2d(padded, self.weight, self.bias, stride, 0, dilation, groups)

    def assign(self, weight: Tensor, bias: Tensor | None) -> None:
        """Set the weights, in place.

        Raises:
            NotThinnableError: The weight is computed from other tensors that cannot be set so that it becomes this one.
        """
        if self.bias is not None and bias is not None:
            self.bias.copy_(bias)
        weight = weight.to(self.weight).view_as(self.weight)
        if not self.is_computed:
            self.weight.copy_(weight)
            return
        module = self.module
        if module is None or not is_parametrized(module, "weight"):
            raise NotThinnableError(f"a hook computes the weight of {self.name}")
        module.weight = weight
        if not torch.allclose(module.weight, weight, rtol=1e-3, atol=1e-4 * float(weight.abs().amax())):
            raise NotThinnableError(f"the weight of {self.name} is computed (parametrised) and cannot be set")


class Calls(TorchFunctionMode):
    """Passes what a network does to the methods of a subclass; use it with `followed`."""

    def __init__(self, network: nn.Module) -> None:
        """Prepare to follow a network, which is changed only while it is followed."""
        super().__init__()
        self.names = {id(t): name for name, t in (*network.named_parameters(), *network.named_buffers())}
        """Names in the state dict by the ids of the tensors."""
        self._layers = {m: path for path, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
        self._is_inside = False

    def on_layer(self, layer: Layer, inputs: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        """Return the output of a layer, `compute()`; a call inside of it is not seen."""
        raise NotImplementedError

    def on_batch_norm(self, given: Mapping[str, Any], compute: Callable[[], Tensor]) -> Tensor:
        """Return the output of BatchNorm for its arguments by name."""
        return compute()

    def on_call(self, call: Callable[..., Any], args: Sequence[Any], named: Mapping[str, Any]) -> Any:
        """Return the result of any other call on tensors."""
        return call(*args, **named)

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Follow the network while the block runs."""
        # Replaced on each layer itself: hooks would miss a call of its `forward`.
        before = {module: module.__dict__.get("forward") for module in self._layers}
        try:
            for module, path in self._layers.items():
                module.__dict__["forward"] = partial(self._forward, module, path, module.forward)
            with self:
                yield
        finally:
            for module, forward in before.items():
                del module.__dict__["forward"]
                if forward is not None:
                    module.__dict__["forward"] = forward

    def _forward(self, module: nn.Module, path: str, forward: Callable[..., Any], *args: Any, **named: Any) -> Any:
        if self._is_inside or len(args) != 1 or named:
            return forward(*args, **named)
        with self._inside():
            return self.on_layer(self._layer(module, path), args[0], partial(forward, args[0]))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Pass a call on, see `torch.overrides.TorchFunctionMode`."""
        named = kwargs or {}
        compute = partial(func, *args, **named)
        if self._is_inside:
            return compute()
        with self._inside():
            if func in (functional.linear, functional.conv2d):
                given = _given(_LINEAR if func is functional.linear else _CONVOLUTION, args, named)
                if id(given["weight"]) in self.names:
                    return self.on_layer(self._called(given, func), given["input"], compute)
            if func is functional.batch_norm:
                return self.on_batch_norm(_given(_NORM, args, named), compute)
            return self.on_call(func, args, named)

    @contextmanager
    def _inside(self) -> Iterator[None]:
        self._is_inside = True
        try:
            yield
        finally:
            self._is_inside = False

    def _layer(self, module: nn.Module, path: str) -> Layer:
        weight: Any = module.weight
        window = None
        if isinstance(module, nn.Conv2d):
            mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
            padding = _padding(module.padding, module.kernel_size, _pair(module.dilation))
            window = Window(_pair(module.stride), _pair(module.dilation), padding, mode, module.groups)
        bias: Any = module.bias
        return Layer(self._stem(weight, path), weight, bias, window, module)

    def _called(self, given: Mapping[str, Any], func: Callable[..., Any]) -> Layer:
        weight, window = given["weight"], None
        if func is functional.conv2d:
            dilation = _pair(given.get("dilation", 1))
            padding = _padding(given.get("padding", 0), weight.shape[2:], dilation)
            window = Window(_pair(given.get("stride", 1)), dilation, padding, "constant", given.get("groups", 1))
        return Layer(self._stem(weight, ""), weight, given.get("bias"), window, None)

    def _stem(self, weight: Tensor, path: str) -> str:
        return self.names[id(weight)].removesuffix(".weight") if id(weight) in self.names else path


def call_name(call: Callable[..., Any]) -> str:
    """Return the name of a function or a method of tensors; that of a property is the property's."""
    name = getattr(call, "__name__", str(call))
    return getattr(call.__self__, "__name__", name) if name == "__get__" else name  # type: ignore[attr-defined]


def _given(names: Sequence[str], args: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by name."""
    return {**dict(zip(names, args)), **named}


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[-1]))


def _padding(padding: Any, kernel: Sequence[int], dilation: tuple[int, int]) -> tuple[int, ...]:
    """Return the padding of a convolution as `functional.pad` takes it."""
    if padding == "same":
        # As in torch: if the total is odd, the larger part is at the end.
        totals = [(size - 1) * step for size, step in zip(reversed(kernel), reversed(dilation))]
        return tuple(part for total in totals for part in (total // 2, total - total // 2))
    down, across = _pair(0 if padding == "valid" else padding)
    return (across, across, down, down)
