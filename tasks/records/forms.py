"""How figures are written in tables and pages: one form each, so that a figure is the same text everywhere."""

from __future__ import annotations

__all__ = ["between", "count", "kilobytes", "milliseconds", "nats", "seconds", "share"]


def share(value: float) -> str:
    """Return a share of images as per cent: 0.8765 is `87.65%`."""
    return f"{value:.2%}"


def between(interval: tuple[float, float] | None) -> str:
    """Return an interval of shares, empty for None."""
    return f"{share(interval[0])} to {share(interval[1])}" if interval else ""


def count(value: float) -> str:
    """Return a whole number with separators."""
    return f"{value:,.0f}"


def kilobytes(num_bytes: float) -> str:
    """Return a size in kB of 1000 bytes."""
    return f"{num_bytes / 1000:,.0f} kB"


def milliseconds(value: float) -> str:
    """Return a latency."""
    return f"{value:.2f} ms"


def nats(value: float) -> str:
    """Return a divergence."""
    return f"{value:.3f} nats"


def seconds(value: float) -> str:
    """Return a duration."""
    return f"{value:,.1f} s"
