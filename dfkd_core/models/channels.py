"""Which channels of a network belong together, found in one real run.

Each value in the run has an id per element, which names the channel that it comes from. Layers make new ids. Views,
slices and concatenations move ids as they move values. Sums, products and shared weights join ids: such channels can
only be kept or removed together. 0 means no channel: a constant, or a value of all channels.

n images, c channels, o outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.utils._pytree import tree_leaves, tree_map

from dfkd_core.models.calls import Calls, Layer, NotThinnableError, call_name
from dfkd_core.models.channel_ids import ChannelIds, along, extremes, rows_of, single, without_repeats

__all__ = ["Channels", "LayerUse", "find_channels", "is_depthwise"]

# Calls that move values; they move ids in the same way.
_MOVES = frozenset(
    "view view_as reshape reshape_as flatten unflatten permute transpose t T mT movedim moveaxis swapaxes swapdims "
    "squeeze unsqueeze contiguous clone detach __getitem__ select narrow index_select chunk split split_with_sizes "
    "tensor_split hsplit unsafe_chunk unbind cat concat concatenate stack expand expand_as broadcast_to repeat tile "
    "repeat_interleave roll flip pixel_shuffle pixel_unshuffle channel_shuffle".split()
)
# Calls that reduce dimensions, and the position of the dimensions in their arguments.
_REDUCTIONS = {
    **dict.fromkeys("mean sum amax amin max min var std var_mean std_mean logsumexp prod median".split(), 1),
    **dict.fromkeys("norm vector_norm".split(), 2),
}
_PRODUCTS = frozenset("matmul __matmul__ bmm".split())
# Calls with weights per channel, the second dimension.
_PER_CHANNEL = frozenset("group_norm instance_norm prelu".split())
# Calls that take only the shape or the type from their other arguments.
_CONVERSIONS = frozenset("to type_as".split())
_NEW = frozenset("new_zeros new_ones new_empty new_full new_tensor".split())
_REFUSED = frozenset(
    "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d bilinear einsum __setitem__ "
    "multi_head_attention_forward".split()
)
_ATTRIBUTE = "_dfkd_channels"
# Rounding of a convolution in another order of sums; another function differs by far more.
_SAME = 1e-3


@dataclass(frozen=True, slots=True)
class LayerUse:
    """A use of a layer's weights, in the order of the calls."""

    name: str
    """As in `Layer`."""
    settings: str
    """What must be equal in a thinner copy: kind, kernel, stride, padding."""
    inputs: Tensor
    """Ids of the channels that it reads, [c] for all groups; one per feature for a linear layer."""
    outputs: Tensor
    """Ids of its outputs [o]."""
    groups: int
    """Groups of channels that are summed separately; 1 for a depthwise convolution."""
    is_mixing: bool
    """Whether outputs are sums over channels; otherwise each channel, or each whole group, is treated alone."""
    is_first: bool
    """Whether the weights were not used before."""
    weight: str
    """Name of its weight in the state dict; empty if the weight is computed from others."""
    bias: str
    """Name of its bias in the state dict; empty without one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Channels:
    """The channels of a network, and what reads or makes them."""

    uses: tuple[LayerUse, ...]
    slots: tuple[Tensor, ...]
    """Ids that occur in the same place: read by a layer or a group of it, made by it, or weighted by one tensor."""
    state: Mapping[str, Tensor]
    """Ids of the elements of the other tensors in the state dict that were used, by name."""
    fixed: frozenset[int]
    """Ids whose number is given: channels of the image, outputs of the network, and those that no layer makes."""
    largest: int
    """Number of values of one image in the largest tensor."""

    def sets(self) -> dict[tuple[int, ...], list[int]]:
        """Return the sets of channels that occur in the same slots, ids ascending, by the positions of these slots."""
        places: dict[int, list[int]] = {}
        for position, slot in enumerate(self.slots):
            for found in sorted(set(slot.tolist())):
                if found:
                    places.setdefault(found, []).append(position)
        sets: dict[tuple[int, ...], list[int]] = {}
        for found in sorted(places):
            sets.setdefault(tuple(places[found]), []).append(found)
        return sets


@torch.no_grad()
def find_channels(network: nn.Module, images: Tensor, *, whole_groups: Collection[str] | None = None) -> Channels:
    """Run a network once and return its channels.

    Args:
        network: In eval mode; not changed.
        images: Two images [2, c, h, w] as the network takes them.
        whole_groups: Names of convolutions whose groups may only be kept or removed as a whole; None for the depthwise
            ones.

    Raises:
        NotThinnableError: A step is of a kind for which the channels of its result are not known, or the run fails.
    """
    if normed := _spectrally_normed(network):
        raise NotThinnableError(f"a hook computes the weight of {normed} in each pass (torch.nn.utils.spectral_norm)")
    run = _Run(network, whole_groups)
    images = images.clone()
    channels = run.ids.fresh(images.shape[1])
    run.mark(images, along(channels, 1, 4))
    try:
        with run.followed():
            answer = network(images)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError, NotImplementedError) as error:
        if isinstance(error, NotThinnableError):
            raise
        raise NotThinnableError(f"its steps cannot be followed ({str(error).partition(chr(10))[0]})") from error
    outputs = [without_repeats(run.ids_of(tensor)).flatten() for tensor in tree_leaves(answer) if run.is_marked(tensor)]
    return run.result([channels, *outputs])


def _spectrally_normed(network: nn.Module) -> str:
    """Return the name of a layer whose weight the old spectral norm computes from matrix products, empty if none is."""
    for name, module in network.named_modules():
        if any(isinstance(hook, SpectralNorm) for hook in module._forward_pre_hooks.values()):
            return str(name)
    return ""


class _Run(Calls):
    """Follows the ids through a run."""

    def __init__(self, network: nn.Module, whole_groups: Collection[str] | None) -> None:
        super().__init__(network)
        self.ids = ChannelIds()
        self._whole_groups = whole_groups
        self._uses: list[LayerUse] = []
        self._slots: list[Tensor] = []
        self._state: dict[str, Tensor] = {}
        self._largest = 1

    def result(self, fixed: Sequence[Tensor]) -> Channels:
        """Return what was found; `fixed` are the ids of the images and of the outputs."""
        find = self.ids.find
        uses = tuple(replace(use, inputs=find(use.inputs), outputs=find(use.outputs)) for use in self._uses)
        given = {number for ids in fixed for number in find(ids).tolist()}
        made = {number for use in uses if use.is_mixing for number in use.outputs.tolist()}
        given |= {number for ids in self._state.values() for number in find(ids).flatten().tolist()} - made
        return Channels(
            uses=uses,
            slots=tuple(map(find, (*self._slots, *fixed))),
            state={name: find(ids) for name, ids in self._state.items()},
            fixed=frozenset(given),
            largest=self._largest,
        )

    def is_marked(self, value: Any) -> bool:
        """Return whether a value is a tensor with ids."""
        return isinstance(value, Tensor) and hasattr(value, _ATTRIBUTE)

    def mark(self, value: Tensor, ids: Tensor) -> None:
        """Note the ids of a value."""
        self._largest = max(self._largest, value.numel() // 2)
        setattr(value, _ATTRIBUTE, ids.expand(value.shape))

    def ids_of(self, tensor: Tensor, *, is_per_channel: bool = False) -> Tensor:
        """Return the ids of a tensor, of its shape; those of a tensor in the state are made at its first use."""
        name = self.names.get(id(tensor))
        if name is None:
            found: Tensor | None = getattr(tensor, _ATTRIBUTE, None)
            return torch.zeros(1, dtype=torch.int64).expand(tensor.shape) if found is None else found
        if name not in self._state:
            # A single number for all channels belongs to none.
            is_single = tensor.numel() == 1 and not is_per_channel
            ids = torch.zeros(1, dtype=torch.int64) if is_single else self.ids.fresh(tensor.numel())
            self._state[name] = ids.view(tensor.shape)
            self._slots.append(ids)
        return self._state[name]

    def on_layer(self, layer: Layer, inputs: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        """Make the ids of a layer's outputs."""
        output = compute()
        if layer.is_computed and layer.module is None:
            raise NotThinnableError(f"the weight of {layer.name} is computed in the forward pass")
        if inputs.dim() < 2 or (layer.window is not None and inputs.dim() != 4):
            raise NotThinnableError(f"{layer.name} reads values of shape {tuple(inputs.shape)}")
        if not _agree(output, layer.plain(inputs)):
            raise NotThinnableError(f"{layer.name} does not compute what a plain layer with its weights does")
        ids = self.ids.find(self.ids_of(inputs))
        if layer.window is None and _are_positions(ids):
            # As in an MLP-Mixer: every channel is kept, and its positions are mixed.
            nothing = torch.zeros(1, dtype=torch.int64)
            self._note(layer, nothing.expand(ids.shape[-1]), nothing.expand(len(layer.weight)), 1, is_mixing=False)
            self.mark(output, ids.amax(-1, keepdim=True))
            return output
        dimension = -1 if layer.window is None else 1
        read = self.ids.tied_down(rows_of(ids, dimension))
        self.mark(output, along(self._made(layer, read), dimension, output.dim()))
        return output

    def _made(self, layer: Layer, read: Tensor) -> Tensor:
        """Return the ids [o] of the outputs of a layer that reads channels with ids [c]."""
        groups = layer.window.groups if layer.window else 1
        whole = self._whole_groups
        if not (is_depthwise(layer.weight, groups) if whole is None else layer.name in whole):
            return self._note(layer, read, self.ids.fresh(len(layer.weight)), groups, is_mixing=True)
        per_group = read.view(groups, -1)
        self.ids.tie(per_group, per_group[:, :1].expand_as(per_group))
        made = per_group[:, 0].repeat_interleave(len(layer.weight) // groups)
        return self._note(layer, read, made, 1, is_mixing=False)

    def _note(self, layer: Layer, read: Tensor, made: Tensor, groups: int, *, is_mixing: bool) -> Tensor:
        """Note a use, and join its ids with those of an earlier one; return the ids of its outputs."""
        before = next((use for use in self._uses if use.name == layer.name), None)
        for own, others in () if before is None else ((read, before.inputs), (made, before.outputs)):
            self.ids.tie(own, others)
        weight, bias = (self.names.get(id(tensor), "") for tensor in (layer.weight, layer.bias))
        self._uses.append(
            LayerUse(layer.name, layer.settings, read, made, groups, is_mixing, before is None, weight, bias)
        )
        self._slots += [*read.reshape(groups, -1), *made.reshape(groups, -1)]
        return made

    def on_batch_norm(self, given: Mapping[str, Any], compute: Callable[[], Tensor]) -> Tensor:
        """Join the channels with their weights and statistics."""
        output = compute()
        inputs, *weights = (value for value in given.values() if isinstance(value, Tensor))
        self._treat_each(inputs, weights, output)
        return output

    def _treat_each(self, inputs: Tensor, weights: Sequence[Tensor], output: Tensor) -> Tensor:
        """Mark the result of a step that treats each channel, along dimension 1, alone; return the ids [c]."""
        channels = self.ids.tied_down(rows_of(self.ids.find(self.ids_of(inputs)), 1))
        for weight in weights:
            if weight.shape == channels.shape:
                channels = self.ids.tied([channels, self.ids_of(weight, is_per_channel=True)], tuple(channels.shape))
        self.mark(output, along(channels, 1, output.dim()))
        return channels

    def on_call(self, call: Callable[..., Any], args: Sequence[Any], named: Mapping[str, Any]) -> Any:
        """Find the ids of a call's results."""
        name = call_name(call)
        every = [value for value in tree_leaves((args, dict(named))) if isinstance(value, Tensor)]
        given = [value for value in every if self.is_marked(value) or id(value) in self.names]
        # Before the call, which may change a tensor in place.
        shapes = [tuple(value.shape) for value in given]
        answer = call(*args, **named)
        results = [value for value in tree_leaves(answer) if isinstance(value, Tensor) and id(value) not in self.names]
        if given and name in _REFUSED:
            raise NotThinnableError(
                f"it calls {name} on tensors or weights whose channels cannot be followed through it"
            )
        if not given or not results or name in _NEW:
            return answer
        if name in _MOVES or (name == "pad" and "constant" in (*args, *named.values(), "constant")[2:3]):
            self._move(call, name, args, named, results)
        elif name in _REDUCTIONS and not any(isinstance(value, Tensor) for value in args[1:]):
            self._reduce(_argument(args, named, _REDUCTIONS[name]), given[0], results)
        elif name in _PRODUCTS:
            self._multiply(every[0], every[1], results[0])
        elif name == "scaled_dot_product_attention":
            self._attend(every[0], every[1], every[2], results[0])
        elif name in _PER_CHANNEL:
            channels = self._treat_each(every[0], every[1:], results[0])
            self._slots += [*channels.view(args[1], -1)] if name == "group_norm" else []
        else:
            first = 1 if name in _CONVERSIONS else len(given)
            self._combine(name, given[:first], shapes[:first], results)
        return answer

    def _move(
        self, call: Callable[..., Any], name: str, args: Sequence[Any], named: Mapping[str, Any], results: list[Tensor]
    ) -> None:
        # Ids may be laid out in another way than the values, so that they allow no view.
        move: Any = {"view": Tensor.reshape, "view_as": Tensor.reshape_as}.get(name, call)

        def ids(value: Any) -> Any:
            has_ids = isinstance(value, Tensor) and (value.is_floating_point() or self.is_marked(value))
            return self.ids_of(value) if has_ids else value

        moved = move(*tree_map(ids, tuple(args)), **tree_map(ids, dict(named)))
        for result, found in zip(results, tree_leaves(moved), strict=True):
            self.mark(result, found)

    def _reduce(self, dimensions: Any, given: Tensor, results: list[Tensor]) -> None:
        if dimensions is None or isinstance(dimensions, bool):
            return
        ids = self.ids.find(self.ids_of(given))
        every = (dimensions,) if isinstance(dimensions, int) else tuple(dimensions)
        # A value of several channels belongs to none.
        left = single(ids, every)
        for result in results:
            self.mark(result, left.view(result.shape))

    def _multiply(self, first: Tensor, second: Tensor, result: Tensor) -> None:
        if not {id(first), id(second)}.isdisjoint(self.names):
            raise NotThinnableError("a weight is used in a product outside of a layer")
        if first.dim() < 2 or second.dim() < 2:
            raise NotThinnableError("it multiplies vectors")
        a, b = (self.ids.find(self.ids_of(value)) for value in (first, second))
        self._contract(a, b.movedim(-1, -2))
        rows, columns = single(a, -1)[..., :, None], single(b, -2)[..., None, :]
        self.mark(result, torch.where(columns == 0, rows, columns))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, result: Tensor) -> None:
        find = self.ids.find
        self._contract(find(self.ids_of(query)), find(self.ids_of(key)))
        ids = single(find(self.ids_of(value)), -2)
        self._slots += [*ids.flatten(0, -2)]
        self.mark(result, ids[..., None, :])

    def _contract(self, first: Tensor, second: Tensor) -> None:
        """Join the channels over which a product [..., i, c] x [..., j, c] sums; each matrix of a batch is a slot."""
        for ids in (first, second):
            low, high = extremes(ids, -1)
            if bool((low == high).all()):
                # It sums over positions.
                return
        tops = [ids.amax(-2) for ids in (first, second)]
        for ids, top in zip((first, second), tops, strict=True):
            self.ids.tie(ids, top[..., None, :].expand_as(ids))
        both = self.ids.tied(tops, _broadcast([tuple(top.shape) for top in tops]) or ())
        self._slots += [*both.flatten(0, -2)]

    def _combine(self, name: str, given: list[Tensor], shapes: list[tuple[int, ...]], results: list[Tensor]) -> None:
        """Mark the results of a step that treats each element, or each channel along dimension 1, alone."""
        for result in results:
            shape = tuple(result.shape)
            if _broadcast(shapes) == shape:
                ids = [self.ids_of(value) for value in given]
                self.mark(result, ids[0] if len(ids) == 1 else self.ids.tied(ids, shape))
            elif len(given) == 1 and len(shape) == len(shapes[0]) > 2 and shapes[0][:2] == shape[:2]:
                self._treat_each(given[0], [], result)
            else:
                raise NotThinnableError(f"it calls {name}, and the channels of its result are not known")


def is_depthwise(weight: Tensor, groups: int) -> bool:
    """Return whether a convolution with this kernel reads one channel per group."""
    return groups > 1 and weight.shape[1] == 1


def _are_positions(ids: Tensor) -> bool:
    """Return whether the values along the last dimension are positions of one channel, of several that there are."""
    small = without_repeats(ids)
    low, high = extremes(small, -1)
    return bool((low == high).all()) and bool((high != high.flatten()[0]).any())


def _argument(args: Sequence[Any], named: Mapping[str, Any], place: int) -> Any:
    return args[place] if len(args) > place else named.get("dim", named.get("axis"))


def _broadcast(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...] | None:
    try:
        return tuple(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]
    except RuntimeError:
        return None


def _agree(output: Tensor, plain: Tensor) -> bool:
    if output.shape != plain.shape:
        return False
    return bool((output - plain).abs().max() <= _SAME * plain.abs().max().clamp_min(1e-6))
