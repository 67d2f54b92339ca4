"""The section `notify` of params.yaml."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Annotated
from urllib.parse import urlsplit

from annotated_types import Gt, Le

from dfkd_core.sections import config_section

__all__ = ["EVENTS", "NotifyConfig", "address_fault"]

EVENTS = ("failed", "not_delivered", "rejected", "dropped", "promoted")
"""What a run can report, the gravest first."""

_VARIABLE = re.compile(r"\$[A-Za-z_][A-Za-z0-9_]*")


@config_section
class NotifyConfig:
    """Who gets a report on the end of a run, see docs/nightly.md. Allow each on your machine: dfkd notify --trust."""

    command: str = ""
    """Command that gets the report as JSON on its standard input, run in the project's folder and without a shell, for
    example `python report.py --quiet`; empty for none."""
    webhook: str = ""
    """Address that gets the report as JSON with POST, or the name of an environment variable that holds it, for example
    `$SLACK_WEBHOOK`; empty for none. If DFKD_WEBHOOK_TOKEN is set, it is sent as a bearer token."""
    events: tuple[str, ...] = ("failed", "not_delivered", "rejected", "dropped")
    """What is reported: a run that failed, results that were not registered or copied, a student that breaks a rule of
    its own, one that is worse than the champion, and a new champion. Of failed, not_delivered, rejected, dropped,
    promoted."""
    timeout_s: Annotated[float, Gt(0), Le(600)] = 30.0
    """Seconds that the command, and the answer of the address, may take."""

    def faults(self) -> Iterator[str]:
        """Yield what is no command, no address or no event."""
        if self.command and (not self.command.isprintable() or not _words(self.command)):
            yield f"command must be one line of words, with whole quotes, got {self.command[:80]!r}"
        if self.webhook and not _VARIABLE.fullmatch(self.webhook) and (fault := address_fault(self.webhook)):
            yield f"webhook {fault}"
        unknown = [name for name in self.events if name not in EVENTS]
        if unknown:
            yield f"events must be of {', '.join(EVENTS)}, got {', '.join(map(repr, unknown))}"


def address_fault(address: str) -> str:
    """Return why nothing can be sent to an address, in words that do not repeat it; empty if it can."""
    try:
        parts = urlsplit(address)
        _ = parts.port
    except ValueError:
        return "is no address. Write it like https://example.org/hook"
    if parts.scheme not in ("http", "https") or not parts.hostname or not address.isprintable() or " " in address:
        return "must be an address that begins with http:// or https://, or the name of a variable, like $SLACK_WEBHOOK"
    if parts.username or parts.password:
        return "must hold no user and no password. Put a token into DFKD_WEBHOOK_TOKEN, or the address into a variable"
    return ""


def _words(command: str) -> list[str]:
    """Return the words of a command, none if a quotation is cut off."""
    try:
        return shlex.split(command)
    except ValueError:
        return []
