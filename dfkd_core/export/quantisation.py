"""Post-training quantisation of a captured network: int8 weights, uint8 activations, ranges from calibration images.

Needs torchao (the extra `int8`), so it is only imported when it is used. The input of every convolution and
linear layer is quantised with one range for the whole tensor, its weight with one range per output channel (Jacob et
al., 2018, arXiv 1712.05877; Krishnamoorthi, 2018, arXiv 1806.08342, section 3.1). The layers are found by the graph's
operators, not by the classes of the modules, so that this works for any network. BatchNorm is first folded into the
convolution or the linear layer right before it, if nothing else uses that layer's output or weights. Otherwise it stays
in float32.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torchao.quantization.pt2e import HistogramObserver, PerChannelMinMaxObserver
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, Quantizer

from dfkd_core.errors import ExportError
from dfkd_core.export.fidelity import TOLERANCE, measure_fidelity

__all__ = ["quantise_network"]

_aten = torch.ops.aten
_LAYERS = (
    _aten.conv1d.default,
    _aten.conv1d.padding,
    _aten.conv2d.default,
    _aten.conv2d.padding,
    _aten.conv3d.default,
    _aten.conv3d.padding,
    _aten.linear.default,
)
# Operators whose result shares no memory with another value.
_FRESH = (*_LAYERS, _aten.batch_norm.default, _aten.add.Tensor, _aten.mul.Tensor)
_ANNOTATION = "quantization_annotation"


def quantise_network(program: ExportedProgram, batches: Iterable[Tensor]) -> torch.fx.GraphModule:
    """Quantise every convolution and linear layer of a captured network.

    Args:
        program: The network, captured in eval mode; it is not changed.
        batches: Calibration inputs [n, c, h, w] as the network takes them; they determine the activations' ranges.

    Returns:
        The network with its weights stored as int8 and a pair of quantise and dequantise operators
        (`torch.ops.quantized_decomposed`) around every activation that enters a quantised layer.

    Raises:
        ExportError: The network has no layer that can be quantised, or its preparation has changed it.
    """
    network = _without_writes(program)
    if not any(node.target in _LAYERS for node in network.graph.nodes):
        raise ExportError("The network has no convolution and no linear layer to quantise. Export it without --int8")
    with torch.no_grad():
        _spell_out_batch_norms(network)
        prepared = prepare_pt2e(network, _LayerInputs())
        _calibrate(prepared, program.module(), batches)
        quantised: torch.fx.GraphModule = convert_pt2e(prepared)
    _drop_unused_tensors(quantised)
    return quantised


def _without_writes(program: ExportedProgram) -> torch.fx.GraphModule:
    """Return the network, without operators that write into the memory of another value.

    The rounded copy of a value is made before such a write, so that the layer after it would not see the write.
    """
    if not any(map(_writes_elsewhere, program.graph.nodes)):
        return program.module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network: torch.fx.GraphModule = program.run_decompositions({}).module()
    graph = network.graph
    for node in [node for node in graph.nodes if node.target == _aten._native_batch_norm_legit_no_training.default]:
        *tensors, momentum, epsilon = node.args
        with graph.inserting_before(node):
            norm = graph.call_function(_aten.batch_norm.default, (*tensors, False, momentum, epsilon, False))
        norm.meta["val"] = node.meta["val"][0]
        for item in list(node.users):
            item.replace_all_uses_with(norm)
            graph.erase_node(item)
        graph.erase_node(node)
    network.recompile()
    return network


def _writes_elsewhere(node: torch.fx.Node) -> bool:
    """Return whether an operator changes a value that another one may read too, perhaps through a view."""
    if not isinstance(node.target, torch._ops.OpOverload) or not node.target._schema.is_mutable:
        return False
    changed: Any = node.args[0]
    is_own = changed.target in _FRESH or (
        isinstance(changed.target, torch._ops.OpOverload) and changed.target._schema.is_mutable
    )
    return not is_own or len(changed.users) > 1


def _calibrate(prepared: torch.fx.GraphModule, original: torch.nn.Module, batches: Iterable[Tensor]) -> None:
    """Record the ranges of the prepared network, which is still in float32, and compare it with the original."""
    for batch in batches:
        found = measure_fidelity(prepared(batch), original(batch))
        if found.relative_difference > TOLERANCE:
            raise ExportError(
                "The network was changed before it was rounded to int8: in float32 its logits differ by up to "
                f"{found.max_difference:.3g}, {found.relative_difference:.2g} of the largest, and {TOLERANCE:.2g} is "
                "allowed. Other calibration images do not help. Export it without --int8"
            )


class _LayerInputs(Quantizer):  # type: ignore[misc]  # torchao is not typed
    """Marks the input of each convolution and linear layer, and its weight."""

    def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
        activation = QuantizationSpec(
            dtype=torch.uint8,
            quant_min=0,
            quant_max=255,
            qscheme=torch.per_tensor_affine,
            observer_or_fake_quant_ctr=HistogramObserver,
        )
        weight = QuantizationSpec(
            dtype=torch.int8,
            quant_min=-127,
            quant_max=127,
            qscheme=torch.per_channel_symmetric,
            ch_axis=0,
            observer_or_fake_quant_ctr=PerChannelMinMaxObserver,
        )
        for node in model.graph.nodes:
            if node.target in _LAYERS:
                marks = {node.args[0]: activation, node.args[1]: weight}
                node.meta[_ANNOTATION] = QuantizationAnnotation(input_qspec_map=marks, _annotated=True)
        return model

    def validate(self, model: torch.fx.GraphModule) -> None:
        """Accept any graph: the marks do not depend on each other."""


def _spell_out_batch_norms(network: torch.fx.GraphModule) -> None:
    """Replace every BatchNorm that cannot be folded by the arithmetic that it is.

    torchao folds a BatchNorm whatever else reads the layer before it. If a BatchNorm is left at the end, it traces
    nearly a hundred small networks.
    """
    graph = network.graph
    uses = _uses_of_tensors(network)
    for node in [node for node in graph.nodes if node.target == _aten.batch_norm.default]:
        if _is_foldable(network, node, uses):
            continue
        with graph.inserting_before(node):
            result = _product_and_sum(network, node) if _has_fixed_statistics(node) else _arithmetic(graph, node)
        # torchao recognises float tensors by this.
        result.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(result)
        graph.erase_node(node)
    graph.eliminate_dead_code()
    network.recompile()


def _uses_of_tensors(network: torch.fx.GraphModule) -> Counter[int]:
    """Return how often each memory of a parameter or buffer is read, whatever its names."""
    nodes = (node for node in network.graph.nodes if node.op == "get_attr")
    uses: Counter[int] = Counter()
    for node in nodes:
        uses[_storage(network, node)] += len(node.users)
    return uses


def _storage(network: torch.fx.GraphModule, node: torch.fx.Node) -> int:
    value = attrgetter(str(node.target))(network)
    return value.untyped_storage().data_ptr() if isinstance(value, Tensor) else 0


def _is_foldable(network: torch.fx.GraphModule, norm: torch.fx.Node, uses: Counter[int]) -> bool:
    """Return whether a BatchNorm can be folded into the layer before it, without a change of anything else."""
    layer: Any = norm.args[0]
    own = [node for node in layer.args[1:3] if node is not None]
    return (
        layer.target in _LAYERS
        and len(layer.users) == 1
        and _has_fixed_statistics(norm)
        and all(node.op == "get_attr" and uses[_storage(network, node)] == 1 for node in own)
        # For a sequence, BatchNorm takes the second dimension as channels, a linear layer the last.
        and (layer.target != _aten.linear.default or layer.meta["val"].dim() == 2)
    )


def _has_fixed_statistics(norm: torch.fx.Node) -> bool:
    """Return whether a BatchNorm takes statistics and scale from tensors, and not from the batch or a computation."""
    arguments: Any = norm.args
    return not arguments[5] and all(node is None or node.op == "get_attr" for node in arguments[1:5])


def _product_and_sum(network: torch.fx.GraphModule, norm: torch.fx.Node) -> torch.fx.Node:
    """Insert maps * scale + shift, and return the sum."""
    arguments: Any = norm.args
    maps, weight, bias, mean, variance, _, _, epsilon, *_ = arguments
    scale = (_tensor(network, variance) + epsilon).rsqrt() * (1 if weight is None else _tensor(network, weight))
    shift = (0 if bias is None else _tensor(network, bias)) - _tensor(network, mean) * scale
    names = [f"_{norm.name}_{what}" for what in ("scale", "shift")]
    for name, value in zip(names, (scale, shift), strict=True):
        network.register_buffer(name, value.float().view(_channelwise(norm)))
    factor, term = (network.graph.get_attr(name) for name in names)
    product = network.graph.call_function(_aten.mul.Tensor, (maps, factor))
    return network.graph.call_function(_aten.add.Tensor, (product, term))


def _arithmetic(graph: torch.fx.Graph, norm: torch.fx.Node) -> torch.fx.Node:
    """Insert (maps - mean) / sqrt(variance + epsilon) * weight + bias, with the batch's moments in training mode."""
    arguments: Any = norm.args
    maps, weight, bias, mean, variance, training, _, epsilon, *_ = arguments

    def call(operator: Any, *values: Any) -> torch.fx.Node:
        return graph.call_function(operator, values)

    def spread(vector: torch.fx.Node) -> torch.fx.Node:
        return call(_aten.view.default, vector, _channelwise(norm))

    if training:
        axes = [0, *range(2, norm.meta["val"].dim())]
        centred = call(_aten.sub.Tensor, maps, call(_aten.mean.dim, maps, axes, True))
        variance = call(_aten.mean.dim, call(_aten.mul.Tensor, centred, centred), axes, True)
    else:
        centred, variance = call(_aten.sub.Tensor, maps, spread(mean)), spread(variance)
    result = call(_aten.mul.Tensor, centred, call(_aten.rsqrt.default, call(_aten.add.Tensor, variance, epsilon)))
    if weight is not None:
        result = call(_aten.mul.Tensor, result, spread(weight))
    return result if bias is None else call(_aten.add.Tensor, result, spread(bias))


def _channelwise(norm: torch.fx.Node) -> list[int]:
    """Return the shape in which one number per channel is broadcast over the input of a BatchNorm."""
    return [1, -1, *(1 for _ in norm.meta["val"].shape[2:])]


def _tensor(network: torch.fx.GraphModule, node: torch.fx.Node) -> Tensor:
    """Return the parameter or buffer that a node reads, in float64."""
    value: Tensor = attrgetter(str(node.target))(network)
    return value.double()


def _drop_unused_tensors(network: torch.fx.GraphModule) -> None:
    """Delete the float weights, which torchao keeps next to the int8 ones."""
    used = {node.target for node in network.graph.nodes if node.op == "get_attr"}
    names = [name for name, _ in (*network.named_parameters(), *network.named_buffers())]
    for name in set(names) - used:
        owner, _, leaf = name.rpartition(".")
        delattr(network.get_submodule(owner), leaf)
