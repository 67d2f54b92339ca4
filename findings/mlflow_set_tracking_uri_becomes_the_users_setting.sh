#!/usr/bin/env bash
# MLflow 3.17.2: mlflow.set_tracking_uri also sets MLFLOW_TRACKING_URI in the environment of the process.
#
# A tool takes MLFLOW_TRACKING_URI of the user if it is set, and else a store of its own, by set_tracking_uri. One expects
# that the second call in the process decides as the first. Seen: the variable holds the first store afterwards, also in
# processes that are started then, so the next project's runs go to it. set_tracking_uri(None) removes the variable,
# also if the user had set it.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env; env/bin/pip install --quiet --disable-pip-version-check mlflow-skinny==3.17.2 2>/dev/null
export MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true
unset MLFLOW_TRACKING_URI
env/bin/python -W ignore - 2>/dev/null <<'PY'
import os
import subprocess
import sys

import mlflow

name = "MLFLOW_TRACKING_URI"
mlflow.set_tracking_uri("http://127.0.0.1:5000")
here = os.environ.get(name)
child = subprocess.check_output([sys.executable, "-c", f"import os; print(os.environ.get('{name}'))"], text=True).strip()
os.environ[name] = "http://127.0.0.1:6000"
mlflow.set_tracking_uri(None)
left = os.environ.get(name)
print(f"mlflow {mlflow.__version__}: in the process {here}, in a child {child}, the user's after None {left}")
assert here == child == "http://127.0.0.1:5000" and left is None
PY
