"""Figures as people read them: percentiles, a spread, a table."""

from collections.abc import Sequence
from statistics import median


def percentile(sample: Sequence[float], part: float) -> float:
    """The nearest one that was really measured: nothing between two measurements is invented."""
    if not sample:
        return float("nan")
    ordered = sorted(sample)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def spread(sample: Sequence[float]) -> str:
    """min – median – max: one number of a bench on a shared machine is no number."""
    return f"{min(sample):.2f} – {median(sample):.2f} – {max(sample):.2f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first column is words, the others are numbers."""
    widths = [max(len(row[n]) for row in (head, *rows)) for n in range(len(head))]
    return "\n".join(_line(row, widths) for row in (head, ["─" * w for w in widths], *rows))


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    words = [
        cell.rjust(width) if n else cell.ljust(width) for n, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  " + "  ".join(words).rstrip()
