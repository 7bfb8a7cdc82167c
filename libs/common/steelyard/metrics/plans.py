"""The conversation of the metrics that need a plan: extracted with the task, kept where the trace backs it, graded."""

from steelyard.metrics.extraction import PlanStep, TaskOutcome, as_extracted, asked_of, extraction, unanswered
from steelyard.metrics.judging import ASK, Case, Grade, Judging, Reply, Score, graded, one_line, question

MOST_STEPS = 40
NO_PLAN = "No plan was found in the trace: there is nothing to judge, which is no fault."


class PlanGrade(Grade, Reply):
    """A grade about a plan."""


def about_plan(case: Case, stage: str, rubric: str, reply: type[PlanGrade]) -> Judging:
    if decided := plain_plan(case):
        return decided
    seen: TaskOutcome = yield extraction(case)
    plan = backed(case, seen.plan)
    if not plan:
        return planless(seen.task)
    said = f"{as_extracted(case, task=seen.task)}\n{as_steps(case, plan)}"
    verdict: PlanGrade = yield question(case, stage, f"Your job now is to say {rubric}", reply, said, ASK)
    return graded(case, verdict, {"task": seen.task, "plan": plan})


def plain_plan(case: Case) -> Score | None:
    """Neither an answer nor a step: nobody need look for a plan there."""
    return planless(asked_of(case)) if unanswered(case) and not case.trace.spans else None


def planless(task: str) -> Score:
    return Score(1.0, NO_PLAN, {"task": task, "plan": []})


def backed(case: Case, plan: list[PlanStep]) -> list[str]:
    """A step whose span does not exist was never stated."""
    return [s.step for s in plan if 0 <= s.span <= case.rendering.spans][:MOST_STEPS]


def as_steps(case: Case, plan: list[str]) -> str:
    """The record's own words again: each step stays on its line."""
    return "\n".join(["Plan, as extracted:", *(f"{n}. {one_line(step, case, 300)}" for n, step in enumerate(plan, 1))])
