"""A thinner copy of the teacher as the student's first weights: channels are removed and the others compensate for it.

`dfkd_core.distillation.channel_choice` chooses the channels that are kept. The layers that read them are then fitted by
least squares on their inputs in the student (He et al., 2017, arXiv 1707.06168, equation 5). Both steps use synthetic
images alone. Only the sampled positions are random, drawn from a stream with a fixed seed.

n images, c channels, h height, w width; m sampled rows (an image and a position in a layer's output), t values that a
layer reads from one channel for one row (taps), p = c t, o outputs of a layer.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from dfkd_core.common.least_squares import fit_linear
from dfkd_core.common.pixels import load_batch
from dfkd_core.common.rows import Rows
from dfkd_core.common.seeding import derive_generator
from dfkd_core.distillation.channel_choice import Regression, choose_channels
from dfkd_core.errors import DistillationError
from dfkd_core.models.access import Inspectable
from dfkd_core.models.layers import BatchNorm
from dfkd_core.models.passes import LABELLING_SHARE

__all__ = ["can_prune", "check_thinner", "prune_into"]

_MAX_IMAGES = 5000
_MIN_IMAGES = 200
# Limits memory: values of all images in the network's largest map.
_MAX_MAP_VALUES = 2**25
# Maps of both networks together that are in memory during the residual sum of a block.
_MAPS_AT_ONCE = 5
_MAX_ROWS = 20_000

_Layer = nn.Conv2d | nn.Linear
# Modules that treat all channels alike and are therefore the same in the student.
_PER_CHANNEL = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Tanh, nn.Sigmoid),
    *(nn.Identity, nn.Flatten, nn.Dropout, nn.Dropout2d),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
)
# The same operations as functions and methods, which many networks call in `forward`.
_PER_CHANNEL_CALLS = (
    *(torch.relu, torch.relu_, functional.relu, functional.relu_, functional.relu6, functional.leaky_relu),
    *(functional.gelu, functional.silu, functional.elu, functional.mish, functional.hardswish),
    *(torch.tanh, torch.sigmoid, torch.dropout, functional.dropout, functional.dropout2d),
    *(functional.max_pool2d, torch.max_pool2d, functional.avg_pool2d),
    *(functional.adaptive_avg_pool2d, functional.adaptive_max_pool2d),
    *("relu", "relu_", "tanh", "sigmoid", "contiguous"),
)
_SUMS = (operator.add, operator.iadd, torch.add)
# Calls that flatten maps to rows: the only size given may be the first one; the other must be -1.
_RESHAPES = ("view", "reshape", torch.reshape)
_SIZES = ("size", "dim", getattr, operator.getitem)


@torch.no_grad()
def prune_into(teacher: Inspectable, student: nn.Module, images: Rows) -> None:
    """Fill a network's weights and BatchNorm buffers, in place, with a thinner copy of the teacher.

    Both networks must have the same modules under the same paths, and no width of the student may be larger. With equal
    widths, the student becomes the teacher up to rounding. Least squares are solved in float64 on the CPU.

    Args:
        teacher: The network to copy from.
        student: The network to fill; takes normalised images, as the teacher's does. Its mode and device do not change.
        images: uint8 images [n, c, h, w], of which the first 5,000 are used; fewer if the teacher's maps are large, and
            fewer than 200 only if memory is short.

    Raises:
        DistillationError: The student cannot be a thinner copy of the teacher.
    """
    network = teacher.network
    check_thinner(network, student)
    graph = _trace(network)
    spaces = _find_spaces(graph, network, student, in_channels=images.shape[1])
    pixels = _normalised_pixels(teacher, images, graph)
    _Chooser(network, graph, spaces).run(pixels)
    device, is_training = next(student.parameters()).device, student.training
    student.to(teacher.device).eval()
    _Filler(network, graph, spaces, student).run((pixels, pixels))
    student.to(device).train(is_training)


def can_prune(teacher: Inspectable, student: nn.Module) -> bool:
    """Return whether `prune_into` accepts this teacher and student."""
    network = teacher.network
    try:
        check_thinner(network, student)
        _trace(network)
    except DistillationError:
        return False
    return True


def check_thinner(network: nn.Module, thin: nn.Module) -> None:
    """Check that `thin` differs from `network` only in widths and that none of its widths is larger.

    Raises:
        DistillationError: There are other differences; names them.
    """
    own, wide = dict(_leaves(thin)), dict(_leaves(network))
    faults = [f"the student has no {path}" for path in wide if path not in own]
    faults += [f"the teacher has no {path}" for path in own if path not in wide]
    faults += [fault for path in wide if path in own for fault in _differences(path, wide[path], own[path])]
    if faults:
        raise _refusal("; ".join(faults[:5]))


def _leaves(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((path, module) for path, module in network.named_modules() if not any(module.children()))


def _differences(path: str, module: nn.Module, small: nn.Module) -> Iterator[str]:
    if type(module) is not type(small):
        yield f"{path} is {type(small).__name__} in the student and {type(module).__name__} in the teacher"
        return
    if isinstance(module, nn.Conv2d) and isinstance(small, nn.Conv2d):
        for name in ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"):
            if getattr(module, name) != getattr(small, name):
                yield f"{name} of {path} is {getattr(small, name)}, the teacher's is {getattr(module, name)}"
        if module.groups != 1 or module.dilation != (1, 1) or module.padding_mode != "zeros":
            yield f"{path} is grouped, dilated or padded with values other than zeros"
    state, small_state = module.state_dict(), small.state_dict()
    if state.keys() != small_state.keys():
        yield f"{path} holds {', '.join(sorted(small_state))}, the teacher's holds {', '.join(sorted(state))}"
        return
    for name, tensor in small_state.items():
        if any(size > wide for size, wide in zip(tensor.shape, state[name].shape, strict=True)):
            yield f"{path}.{name} is {tuple(tensor.shape)}, larger than the teacher's {tuple(state[name].shape)}"


def _refusal(reason: str) -> DistillationError:
    return DistillationError(
        f"The student cannot start as a thinner copy of the teacher: {reason}. Choose a distillation.student that can "
        "(for a built-in teacher, its name with a width multiple, as lenet5@0.5), or set distillation.start: random"
    )


class _Tracer(fx.Tracer):
    """Records the order of the steps; a step is a module without children, a sum or another call."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not any(m.children())


def _trace(network: nn.Module) -> fx.Graph:
    try:
        graph = _Tracer().trace(network)
    except Exception as error:  # a forward that depends on values can fail to trace with any exception
        raise _refusal(f"the teacher's steps cannot be traced ({error})") from error
    for node in graph.nodes:
        is_known = node.op in ("placeholder", "output")
        if node.op == "call_module":
            is_known = isinstance(network.get_submodule(node.target), (_Layer, BatchNorm, *_PER_CHANNEL))
        elif node.op in ("call_function", "call_method"):
            is_known = _is_sum(node) or _keeps_channels(node)
        if not is_known:
            raise _refusal(f"the teacher's step {node.name} is of a kind that cannot be thinned")
    return graph


def _is_sum(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target in _SUMS and len(node.all_input_nodes) == 2


def _keeps_channels(node: fx.Node) -> bool:
    """Return whether a call treats all channels alike and keeps their order."""
    given = node.args[1:]
    if node.target in (torch.flatten, "flatten"):
        return bool(given == (1,) or (not given and node.kwargs == {"start_dim": 1}))
    if node.target in ("mean", torch.mean):
        dimensions = given[0] if given else node.kwargs.get("dim")
        return isinstance(dimensions, list | tuple) and list(dimensions) in ([2, 3], [-2, -1], [-1, -2])
    if node.target in _RESHAPES:
        sizes = given[0] if len(given) == 1 and isinstance(given[0], (list, tuple)) else given
        return bool(len(sizes) == 2 and isinstance(sizes[0], fx.Node) and sizes[1] == -1)
    return any(node.target == known for known in (*_PER_CHANNEL_CALLS, *_SIZES))


@dataclass(eq=False, slots=True)
class _Space:
    """Channels that are kept or removed together: a layer's outputs, or all terms of a chain of residual sums."""

    width: int
    """Number of channels in the teacher."""
    kept: Tensor
    """Channels that the student keeps, int64 ascending; until they are chosen, the first ones, in the right number."""
    readers: list[str] = field(default_factory=list)
    """Paths of the layers that read the channels."""


def _find_spaces(graph: fx.Graph, network: nn.Module, thin: nn.Module, *, in_channels: int) -> dict[fx.Node, _Space]:
    """Return the space of each step's output."""
    spaces: dict[fx.Node, _Space] = {}
    for node in graph.nodes:
        layer = _layer_at(network, node)
        if node.op == "placeholder":
            spaces[node] = _Space(in_channels, torch.arange(in_channels))
        elif layer is not None:
            small = _layer_at(thin, node)
            assert small is not None
            spaces[node] = _Space(len(layer.weight), torch.arange(len(small.weight)))
        else:
            spaces[node], *others = [spaces[source] for source in node.all_input_nodes]
            for other in others if _is_sum(node) else ():
                spaces.update({n: spaces[node] for n, space in spaces.items() if space is other})
    for node in graph.nodes:
        if _layer_at(network, node) is not None:
            spaces[node.all_input_nodes[0]].readers.append(node.target)
    return spaces


def _layer_at(network: nn.Module, node: fx.Node) -> _Layer | None:
    module = network.get_submodule(str(node.target)) if node.op == "call_module" else None
    return module if isinstance(module, _Layer) else None


def _normalised_pixels(teacher: Inspectable, images: Rows, graph: fx.Graph) -> Tensor:
    """Return the input of the teacher's network for the first images, as many as memory allows, [n, c, h, w]."""
    largest = 1

    class Sizes(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            nonlocal largest
            output = super().run_node(n)
            largest = max(largest, output.numel() if isinstance(output, Tensor) else 0)
            return output

    def normalised(count: int) -> Tensor:
        return teacher.normalise(load_batch(images, torch.arange(min(count, len(images))), teacher.device))

    Sizes(teacher.network, graph=graph).run(normalised(1))
    count = _MAX_MAP_VALUES // largest
    if count < _MIN_IMAGES:
        room = LABELLING_SHARE * teacher.passes.memory
        count = max(count, min(_MIN_IMAGES, int(room) // (4 * _MAPS_AT_ONCE * largest)), 1)
    return normalised(min(_MAX_IMAGES, count))


class _Chooser(fx.Interpreter):
    """Runs the teacher and chooses the kept channels of each space that has too many."""

    def __init__(self, network: nn.Module, graph: fx.Graph, spaces: dict[fx.Node, _Space]) -> None:
        super().__init__(network, graph=graph)
        self._network, self._spaces = network, spaces
        self._problems: dict[str, Regression] = {}

    def run_node(self, n: fx.Node) -> Any:
        layer = _layer_at(self._network, n)
        output = super().run_node(n)
        if layer is None:
            return output
        source = n.all_input_nodes[0]
        space = self._spaces[source]
        if len(space.kept) < space.width:
            rows = _sample_rows(str(n.target), output)
            inputs = _patches(layer, self.env[source], rows, space.width).flatten(1)
            inputs = inputs - inputs.mean(0)
            gram = (inputs.T @ inputs / len(inputs)).cpu().double()
            weights = _by_channel(layer, space).flatten(1).T.cpu().double()
            self._problems[str(n.target)] = Regression(gram, weights, space.width)
            if all(reader in self._problems for reader in space.readers):
                problems = [self._problems.pop(reader) for reader in space.readers]
                space.kept = choose_channels(problems, len(space.kept))
        return output


class _Filler(fx.Interpreter):
    """Runs teacher and student in parallel and fills each of the student's layers before it runs."""

    def __init__(self, network: nn.Module, graph: fx.Graph, spaces: dict[fx.Node, _Space], thin: nn.Module) -> None:
        super().__init__(network, graph=graph)
        self._network, self._spaces, self._thin = network, spaces, thin

    def run_node(self, n: fx.Node) -> Any:
        sources = [self.env[source] for source in n.all_input_nodes]
        if _is_sum(n):
            return tuple(first + second for first, second in zip(*sources))
        if n.op in ("call_function", "call_method"):
            return tuple(self._call(n, side) for side in range(2))
        if n.op != "call_module":
            return super().run_node(n)
        ((wide, narrow),) = sources
        module, small = self._network.get_submodule(str(n.target)), self._thin.get_submodule(str(n.target))
        output = module(wide)
        kept = self._spaces[n].kept
        if isinstance(module, _Layer):
            assert isinstance(small, _Layer)
            _fill_layer(str(n.target), module, small, narrow, output, self._spaces[n.all_input_nodes[0]], kept)
        elif isinstance(module, BatchNorm):
            assert isinstance(small, BatchNorm)
            _fill_batch_norm(module, small, wide, narrow, kept)
        return output, small(narrow)

    def _call(self, n: fx.Node, side: int) -> Any:
        """Call the step's function or method on the earlier outputs of the teacher (0) or the student (1)."""

        def given(value: Any) -> Any:
            return fx.node.map_arg(value, lambda node: self.env[node][side])

        arguments, named = given(n.args), given(n.kwargs)
        if n.op == "call_function":
            return n.target(*arguments, **named)  # type: ignore[operator]
        return getattr(arguments[0], str(n.target))(*arguments[1:], **named)


def _fill_layer(
    path: str, layer: _Layer, small: _Layer, narrow: Tensor, output: Tensor, source: _Space, kept: Tensor
) -> None:
    """Fit a layer to reproduce, from the student's inputs, the outputs of the teacher's layer on its own inputs."""
    rows = _sample_rows(path, output)
    inputs = _patches(small, narrow, rows, len(source.kept)).flatten(1).cpu().double()
    wanted = output.movedim(1, -1).flatten(0, -2)[rows][:, kept].cpu().double()
    prior = _by_channel(layer, source)[kept][:, source.kept].flatten(1).cpu().double()
    weights, bias = fit_linear(inputs, wanted, prior)
    small.weight.copy_(weights.view_as(small.weight))
    if small.bias is not None:
        small.bias.copy_(bias)


def _fill_batch_norm(module: BatchNorm, small: BatchNorm, wide: Tensor, narrow: Tensor, kept: Tensor) -> None:
    """Copy the teacher's running statistics of real images and shift the means by the change of the inputs' means.

    A layer without a bias cannot compensate for the mean of the removed channels, but the BatchNorm after it can.
    """
    for name, values in module.state_dict().items():
        small.state_dict()[name].copy_(values[kept] if values.dim() else values)
    if small.running_mean is not None:
        others = [dimension for dimension in range(narrow.dim()) if dimension != 1]
        small.running_mean += narrow.mean(others) - wide.mean(others)[kept]


def _by_channel(layer: _Layer, source: _Space) -> Tensor:
    """Return a layer's weights as [o, c, t]."""
    return layer.weight.reshape(len(layer.weight), source.width, -1)


def _sample_rows(path: str, output: Tensor) -> Tensor:
    """Return the sampled rows of a layer's output [n, o, ...], int64 [m] ascending."""
    order = torch.randperm(output[:, 0].numel(), generator=derive_generator(0, "pruning", path))
    return order[:_MAX_ROWS].sort().values.to(output.device)


def _patches(layer: _Layer, inputs: Tensor, rows: Tensor, width: int) -> Tensor:
    """Return the inputs that a layer reads for these rows of its output, [m, c, t]."""
    if isinstance(layer, nn.Linear):
        return inputs[rows].view(len(rows), width, -1)
    if layer.padding == "same":
        # As in torch: if the total is odd, the larger part is at the end.
        totals = [size - 1 for size in reversed(layer.kernel_size)]
        padding = [part for total in totals for part in (total // 2, total - total // 2)]
    else:
        assert not isinstance(layer.padding, str)
        padding = [part for part in reversed(layer.padding) for _ in range(2)]
    (down, across), (row_step, column_step) = layer.kernel_size, layer.stride
    windows = functional.pad(inputs, padding).unfold(2, down, row_step).unfold(3, across, column_step)
    height, columns = windows.shape[2:4]
    image, position = rows // (height * columns), rows % (height * columns)
    return windows[image, :, position // columns, position % columns].flatten(2)
