"""A thinner network of the same architecture: its channels are a fraction of the original's.

The network is built in full, its channels are found in one run (`dfkd_core.models.channels`), and each set of channels
that belong together is cut to its first ones. The code of its `forward` stays the same.

c channels, h height, w width, k classes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn

from dfkd_core.common.pixels import grey_images
from dfkd_core.errors import first_line
from dfkd_core.models.calls import NotThinnableError
from dfkd_core.models.channels import Channels, LayerUse, find_channels

__all__ = ["make_thinner"]


@torch.no_grad()
def make_thinner(network: nn.Module, multiple: float, image_shape: tuple[int, int, int]) -> nn.Module:
    """Cut the widths of all layers of a network, in place, and return it.

    Args:
        network: Its channels of the image and its outputs keep their number.
        multiple: Factor on each number of channels, above 0 and up to 1; at least one channel is left.
        image_shape: (c, h, w) of its images.

    Raises:
        NotThinnableError: Its channels cannot be found, or its `forward` depends on their number.
    """
    is_training = network.training
    images = grey_images(2, image_shape)
    try:
        # The first pass makes the weights of lazy layers.
        before = _shapes(network.eval()(images))
        channels = find_channels(network, images)
    except NotThinnableError:
        raise
    # The code of a network can raise any exception, or end the process.
    except (Exception, SystemExit) as error:
        raise NotThinnableError(f"it rejects images of shape {image_shape} ({first_line(error)})") from error
    kept = _kept(channels, multiple)
    try:
        _cut_all(network, channels, kept)
        after = _shapes(network(images))
    except NotThinnableError:
        raise
    except (Exception, SystemExit) as error:
        raise NotThinnableError(
            f"its forward works with its own widths alone ({first_line(error, longest=150)})"
        ) from error
    if after != before:
        raise NotThinnableError(f"with fewer channels its output for 2 images is {after} instead of {before}")
    return network.train(is_training)


def _kept(channels: Channels, multiple: float) -> set[int]:
    """Return the ids that are kept; 0, no channel, always is."""
    kept = {0}
    for ids in channels.sets().values():
        count = len(ids) if channels.fixed & set(ids) else max(1, round(len(ids) * multiple))
        kept.update(ids[:count])
    return kept


def _cut_all(network: nn.Module, channels: Channels, kept: set[int]) -> None:
    if computed := [use.name for use in channels.uses if not use.weight]:
        raise NotThinnableError(f"the weights of {', '.join(computed[:3])} are computed from others")
    uses = {name: use for use in channels.uses for name in (use.weight, use.bias) if name}
    names: dict[int, list[str]] = {}
    for name, tensor in (*network.named_parameters(remove_duplicate=False), *network.named_buffers()):
        names.setdefault(id(tensor), []).append(name)
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if name in uses:
            left = _cut_layer(uses[name], tensor, kept)
        elif name in channels.state:
            left = _cut(channels.state[name], tensor, kept)
        else:
            continue
        # Names of one tensor stay names of one tensor.
        new = nn.Parameter(left.clone(), tensor.requires_grad) if isinstance(tensor, nn.Parameter) else left.clone()
        for other in names[id(tensor)]:
            _replace(network, other, new)
    for module in network.modules():
        _set_widths(module)


def _cut_layer(use: LayerUse, tensor: Tensor, kept: set[int]) -> Tensor:
    left = tensor[_is_kept(use.outputs, kept)]
    if tensor.dim() == 1 or not use.is_mixing:
        return left
    # A kernel of groups has the inputs of one group; all groups keep the same number.
    inputs = _is_kept(use.inputs.view(use.groups, -1)[0], kept)
    return left[:, inputs]


def _cut(ids: Tensor, tensor: Tensor, kept: set[int]) -> Tensor:
    """Return the slice of a tensor whose elements have kept ids."""
    mask = _is_kept(ids, kept)
    for dimension in range(tensor.dim()):
        others = tuple(d for d in range(mask.dim()) if d != dimension)
        along = mask.any(others) if others else mask
        tensor, mask = (t.index_select(dimension, along.nonzero()[:, 0]) for t in (tensor, mask))
    if not mask.all():
        raise NotThinnableError(f"a tensor of shape {tuple(ids.shape)} has its channels along several dimensions")
    return tensor


def _is_kept(ids: Tensor, kept: Collection[int]) -> Tensor:
    return torch.isin(ids, torch.tensor(sorted(kept)))


def _replace(network: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, attribute = name.rpartition(".")
    setattr(network.get_submodule(path), attribute, tensor)


def _set_widths(module: nn.Module) -> None:
    """Set the numbers that a module of torch has besides its weights."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return
    if isinstance(module, nn.Conv2d):
        if module.groups > 1 and module.in_channels == module.groups:
            module.groups = len(weight) * module.groups // module.out_channels
        module.out_channels, module.in_channels = len(weight), weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        module.num_features = len(weight)
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = len(weight)
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
        module.normalized_shape = tuple(weight.shape)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(weight)


def _shapes(answer: object) -> list[tuple[int, ...]]:
    return list(_tensor_shapes(answer))


def _tensor_shapes(answer: object) -> Iterator[tuple[int, ...]]:
    for value in torch.utils._pytree.tree_leaves(answer):
        if isinstance(value, Tensor):
            yield tuple(value.shape)
