#!/usr/bin/env bash
# mlflow 3.17.2: `mlflow.load_table(file, run_ids=[id])` finds no table of a run in another experiment than the active one.
#
# A run's id is unique, and `mlflow.get_run(id)` finds it from anywhere. One expects load_table with this id to do the same. Seen:
# "No runs found with the corresponding table artifact", unless the run's experiment is the active one.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env; env/bin/pip install --quiet --disable-pip-version-check mlflow==3.17.2 2>/dev/null
export MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=1
env/bin/python - 2>/dev/null <<'P'
import mlflow
from mlflow.exceptions import MlflowException

mlflow.set_tracking_uri("sqlite:///store.db")
mlflow.set_experiment("one")
with mlflow.start_run() as run:
    mlflow.log_table({"a": [1, 2]}, artifact_file="table.json")
mlflow.set_experiment("two")
try:
    elsewhere = str(len(mlflow.load_table("table.json", run_ids=[run.info.run_id])))
except MlflowException as error:
    elsewhere = error.message
mlflow.set_experiment("one")
here = len(mlflow.load_table("table.json", run_ids=[run.info.run_id]))
print("get_run from another experiment:", mlflow.get_run(run.info.run_id).info.run_id == run.info.run_id)
print("load_table from another experiment:", elsewhere)
print("load_table from its own experiment:", here, "rows")
assert "No runs found" in elsewhere and here == 2
P
