#!/usr/bin/env bash
# torch 2.13.0: making an optimizer in an eager program imports the compiler, torch._dynamo, with hundreds of modules.
#
# Nothing is compiled, and `import torch` alone does not import it. One expects SGD over one tensor to cost microseconds. Seen: the
# first optimizer imports torch._dynamo, which is about half as many modules again as torch itself; the second one imports nothing.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env; env/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 2>/dev/null
env/bin/python - <<'P'
import sys
import torch

before, had = len(sys.modules), "torch._dynamo" in sys.modules
torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
first, has = len(sys.modules) - before, "torch._dynamo" in sys.modules
torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
second = len(sys.modules) - before - first
print(f"modules: {before} after import torch, {first} more with the first optimizer, {second} with the second")
print(f"torch._dynamo imported before: {had}, after: {has}")
assert not had and has and first > 200 and second == 0
P
