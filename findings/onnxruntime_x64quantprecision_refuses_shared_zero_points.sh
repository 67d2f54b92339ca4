#!/usr/bin/env bash
# ONNX Runtime 1.32.0 on x86-64: with session.x64quantprecision=1 a valid int8 model does not load if two layers share an
# initializer for their weights' zero points.
#
# The option is the documented way to exact results where a processor has no VNNI: it rewrites int8 weights as uint8.
# Exporters that fold equal constants (torch.onnx.export among them) give all layers of one width the same zero-point tensor. One
# expects the rewrite to copy or to reuse it. Seen: InferenceSession raises Fail, "Attempt to replace the existing tensor".
# The same model loads without the option, and with it if every layer has a tensor of its own.
# The rewrite is skipped on processors with VNNI; there this script reports so and ends with 0.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
if ! [ "$(uname -m)" = x86_64 ] || grep -qE 'avx512_vnni|avx_vnni' /proc/cpuinfo; then
    echo "not x86-64 without VNNI: the option does nothing here"; exit 0
fi
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0 2>/dev/null
env/bin/python - <<'PY'
import numpy as np, onnx, onnxruntime as ort
from onnx import TensorProto as T, helper, numpy_helper

rng = np.random.default_rng(0)


def model(shared):
    tensors, nodes, value = [], [], "x"
    add = lambda name, array: tensors.append(numpy_helper.from_array(array, name)) or name
    add("s", np.float32(0.02)), add("z", np.uint8(128)), add("ws", np.full(4, 0.01, np.float32))
    if shared:
        add("wz", np.zeros(4, np.int8))
    for layer in range(2):
        wz = "wz" if shared else add(f"wz{layer}", np.zeros(4, np.int8))
        w = add(f"w{layer}", rng.integers(-127, 128, (4, 4, 1, 1)).astype(np.int8))
        nodes += [
            helper.make_node("QuantizeLinear", [value, "s", "z"], [f"q{layer}"]),
            helper.make_node("DequantizeLinear", [f"q{layer}", "s", "z"], [f"d{layer}"]),
            helper.make_node("DequantizeLinear", [w, "ws", wz], [f"dw{layer}"], axis=0),
            helper.make_node("Conv", [f"d{layer}", f"dw{layer}"], [f"y{layer}"]),
        ]
        value = f"y{layer}"
    nodes += [
        helper.make_node("QuantizeLinear", [value, "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    io = [helper.make_tensor_value_info(n, T.FLOAT, [1, 4, 8, 8]) for n in "xy"]
    made = helper.make_model(
        helper.make_graph(nodes, "g", io[:1], io[1:], tensors), opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    )
    onnx.checker.check_model(made, full_check=True)
    return made.SerializeToString()


def loads(shared, precise):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if precise:
        options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        ort.InferenceSession(model(shared), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[-47:].strip()}"
    return "loads"


found = {(shared, precise): loads(shared, precise) for shared in (False, True) for precise in (False, True)}
for (shared, precise), outcome in found.items():
    print(f"shared zero points: {shared!s:<5}  x64quantprecision=1: {precise!s:<5}  {outcome}")
assert [found[case] for case in ((False, False), (False, True), (True, False))] == ["loads"] * 3
assert "Attempt to replace the existing tensor" in found[True, True]
PY
