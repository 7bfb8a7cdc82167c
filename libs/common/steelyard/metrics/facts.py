"""What can be counted in a trace without understanding it: the ground that the rules judge stands on."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from operator import itemgetter

from steelyard.metrics.judging import Case
from steelyard.metrics.plain import dumped, plain_text, tool_calls
from steelyard.metrics.tools import Call
from steelyard.traces import Span, SpanKind, SpanStatus, TraceStatus

_REFUSAL = re.compile(
    r"\b(?:i(?:'m| am) (?:unable|not able) to|(?:i )?(?:can(?:no|')t|cannot|won't|will not|am not allowed to) "
    r"(?:help|assist|do|answer|provide|process|complete|comply|fulfil|share|access|discuss|support)"
    r"|not (?:able|allowed|permitted) to (?:help|assist|do|answer|provide|process|complete)"
    r"|(?:beyond|outside) (?:my|the) (?:capabilities|scope)|against (?:my|our) (?:policy|policies|guidelines))",
    re.IGNORECASE,
)
_UNDONE = re.compile(
    r"\b(?:(?:could|was|were|did)(?:n't| not) (?:\w+ )?(?:able|find|complete|reach|finish|retrieve|get|resolve|succeed|load)"
    r"|unable to|failed to|no (?:results?|answer|data) (?:was|were|found)|gave up|giving up|try again later"
    r"|something went wrong|an error (?:occurred|happened))",
    re.IGNORECASE,
)
_HEDGE = re.compile(
    r"\b(?:maybe|perhaps|possibly|might be|may be|could be|i (?:think|guess|believe|suppose|assume)|probably|not (?:entirely |"
    r"completely |quite |really )?(?:sure|certain)|hard to say|it depends|presumably|i don't (?:really )?know|no idea)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Facts:
    """What can be counted in a trace without understanding it."""

    status: TraceStatus
    output: str
    spans: int
    errors: int
    recovered: bool
    tools: int
    tool_errors: int
    last_tool_failed: bool
    most_repeats: int
    repeated_tool: str
    failed_then_repeated: bool
    unanswered: int
    hedges: int
    refuses: bool
    says_undone: bool

    @classmethod
    def of(cls, case: Case) -> "Facts":
        spans = case.trace.spans
        output = plain_text(case.trace.output, last=True).strip().replace("\u2019", "'")  # models write both
        tools = [s for s in spans if s.kind == SpanKind.TOOL]
        failed = [s for s in spans if did_fail(s)]
        tool, repeats = _most_repeated(tools)
        return cls(
            status=case.trace.status,
            output=output,
            spans=len(spans),
            errors=len(failed),
            recovered=bool(failed) and _recovered(spans, failed[-1]),
            tools=len(tools),
            tool_errors=sum(map(did_fail, tools)),
            last_tool_failed=bool(tools) and did_fail(tools[-1]),
            most_repeats=repeats,
            repeated_tool=tool,
            failed_then_repeated=any(did_fail(a) and _call(a) == _call(b) for a, b in pairwise(tools)),
            unanswered=_unanswered(spans, tools),
            hedges=len(_HEDGE.findall(output)),
            refuses=bool(_REFUSAL.search(output[:400])),
            says_undone=bool(_UNDONE.search(output)),
        )


def did_fail(span: Span) -> bool:
    return span.status == SpanStatus.ERROR or bool(span.error)


def _call(span: Span) -> tuple[str, str]:
    return span.name, dumped(span.input)


def _most_repeated(tools: list[Span]) -> tuple[str, int]:
    """The same call with the same result, or several times on end. Tests that run again after each edit are neither."""
    alike = Counter((*_call(s), dumped(s.output), s.error) for s in tools)
    on_end = [(name, len(list(run))) for (name, _), run in groupby(map(_call, tools))]
    counted = [(key[0], n) for key, n in alike.items()] + on_end
    return max(counted, key=itemgetter(1), default=("", 0))


def _recovered(spans: tuple[Span, ...], last_failed: Span) -> bool:
    """The same kind of step under the same name worked later."""
    later = spans[spans.index(last_failed) + 1 :]
    return any(s.kind == last_failed.kind and s.name == last_failed.name and not did_fail(s) for s in later)


def _unanswered(spans: tuple[Span, ...], tools: list[Span]) -> int:
    """Tools that the last model reply asks for and that never ran: the run stopped in the middle. Only where the
    trace records tool runs at all; many record the model's calls alone."""
    if not tools:
        return 0
    models = [i for i, s in enumerate(spans) if s.kind == SpanKind.LLM]
    if not models:
        return 0
    asked = Counter(name for name, _ in tool_calls(spans[models[-1]].output))
    ran = Counter(s.name for s in spans[models[-1] + 1 :] if s.kind == SpanKind.TOOL)
    return sum((asked - ran).values())


def repeated(calls: Sequence[Call]) -> list[bool]:
    """The same call again at once, or again with the same result. Neither are tests that run again after each edit, nor
    a second try after an error."""
    seen, found = set[tuple[str, ...]](), list[bool]()
    for n, call in enumerate(calls):
        full = (*call.key, dumped(call.result), call.error)
        at_once = n > 0 and calls[n - 1].key == call.key and not calls[n - 1].failed
        found.append(at_once or (call.ran and full in seen))
        seen.add(full)
    return found


def wasted(spans: Sequence[Span]) -> tuple[int, int]:
    """How many steps were repeated, or failed and were repeated unchanged, of how many. What holds others is no step; a
    model that is asked again stands between two calls and makes neither new."""
    steps = [s for s in spans if s.kind not in (SpanKind.AGENT, SpanKind.CHAIN)]
    seen, lost, before = set[tuple[object, ...]](), set[int](), -1
    for n, step in enumerate(steps):
        full = (step.kind, *_call(step), dumped(step.output), step.error)
        if full in seen:
            lost.add(n)
        seen.add(full)
        if step.kind == SpanKind.LLM:
            continue
        if before >= 0 and _call(steps[before]) == _call(step):
            lost.add(before if did_fail(steps[before]) else n)
        before = n
    return len(lost), len(steps)
