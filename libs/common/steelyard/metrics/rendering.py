"""A trace as numbered text for a judge: pure, deterministic, within a budget, and honest about what was cut."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any
from uuid import UUID

from steelyard.metrics.plain import dumped, ends, harmless, plain_text, tool_calls, without_blobs
from steelyard.traces import Span, SpanKind, SpanStatus, Trace, milliseconds

BUDGET_TOKENS = 24_000
CHARACTERS_PER_TOKEN = 3.2
MANY_SPANS = 300
ERROR_KEPT = 400
# Of calls that an answer makes, and of results that it was shown, no more are looked for in its words.
MOST_UNSAID = 200
# A text is cut to so many budgets before it is cleaned: what cleaning takes away leaves enough to show.
CLEANED_BUDGETS = 4
# Errors may take this part of the budget with their lines; what is left tells what they are about.
MOST_FOR_LINES = 0.75
WEIGHTS = {SpanKind.TOOL: 3.0, SpanKind.LLM: 2.0, SpanKind.AGENT: 2.0, SpanKind.RETRIEVER: 1.0}
_SUSPICIOUS = re.compile(
    r"ignore (?:all |any |the )?(?:previous|prior|above)|disregard (?:the|all|any|your)|score ?(?:of|is|=|:) ?1(?:\.0)?\b"
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
    """One text of one span, each line with its span's mark. `rank` is the order in which parts are served, `weight`
    their part of what is left, `given` the characters they got, `omitted` those that were cut before it was cleaned."""

    number: int
    text: str
    rank: int
    weight: float
    omitted: int = 0
    given: int = 0


def render(trace: Trace, boundary: str = "", tokens: int = BUDGET_TOKENS) -> Rendering:
    """Every span has a line; errors come first and are not cut below 400 characters; the rest shares what is left."""
    budget = int(tokens * CHARACTERS_PER_TOKEN)
    numbers = {span.span_id: n for n, span in enumerate(trace.spans, 1)}
    lines, hidden = _lines(trace, numbers, boundary, budget)
    parts = list(_parts(trace, boundary, CLEANED_BUDGETS * budget))
    suspects = {p.number for p in parts if _SUSPICIOUS.search(p.text)}
    suspects |= {
        n for n, name in enumerate((trace.name, *(s.name for s in trace.spans))) if _SUSPICIOUS.search(name[:400])
    }
    suspected = tuple(sorted(suspects))
    parts = [p for p in parts if p.number in lines]
    given = _shared(parts, budget - sum(len(line) + 1 for line in lines.values()))
    cut = [p for p in given if p.omitted or p.given < len(p.text)]
    told: dict[str, Any] = {}
    if cut:
        told |= {"fields_cut": len(cut), "characters_cut": sum(len(p.text) - p.given + p.omitted for p in cut)}
    if hidden:
        told["spans_collapsed"] = hidden
    return Rendering(_joined(lines, given)[:budget], len(trace.spans), told, suspected)


def _lines(trace: Trace, numbers: dict[UUID, int], boundary: str, budget: int) -> tuple[dict[int, str], int]:
    """Over 300 spans, or over half the budget, runs of alike spans become one line; errors keep their own as long as
    there is any room, and their numbers after that."""
    head = f"[0] TRACE {_name(trace.name, boundary)} {trace.status} {_took(trace)}".rstrip()
    lines = {n: _line(n, span, numbers, boundary) for n, span in enumerate(trace.spans, 1)}
    if len(lines) > MANY_SPANS or _length(lines) > budget // 2:
        lines = _collapsed(trace.spans, lines)
    ordinary = [n for n in lines if not _failed(trace.spans[n - 1])]
    lines = _without_middle(lines, ordinary, budget // 2)
    hidden = len(trace.spans) - len(lines)
    room = int(budget * MOST_FOR_LINES)
    kept = _without_middle(lines, list(lines), room - 200) if _length(lines) > room else lines
    if lost := [n for n in lines if n not in kept and _failed(trace.spans[n - 1])]:
        note = f"[{lost[0]}] {len(lost)} more failed spans: {_ranges(lost)}"
        kept = dict(sorted({**kept, lost[0]: note[: max(200, budget // 8)]}.items()))
    return {0: head, **kept}, hidden + len(lines) - len(kept)


def _length(lines: dict[int, str]) -> int:
    return sum(len(line) + 1 for line in lines.values())


def _without_middle(lines: dict[int, str], may_go: Sequence[int], most: int) -> dict[int, str]:
    """The middle goes first: how it began and how it ended say most."""
    going = list(may_go)
    while going and _length(lines) > most:
        quarter = max(1, len(going) // 4)
        dropped = set(going[quarter : 2 * quarter] or going)
        lines = {n: line for n, line in lines.items() if n not in dropped}
        going = [n for n in going if n not in dropped]
    return lines


def _ranges(numbers: Sequence[int]) -> str:
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in runs)


def _collapsed(spans: Sequence[Span], lines: dict[int, str]) -> dict[int, str]:
    kept: dict[int, str] = {}
    first, repeats = 0, 1
    for n, span in enumerate(spans, 1):
        if first and _alike(spans[first - 1], span):
            repeats += 1
            kept[first] = f"{lines[first]} ×{repeats}"
        else:
            first, repeats = (0 if _failed(span) else n), 1
            kept[n] = lines[n]
    return kept


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
    """Short before it is cleaned: a name may have megabytes. Its quotes end where ours do."""
    return '"' + " ".join(harmless(name[:400], boundary).replace('"', "'").split())[:80] + '"'


def _took(what: Span | Trace) -> str:
    took = milliseconds(what.started_at, what.ended_at)
    return "" if took is None else f"{took:.0f}ms"


def _parts(trace: Trace, boundary: str, most: int) -> Iterator[_Part]:
    part = partial(_part, boundary=boundary, most=most)
    yield from part(0, "input", plain_text(trace.input), 1, 8.0)
    yield from part(0, "output", plain_text(trace.output), 1, 8.0)
    history: set[str] = set()
    for n, span in enumerate(trace.spans, 1):
        weight, model = WEIGHTS.get(span.kind, 0.5), span.kind == SpanKind.LLM
        if _failed(span):
            yield from part(n, "error", span.error or "no message", 0, weight)
        asked = _spoken(_news(span.input, history)) if model else plain_text(span.input)
        said = _spoken(span.output) if model else plain_text(span.output)
        if model:
            history.update(repr(m) for m in _answers(span.output))
        yield from part(n, "input", asked, 2, weight * 1.5)
        yield from part(n, "output", said, 2, weight)


def _part(n: int, label: str, text: str, rank: int, weight: float, boundary: str, most: int) -> Iterator[_Part]:
    """Cut before it is cleaned, since what nobody will read need not be clean; without blobs before it is cut, since they stand
    in the way of words. `splitlines` knows every character that may end a line: none may begin one without its mark."""
    text, omitted = ends(without_blobs(text), most)
    lines = without_blobs(harmless(text.replace("\r\n", "\n"), boundary)).strip().splitlines()
    if lines:
        marked = [f"[{n}] {label}: {lines[0]}", *(f"[{n}] {line}" for line in lines[1:])]
        yield _Part(n, "\n".join(marked), rank, weight, omitted)


def _spoken(value: Any) -> str:
    """A model's words and, where the words leave them out, the calls it made and the results it was shown.

    A name in the prose ("I search …") is no call; in quotes, the text is the message's JSON and holds the call."""
    text = plain_text(value)
    made = list(islice(tool_calls(value), MOST_UNSAID))
    unsaid = [f"calls {name}({dumped(given)})" for name, given in made if f'"{name}"' not in text]
    unsaid += [f"result: {said}" for said in islice(_results(value), MOST_UNSAID) if said and said not in text]
    return "\n".join([text, *unsaid] if text else unsaid)


def _results(value: Any) -> Iterator[str]:
    """Anthropic's tool_result blocks, which stand in the user's message."""
    for message in value if isinstance(value, list) else _conversation(value):
        content = message.get("content") if isinstance(message, dict) else None
        for block in content if isinstance(content, list) else ():
            if isinstance(block, dict) and block.get("type") == "tool_result":
                yield plain_text(block.get("content"))


def _conversation(value: Any) -> list[Any]:
    messages = value.get("messages") if isinstance(value, dict) else None
    return messages if isinstance(messages, list) else []


def _answers(value: Any) -> Iterator[dict[str, Any]]:
    """The messages that the next call will send along again."""
    if isinstance(value, dict) and isinstance(value.get("choices"), list):
        yield from (
            c["message"] for c in value["choices"] if isinstance(c, dict) and isinstance(c.get("message"), dict)
        )
    elif isinstance(value, dict) and "role" in value:
        yield {k: value[k] for k in ("role", "content") if k in value}


def _news(value: Any, history: set[str]) -> Any:
    """Chat history is sent again with every call: what an earlier span has shown is left out."""
    messages = value if isinstance(value, list) else _conversation(value)
    if not messages or not all(isinstance(m, dict) for m in messages):
        return value
    fresh = [m for m in messages if repr(m) not in history]
    history.update(repr(m) for m in messages)
    return fresh if len(fresh) < len(messages) else value


def _shared(parts: Sequence[_Part], room: int) -> list[_Part]:
    """Errors, then the trace's own input and output up to a quarter, then all by weight."""
    given, left = [0] * len(parts), room
    for i, p in enumerate(parts):
        if p.rank == 0 and left > 40:
            given[i] = min(len(p.text), ERROR_KEPT + len("[99999] error: "), left - 1)
            left -= given[i] + 1
    left -= _serve(parts, [i for i, p in enumerate(parts) if p.rank == 1], min(left, room // 4), given)
    _serve(parts, [i for i, p in enumerate(parts) if given[i] < len(p.text)], left, given)
    return [replace(p, given=given[i]) for i, p in enumerate(parts)]


def _serve(parts: Sequence[_Part], who: Sequence[int], room: int, given: list[int]) -> int:
    """By weight; what a short text does not need goes to the others. Returns what was used."""
    waiting, left = sorted(who, key=lambda i: (len(parts[i].text) - given[i]) / parts[i].weight), room
    weight = sum(parts[i].weight for i in waiting)
    for i in waiting:
        share = int(max(0, left) * parts[i].weight / weight)
        weight -= parts[i].weight
        newline = 0 if given[i] else 1
        more = min(len(parts[i].text) - given[i], share - newline)
        # Twenty characters of a text say nothing and cost a cut mark.
        if more >= 40 or 0 < more == len(parts[i].text) - given[i]:
            given[i] += more
            left -= more + newline
    return room - left


def _joined(lines: dict[int, str], parts: Sequence[_Part]) -> str:
    by_span: dict[int, list[str]] = {}
    for p in parts:
        if p.given:
            by_span.setdefault(p.number, []).append(_cut(p.text, p.given, p.omitted))
    return "\n".join(x for n, line in lines.items() for x in (line, *by_span.get(n, ())))


def _cut(text: str, size: int, omitted: int = 0) -> str:
    """70 % head, 30 % tail, and a mark that says how much is missing."""
    if len(text) <= size:
        return text
    mark = f" …{len(text) - size + omitted} characters cut… "
    room = max(0, size - len(mark))
    head = text[: room * 7 // 10]
    before, _, begun = head.rpartition("\n")
    if before and " " not in begun:
        head = before  # a line of which only a part of its mark would be left
    tail = text[-(room - room * 7 // 10) :] if room > 1 else ""
    return (head + mark + tail)[:size]
