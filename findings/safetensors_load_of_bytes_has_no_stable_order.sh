#!/usr/bin/env bash
# safetensors 0.8.0: load(bytes) returns the tensors in another order at each call; load_file keeps the order of the file.
#
# A file is read into memory, checked, and parsed from the same bytes. Dictionaries keep their order in Python, and the
# file's header lists the tensors in the order of the network, so one expects this order from both functions. Seen: 20 calls
# of load with the same bytes give several orders, so code that takes "the last matrix" for the classifier (its rows are
# the number of classes) finds another layer from run to run.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check numpy==2.4.6 safetensors==0.8.0 2>/dev/null
env/bin/python - <<'PY'
import importlib.metadata
import numpy as np
from safetensors.numpy import load, load_file, save

names = [f"layer.{number}.weight" for number in range(8)]
content = save({name: np.zeros(4, np.float32) for name in names})
open("weights.safetensors", "wb").write(content)
from_file = {tuple(load_file("weights.safetensors")) for _ in range(20)}
from_bytes = {tuple(load(content)) for _ in range(20)}
print(f"safetensors {importlib.metadata.version('safetensors')}: 20 calls of each")
print(f"orders from load_file: {len(from_file)} (the file's: {from_file == {tuple(names)}}); from load: {len(from_bytes)}")
assert from_file == {tuple(names)} and len(from_bytes) > 1
PY
