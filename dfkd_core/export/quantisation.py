"""Post-training quantisation of a captured network: int8 weights, uint8 activations, ranges from calibration images.

Needs torchao (`pip install 'dfkd[int8]'`), so it is only imported when it is used. The input of every convolution and
linear layer is quantised with one range for the whole tensor, its weight with one range per output channel (Jacob et
al., 2018, arXiv 1712.05877; Krishnamoorthi, 2018, arXiv 1806.08342, section 3.1). The layers are found by the graph's
operators, not by the classes of the modules, so that this works for any network. BatchNorm is first folded into the
convolution or the linear layer right before it; otherwise it stays in float32.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torchao.quantization.pt2e import HistogramObserver, PerChannelMinMaxObserver
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, Quantizer

from dfkd_core.errors import ExportError

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
        ExportError: The network has no layer that can be quantised.
    """
    network = program.module()
    if not any(node.target in _LAYERS for node in network.graph.nodes):
        raise ExportError("The network has no convolution and no linear layer to quantise. Export it without --int8")
    with torch.no_grad():
        prepared = prepare_pt2e(network, _LayerInputs())
        _spell_out_batch_norms(prepared)
        for batch in batches:
            prepared(batch)
        quantised: torch.fx.GraphModule = convert_pt2e(prepared)
    _drop_unused_tensors(quantised)
    return quantised


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
    """Replace every BatchNorm that was not folded by the product and the sum that it is with fixed statistics.

    Otherwise torchao traces nearly a hundred small networks to find BatchNorms in training mode.
    """
    graph = network.graph
    for node in [node for node in graph.nodes if node.target == _aten.batch_norm.default]:
        maps, weight, bias, mean, variance, training, _, epsilon, _ = node.args
        if training:
            continue
        scale = (_tensor(network, variance) + epsilon).rsqrt() * (1 if weight is None else _tensor(network, weight))
        shift = (0 if bias is None else _tensor(network, bias)) - _tensor(network, mean) * scale
        shape = (1, -1, *(1 for _ in node.meta["val"].shape[2:]))
        names = [f"_{node.name}_{what}" for what in ("scale", "shift")]
        for name, value in zip(names, (scale, shift), strict=True):
            network.register_buffer(name, value.float().view(shape))
        with graph.inserting_before(node):
            factor, term = (graph.get_attr(name) for name in names)
            product = graph.call_function(_aten.mul.Tensor, (maps, factor))
            total = graph.call_function(_aten.add.Tensor, (product, term))
        node.replace_all_uses_with(total)
        graph.erase_node(node)
    graph.eliminate_dead_code()
    network.recompile()


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
