"""A shorter copy of a network: some blocks of its rows are left out.

A row is a container of blocks, such as a stage of a residual network or the encoder of a transformer. The blocks that
are left out are those without which the outputs for synthetic images change least, one after the other. Blocks that
change the shape, as the first of a stage, cannot be left out. The BatchNorm layers behind a gap then compensate for the
change of the moments of their inputs.

n images, c channels, h height, w width, k classes.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dfkd_core.errors import ConfigError
from dfkd_core.models.calls import Calls, Layer, NotThinnableError
from dfkd_core.models.classifier import copy_network

__all__ = ["Fits", "find_rows", "first_fitting", "is_inside", "make_shorter"]

Fits = Callable[[nn.Module, nn.Module], bool]
"""Whether the first module, a block of a student, can be a thinner copy of the second."""

_Container = nn.Sequential | nn.ModuleList | nn.ModuleDict
_Answer = Callable[[nn.Module], Tensor]


@dataclass(slots=True)
class _Row:
    """A row of blocks of which the student has fewer."""

    path: str
    container: nn.Module
    wanted: tuple[nn.Module, ...]
    """The student's blocks."""
    names: tuple[str, ...]
    """Names of the blocks by their number."""
    blocks: list[nn.Module]
    """Blocks that are left."""

    @property
    def is_long(self) -> bool:
        """Whether blocks must still be left out."""
        return len(self.blocks) > len(self.wanted)

    def put(self, blocks: Sequence[nn.Module]) -> None:
        """Make the network run these blocks alone, under the names of the first ones."""
        self.container._modules = dict(zip(self.names, blocks))


def first_fitting(own: Sequence[nn.Module], blocks: Sequence[nn.Module], fits: Fits) -> list[int] | None:
    """Return the places of the first blocks, in their order, that the student's fit; None if there are too few."""
    found: list[int] = []
    for place, block in enumerate(blocks):
        if len(found) < len(own) and fits(own[len(found)], block):
            found.append(place)
    return found if len(found) == len(own) else None


def find_rows(network: nn.Module, student: nn.Module) -> list[str]:
    """Return the paths of the rows of blocks of which the student has fewer, none of them inside another."""
    own = dict(student.named_modules())
    found: list[str] = []
    for path, module in network.named_modules():
        if is_inside(path, found) or not isinstance(module, _Container):
            continue
        names, own_names = [list(dict(row.named_children())) for row in (module, own.get(path, nn.Identity()))]
        if own_names and len(own_names) < len(names) and names[: len(own_names)] == own_names:
            found.append(path)
    return found


def is_inside(path: str, rows: Collection[str]) -> bool:
    """Return whether the module at a path is in one of the rows."""
    return any(path.startswith(f"{row}.") for row in rows)


@torch.no_grad()
def make_shorter(network: nn.Module, student: nn.Module, answer: _Answer, fits: Fits) -> nn.Module:
    """Return a copy of a network whose rows are as long as the student's.

    Args:
        network: In eval mode; not changed.
        student: The network whose rows it takes.
        answer: Returns the outputs [n, k] of a network for the synthetic images.
        fits: Compares two blocks.

    Raises:
        NotThinnableError: A block more must be left out, but none can be, or the network cannot be copied.
    """
    try:
        short = copy_network(network)
    except ConfigError as error:
        raise NotThinnableError(str(error)) from error
    before = _batch_norms(short)
    own = dict(student.named_modules())
    rows = [_row(path, short.get_submodule(path), own[path]) for path in find_rows(network, student)]
    wanted = answer(network)
    _leave_out(short, rows, fits, lambda: _change(answer, short, wanted))
    moments = _Moments(network, {name: name for name in before.values()})
    with moments.followed():
        answer(network)
    renamed = {name: before[id(module)] for name, module in short.named_modules() if id(module) in before}
    with _Adjusted(short, renamed, moments.found).followed():
        answer(short)
    return short


def _row(path: str, container: nn.Module, own: nn.Module) -> _Row:
    children = dict(container.named_children())
    return _Row(path, container, tuple(own.children()), tuple(children), list(children.values()))


def _leave_out(short: nn.Module, rows: Sequence[_Row], fits: Fits, change: Callable[[], float]) -> None:
    """Leave out blocks until the rows are as long as the student's; the one that changes the outputs least is next.

    A block's change is measured again only when it is next: leaving out others seldom makes it smaller.
    """
    all_blocks = [tuple(row.blocks) for row in rows]
    # The change, the block, and how many blocks were left out when it was measured.
    queue = [(-1.0, number, place, -1) for number, blocks in enumerate(all_blocks) for place in range(len(blocks))]
    num_left_out = 0
    while any(row.is_long for row in rows):
        if not queue:
            long = next(row for row in rows if row.is_long)
            raise NotThinnableError(
                f"the student has {len(long.wanted)} blocks in {long.path} and the teacher {len(long.names)}, and no "
                "choice of them fits the student's"
            )
        _, number, place, measured_at = heapq.heappop(queue)
        row = rows[number]
        left = [other for other in row.blocks if other is not all_blocks[number][place]]
        if not row.is_long or first_fitting(row.wanted, left, fits) is None:
            continue
        row.put(left)
        if measured_at == num_left_out:
            row.blocks, num_left_out = left, num_left_out + 1
            continue
        found = change()
        row.put(row.blocks)
        if found < float("inf"):
            heapq.heappush(queue, (found, number, place, num_left_out))


def _change(answer: _Answer, short: nn.Module, wanted: Tensor) -> float:
    """Return the squared change of the outputs; infinite if the network does not run."""
    try:
        found = answer(short)
    except (Exception, SystemExit):  # a block that changes the shape is missing
        return float("inf")
    if found.shape != wanted.shape:
        return float("inf")
    change = float((found - wanted).double().square().mean())
    return change if change == change else float("inf")


def _batch_norms(network: nn.Module) -> dict[int, str]:
    """Return the names of the layers with a running mean by the ids of the modules."""
    modules = network.named_modules()
    return {id(m): name for name, m in modules if isinstance(getattr(m, "running_mean", None), Tensor)}


class _Moments(Calls):
    """Runs a network and keeps the moments of the inputs of its BatchNorm layers, at their first use."""

    def __init__(self, network: nn.Module, renamed: Mapping[str, str]) -> None:
        super().__init__(network)
        self._renamed = renamed
        self.found: dict[str, tuple[Tensor, Tensor]] = {}
        """Mean and variance per channel by the name of the layer."""

    def on_layer(self, layer: Layer, inputs: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        """Return the output of a layer."""
        return compute()

    def on_batch_norm(self, given: Mapping[str, Any], compute: Callable[[], Tensor]) -> Tensor:
        """Keep the moments."""
        own = self.names.get(id(given["running_mean"]), "").removesuffix(".running_mean")
        name = self._renamed.get(own)
        if name is not None and name not in self.found:
            self.found[name] = self.on_moments(name, given)
        return compute()

    def on_moments(self, name: str, given: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the moments of the inputs."""
        inputs = given["input"]
        variance, mean = torch.var_mean(inputs, [d for d in range(inputs.dim()) if d != 1], correction=0)
        return mean, variance


class _Adjusted(_Moments):
    """Runs a shorter network and changes the running moments as the moments of the inputs have changed."""

    def __init__(
        self, network: nn.Module, renamed: Mapping[str, str], wanted: Mapping[str, tuple[Tensor, Tensor]]
    ) -> None:
        super().__init__(network, renamed)
        self._wanted = wanted

    def on_moments(self, name: str, given: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Shift the running mean and scale the running variance before the layer runs."""
        mean, variance = super().on_moments(name, given)
        if name in self._wanted:
            old_mean, old_variance = self._wanted[name]
            tiny = torch.finfo(variance.dtype).tiny
            factor = (variance / old_variance.clamp_min(tiny)).clamp(0.01, 100)
            running = given["running_mean"]
            # The distance of the images' mean from the running one grows with the spread.
            running.copy_(mean + (running - old_mean) * factor.sqrt())
            given["running_var"].mul_(factor)
        return mean, variance
