"""What a terminal shows of a run: the bar while it goes on, the table trace × metric when it is done. Pure text."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import shorten, wrap

BAD, GOOD = "✗", "✓"
NOTHING = "–"


@dataclass(frozen=True)
class Paint:
    """Colours where a person looks on, the same text without them elsewhere."""

    on: bool

    def red(self, text: str) -> str:
        return self._in("31;1", text)

    def green(self, text: str) -> str:
        return self._in("32", text)

    def yellow(self, text: str) -> str:
        return self._in("33", text)

    def dim(self, text: str) -> str:
        return self._in("2", text)

    def bold(self, text: str) -> str:
        return self._in("1", text)

    def number(self, n: int, text: str) -> str:
        return self._in(("36", "35", "34", "33", "32", "96", "95", "94")[n % 8], text)

    def _in(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.on and text else text


@dataclass(frozen=True)
class Mark:
    """One pair's outcome: no value means that it was not scored, and the reason says why."""

    value: float | None
    reason: str = ""
    threshold: float = 0.5

    @property
    def bad(self) -> bool:
        return self.value is not None and self.value < self.threshold


@dataclass(frozen=True)
class Row:
    session: str
    name: str
    started_at: str
    marks: dict[str, Mark]

    def worst(self) -> tuple[str, Mark] | None:
        """The lowest score; a pair without one counts as worse than none at all."""
        scored = {m: mark for m, mark in self.marks.items() if mark.value is not None}
        return min(scored.items(), key=lambda item: item[1].value or 0.0) if scored else None

    def bad(self) -> int:
        return sum(mark.bad for mark in self.marks.values())


def bar(done: int, total: int, seconds: float, failed: int = 0, width: int = 80, of: str = "traces") -> str:
    """Counts first: the bar itself is the part that a narrow terminal may lose."""
    counts = f"{done}/{total} {of}" + (f", {failed} not scored" if failed else "")
    tail = f"{counts}  {eta(done, total, seconds)}"
    room = min(30, width - len(tail) - 6)
    if room < 5:
        return tail[:width]
    filled = room * done // total if total else 0
    return f"[{'█' * filled}{'░' * (room - filled)}]  {tail}"


def eta(done: int, total: int, seconds: float) -> str:
    """By the pace so far; nothing is guessed before the first trace is done."""
    if done >= total:
        return f"in {seconds:.1f} s"
    if not done:
        return "ETA …"
    return f"ETA {duration(seconds / done * (total - done))}"


def duration(seconds: float) -> str:
    whole = max(1, round(seconds))
    return f"{whole} s" if whole < 90 else f"{whole // 60} min {whole % 60:02d} s"


def table(rows: Sequence[Row], metrics: Sequence[str], width: int = 100, paint: Paint = Paint(False)) -> str:
    """By session, then by time; a session's name stands on its first line. Scores are never cut, names are."""
    rows = sorted(rows, key=lambda r: (r.session, r.started_at))
    cells = _cells(metrics, width)
    room = width - sum(c + 2 for c in cells) - 4
    session = max(8, min(max((len(r.session) for r in rows), default=7), room * 2 // 5))
    name = max(8, min(max((len(r.name) for r in rows), default=5), room - session))
    first_line, head = _head(metrics, cells, "session".ljust(session), "trace".ljust(name))
    lines = [paint.bold("  " + "  ".join(first_line))] if any(w.strip() for w in first_line) else []
    lines += [paint.bold("  " + "  ".join(head)), paint.dim("  " + "  ".join("─" * len(h) for h in head))]
    before = None
    for row in rows:
        first = "" if row.session == before else row.session
        words = [paint.dim(_cut(first, session)), _named(row, name, paint)]
        words += [_cell(row.marks.get(m), c, paint) for m, c in zip(metrics, cells, strict=True)]
        lines.append("  " + "  ".join(words).rstrip())
        before = row.session
    return "\n".join(lines)


def _cells(metrics: Sequence[str], width: int) -> list[int]:
    """As wide as the longer word of each name; where names of traces would have no room, as wide as a score."""
    wide = [max(6, *(len(word) for word in m.split("_", 1))) for m in metrics]
    narrower = ([min(most, c) for c in wide] for most in (20, 9, 8, 7))
    return next((cells for cells in narrower if width - sum(c + 2 for c in cells) >= 36), [min(7, c) for c in wide])


def _head(metrics: Sequence[str], cells: Sequence[int], *names: str) -> tuple[list[str], list[str]]:
    """A metric's name in two lines, the last word below: most names are wider than their scores."""
    above, below = [" " * len(n) for n in names], list(names)
    for metric, cell in zip(metrics, cells, strict=True):
        *first, last = metric.split("_", 1)
        above.append(_cut("".join(first), cell).strip().rjust(cell))
        below.append(_cut(last, cell).strip().rjust(cell))
    return above, below


@dataclass(frozen=True)
class SessionRow:
    """A session's scores by metric, and the trace that drags it down with what is wrong there."""

    name: str
    traces: int
    marks: dict[str, Mark]
    worst: str = ""
    because: str = ""

    def low(self) -> float:
        return min((m.value for m in self.marks.values() if m.value is not None), default=-1.0)


def sessions_table(
    rows: Sequence[SessionRow], metrics: Sequence[str], width: int = 100, paint: Paint = Paint(False)
) -> str:
    """The worst first; one without a score before all others, because somebody has to look at it."""
    rows = sorted(rows, key=lambda r: (r.low(), r.name))
    cells = [max(6, *(len(word) for word in m.split("_", 1))) for m in metrics]
    name = max(8, min(max((len(r.name) for r in rows), default=7), 28))
    above, head = _head(metrics, cells, "session".ljust(name), "traces")
    rest = max(15, width - len("  ".join(head)) - 4)
    head.append("dragged down by")
    lines = [paint.bold("  " + "  ".join(line).rstrip()) for line in (above, head)]
    lines.append(paint.dim("  " + "  ".join("─" * len(h) for h in head)))
    for row in rows:
        words = [_cut(printable(row.name), name), str(row.traces).rjust(6)]
        words += [_cell(row.marks.get(m), c, paint) for m, c in zip(metrics, cells, strict=True)]
        said = f"{printable(row.worst)}: {printable(row.because)}" if row.worst else ""
        lines.append("  " + "  ".join([*words, paint.dim(_cut(said, rest).rstrip())]).rstrip())
    return "\n".join(lines)


def whys(rows: Sequence[Row], most: int = 6, width: int = 100, paint: Paint = Paint(False)) -> str:
    """The reasons of the worst scores, the worst trace first."""
    bad = [(row, worst) for row in rows if row.bad() and (worst := row.worst())]
    bad.sort(key=lambda item: (item[1][1].value or 0.0, -item[0].bad(), item[0].started_at))
    lines = []
    for row, (metric, mark) in bad[:most]:
        lines.append(f"  {paint.red(f'{BAD} {mark.value:.2f}')} {paint.bold(row.name)} {paint.dim(metric)}")
        lines += _said(mark.reason, width)
    if len(bad) > most:
        lines.append(paint.dim(f"  … and {len(bad) - most} more below their threshold"))
    return "\n".join(lines)


def unscored(rows: Sequence[Row], most: int = 6, width: int = 100, paint: Paint = Paint(False)) -> str:
    """A pair without a score says why: it is an answer, and not a zero."""
    pairs = [(row, m, mark) for row in rows for m, mark in row.marks.items() if mark.value is None]
    lines = []
    for row, metric, mark in pairs[:most]:
        lines.append(f"  {paint.yellow(NOTHING)} {paint.bold(row.name)} {paint.dim(metric)}")
        lines += _said(mark.reason or "no reason was given", width)
    if len(pairs) > most:
        lines.append(paint.dim(f"  … and {len(pairs) - most} more without a score"))
    return "\n".join(lines)


def printable(text: str) -> str:
    """Reasons quote traces: what would steer the terminal is not shown."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "�", text)


def _said(reason: str, width: int) -> list[str]:
    short = shorten(printable(reason), 2 * (width - 6), placeholder=" …")
    return [f"      {line}" for line in wrap(short, max(20, width - 6))]


def _named(row: Row, width: int, paint: Paint) -> str:
    text = _cut(printable(row.name), width)
    return paint.bold(text) if row.bad() else text


def _cell(mark: Mark | None, width: int, paint: Paint) -> str:
    if mark is None or mark.value is None:
        return paint.yellow(NOTHING.rjust(width))
    text = f"{BAD if mark.bad else ' '} {mark.value:.2f}".rjust(width)
    return paint.red(text) if mark.bad else paint.green(text)


def _cut(text: str, width: int) -> str:
    return text.ljust(width) if len(text) <= width else text[: width - 1] + "…"
