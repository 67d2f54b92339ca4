#!/usr/bin/env bash
# onnx2torch 1.5.15: `convert` returns a network in training mode, although the ONNX file holds a network for inference.
#
# A network in evaluation mode is exported; the file's BatchNormalization has no training_mode, which is inference by ONNX's definition.
# One expects the converted network to compute what ONNX Runtime computes. Seen: `network.training` is True; BatchNorm normalises by
# the batch, so the outputs differ by more than 1, and each call changes the running mean. After `network.eval()` they agree.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check onnx2torch==1.5.15 onnx==1.23.2 onnxruntime==1.32.0 torch==2.13.0 torchvision==0.28.0 numpy==2.4.6 2>/dev/null
env/bin/python - <<'P'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx2torch import convert
import torch

rng = np.random.default_rng(0)
weight = rng.normal(size=(8, 3)).astype(np.float32)
values = {"w": weight, "scale": np.ones(3), "shift": np.zeros(3), "mean": np.full(3, 5.0), "var": np.full(3, 4.0)}
nodes = [
    helper.make_node("MatMul", ["x", "w"], ["h"]),
    helper.make_node("BatchNormalization", ["h", "scale", "shift", "mean", "var"], ["y"]),
]
graph = helper.make_graph(
    nodes,
    "net",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
    [numpy_helper.from_array(value.astype(np.float32), name) for name, value in values.items()],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
onnx.checker.check_model(model)
inputs = rng.normal(size=(16, 8)).astype(np.float32)
(expected,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": inputs})
network = convert(model)
norm = next(module for module in network.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm))
mode, before = network.training, norm.running_mean.clone()
as_made = np.abs(network(torch.from_numpy(inputs)).detach().numpy() - expected).max()
moved = not torch.equal(before, norm.running_mean)
norm.running_mean.copy_(before)
norm.running_var.fill_(4.0)
in_eval = np.abs(network.eval()(torch.from_numpy(inputs)).detach().numpy() - expected).max()
print(f"training mode: {mode}; largest difference as converted: {as_made:.2f}; running mean changed: {moved}; after eval(): {in_eval:.1e}")
assert mode and as_made > 1 and moved and in_eval < 1e-5
P
