"""Filling of a thinner network, layer by layer, while it runs on the same images as the network it copies.

n images, c channels, h height, w width; m sampled rows (an image and a position in a layer's output), t values that a
layer reads from one channel for one row (taps), p = c t, o outputs of a layer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dfkd_core.common.least_squares import fit_linear
from dfkd_core.common.seeding import derive_generator
from dfkd_core.distillation.channel_choice import Regression, choose_channels
from dfkd_core.models.calls import Calls, Layer, NotThinnableError
from dfkd_core.models.channels import Channels, LayerUse

__all__ = ["Pairing", "copy_layers"]

_MAX_ROWS = 20_000
# Limits memory: sampled values of all layers together.
_MAX_SAMPLED = 2**28
# Above, least squares would take too much memory and time.
_MAX_FITTED_INPUTS = 8192


@dataclass(slots=True)
class _Choice:
    """Channels that belong together, of which the thinner network keeps fewer."""

    wide: list[int]
    thin: list[int]
    readers: list[tuple[int, int]] = field(default_factory=list)
    """Layers that read them, as positions of the use and of its group."""


class Pairing:
    """Pairs each channel of the thinner network with one of the wide network, as far as chosen."""

    def __init__(self, wide: Channels, thin: Channels) -> None:
        """Compare the two networks' channels.

        Args:
            wide: Channels of the network to copy.
            thin: Channels of the network to fill.

        Raises:
            NotThinnableError: They do different things, or put their channels together differently.
        """
        self.wide, self.thin = wide, thin
        self.choices: list[_Choice] = []
        self._wide_of = {0: 0}
        if [_signature(use) for use in wide.uses] != [_signature(use) for use in thin.uses]:
            raise NotThinnableError("the student uses its layers in another way than the teacher")
        sets, thin_sets = wide.sets(), thin.sets()
        if len(wide.slots) != len(thin.slots) or sets.keys() != thin_sets.keys():
            raise NotThinnableError("the student puts its channels together in another way than the teacher")
        for place, ids in thin_sets.items():
            choice = _Choice(sets[place], ids)
            if len(ids) > len(choice.wide):
                raise NotThinnableError(f"the student has {len(ids)} channels where the teacher has {len(choice.wide)}")
            if len(ids) == len(choice.wide):
                self.choose(choice, range(len(ids)))
            else:
                self.choices.append(choice)
        self.is_whole = not self.choices
        """Whether the thinner network is as wide as the other."""

    def choose(self, choice: _Choice, kept: Any) -> None:
        """Keep the wide network's channels at these positions of a choice, ascending."""
        self._wide_of.update(zip(choice.thin, (choice.wide[position] for position in kept), strict=True))

    def positions(self, thin: Tensor, wide: Tensor) -> Tensor:
        """Return, for each of the thinner network's ids, the position of its channel among the wide network's, int64.

        If an id occurs several times, as in a flattened map, its occurrences are paired in their order.

        Raises:
            NotThinnableError: A channel occurs more often in one of the networks.
        """
        places = defaultdict(list)
        for position, found in enumerate(wide.tolist()):
            places[found].append(position)
        found = [self._wide_of[id_] for id_ in thin.tolist()]
        waiting = {id_: iter(places[id_]) for id_ in set(found)}
        paired = [next(waiting[id_], None) for id_ in found]
        if None in paired or any(next(left, None) is not None for left in waiting.values()):
            raise NotThinnableError("a layer of the student reads another number of values per channel")
        return torch.tensor(paired)

    def outputs(self, position: int, group: int) -> Tensor:
        """Return the wide layer's outputs that the thinner one has, for a group of a use."""
        wide, thin = self.wide.uses[position], self.thin.uses[position]
        own, others = thin.outputs.view(thin.groups, -1)[group], wide.outputs.view(wide.groups, -1)
        return self.positions(own, others[group]) + group * others.shape[1]

    def inputs(self, position: int, group: int) -> Tensor:
        """Return the wide layer's inputs that the thinner one has, for a group of a use, counted in the group."""
        wide, thin = self.wide.uses[position], self.thin.uses[position]
        return self.positions(thin.inputs.view(thin.groups, -1)[group], wide.inputs.view(wide.groups, -1)[group])


def _signature(use: LayerUse) -> tuple[Any, ...]:
    return (use.name, use.settings, use.groups, use.is_mixing, use.is_first)


@torch.no_grad()
def copy_layers(network: nn.Module, thin: nn.Module, pairing: Pairing, pixels: Tensor) -> Any:
    """Choose the channels to keep and fill a thinner network; return the wide network's answer.

    Args:
        network: The network to copy, in eval mode.
        thin: The network to fill, in eval mode, on the same device.
        pairing: Their channels; the choice is added.
        pixels: Input of both networks [n, c, h, w].

    Raises:
        NotThinnableError: A weight cannot be set.
    """
    with _Chooser(network, pairing).followed():
        network(pixels)
    for choice in pairing.choices:
        if not choice.readers:
            # Nothing shows which are worth most.
            pairing.choose(choice, range(len(choice.thin)))
    _copy_state(network, thin, pairing)
    sampler = _Sampler(network, pairing)
    with sampler.followed():
        answer = network(pixels)
    with _Filler(thin, pairing, sampler).followed():
        thin(pixels)
    return answer


def _copy_state(network: nn.Module, thin: nn.Module, pairing: Pairing) -> None:
    """Copy all tensors but the weights of layers; those of another width that are not used stay as they are."""
    wide = _tensors(network)
    for name, tensor in _tensors(thin).items():
        if name in pairing.thin.state and name in pairing.wide.state:
            ids, others = pairing.thin.state[name].flatten(), pairing.wide.state[name].flatten()
            kept = pairing.positions(ids, others).to(tensor.device)
            tensor.copy_(wide[name].flatten()[kept].view_as(tensor))
        elif name in wide and wide[name].shape == tensor.shape:
            tensor.copy_(wide[name])


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return dict((*network.named_parameters(), *network.named_buffers()))


class _Counted(Calls):
    """Numbers the uses of layers in the order of the calls."""

    def __init__(self, network: nn.Module, pairing: Pairing) -> None:
        super().__init__(network)
        self.pairing = pairing
        self._next = 0

    def on_layer(self, layer: Layer, inputs: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        """Pass a use on with its position."""
        position = self._next
        self._next += 1
        if [use.name for use in self.pairing.wide.uses[position : position + 1]] != [layer.name]:
            raise NotThinnableError("its layers run in another order for other images")
        if not self.pairing.wide.uses[position].is_first:
            return compute()
        return self.on_use(position, layer, inputs, compute)

    def on_use(self, position: int, layer: Layer, inputs: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        """Return the output of a layer whose weights were not used before."""
        raise NotImplementedError


class _Chooser(_Counted):
    """Runs the wide network and chooses the kept channels of each set that has too many."""

    def __init__(self, network: nn.Module, pairing: Pairing) -> None:
        super().__init__(network, pairing)
        self._problems: dict[tuple[int, int], dict[int, Regression]] = defaultdict(dict)
        self._read: dict[tuple[int, int], list[int]] = defaultdict(list)
        readers = _readers(pairing.wide)
        for number, choice in enumerate(pairing.choices):
            choice.readers = readers[choice.wide[0]]
            for reader in choice.readers:
                self._read[reader].append(number)

    def on_use(self, position: int, layer: Layer, inputs: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        """Note how the outputs depend on the channels, and choose those whose last reader this is."""
        output = compute()
        use = self.pairing.wide.uses[position]
        for group in range(use.groups):
            for number in self._read.get((position, group), ()):
                choice = self.pairing.choices[number]
                self._problems[position, group][number] = _regression(use, layer, inputs, output, group, choice.wide)
                if choice.readers[-1] == (position, group):
                    problems = [self._problems[reader].pop(number) for reader in choice.readers]
                    self.pairing.choose(choice, choose_channels(problems, len(choice.thin)).tolist())
        return output


def _readers(channels: Channels) -> dict[int, list[tuple[int, int]]]:
    """Return the layers that sum over each channel, as positions of the use and its group, in their order."""
    found: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for position, use in enumerate(channels.uses):
        for group, ids in enumerate(use.inputs.view(use.groups, -1) if use.is_mixing and use.is_first else ()):
            for number in ids.unique().tolist():
                found[number].append((position, group))
    return found


def _regression(
    use: LayerUse, layer: Layer, inputs: Tensor, output: Tensor, group: int, wanted: list[int]
) -> Regression:
    """Return the regression of a layer's outputs on some of its input channels."""
    ids = use.inputs.view(use.groups, -1)[group]
    columns = torch.cat([(ids == number).nonzero()[:, 0] for number in wanted]).to(inputs.device)
    rows = _sample_rows(layer, output)
    read = _taken(_patches(layer, inputs, output, rows, group, use.groups), columns).reshape(len(rows), len(wanted), -1)
    weights = _taken(_by_channel(layer, group, use.groups), columns)
    weights = weights.reshape(len(weights), len(wanted), -1)
    if read[0].numel() > _MAX_FITTED_INPUTS:
        read, weights = read.mean(2), weights.sum(2)
    values = read.flatten(1)
    values = values - values.mean(0)
    gram = (values.T @ values / len(values)).cpu().double()
    return Regression(gram, weights.flatten(1).T.cpu().double(), len(wanted))


class _Sampler(_Counted):
    """Runs the wide network and keeps what its layers compute, at sampled rows."""

    def __init__(self, network: nn.Module, pairing: Pairing) -> None:
        super().__init__(network, pairing)
        self.layers: dict[int, Layer] = {}
        """Layers by the position of their use."""
        self.rows: dict[int, Tensor] = {}
        """Sampled rows by the position of the use, int64 [m]."""
        self.wanted: dict[tuple[int, int], Tensor] = {}
        """Kept outputs at these rows by use and group, [m, o] on the CPU."""
        self.means: dict[str, Tensor] = {}
        """Mean per channel of the inputs of BatchNorm layers, by the name of their running mean."""
        width = sum(len(use.outputs) for use in pairing.thin.uses if use.is_mixing and use.is_first)
        self._max_rows = min(_MAX_ROWS, _MAX_SAMPLED // max(width, 1))

    def on_use(self, position: int, layer: Layer, inputs: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        """Keep a layer and its outputs."""
        output = compute()
        self.layers[position] = layer
        use = self.pairing.thin.uses[position]
        if use.is_mixing:
            rows = _sample_rows(layer, output, self._max_rows)
            sampled = output.movedim(_dimension(layer), -1).flatten(0, -2)[rows]
            self.rows[position] = rows
            for group in range(use.groups):
                kept = self.pairing.outputs(position, group).to(output.device)
                self.wanted[position, group] = sampled[:, kept].cpu()
        return output

    def on_batch_norm(self, given: Mapping[str, Any], compute: Callable[[], Tensor]) -> Tensor:
        """Keep the mean of the inputs."""
        name = self.names.get(id(given["running_mean"]))
        if name is not None:
            self.means.setdefault(name, _channel_means(given["input"]))
        return compute()


class _Filler(_Counted):
    """Runs the thinner network and fills each of its layers before the layer runs."""

    def __init__(self, thin: nn.Module, pairing: Pairing, sampler: _Sampler) -> None:
        super().__init__(thin, pairing)
        self._sampler = sampler
        self._shifted: set[str] = set()

    def on_use(self, position: int, layer: Layer, inputs: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        """Fit a layer to reproduce, from its own inputs, the outputs of the wide layer on the wide network's inputs."""
        use, wide = self.pairing.thin.uses[position], self._sampler.layers[position]
        groups = range(use.groups)
        if use.is_mixing:
            fitted = [self._fitted(position, layer, wide, inputs, group, use.groups) for group in groups]
            weight, bias = (torch.cat(parts) for parts in zip(*fitted, strict=True))
            layer.assign(weight, bias)
        else:
            kept = self.pairing.outputs(position, 0).to(wide.weight.device)
            layer.assign(wide.weight[kept], None if wide.bias is None else wide.bias[kept])
        return compute()

    def _fitted(
        self, position: int, layer: Layer, wide: Layer, inputs: Tensor, group: int, groups: int
    ) -> tuple[Tensor, Tensor]:
        """Return the weights [o, p] and biases [o] of a group."""
        rows, wanted = self._sampler.rows[position], self._sampler.wanted[position, group].double()
        values = _patches(layer, inputs, None, rows, group, groups).flatten(1).cpu().double()
        count = len(wide.weight) // groups
        kept = self.pairing.outputs(position, group).to(wide.weight.device) - group * count
        read = self.pairing.inputs(position, group).to(wide.weight.device)
        prior = _by_channel(wide, group, groups)[kept][:, read].flatten(1).cpu().double()
        if values.shape[1] > _MAX_FITTED_INPUTS:
            return prior, wanted.mean(0) - prior @ values.mean(0)
        return fit_linear(values, wanted, prior)

    def on_batch_norm(self, given: Mapping[str, Any], compute: Callable[[], Tensor]) -> Tensor:
        """Shift the running mean by the change of the inputs' mean.

        A layer without a bias cannot compensate for the mean of the removed channels, but the BatchNorm after it can.
        """
        name = self.names.get(id(given["running_mean"]))
        if name is not None and name not in self._shifted:
            self._shifted.add(name)
            ids, others = self.pairing.thin.state[name], self.pairing.wide.state[name]
            kept = self.pairing.positions(ids, others).to(given["input"].device)
            given["running_mean"].add_(_channel_means(given["input"]) - self._sampler.means[name][kept])
        return compute()


def _channel_means(inputs: Tensor) -> Tensor:
    return inputs.mean([dimension for dimension in range(inputs.dim()) if dimension != 1])


def _dimension(layer: Layer) -> int:
    """Return the dimension of a layer's channels."""
    return -1 if layer.window is None else 1


def _by_channel(layer: Layer, group: int, groups: int) -> Tensor:
    """Return a group's weights as [o, c, t]."""
    count = len(layer.weight) // groups
    weight = layer.weight[group * count : (group + 1) * count]
    return weight.reshape(count, weight.shape[1], -1)


def _taken(values: Tensor, columns: Tensor) -> Tensor:
    """Return the columns of values [r, c, t]; the values themselves if all are taken in their order."""
    is_all = len(columns) == values.shape[1] and bool((columns.diff() == 1).all())
    return values if is_all else values[:, columns]


def _sample_rows(layer: Layer, output: Tensor, most: int = _MAX_ROWS) -> Tensor:
    """Return the sampled rows of a layer's output, int64 [m] ascending."""
    count = output.numel() // output.shape[_dimension(layer)]
    order = torch.randperm(count, generator=derive_generator(0, "pruning", layer.name))
    return order[:most].sort().values.to(output.device)


def _patches(layer: Layer, inputs: Tensor, output: Tensor | None, rows: Tensor, group: int, groups: int) -> Tensor:
    """Return the inputs that a group of a layer reads for these rows of its output, [m, c, t]."""
    count = inputs.shape[_dimension(layer)] // groups
    if groups > 1:
        inputs = inputs.narrow(_dimension(layer), group * count, count)
    if layer.window is None:
        return inputs.flatten(0, -2)[rows].view(len(rows), count, -1)
    (down, across), (row_step, column_step) = layer.window.dilation, layer.window.stride
    height, width = ((size - 1) * step + 1 for size, step in zip(layer.weight.shape[2:], (down, across)))
    padded = functional.pad(inputs, layer.window.padding, mode=layer.window.mode)
    windows = padded.unfold(2, height, row_step).unfold(3, width, column_step)[..., ::down, ::across]
    lines, columns = windows.shape[2:4]
    image, position = rows // (lines * columns), rows % (lines * columns)
    return windows[image, :, position // columns, position % columns].flatten(2)
