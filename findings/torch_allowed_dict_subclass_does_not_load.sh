#!/usr/bin/env bash
# torch 2.13.0: a class derived from dict still does not load with weights_only=True after it was allowed as the error says.
#
# Training scripts store their configuration, a subclass of dict, next to the weights. torch.load refuses it and names the
# remedy: torch.serialization.add_safe_globals([training.Config]). One expects the file to load then. Seen: another error,
# "Can only SETITEM for dict, collections.OrderedDict, collections.Counter", since the reader compares types exactly. So no
# allowed list reads such a file; collections.deque fails in the same way ("Can only append to lists").
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env; env/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 2>/dev/null
cat > training.py <<'PY'
class Config(dict):
    pass
PY
env/bin/python - <<'PY'
import collections
import torch
from torch.serialization import safe_globals
from training import Config


def attempt(value, allowed):
    torch.save({"weight": torch.ones(2), "options": value}, "file.pth")
    try:
        with safe_globals(allowed):
            torch.load("file.pth", weights_only=True)
    except Exception as error:
        return str(error)
    return "loaded"


advice = attempt(Config(lr=0.1), [])
allowed = attempt(Config(lr=0.1), [Config])
queue = attempt(collections.deque([1]), [collections.deque])
print(f"torch {torch.__version__}")
for text, part in ((advice, "Please use"), (allowed, "Can only"), (queue, "Can only")):
    print("-", text[text.index(part):].splitlines()[0][:150])
assert "add_safe_globals([training.Config])" in advice and "Can only SETITEM" in allowed and "Can only append" in queue
PY
