"""plan_adherence: did the agent do what it had set out to do? The plan is extracted; its execution is compared."""

from steelyard.metrics.judging import Case, Judging
from steelyard.metrics.plans import PlanGrade, about_plan

VERSION = "1"
RUBRIC = """how faithfully the execution follows the plan: go through the plan's steps and find the spans that carry
each of them out. Only faithfulness counts; whether the plan was good or the result right is another judge's business.
Levels:
1.0   every step was carried out, in the planned order, and nothing beside them
0.75  one small deviation: a step merged, moved or added without harm
0.5   a step was skipped or replaced without a reason in the record, the rest was carried out
0.25  only a minor part of the plan was carried out
0.0   the plan was dropped, or the execution has nothing to do with it
A change of the plan that a result made necessary, and that the record shows to be deliberate, is no deviation. A claim
that a step was done, without a span that does it, is a skipped step."""


class Adherence(PlanGrade):
    """How faithfully the plan was carried out."""


def plan_adherence(case: Case) -> Judging:
    return about_plan(case, "adherence", RUBRIC, Adherence)
