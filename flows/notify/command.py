"""`dfkd notify`: allow the command and the address of params.yaml on this machine, and try them with a report."""

from __future__ import annotations

from dfkd_core.errors import DfkdError
from dfkd_flows.notify.report import Report, send
from dfkd_flows.notify.trust import trust
from dfkd_flows.session.display import say
from dfkd_flows.settings.notify import NotifyConfig
from dfkd_tasks.records.foreign import without_secrets

__all__ = ["try_notify"]


def try_notify(config: NotifyConfig, *, allow: bool) -> None:
    """Send a report of the event `test`.

    Args:
        config: The section `notify`.
        allow: Whether the user allows the present command and address.

    Raises:
        DfkdError: Nothing is set, something is not allowed, or does not take the report.
    """
    targets = {"command": config.command, "webhook": config.webhook}
    if not any(targets.values()):
        raise DfkdError(
            "Neither notify.command nor notify.webhook is set. Set one with: dfkd run --set notify.command='python "
            "report.py'"
        )
    for name, value in targets.items():
        if value:
            say(f"  notify.{name}: {without_secrets(value)}")
    if allow:
        trust(config)
    if faults := send(Report(event="test", reasons=("a test of the settings",)), config):
        raise DfkdError("\n".join(faults))
    say(f"They took a report. A run reports: {', '.join(config.events)}")
