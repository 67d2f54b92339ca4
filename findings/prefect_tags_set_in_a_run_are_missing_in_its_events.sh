#!/usr/bin/env bash
# Prefect 3.8.8: tags that a running flow gives its own run never reach the events of that run.
#
# A flow calls client.update_flow_run(flow_run.id, tags=["late"]). The run then has the tag, on the pages too. One expects its later
# event prefect.flow-run.Completed to name the tag as a related resource, as it does for tags that the run was created with: an
# automation for runs with a tag matches this resource. Seen: the run has ['late'], its event has [], so such an automation never
# acts, and nothing reports it. A run that is created with the tag `early` has it in its event.
set -euo pipefail
work=$(mktemp -d); server=
trap '[ -z "$server" ] || kill "$server"; wait; rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env; env/bin/pip install --quiet --disable-pip-version-check prefect==3.8.8 2>/dev/null
export PREFECT_HOME="$work/home" PREFECT_SERVER_ANALYTICS_ENABLED=false DO_NOT_TRACK=1 PREFECT_LOGGING_LEVEL=ERROR
port=$(env/bin/python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
env/bin/prefect server start --host 127.0.0.1 --port "$port" > server.log 2>&1 & server=$!
export PREFECT_API_URL="http://127.0.0.1:$port/api"
env/bin/python - > seen.txt <<'PYTHON'
import time
from contextlib import suppress

import httpx
from prefect import flow, tags
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run

for _ in range(600):
    with suppress(httpx.HTTPError), get_client(sync_client=True) as client:
        client._client.get("/health").raise_for_status()
        break
    time.sleep(1)


@flow
def one(late):
    if late:
        with get_client(sync_client=True) as client:
            client.update_flow_run(flow_run.id, tags=["late"])
    return flow_run.id


def tags_of_event(run_id):
    wanted = {"event": {"name": ["prefect.flow-run.Completed"]}, "resource": {"id": [f"prefect.flow-run.{run_id}"]}}
    for _ in range(120):
        with get_client(sync_client=True) as client:
            events = client._client.post("/events/filter", json={"filter": wanted}).json()["events"]
        if events:
            return [r["prefect.resource.id"] for r in events[0]["related"] if r["prefect.resource.role"] == "tag"]
        time.sleep(1)


for late in (True, False):
    with tags(*([] if late else ["early"])):
        run_id = one(late)
    with get_client(sync_client=True) as client:
        print("run:", client.read_flow_run(run_id).tags, "event:", tags_of_event(run_id))
PYTHON
cat seen.txt
[ "$(cat seen.txt)" = "run: ['late'] event: []
run: ['early'] event: ['prefect.tag.early']" ]
