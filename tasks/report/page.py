"""A page as one text: everything is inside, no request leaves it, and no script is in it.

The policy in its head allows the images and the style that the page holds, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from dfkd_tasks.report.charts import runs_chart
from dfkd_tasks.report.drawing import Chart, printable
from dfkd_tasks.report.facts import Comparison, StudentReport
from dfkd_tasks.report.sections import student_sections

__all__ = ["comparison_page", "student_page"]

_TEMPLATES = Path(__file__).parent / "templates"


def student_page(report: StudentReport) -> str:
    """Return the page of one student."""
    return _render("student.html", report=report, sections=student_sections(report))


def comparison_page(comparison: Comparison) -> str:
    """Return the page of several runs side by side."""
    return _render("comparison.html", comparison=comparison, charts=_run_charts(comparison))


def _run_charts(comparison: Comparison) -> list[Chart]:
    charts = []
    for against, unit in (("seconds", "s"), ("size", "kB")):
        rows = [
            row for row in comparison.rows if row.accuracy.value is not None and getattr(row, against).value is not None
        ]
        if rows:
            charts.append(runs_chart(rows, against=against, unit=unit))
    return charts


def _render(template: str, **facts: Any) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    style = (_TEMPLATES / "page.css").read_text(encoding="utf-8")
    # As in the page, between the tags.
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Control characters have no place in HTML.
        finalize=lambda value: printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
    return environment.get_template(template).render(style=Markup(style), style_digest=digest, **facts)
