"""Charts as SVG by matplotlib, for light and for dark pages, with a text for readers who do not see them.

A chart is an image of the page, not a part of its markup: the page's policy then allows no style of a chart, and no
name inside of a chart can become markup.
"""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "GRID",
    "IN_THE_DARK",
    "MUTED",
    "OTHER",
    "STUDENT",
    "TEACHER",
    "TEXT",
    "Chart",
    "draw",
    "plain_axes",
    "printable",
    "short",
]

TEXT, MUTED, GRID = "#1f2328", "#57606a", "#d0d7de"
TEACHER, STUDENT, OTHER = "#0550ae", "#bc4c00", "#1a7f37"
IN_THE_DARK = {
    TEXT: "#e6edf3",
    MUTED: "#9da7b3",
    GRID: "#3d444d",
    TEACHER: "#79c0ff",
    STUDENT: "#ffa657",
    OTHER: "#7ee787",
}
"""Colour on a dark page of each colour on a light one."""
_PX_PER_INCH = 96
_LONGEST = 22
# Its keys are literals for mypy.
_STYLE: Any = {
    "svg.hashsalt": "dfkd",
    "svg.fonttype": "none",
    # A class may be called `$100`.
    "text.parse_math": False,
    "axes.formatter.use_mathtext": False,
    "font.family": ["sans-serif"],
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "text.color": TEXT,
    "axes.titlecolor": TEXT,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": TEXT,
    "ytick.labelcolor": TEXT,
    "legend.labelcolor": TEXT,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A chart of the page."""

    caption: str
    alternative: str
    """What it shows, in words."""
    light: str
    """Address that holds the SVG."""
    dark: str
    """The same in colours for a dark page."""
    width: int
    """In CSS pixels."""
    height: int


def draw(
    paint: Callable[[Figure], None], *, width: float = 4.6, height: float = 3.0, caption: str, alternative: str
) -> Chart:
    """Return the chart that `paint` draws into an empty figure.

    Args:
        paint: Adds axes and what is in them.
        width: In inches.
        height: In inches.
        caption: Shown below the chart.
        alternative: What it shows, in words.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    stream = io.StringIO()
    with rc_context(_STYLE), warnings.catch_warnings():
        # The browser draws the letters, so those that the font here lacks are no loss.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        figure = Figure(figsize=(width, height), layout="constrained")
        paint(figure)
        # In place of `savefig`, which draws everything once more to measure it.
        canvas: Any = FigureCanvasSVG(figure)
        canvas.print_svg(stream, metadata=_NO_METADATA)
    light = stream.getvalue()
    dark = light
    for colour, other in IN_THE_DARK.items():
        dark = dark.replace(colour, other)
    size = (round(width * _PX_PER_INCH), round(height * _PX_PER_INCH))
    return Chart(
        caption=caption, alternative=alternative, light=_address(light), dark=_address(dark), width=size[0],
        height=size[1],
    )  # fmt: skip


def _address(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def plain_axes(figure: Figure, x: str = "", y: str = "", title: str = "", *, grid: str = "y") -> Axes:
    """Return the only axes of a figure, with names and lines for one of them: `x`, `y`, `both` or `` for none."""
    axes = figure.add_subplot(xlabel=x, ylabel=y, title=title)
    axes.grid(visible=False)
    if grid:
        axes.grid(visible=True, axis=grid)  # type: ignore[arg-type]  # one of the words that it takes
    return axes


def printable(text: str) -> str:
    """Return a text from outside in one line and without control characters, which no SVG may contain."""
    return "".join(letter if letter.isprintable() else " " if letter.isspace() else "?" for letter in text)


def short(text: str) -> str:
    """Return a printable text that is short enough for an axis."""
    text = printable(text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
