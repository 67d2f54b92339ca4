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
from dfkd_core.models.layers import BatchNorm, parse_layer, recorded

__all__ = ["merge_batch_norm"]

_NUM_PROBES = 4
# Rounding is 1e-5 on a CPU and 1e-3 with a GPU's TF32; an invalid merge changes whole channels.
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
    input. The result is compared with the network. If they differ by more than rounding, for instance
    because something else reads that output too, nothing is merged.

    Args:
        classifier: A network in eval mode; not changed.
        keep: Addresses of layers whose values must not change, see `dfkd_core.models.layers`; a merged layer takes the
            values of its BatchNorm.

    Returns:
        A classifier with the same module paths, frozen.
    """
    if classifier.program is not None:
        return classifier
    shape, device = classifier.card.image_shape, classifier.mean.device
    probes = torch.rand(_NUM_PROBES, *shape, generator=derive_generator(0, "merging")).to(device)
    own = {(layer.path, layer.is_input) for layer in map(parse_layer, keep)}
    pairs = [
        pair for pair in _find_pairs(classifier, probes) if not {(pair.weighted, False), (pair.batch_norm, True)} & own
    ]
    if not pairs:
        return classifier
    merged = copy.deepcopy(classifier).requires_grad_(False)
    for pair in pairs:
        _merge(merged.network, pair)
    before, after = (_values(network, keep, probes) for network in (classifier, merged))
    return merged if all(map(_agree, before, after)) else classifier


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


def _agree(before: Tensor, after: Tensor) -> bool:
    return bool((after - before).abs().max() <= _TOLERANCE * before.abs().max().clamp_min(1))


def _is_weighted(module: nn.Module) -> bool:
    """Return whether a module has weights that can take a factor."""
    # Weights that are recomputed before each pass would overwrite the merged ones.
    return isinstance(module, _Weighted) and not is_parametrized(module) and not module._forward_pre_hooks


def _has_constants(module: nn.Module) -> bool:
    """Return whether a module is exactly a BatchNorm that normalises by its stored statistics."""
    # A subclass may do more, such as an activation.
    return type(module) in get_args(BatchNorm) and module.running_mean is not None and not module.training


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
