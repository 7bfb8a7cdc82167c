"""A trace as numbered text for a judge: pure, deterministic, within a budget, and honest about what was cut."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from steelyard.metrics.plain import harmless, plain_text, without_blobs
from steelyard.traces import Span, SpanKind, SpanStatus, Trace, milliseconds

BUDGET_TOKENS = 24_000
CHARACTERS_PER_TOKEN = 3.2
MANY_SPANS = 300
ERROR_KEPT = 400
WEIGHTS = {SpanKind.TOOL: 3.0, SpanKind.LLM: 2.0, SpanKind.AGENT: 2.0, SpanKind.RETRIEVER: 1.0}
_SUSPICIOUS = re.compile(
    r"ignore (?:all |any |the )?(?:previous|prior|above)|disregard (?:the|all|any|your)|score (?:of|is|=|:) ?1(?:\.0)?\b"
    r"|you are (?:now )?(?:the|a) (?:judge|grader|evaluator)|(?:give|assign|award) (?:me |it |this )?(?:a |the )?"
    r"(?:full|perfect|maximum|highest) (?:score|marks)|system prompt|as (?:the|an) evaluator",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Rendering:
    """`spans` is the highest span number that evidence may name; 0 is the trace itself."""

    text: str
    spans: int
    cut: dict[str, Any] = field(default_factory=dict)
    suspected: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Part:
    """One text of one span. `rank` is the order in which parts are served, `weight` their part of what is left."""

    number: int
    label: str
    text: str
    rank: int
    weight: float
    given: int = 0


def render(trace: Trace, boundary: str = "", tokens: int = BUDGET_TOKENS) -> Rendering:
    """Every span has a line; errors come first and are not cut below 400 characters; the rest shares what is left."""
    budget = int(tokens * CHARACTERS_PER_TOKEN)
    numbers = {span.span_id: n for n, span in enumerate(trace.spans, 1)}
    lines, hidden = _lines(trace, numbers, boundary, budget // 2)
    parts = [p for p in _parts(trace, boundary) if p.number == 0 or p.number in lines]
    given = _shared(parts, budget - sum(len(line) + 1 for line in lines.values()))
    text = _joined(lines, given)
    while len(text) > budget and given:
        # Rarely: marks and prefixes of many short lines add up. Errors are the last to shrink.
        worst = max(range(len(given)), key=lambda i: (given[i].rank > 0, given[i].given))
        given[worst] = replace(given[worst], given=given[worst].given // 2)
        given = [p for p in given if p.given > 0]
        text = _joined(lines, given)
    cut = [p for p in given if p.given < len(p.text)]
    told: dict[str, Any] = {}
    if cut:
        told |= {"fields_cut": len(cut), "characters_cut": sum(len(p.text) - p.given for p in cut)}
    if hidden:
        told["spans_collapsed"] = hidden
    suspected = tuple(sorted({p.number for p in parts if _SUSPICIOUS.search(p.text)}))
    return Rendering(text, len(trace.spans), told, suspected)


def _lines(trace: Trace, numbers: dict[UUID, int], boundary: str, most: int) -> tuple[dict[int, str], int]:
    """Over 300 spans, or over half the budget, runs of alike spans become one line; errors never do."""
    head = f"[0] TRACE {_name(trace.name, boundary)} {trace.status} {_took(trace)}"
    lines = {n: _line(n, span, numbers, boundary) for n, span in enumerate(trace.spans, 1)}
    hidden = 0
    if len(lines) > MANY_SPANS or sum(len(x) + 1 for x in lines.values()) > most:
        lines, hidden = _collapsed(trace.spans, lines)
    while sum(len(x) + 1 for x in lines.values()) > most and any(not _failed(trace.spans[n - 1]) for n in lines):
        # The middle goes first: how it began and how it ended say most.
        ordinary = [n for n in lines if not _failed(trace.spans[n - 1])]
        drop = ordinary[len(ordinary) // 4 : len(ordinary) // 4 + max(1, len(ordinary) // 4)]
        hidden += len(drop)
        lines = {n: x for n, x in lines.items() if n not in set(drop)}
    return {0: head, **lines}, hidden


def _collapsed(spans: Sequence[Span], lines: dict[int, str]) -> tuple[dict[int, str], int]:
    kept: dict[int, str] = {}
    hidden, first, repeats = 0, 0, 1
    for n, span in enumerate(spans, 1):
        alike = first and _alike(spans[first - 1], span)
        if alike:
            repeats, hidden = repeats + 1, hidden + 1
            kept[first] = f"{lines[first]} x{repeats}"
        else:
            first, repeats = (0 if _failed(span) else n), 1
            kept[n] = lines[n]
    return kept, hidden


def _alike(one: Span, other: Span) -> bool:
    return not _failed(other) and (one.kind, one.name, one.parent_span_id) == (
        other.kind,
        other.name,
        other.parent_span_id,
    )


def _failed(span: Span) -> bool:
    return span.status == SpanStatus.ERROR or bool(span.error)


def _line(n: int, span: Span, numbers: dict[UUID, int], boundary: str) -> str:
    parent = numbers.get(span.parent_span_id) if span.parent_span_id else None
    inside = f" in [{parent}]" if parent else ""
    return f"[{n}] {span.kind} {_name(span.name, boundary)}{inside} {span.status} {_took(span)}".rstrip()


def _name(name: str, boundary: str) -> str:
    return '"' + harmless(name, boundary).replace("\n", " ")[:80] + '"'


def _took(what: Span | Trace) -> str:
    took = milliseconds(what.started_at, what.ended_at)
    return "" if took is None else f"{took:.0f}ms"


def _parts(trace: Trace, boundary: str) -> list[_Part]:
    parts = [
        _part(0, "input", trace.input, 1, 8.0, boundary),
        _part(0, "output", trace.output, 1, 8.0, boundary),
    ]
    history: set[str] = set()
    for n, span in enumerate(trace.spans, 1):
        weight = WEIGHTS.get(span.kind, 0.5)
        if _failed(span):
            parts.append(_part(n, "error", span.error or "no message", 0, weight, boundary))
        asked = _news(span.input, history) if span.kind == SpanKind.LLM else span.input
        parts.append(_part(n, "input", asked, 2, weight * 1.5, boundary))
        parts.append(_part(n, "output", span.output, 2, weight, boundary))
    return [p for p in parts if p.text]


def _part(n: int, label: str, value: Any, rank: int, weight: float, boundary: str) -> _Part:
    return _Part(n, label, without_blobs(harmless(plain_text(value), boundary)).strip(), rank, weight)


def _news(value: Any, history: set[str]) -> Any:
    """Chat history is sent again with every call: what an earlier span has shown is left out."""
    messages = value.get("messages") if isinstance(value, dict) else value
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        return value
    fresh = [m for m in messages if (said := repr(m)) not in history and not history.add(said)]  # type: ignore[func-returns-value]
    return fresh if len(fresh) < len(messages) else value


def _shared(parts: Sequence[_Part], room: int) -> list[_Part]:
    """Errors, then the trace's own input and output up to a quarter, then all by weight."""
    overhead = 24
    given = dict.fromkeys(range(len(parts)), 0)
    left = room
    for i, p in enumerate(parts):
        if p.rank == 0 and left > overhead:
            given[i] = min(len(p.text), ERROR_KEPT, left - overhead)
            left -= given[i] + overhead * (1 + p.text.count("\n"))
    quarter = max(0, min(left, room // 4))
    roots = [i for i, p in enumerate(parts) if p.rank == 1]
    left -= _serve(parts, roots, quarter, given, overhead)
    everybody = [i for i, p in enumerate(parts) if given[i] < len(p.text)]
    _serve(parts, everybody, max(0, left), given, overhead)
    return [replace(p, given=given[i]) for i, p in enumerate(parts) if given[i] > 0]


def _serve(parts: Sequence[_Part], who: Sequence[int], room: int, given: dict[int, int], overhead: int) -> int:
    """By weight; what a short text does not need goes to the others. Returns what was used."""
    waiting, left = sorted(who, key=lambda i: (len(parts[i].text) - given[i]) / parts[i].weight), room
    weight = sum(parts[i].weight for i in waiting)
    for i in waiting:
        share = int(left * parts[i].weight / weight) if weight else 0
        weight -= parts[i].weight
        extra = overhead * (1 + parts[i].text.count("\n")) if given[i] == 0 else 0
        more = min(len(parts[i].text) - given[i], share - extra)
        if more >= 20 or (more > 0 and more == len(parts[i].text) - given[i]):
            given[i] += more
            left -= more + extra
    return room - left


def _joined(lines: dict[int, str], parts: Sequence[_Part]) -> str:
    by_span: dict[int, list[_Part]] = {}
    for p in parts:
        by_span.setdefault(p.number, []).append(p)
    out: list[str] = []
    for n, line in lines.items():
        out.append(line)
        for p in by_span.get(n, []):
            shown = _cut(p.text, p.given).split("\n")
            out += [f"[{n}] {p.label}: {shown[0]}", *(f"[{n}] {more}" for more in shown[1:])]
    return "\n".join(out)


def _cut(text: str, size: int) -> str:
    """70 % head, 30 % tail, and a mark that says how much is missing."""
    if len(text) <= size:
        return text
    mark = f" …{len(text) - size} characters cut… "
    room = max(0, size - len(mark))
    head = room * 7 // 10
    return text[:head] + mark + (text[-(room - head) :] if room > head else "")
