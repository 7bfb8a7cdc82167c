"""argument_correctness: were the tools called with the right arguments? One verdict for each call, counted by code."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from steelyard.metrics.extraction import asked_of
from steelyard.metrics.judging import Case, Judging, NotScored, Reply, Score, fenced, one_line, question
from steelyard.metrics.plain import dumped
from steelyard.metrics.tool_correctness import as_calls
from steelyard.metrics.tools import Call

VERSION = "1"
RUBRIC = """for each of the listed tool calls, whether its arguments are right: "yes" or "no". An argument
is right when its value follows from what the user said, from an earlier result, or from common knowledge, and is of
the kind that the tool takes. "no" for a value that contradicts these, for one that was made up, for one that belongs to
another parameter, and where something the task needs is missing. Whether this was the right tool, whether the call was
needed, and what it returned do not count: a call with right arguments may fail. A value that the record cuts is not
wrong because of that."""
ASK_VERDICTS = '"verdicts": [{"verdict": "yes" | "no", "reason": "…"}]'
# A verdict with its reason takes about forty tokens of a reply that may have two thousand.
MOST_CALLS = 40


class Verdict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    verdict: Literal["yes", "no"]
    reason: str = Field(description='why, in one short sentence; for a "no", which argument')


class Arguments(Reply):
    verdicts: list[Verdict] = Field(description="one for each listed call, in their order")


def argument_correctness(case: Case) -> Judging:
    if decided := plain_arguments(case):
        return decided
    judged = distinct(case.calls)
    reply = arguments_of(len(judged))
    found: Arguments = yield question(
        case, "arguments", f"Your job now is to say, {RUBRIC}", reply, listed(case, judged), asked(len(judged))
    )
    return counted(case, judged, found.verdicts)


def plain_arguments(case: Case) -> Score | None:
    told = {"user_input": asked_of(case), "verdicts": []}
    return None if case.calls else Score(1.0, "No tool was called, so no argument can be wrong.", told)


def distinct(calls: Sequence[Call]) -> list[Call]:
    """The same call with the same arguments is judged once. Of very many, those that failed and then the first."""
    different = list({c.key: c for c in reversed(calls)}.values())[::-1]
    first = sorted(different, key=lambda c: not c.failed)[:MOST_CALLS]
    return sorted(first, key=lambda c: c.span)


@lru_cache(maxsize=MOST_CALLS + 1)
def arguments_of(calls: int) -> type[Arguments]:
    """A reply with another number of verdicts than calls is none: which call would the missing one be about?"""
    exactly = Annotated[list[Verdict], Field(min_length=calls, max_length=calls)]
    return create_model(f"Arguments{calls}", __base__=Arguments, verdicts=(exactly, ...))


def listed(case: Case, judged: Sequence[Call]) -> str:
    """With what the called tools take, where the trace declares it: the rendered record leaves declarations out."""
    called = {c.name for c in judged}
    takes = [f"[{t.span}] {t.name} takes {dumped(t.schema)}" for t in case.offers if t.schema and t.name in called]
    text = f"The tool calls to judge, in order:\n{fenced(case, as_calls(case, judged, 600))}"
    if takes:
        text += "\n\nWhat these tools take:\n" + fenced(
            case, "\n".join(one_line(t, case, 500) for t in takes[:MOST_CALLS])
        )
    return text


def asked(calls: int) -> str:
    return f'One verdict for each call in the list, {calls} in all. JSON: {{"nonce": "…", {ASK_VERDICTS}}}'


def counted(case: Case, judged: Sequence[Call], verdicts: Sequence[Verdict]) -> Score | NotScored:
    """Repeated calls share a verdict and count as often as they were made."""
    if len(verdicts) != len(judged):
        return NotScored(f"the judge gave {len(verdicts)} verdicts for {len(judged)} calls")
    by_call = {c.key: v for c, v in zip(judged, verdicts, strict=True)}
    given = [(c, by_call[c.key]) for c in case.calls if c.key in by_call]
    wrong = [f"[{c.span}] {c.name}: {v.reason}" for c, v in given if v.verdict == "no"]
    right = len(given) - len(wrong)
    told: dict[str, Any] = {"user_input": asked_of(case), "verdicts": [v.model_dump() for _, v in given]}
    unseen = len(case.calls) - len(given)
    said = f"{right} of {len(given)} tool calls have the right arguments." + (" " + "; ".join(wrong) if wrong else "")
    if unseen:
        told["calls_not_judged"] = unseen
        said += f" {unseen} more calls were too many to be judged."
    return Score(round(right / len(given), 6), said, told)
