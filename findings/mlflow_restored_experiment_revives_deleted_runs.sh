#!/usr/bin/env bash
# MLflow 3.17.2, SQLite store: restoring an experiment also restores the runs that were deleted one by one before it.
#
# A broken run is deleted; later the experiment is deleted by mistake and restored. One expects the state before the
# mistake: the broken run stays deleted. Seen: all runs of the experiment are active again, and the broken run is back in
# searches.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env; env/bin/pip install --quiet --disable-pip-version-check mlflow==3.17.2 2>/dev/null
export MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true
env/bin/python -W ignore - 2>/dev/null <<'PY'
import mlflow

mlflow.set_tracking_uri("sqlite:///store.db")
client = mlflow.MlflowClient()
experiment = client.create_experiment("trial")
broken, good = (client.create_run(experiment).info.run_id for _ in range(2))
client.delete_run(broken)
before = [run.info.run_id for run in client.search_runs([experiment])]
client.delete_experiment(experiment)
client.restore_experiment(experiment)
after = sorted(run.info.run_id for run in client.search_runs([experiment]))
print(f"mlflow {mlflow.__version__}: {len(before)} run before, {len(after)} after; "
      f"the deleted run is {client.get_run(broken).info.lifecycle_stage}")
assert before == [good] and after == sorted([broken, good])
PY
