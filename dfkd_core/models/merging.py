"""Merging of BatchNorm into the layer before it: a frozen network computes the same in fewer passes over memory.

In eval mode BatchNorm scales and shifts each channel by constants. A convolution or a linear layer right before it
can include them in its weights (Jacob et al., CVPR 2018, arXiv 1712.05877, section 3.2).

n images, c channels, h height, w width, k classes.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights
from torch.nn.utils.parametrize import is_parametrized

from dfkd_core.common.seeding import derive_generator
from dfkd_core.models.classifier import Classifier
from dfkd_core.models.layers import BatchNorm, parse_layer, recorded, rounding_of

__all__ = ["merge_batch_norm"]

_NUM_PROBES = 4
# Share of the change between images: an invalid merge changes whole channels.
_TOLERANCE = 1e-2

_Weighted = nn.Conv1d | nn.Conv2d | nn.Linear


@dataclass(frozen=True, slots=True)
class _Pair:
    """Paths of two layers; the second reads the output of the first."""

    weighted: str
    batch_norm: str


@torch.no_grad()
def merge_batch_norm(classifier: Classifier, *, keep: Sequence[str] = ()) -> Classifier:
    """Return a classifier that computes the same with less work, or `classifier` itself if nothing can be merged.

    A run of the network finds the pairs: a BatchNorm is merged if a convolution or a linear layer has just returned its
    input. Layers with hooks or computed weights stay. The result is compared with the network on other images. If it
    fails or differs by more than rounding, for instance because something else reads that output too, nothing is
    merged.

    Args:
        classifier: A network in eval mode; not changed.
        keep: Addresses of layers whose values must not change, see `dfkd_core.models.layers`; a merged layer takes the
            values of its BatchNorm.

    Returns:
        A classifier with the same module paths, frozen.
    """
    if classifier.program is not None:
        return classifier
    own = {(layer.path, layer.is_input) for layer in map(parse_layer, keep)}
    pairs = [
        pair
        for pair in _find_pairs(classifier, _probes(classifier, "pairs"))
        if not {(pair.weighted, False), (pair.batch_norm, True)} & own
    ]
    if not pairs:
        return classifier
    # A network may keep what it computed last: images other than those of the pairs show it.
    probes = _probes(classifier, "check")
    try:
        merged = _merged_copy(classifier, pairs)
        after = _values(merged, keep, probes)
    except Exception:  # the network's code may read what only BatchNorm has, or contain what cannot be copied
        return classifier
    rounding = rounding_of(classifier)
    same = (_agree(*values, rounding) for values in zip(_values(classifier, keep, probes), after, strict=True))
    return merged if all(same) else classifier


def _probes(classifier: Classifier, purpose: str) -> Tensor:
    images = torch.rand(_NUM_PROBES, *classifier.card.image_shape, generator=derive_generator(0, "merging", purpose))
    return images.to(classifier.mean.device)


def _find_pairs(classifier: Classifier, images: Tensor) -> list[_Pair]:
    """Return the layers that can be merged, found in one forward pass."""
    # A module with two names may run at two places: calls are counted per module.
    names = {module: name for name, module in classifier.network.named_modules() if name}
    given: list[tuple[nn.Module, Any]] = []
    read: list[tuple[nn.Module, Any]] = []
    with ExitStack() as stack:
        for module in names:
            if _is_weighted(module):
                handle = module.register_forward_hook(lambda module, args, output: given.append((module, output)))
            elif _has_constants(module):
                # An input passed by keyword is not visible here, and its layer stays.
                handle = module.register_forward_pre_hook(
                    lambda module, args: read.append((module, args[0] if args else None))
                )
            else:
                continue
            stack.callback(handle.remove)
        classifier(images)
    num_runs = Counter(module for module, _ in given + read)
    # All of these tensors are alive, so no two of them have the same id.
    source = {id(output): module for module, output in given}
    pairs = []
    for batch_norm, value in read:
        weighted = source.get(id(value))
        if weighted is None or num_runs[weighted] > 1 or num_runs[batch_norm] > 1:
            continue
        # For a sequence, BatchNorm takes the second dimension as channels, a linear layer the last.
        if not (isinstance(weighted, nn.Linear) and value.dim() > 2):
            pairs.append(_Pair(names[weighted], names[batch_norm]))
    return pairs


def _values(classifier: Classifier, addresses: Sequence[str], images: Tensor) -> list[Tensor]:
    """Return the logits and the values at the addresses."""
    with recorded(classifier, addresses) as found:
        logits = classifier(images)
    return [logits, *(found[address] for address in addresses)]


def _agree(before: Tensor, after: Tensor, rounding: float) -> bool:
    change = (before - before.mean(0)).abs().max()
    allowed = _TOLERANCE * change + rounding * before.abs().max()
    return before.shape == after.shape and bool((after - before).abs().max() <= allowed)


def _is_weighted(module: nn.Module) -> bool:
    """Return whether a module has weights that can take a factor."""
    # Weights that are computed before each pass, by a parametrization or a hook, would overwrite the merged ones.
    return isinstance(module, _Weighted) and not is_parametrized(module) and not _has_hooks(module)


def _has_constants(module: nn.Module) -> bool:
    """Return whether a module is exactly a BatchNorm that normalises by its stored statistics."""
    # A subclass may do more, such as an activation, and so may a hook.
    is_plain = type(module) in get_args(BatchNorm) and not is_parametrized(module) and not _has_hooks(module)
    return is_plain and module.running_mean is not None and not module.training


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_pre_hooks or module._forward_hooks or module._backward_hooks)


def _merged_copy(classifier: Classifier, pairs: Sequence[_Pair]) -> Classifier:
    merged = copy.deepcopy(classifier).requires_grad_(False)
    for pair in pairs:
        _merge(merged.network, pair)
    return merged


def _merge(network: nn.Module, pair: _Pair) -> None:
    layer, norm = network.get_submodule(pair.weighted), network.get_submodule(pair.batch_norm)
    assert isinstance(layer, _Weighted)
    assert isinstance(norm, BatchNorm)
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    scale = norm.weight if norm.affine else torch.ones_like(mean)
    shift = norm.bias if norm.affine else torch.zeros_like(mean)
    if isinstance(layer, nn.Linear):
        fused = fuse_linear_bn_weights(layer.weight, layer.bias, mean, variance, norm.eps, scale, shift)
    else:
        fused = fuse_conv_bn_weights(layer.weight, layer.bias, mean, variance, norm.eps, scale, shift)
    layer.weight, layer.bias = (parameter.requires_grad_(False) for parameter in fused)
    network.set_submodule(pair.batch_norm, nn.Identity())
