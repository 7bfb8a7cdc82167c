"""confidence: is the whole run decisive, appropriate and consistent? One judgement over the whole trace."""

from steelyard.metrics.extraction import unanswered
from steelyard.metrics.judging import ASK, Case, Grade, Judging, Reply, Score, graded, question

VERSION = "1"
RUBRIC = """how much confidence the run deserves: is it decisive, appropriate and consistent?
Lower the level for hedging without need, for contradictions between steps or between results and the answer, for
identical calls repeated, for steps taken back, for guesses presented as facts. Levels:
1.0   decisive and consistent from beginning to end; every claim rests on a step
0.75  one small doubt or detour
0.5   noticeable hedging, a repeated call, or a claim that nothing supports
0.25  mostly guessing or going back and forth
0.0   contradicts itself, loops, or gives up
Asking back where the task is ambiguous, and saying honestly what cannot be known, are appropriate."""


class Confidence(Grade, Reply):
    """How much the run is to be trusted."""


def confidence(case: Case) -> Judging:
    if decided := plain_confidence(case):
        return decided
    verdict: Confidence = yield question(case, "grade", f"Your job now is to say {RUBRIC}", Confidence, ASK)
    return graded(case, verdict)


def plain_confidence(case: Case) -> Score | None:
    said = unanswered(case)
    return Score(0.0, f"There is nothing to be confident in: {said}.") if said else None
