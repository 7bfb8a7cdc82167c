"""heuristic/rules-v1: answers the judges' questions without a model. Good at proving failure, weak at proving success."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from steelyard.metrics.argument_correctness import Arguments, arguments_of, distinct
from steelyard.metrics.confidence import Confidence
from steelyard.metrics.extraction import TaskOutcome, wordless
from steelyard.metrics.facts import Facts, repeated, wasted
from steelyard.metrics.judging import Case, Reply
from steelyard.metrics.loop_detection import words_of
from steelyard.metrics.plain import dumped, plain_text
from steelyard.metrics.plan_adherence import Adherence
from steelyard.metrics.plan_quality import PlanQuality
from steelyard.metrics.schemas import misfit
from steelyard.metrics.step_efficiency import Efficiency
from steelyard.metrics.task_completion import Completion
from steelyard.metrics.tool_correctness import ToolChoice
from steelyard.metrics.tools import Call, Tool
from steelyard.metrics.written_plan import is_planning, written_plan
from steelyard.traces import SpanKind, TraceStatus

JUDGE = {"kind": "heuristic", "version": "rules-v1"}
# Rules cannot see whether an answer is right, or a plan good: they never give more than this for either.
MOST_FOR_COMPLETION = MOST_FOR_A_PLAN = 0.75
LONGEST_PLAN = 15
# An error that complains about what the tool was given, and not about the weather between it and its server.
_COMPLAINT = re.compile(
    r"invalid|missing|required|unexpected|validation|must be|malformed|not a valid|does ?n[o']t exist|no such"
    r"|unknown (?:column|table|field|argument|parameter)|undefined|unrecognized|bad request|syntax|TypeError|ValueError",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Ruling:
    """A reply, and the names of the rules that made it what it is."""

    reply: Reply
    fired: tuple[str, ...]


def rule(case: Case, reply: type[Reply]) -> Ruling | None:
    """None where there are no rules for this kind of question."""
    found = next((RULES[kind] for kind in reply.__mro__ if kind in RULES), None)
    return found(case) if found else None


def _extract(case: Case) -> Ruling:
    task = plain_text(case.trace.input, last=True).strip() or case.trace.name
    outcome = plain_text(case.trace.output, last=True).strip() or "no answer"
    plan = written_plan(case.trace, case.calls)
    return Ruling(TaskOutcome(nonce=case.nonce, task=task[:1000], outcome=outcome[:1000], plan=plan), ())


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


def _choose(case: Case) -> Ruling:
    """What failed or was repeated was no good choice."""
    made, names = case.calls, {t.name for t in case.offers}
    if not made:
        return _chose_none(case)
    comparable = any(c.name in names for c in made)  # else the spans have other names than the declarations
    faults = {
        "call_failed": [c for c in made if c.failed],
        "call_repeated": [c for c, again in zip(made, repeated(made), strict=True) if again],
        "undeclared_tool": [c for c in made if comparable and c.name not in names],
    }
    fired = tuple(name for name, found in faults.items() if found)
    bad = {id(c) for found in faults.values() for c in found}
    told = "; ".join(f"{len(faults[name])} of {len(made)} calls {_ABOUT_CALLS[name]}" for name in fired)
    reason = f"{told}." if told else f"No call failed or was repeated. {_NO_BETTER_TOOL}"
    return Ruling(_verdict(ToolChoice, case, _level(1 - len(bad) / len(made)), reason), fired)


def _chose_none(case: Case) -> Ruling:
    """Tools were at hand: the answer itself may say what came of doing without."""
    facts = Facts.of(case)
    for rule_name, applies, level, why in (
        ("tools_unused", facts.refuses or facts.says_undone, 0.25, "left something undone"),
        ("guessed_beside_tools", facts.hedges > 0, 0.5, "guesses"),
    ):
        if applies:
            reason = f"No tool was called though {len(case.offers)} were at hand, and the answer {why}."
            return Ruling(_verdict(ToolChoice, case, level, reason), (rule_name,))
    return Ruling(_verdict(ToolChoice, case, 1.0, f"No tool was called. {_NO_BETTER_TOOL}"), ())


def _check(case: Case) -> Ruling:
    """By the schema where the trace has it, else by what the tool itself complained about."""
    declared, fired = {t.name: t for t in case.offers}, list[str]()
    verdicts = [_checked(call, declared.get(call.name), fired) for call in distinct(case.calls)]
    reply = arguments_of(len(verdicts)).model_validate({"nonce": case.nonce, "verdicts": verdicts})
    return Ruling(reply, tuple(dict.fromkeys(fired)))


def _checked(call: Call, tool: Tool | None, fired: list[str]) -> dict[str, str]:
    schema = tool.schema if tool else None
    if schema is not None and (wrong := misfit(schema, {} if call.parameters is None else call.parameters)):
        fired.append("schema_broken")
        return {"verdict": "no", "reason": f"By the tool's schema, {wrong}."}
    if call.failed and (complaint := _COMPLAINT.search(call.error[:500])):
        fired.append("tool_complained")
        return {"verdict": "no", "reason": f"The tool complained: …{call.error[complaint.start() :][:150]}"}
    fits = "They fit the tool's schema" if schema is not None else "The trace has no schema to check them by"
    return {"verdict": "yes", "reason": f"{fits}; rules cannot see whether the values are right."}


def _spare(case: Case) -> Ruling:
    lost, steps = wasted(case.trace.spans)
    if not lost:
        return Ruling(_verdict(Efficiency, case, 1.0, f"None of {steps} steps was repeated."), ())
    reason = f"{lost} of {steps} steps were repeated, or failed and were then repeated."
    return Ruling(_verdict(Efficiency, case, _level(1 - lost / steps), reason), ("steps_repeated",))


def _adhere(case: Case) -> Ruling:
    """A step counts as carried out when a later call shares a word with it: enough to see what was dropped. The last
    one may be the answer itself."""
    plan = written_plan(case.trace, case.calls)
    done = _stems("\n".join(_done_since(case, plan[0].span))) if plan else set()
    answered = [len(plan)] if wordless(plain_text(case.trace.output, last=True)) is None else []
    dropped = [n for n, step in enumerate(plan, 1) if n not in answered and not _stems(step.step) & done]
    if not dropped:
        return Ruling(_verdict(Adherence, case, 1.0, f"Each of {len(plan)} planned steps has a later span."), ())
    reason = f"{len(dropped)} of {len(plan)} planned steps have no later span about them: steps {dropped[:10]}."
    return Ruling(_verdict(Adherence, case, _level(1 - len(dropped) / len(plan)), reason), ("planned_step_missing",))


def _done_since(case: Case, span: int) -> list[str]:
    """Calls and searches; a model's messages repeat the plan itself."""
    called = [c.called()[:400] for c in case.calls if c.span >= span and not is_planning(c.name)]
    searched = [s for s in case.trace.spans[span:] if s.kind == SpanKind.RETRIEVER]
    return called + [f"{s.name} {dumped(s.input)[:400]}" for s in searched]


def _weigh(case: Case) -> Ruling:
    plan = [step.step for step in written_plan(case.trace, case.calls)]
    aims, said = _stems(plain_text(case.trace.input, last=True)[:5000]), [_stems(step) for step in plan]
    level, fired = MOST_FOR_A_PLAN, list[str]()
    for rule_name, applies, most in (
        ("plan_off_task", bool(aims) and not any(aims & s for s in said), 0.25),
        ("plan_repeats_itself", len({step.casefold() for step in plan}) < len(plan), 0.5),
        ("plan_steps_vague", sum(len(step.split()) < 2 for step in plan) * 2 > len(plan), 0.5),
        ("plan_too_long", len(plan) > LONGEST_PLAN, 0.5),
    ):
        if applies:
            level, fired = min(level, most), [*fired, rule_name]
    told = "; ".join(_ABOUT_PLANS[name] for name in fired) or "nothing in the plan speaks against it"
    reason = f"{told[:1].upper()}{told[1:]}; rules cannot see whether it would do the task."
    return Ruling(_verdict(PlanQuality, case, level, reason), tuple(fired))


def _level(share: float) -> float:
    """Down to the next level: a fault always costs one."""
    return int(share * 4) / 4


def _stems(text: str) -> set[str]:
    """Enough of a word to find it in another form: search, searched, searching."""
    return {w[:5] for w in words_of(text.replace("_", " ")) if len(w) > 2}


_ABOUT_CALLS = {
    "call_failed": "failed",
    "call_repeated": "repeated an earlier one",
    "undeclared_tool": "named a tool that is not declared",
}
_ABOUT_PLANS = {
    "plan_off_task": "no step of the plan shares a word with the task",
    "plan_repeats_itself": "the plan names a step twice",
    "plan_steps_vague": "most steps of the plan are a single word",
    "plan_too_long": f"the plan has more than {LONGEST_PLAN} steps",
}
_NO_BETTER_TOOL = "Rules cannot see whether another tool would have been better."
_NOTHING_AGAINST = "Nothing in the trace speaks against completion; rules cannot see whether the answer is right."
_NO_DOUBTS = "No hedging, no repeated calls, no errors left behind."
RULES: dict[type[Any], Callable[[Case], Ruling]] = {
    TaskOutcome: _extract,
    Completion: _complete,
    ToolChoice: _choose,
    Arguments: _check,
    Efficiency: _spare,
    Confidence: _trust,
    Adherence: _adhere,
    PlanQuality: _weigh,
}


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


def _verdict(kind: type[Any], case: Case, level: float, reason: str) -> Any:
    return kind.model_validate({"nonce": case.nonce, "score": level, "reason": reason, "evidence": []})
