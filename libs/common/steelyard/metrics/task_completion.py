"""task_completion: did the agent do what its user wanted? Extract task and outcome, then compare them."""

from steelyard.metrics.extraction import TaskOutcome, as_extracted, asked_of, extraction, unanswered
from steelyard.metrics.judging import ASK, Case, Grade, Judging, Reply, Score, graded, question

VERSION = "2"
RUBRIC = """how far the outcome achieves the task. Levels:
1.0   everything the user wanted was achieved, and the record shows it
0.75  achieved, with a small part missing or unproven
0.5   about half: a main part is achieved and a main part is not
0.25  little: a first step, or help that does not lead to what was wanted
0.0   nothing, a refusal of a legitimate task, a wrong result, or another task than the one asked for
A polite or long answer is worth nothing by itself. Errors that the agent recovered from do not lower the level."""


class Completion(Grade, Reply):
    """How far the task was done."""


def task_completion(case: Case) -> Judging:
    if decided := plain_completion(case):
        return decided
    seen: TaskOutcome = yield extraction(case)
    said = as_extracted(case, task=seen.task, outcome=seen.outcome)
    verdict: Completion = yield question(case, "compare", f"Your job now is to say {RUBRIC}", Completion, said, ASK)
    return graded(case, verdict, {"task": seen.task, "outcome": seen.outcome})


def plain_completion(case: Case) -> Score | None:
    """An answer without words needs no judge."""
    said = unanswered(case)
    told = {"task": asked_of(case), "outcome": said}
    return Score(0.0, f"Nothing was completed: {said}.", told) if said else None
