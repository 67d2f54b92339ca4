#!/usr/bin/env bash
# prefect 3.8.8: a cron schedule of six fields is accepted, and its last field is the seconds.
#
# Prefect documents cron strings of five fields. Other schedulers with six (Quartz, Spring) begin with the seconds, so `0 30 2 * * *`
# is there "at 02:30:00 each day". One expects the same, or a refusal. Seen: it is read as minute 0, hour 30 and refused only since
# there is no hour 30; `0 5 2 * * *`, meant as 02:05:00 each day, is accepted and runs each second of 05:00 on the second of each month.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env; env/bin/pip install --quiet --disable-pip-version-check prefect==3.8.8 'fastapi<0.154' 2>/dev/null
export PREFECT_HOME="$work/home" DO_NOT_TRACK=1
env/bin/python - 2>/dev/null <<'P'
import asyncio
from datetime import datetime, timezone
from prefect.client.schemas.schedules import CronSchedule
from prefect.server.schemas.schedules import CronSchedule as Server

try:
    CronSchedule(cron="0 30 2 * * *", timezone="UTC")
    half_past_two = "accepted"
except ValueError:
    half_past_two = "refused"
CronSchedule(cron="0 5 2 * * *", timezone="UTC")
dates = asyncio.run(Server(cron="0 5 2 * * *", timezone="UTC").get_dates(3, start=datetime(2026, 1, 1, tzinfo=timezone.utc)))
found = [date.isoformat() for date in dates]
print(f"0 30 2 * * *: {half_past_two}; 0 5 2 * * *:", *found)
assert half_past_two == "refused"
assert found == [f"2026-01-02T05:00:0{second}+00:00" for second in range(3)]
P
