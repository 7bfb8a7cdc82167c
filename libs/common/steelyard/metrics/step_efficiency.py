"""step_efficiency: did the agent do no more than its task needed? Redundant, needless and speculative steps count."""

from steelyard.metrics.extraction import TaskOutcome, as_extracted, asked_of, extraction, unanswered
from steelyard.metrics.judging import ASK, Case, Grade, Judging, Reply, Score, graded, question

VERSION = "1"
RUBRIC = """how few steps the agent could have done the task with, set against those it took. Only the
steps count here; whether the result is right is another judge's business. Look for calls that ask again for what was
already known, for steps whose result nothing later uses, for speculation (trying things out that the task did not ask
for), and for several calls where one would have done. A retry after an error that could pass, a check of the own work,
and a step that turned out fruitless but was sensible when it was taken are not waste. Levels:
1.0   every step was needed
0.75  one needless or redundant step in an otherwise direct run
0.5   several needless steps, yet most of the work serves the task
0.25  most steps were redundant, needless or speculative
0.0   the steps do not serve the task at all, or repeat without getting anywhere
A run without any step but its answer has wasted nothing."""


class Efficiency(Grade, Reply):
    """How minimal the steps were."""


def step_efficiency(case: Case) -> Judging:
    if decided := plain_efficiency(case):
        return decided
    seen: TaskOutcome = yield extraction(case)
    said = as_extracted(case, task=seen.task)
    verdict: Efficiency = yield question(case, "steps", f"Your job now is to say {RUBRIC}", Efficiency, said, ASK)
    return graded(case, verdict, {"task": seen.task})


def plain_efficiency(case: Case) -> Score | None:
    """Steps that lead to no answer were all for nothing."""
    said = unanswered(case)
    return Score(0.0, f"The steps led nowhere: {said}.", {"task": asked_of(case)}) if said else None
