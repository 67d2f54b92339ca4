#!/usr/bin/env bash
# MLflow 3.17.2, SQLite store: a metric that is NaN is 0.0 on the logged model, and NaN on the run.
#
# A loss that diverged is logged with model_id, so that run and model have it. One expects NaN in both places, or an error.
# Seen: the run has nan; the model has loss = 0.0, and search_logged_models("metrics.loss < 0.5") finds the diverged
# model as one of the best. The run itself matches neither `metrics.loss >= 0` nor `metrics.loss < 0`.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env; env/bin/pip install --quiet --disable-pip-version-check mlflow==3.17.2 2>/dev/null
export MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true
env/bin/python -W ignore - 2>/dev/null <<'PY'
import math
import mlflow
from mlflow.entities import Metric

mlflow.set_tracking_uri("sqlite:///store.db")
client = mlflow.MlflowClient()
experiment = client.create_experiment("trial")
run = client.create_run(experiment).info.run_id
model = client.create_logged_model(experiment_id=experiment, name="student", source_run_id=run).model_id
client.log_batch(run, metrics=[Metric("loss", math.nan, 0, 0, model_id=model)])
on_run = client.get_run(run).data.metrics["loss"]
on_model = {metric.key: metric.value for metric in client.get_logged_model(model).metrics}["loss"]
best = [m.model_id for m in client.search_logged_models([experiment], "metrics.loss < 0.5")]
runs = [len(client.search_runs([experiment], f"metrics.loss {sign} 0")) for sign in (">=", "<")]
print(f"mlflow {mlflow.__version__}: on the run {on_run}, on the model {on_model}")
print(f"models below 0.5: {len(best)}; runs at or above 0, below 0: {runs}")
assert math.isnan(on_run) and on_model == 0.0 and best == [model] and runs == [0, 0]
PY
