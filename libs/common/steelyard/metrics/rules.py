"""heuristic/rules-v1: answers the judges' questions without a model. Good at proving failure, weak at proving success."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby, pairwise
from operator import itemgetter
from typing import Any

from steelyard.metrics.confidence import Confidence
from steelyard.metrics.extraction import TaskOutcome, wordless
from steelyard.metrics.judging import Case, Reply
from steelyard.metrics.plain import dumped, plain_text, tool_calls
from steelyard.metrics.task_completion import Completion
from steelyard.traces import Span, SpanKind, SpanStatus, TraceStatus

JUDGE = {"kind": "heuristic", "version": "rules-v1"}
# Rules cannot see whether an answer is right: they never give more than this for completion.
MOST_FOR_COMPLETION = 0.75

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
class Ruling:
    """A reply, and the names of the rules that made it what it is."""

    reply: Reply
    fired: tuple[str, ...]


def rule(case: Case, reply: type[Reply]) -> Ruling | None:
    """None where there are no rules for this kind of question."""
    found = RULES.get(reply)
    return found(case) if found else None


def _extract(case: Case) -> Ruling:
    task = plain_text(case.trace.input, last=True).strip() or case.trace.name
    outcome = plain_text(case.trace.output, last=True).strip() or "no answer"
    return Ruling(TaskOutcome(nonce=case.nonce, task=task[:1000], outcome=outcome[:1000]), ())


def _complete(case: Case) -> Ruling:
    facts = Facts.of(case)
    level, fired = MOST_FOR_COMPLETION, list[str]()
    for rule_name, applies, most in (
        ("trace_failed", facts.status == TraceStatus.ERROR, 0.0),
        ("empty_output", wordless(facts.output) is not None, 0.0),
        ("refusal", facts.refuses, 0.0),
        ("last_tool_failed", facts.last_tool_failed, 0.25),
        ("most_tools_failed", facts.tools > 0 and facts.tool_errors * 2 > facts.tools, 0.25),
        ("says_undone", facts.says_undone, 0.25),
        ("looped", facts.most_repeats >= 3, 0.25),
        ("calls_unanswered", facts.unanswered > 0, 0.5),
        ("unrecovered_error", facts.errors > 0 and not facts.recovered, 0.5),
    ):
        if applies:
            level, fired = min(level, most), [*fired, rule_name]
    return Ruling(_verdict(Completion, case, level, _told(fired, facts) or _NOTHING_AGAINST), tuple(fired))


def _trust(case: Case) -> Ruling:
    facts = Facts.of(case)
    lost, fired = 0.0, list[str]()
    for rule_name, applies, costs in (
        ("trace_failed", facts.status == TraceStatus.ERROR, 0.5),
        ("empty_output", wordless(facts.output) is not None, 1.0),
        ("refusal", facts.refuses, 0.5),
        ("looped", facts.most_repeats >= 3, 0.75),
        ("repeated_call", facts.most_repeats == 2, 0.25),
        ("hedging", facts.hedges >= 1, 0.25),
        ("much_hedging", facts.hedges >= 3, 0.5),
        ("says_undone", facts.says_undone and not facts.refuses, 0.5),
        ("failed_then_repeated", facts.failed_then_repeated, 0.25),
        ("unrecovered_error", facts.errors > 0 and not facts.recovered, 0.5),
    ):
        if applies:
            lost, fired = lost + costs, [*fired, rule_name]
    level = max(0.0, round((1.0 - lost) * 4) / 4)
    return Ruling(_verdict(Confidence, case, level, _told(fired, facts) or _NO_DOUBTS), tuple(fired))


_NOTHING_AGAINST = "Nothing in the trace speaks against completion; rules cannot see whether the answer is right."
_NO_DOUBTS = "No hedging, no repeated calls, no errors left behind."
RULES: dict[type[Reply], Callable[[Case], Ruling]] = {TaskOutcome: _extract, Completion: _complete, Confidence: _trust}


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
        failed = [s for s in spans if _failed(s)]
        tool, repeats = _most_repeated(tools)
        return cls(
            status=case.trace.status,
            output=output,
            spans=len(spans),
            errors=len(failed),
            recovered=bool(failed) and _recovered(spans, failed[-1]),
            tools=len(tools),
            tool_errors=sum(map(_failed, tools)),
            last_tool_failed=bool(tools) and _failed(tools[-1]),
            most_repeats=repeats,
            repeated_tool=tool,
            failed_then_repeated=any(_failed(a) and _call(a) == _call(b) for a, b in pairwise(tools)),
            unanswered=_unanswered(spans, tools),
            hedges=len(_HEDGE.findall(output)),
            refuses=bool(_REFUSAL.search(output[:400])),
            says_undone=bool(_UNDONE.search(output)),
        )


def _failed(span: Span) -> bool:
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
    return any(s.kind == last_failed.kind and s.name == last_failed.name and not _failed(s) for s in later)


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


def _told(fired: list[str], facts: Facts) -> str:
    words = {
        "trace_failed": "the trace ended with status ERROR",
        "empty_output": "there is no answer",
        "refusal": "the answer refuses the task",
        "last_tool_failed": "the last tool call failed",
        "most_tools_failed": f"{facts.tool_errors} of {facts.tools} tool calls ended in errors",
        "says_undone": "the answer itself says that something was not done",
        "looped": f"the tool {facts.repeated_tool} was called {facts.most_repeats} times with the same arguments",
        "repeated_call": f"the tool {facts.repeated_tool} was called twice with the same arguments",
        "calls_unanswered": f"{facts.unanswered} requested tool calls never ran",
        "unrecovered_error": f"{facts.errors} of {facts.spans} spans failed and the last failure was not made good",
        "hedging": f"the answer hedges ({facts.hedges}×)",
        "much_hedging": "",
        "failed_then_repeated": "a failed call was repeated unchanged",
    }
    said = "; ".join(w for name in fired if (w := words[name]))
    return f"{said[:1].upper()}{said[1:]}." if said else ""


def _verdict(kind: type[Completion] | type[Confidence], case: Case, level: float, reason: str) -> Any:
    return kind.model_validate({"nonce": case.nonce, "score": level, "reason": reason, "evidence": []})
