"""tool_correctness: did the agent use the tools that its task needed, all of them and no others?"""

from collections.abc import Sequence
from typing import Any

from steelyard.metrics.extraction import asked_of, unanswered
from steelyard.metrics.judging import ASK, Case, Grade, Judging, Reply, Score, fenced, graded, one_line, question
from steelyard.metrics.tools import Call, Tool

VERSION = "1"
RUBRIC = """whether the agent chose the right tools for what its user wanted. Only the choice counts: with
which arguments a tool was called, and whether it then worked, are other judges' business. Look for three faults.
Over-selection: a tool was called that the task has no use for. Under-selection: a tool at hand that the task needed was
not called, and the agent guessed, refused or left something undone instead. Mis-selection: a tool was called where
another one at hand fits the need. Levels:
1.0   every needed tool was called, none beside them; also where the task needs no tool and none was called
0.75  the right tools, and one call of a tool that was not needed
0.5   a main need was met by the right tool, another one was missed or met by a wrong tool
0.25  mostly wrong tools, or most of what was needed was not called
0.0   none of the needed tools, or only wrong ones
Calling the same tool again is a matter of efficiency, not of choice. Where no tools are listed as at hand, take those
that were called for all there were."""
MOST_CALLS, MOST_OFFERS = 60, 100


class ToolChoice(Grade, Reply):
    """How well the tools were chosen."""


def tool_correctness(case: Case) -> Judging:
    if decided := plain_choice(case):
        return decided
    verdict: ToolChoice = yield question(
        case, "tools", f"Your job now is to say {RUBRIC}", ToolChoice, tools_at_hand(case), ASK
    )
    return graded(case, verdict, tools_told(case))


def plain_choice(case: Case) -> Score | None:
    """Without a call there is a choice only where tools were at hand and something came of doing without them."""
    if case.calls:
        return None
    if not case.offers:
        return Score(1.0, "No tool was called, and the trace names none that could have been.", tools_told(case))
    if said := unanswered(case):
        return Score(0.0, f"Tools were at hand, none was called, and {said}.", tools_told(case))
    return None


def tools_told(case: Case) -> dict[str, Any]:
    return {
        "user_input": asked_of(case),
        "tools_called": [{"name": c.name, "parameters": c.parameters} for c in case.calls],
        "available_tools": [{"name": t.name, "description": t.description} for t in case.offers],
    }


def tools_at_hand(case: Case) -> str:
    """The record's own words once more, so they get a fence of their own."""
    called = as_calls(case, case.calls[:MOST_CALLS]) or "none was called"
    offered = as_offers(case, case.offers[:MOST_OFFERS]) or "none is named in the record"
    return (
        f"Tools called, in order{_more(len(case.calls), MOST_CALLS)}:\n{fenced(case, called)}\n\n"
        f"Tools at hand{_more(len(case.offers), MOST_OFFERS)}:\n{fenced(case, offered)}"
    )


def as_calls(case: Case, made: Sequence[Call], most: int = 300) -> str:
    return "\n".join(one_line(f"[{c.span}] calls {c.called()}", case, most) for c in made)


def as_offers(case: Case, tools: Sequence[Tool], most: int = 200) -> str:
    lines = (f"[{t.span}] offers {t.name}: {t.description or 'no description'}" for t in tools)
    return "\n".join(one_line(line, case, most) for line in lines)


def _more(all_of_them: int, shown: int) -> str:
    return f" (the first {shown} of {all_of_them})" if all_of_them > shown else ""
