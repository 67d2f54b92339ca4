"""What was found out, and how it is shown."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Finding", "Verdict", "fault", "note", "ok", "render"]

_WIDTH = 120
_MARGIN = " " * 18


class Verdict(StrEnum):
    """How a finding is to be taken."""

    OK = "ok"
    NOTE = "note"
    """Works, or works without what is noted."""
    FAULT = "fault"
    """Something fails until it is put right."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    area: str
    """What it belongs to, in one word."""
    verdict: Verdict
    text: str
    """What was found; may have several lines."""
    command: str = ""
    """What to do next; never empty but for `ok`."""

    def __post_init__(self) -> None:
        assert self.command or self.verdict is Verdict.OK, f"no next step for: {self.text}"


def ok(area: str, text: str) -> Finding:
    """Return a finding that needs nothing."""
    return Finding(area, Verdict.OK, text)


def note(area: str, text: str, command: str) -> Finding:
    """Return a finding worth knowing, with what to do about it."""
    return Finding(area, Verdict.NOTE, text, command)


def fault(area: str, text: str, command: str) -> Finding:
    """Return a finding that must be put right, with how."""
    return Finding(area, Verdict.FAULT, text, command)


def render(findings: Sequence[Finding], *, width: int | None = None) -> str:
    """Return the findings as lines, and their number last.

    Args:
        findings: In the order to show them.
        width: Columns to fill; the terminal's, at most 120, if not given. A command is never broken.
    """
    columns = width or min(shutil.get_terminal_size((_WIDTH, 24)).columns, _WIDTH)
    return "\n".join([*(line for finding in findings for line in _lines(finding, columns)), "", _count(findings)])


def _lines(finding: Finding, width: int) -> Iterator[str]:
    head = f"{finding.verdict:<7}{finding.area:<11}"
    for line in finding.text.splitlines():
        yield from textwrap.wrap(
            line,
            width,
            initial_indent=head,
            subsequent_indent=_MARGIN,
            break_long_words=False,
            break_on_hyphens=False,
        )
        head = _MARGIN
    if finding.command:
        yield f"{_MARGIN}-> {finding.command}"


def _count(findings: Sequence[Finding]) -> str:
    faults, notes = (sum(finding.verdict is one for finding in findings) for one in (Verdict.FAULT, Verdict.NOTE))
    return f"{_number(faults, 'fault')}, {_number(notes, 'note')}"


def _number(count: int, what: str) -> str:
    return f"{count or 'no'} {what}{'' if count == 1 else 's'}"
