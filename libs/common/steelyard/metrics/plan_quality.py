"""plan_quality: was what the agent set out to do a good way to do the task? Independent of how it was carried out."""

from steelyard.metrics.judging import Case, Judging
from steelyard.metrics.plans import PlanGrade, about_plan

VERSION = "1"
RUBRIC = """how good the plan is as a plan for the task: complete (carried out as it stands, it would do
all of the task), ordered (no step needs what a later one brings), optimal (no step is superfluous, no shorter way is
obvious), detailed enough to be carried out, and aligned with what the user wanted and not more. Judge it as it could
be judged before the first step was taken: how the execution went, and whether it succeeded, does not count. Levels:
1.0   complete, ordered, without waste, clear and aligned
0.75  sound, with one weakness that would hardly matter
0.5   it would do a main part of the task, but lacks a needed step, or several steps are vague or needless
0.25  it would do little of the task, or its order could not work
0.0   it does not serve the task, or says nothing that could be carried out"""


class PlanQuality(PlanGrade):
    """How good the plan is."""


def plan_quality(case: Case) -> Judging:
    return about_plan(case, "quality", RUBRIC, PlanQuality)
