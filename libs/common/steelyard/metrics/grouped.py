"""Grouped judging: three questions in place of eight, about outcome, tools and plan. Cheaper, and another measurement
than asking about each metric alone: its versions say so."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Annotated

from pydantic import Field, create_model

from steelyard.metrics import (
    CATALOGUE,
    argument_correctness,
    confidence,
    plan_adherence,
    plan_quality,
    step_efficiency,
    task_completion,
    tool_correctness,
)
from steelyard.metrics.argument_correctness import ASK_VERDICTS, Verdict, counted, distinct, listed, plain_arguments
from steelyard.metrics.extraction import TASK as EXTRACT
from steelyard.metrics.extraction import PlanStep
from steelyard.metrics.judging import GRADE, Case, Grade, Judging, Metric, Question, Reply, graded, question
from steelyard.metrics.plans import backed, plain_plan, planless

VERSION = "1"
_JUDGE = "Beside that, judge several things about the same record, each for itself: none of them colours the others."
_TWO = "Your job now is two judgements of one record, each for itself: neither colours the other."
_HOW = f"Each grade is {{{GRADE}}}."


class Outcome(Reply):
    task: str = Field(description="what the user wanted, in one or two sentences")
    outcome: str = Field(description="what the record shows was achieved, strictly factual, in one to three sentences")
    task_completion: Grade
    step_efficiency: Grade
    confidence: Grade


class Tools(Reply):
    tool_correctness: Grade
    verdicts: list[Verdict] = Field(description="one for each listed call, in their order")


class Plan(Reply):
    task: str = Field(description="what the user wanted, in one or two sentences")
    plan: list[PlanStep] = Field(description="what the agent set out to do; empty where nothing states it")
    plan_adherence: Grade
    plan_quality: Grade


def about_outcome(case: Case) -> Question:
    rubrics = _rubrics(
        task_completion=task_completion.RUBRIC, step_efficiency=step_efficiency.RUBRIC, confidence=confidence.RUBRIC
    )
    ask = '"task": "…", "outcome": "…", "task_completion": grade, "step_efficiency": grade, "confidence": grade'
    return question(
        case,
        "outcome",
        f"{EXTRACT}\n{_JUDGE}\n\n{rubrics}",
        Outcome,
        _HOW,
        _asked("Extract and grade.", ask),
        shared=True,
    )


def about_tools(case: Case) -> Question:
    calls = distinct(case.calls)
    rubrics = _rubrics(tool_correctness=tool_correctness.RUBRIC, verdicts=argument_correctness.RUBRIC)
    ask = _asked(f"Grade, with {len(calls)} verdicts.", f'"tool_correctness": grade, {ASK_VERDICTS}')
    lists = (tool_correctness.tools_at_hand(case), *([listed(case, calls)] if calls else []))
    return question(case, "tools", f"{_TWO}\n\n{rubrics}", tools_of(len(calls)), *lists, _HOW, ask, shared=True)


def about_plan(case: Case) -> Question:
    rubrics = _rubrics(plan_adherence=plan_adherence.RUBRIC, plan_quality=plan_quality.RUBRIC)
    nothing = "Where the plan is empty, both grades are 1 with the reason that there is no plan."
    ask = '"task": "…", "plan": [{"step": "…", "span": span number}], "plan_adherence": grade, "plan_quality": grade'
    return question(
        case,
        "plan",
        f"{EXTRACT}\n{_JUDGE} {nothing}\n\n{rubrics}",
        Plan,
        _HOW,
        _asked("Extract and grade.", ask),
        shared=True,
    )


@lru_cache(maxsize=argument_correctness.MOST_CALLS + 1)
def tools_of(calls: int) -> type[Tools]:
    exactly = Annotated[list[Verdict], Field(min_length=calls, max_length=calls)]
    return create_model(f"Tools{calls}", __base__=Tools, verdicts=(exactly, ...))


def _completion(case: Case) -> Judging:
    if decided := task_completion.plain_completion(case):
        return decided
    found: Outcome = yield about_outcome(case)
    return graded(case, found.task_completion, {"task": found.task, "outcome": found.outcome})


def _efficiency(case: Case) -> Judging:
    if decided := step_efficiency.plain_efficiency(case):
        return decided
    found: Outcome = yield about_outcome(case)
    return graded(case, found.step_efficiency, {"task": found.task})


def _confidence(case: Case) -> Judging:
    if decided := confidence.plain_confidence(case):
        return decided
    found: Outcome = yield about_outcome(case)
    return graded(case, found.confidence)


def _choice(case: Case) -> Judging:
    if decided := tool_correctness.plain_choice(case):
        return decided
    found: Tools = yield about_tools(case)
    return graded(case, found.tool_correctness, tool_correctness.tools_told(case))


def _arguments(case: Case) -> Judging:
    if decided := plain_arguments(case):
        return decided
    found: Tools = yield about_tools(case)
    return counted(case, distinct(case.calls), found.verdicts)


def _planned(grade: Callable[[Plan], Grade]) -> Callable[[Case], Judging]:
    def judging(case: Case) -> Judging:
        if decided := plain_plan(case):
            return decided
        found: Plan = yield about_plan(case)
        plan = backed(case, found.plan)
        return graded(case, grade(found), {"task": found.task, "plan": plan}) if plan else planless(found.task)

    return judging


def _rubrics(**rubrics: str) -> str:
    return "\n\n".join(f'"{name}": say {rubric}' for name, rubric in rubrics.items())


def _asked(how: str, fields: str) -> str:
    return f'{how} JSON: {{"nonce": "…", {fields}}}'


_JUDGINGS: dict[str, Callable[[Case], Judging]] = {
    "task_completion": _completion,
    "step_efficiency": _efficiency,
    "confidence": _confidence,
    "tool_correctness": _choice,
    "argument_correctness": _arguments,
    "plan_adherence": _planned(lambda found: found.plan_adherence),
    "plan_quality": _planned(lambda found: found.plan_quality),
}
# The same metrics under the same names, asked in groups.
GROUPED: dict[str, Metric] = {
    name: replace(metric, judging=_JUDGINGS[name], version=f"{metric.version}-grouped-{VERSION}")
    if name in _JUDGINGS
    else metric
    for name, metric in CATALOGUE.items()
}
