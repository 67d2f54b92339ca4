"""`dfkd run`: what comes before and after the pipeline's flow."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import Future

from flows.run.ahead import Outlook, look_ahead
from flows.run.table import is_published, note_run, render
from flows.session.display import say
from flows.session.lifeline import OWNER
from flows.session.server import await_server, start_server
from flows.settings.overrides import settle_params
from flows.settings.parsing import load_params
from flows.settings.teacher_source import note_source
from flows.stages.command import STAGES
from tasks.dvc_project.status import changed_stages

__all__ = ["run_all"]


def run_all(
    preset: str | None, assignments: Sequence[str], *, start: float, outlook: Future[Outlook] | None = None
) -> None:
    """Apply overrides, run the pipeline if something has changed, and show the table.

    Args:
        preset: Preset that params.yaml is set to first.
        assignments: Changes made after it.
        start: When the command was started, in seconds since the epoch.
        outlook: What `look_ahead` gave, if it was called before and there are no overrides.

    Raises:
        DfkdError: The input is at fault, or a stage failed.
    """
    params, changes = settle_params(preset, assignments)
    for change in changes:
        say(f"  {change}")
    noted = note_source(params)
    if any(change.old for change in noted):
        say("The files of the teacher have changed")
    params = load_params() if noted else params
    ahead = (outlook or look_ahead()).result()
    if noted and outlook:
        ahead = Outlook(changed=changed_stages(), server=ahead.server)
    if not ahead.changed and is_published():
        say("Nothing has changed: all stages are up to date and the student is registered.")
        say(render(params))
        return
    if ahead.changed:
        names = [name for name in STAGES if name in ahead.changed]
        say(f"Changed: {', '.join(names)}; what depends on it follows")
    else:
        say("All stages are up to date; the student is still to be registered")
    os.environ[OWNER] = str(os.getpid())
    server = ahead.server or start_server()
    # Imported while the server starts.
    from flows.pipeline import pipeline

    await_server(server)
    made = pipeline()
    note_run(start, time.time())
    say(render(params))
    say(f"Registered {made['model']} version {made['version']}: {made['reason']}")
