"""The findings of `dfkd doctor`, and their text."""

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
    """Severity of a finding."""

    OK = "ok"
    NOTE = "note"
    """A run works, perhaps without a feature."""
    FAULT = "fault"
    """A run fails until it is corrected."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Result of one check."""

    area: str
    """Its subject, in one word."""
    verdict: Verdict
    text: str
    """Description; may have several lines."""
    command: str = ""
    """Next command; empty only for `ok`."""

    def __post_init__(self) -> None:
        assert self.command or self.verdict is Verdict.OK, f"no next command for: {self.text}"


def ok(area: str, text: str) -> Finding:
    """Return a finding that needs no action."""
    return Finding(area, Verdict.OK, text)


def note(area: str, text: str, command: str) -> Finding:
    """Return a finding that may need action, with the command."""
    return Finding(area, Verdict.NOTE, text, command)


def fault(area: str, text: str, command: str) -> Finding:
    """Return a finding that must be corrected, with the command."""
    return Finding(area, Verdict.FAULT, text, command)


def render(findings: Sequence[Finding], *, width: int | None = None) -> str:
    """Return the findings as lines, with their number at the end.

    Args:
        findings: In the order of the lines.
        width: Columns to fill; by default those of the terminal, at most 120. A command is never broken.
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
