"""confidence: is the whole run decisive, appropriate and consistent? One judgement over the whole trace."""

from pydantic import Field

from steelyard.metrics.extraction import wordless
from steelyard.metrics.judging import Case, Judging, Level, NotScored, Reply, Score, question
from steelyard.metrics.plain import plain_text

VERSION = "1"
TASK = """Your job now is to say how much confidence the run deserves: is it decisive, appropriate and consistent?
Lower the level for hedging without need, for contradictions between steps or between results and the answer, for
identical calls repeated, for steps taken back, for guesses presented as facts. Levels:
1.0   decisive and consistent from beginning to end; every claim rests on a step
0.75  one small doubt or detour
0.5   noticeable hedging, a repeated call, or a claim that nothing supports
0.25  mostly guessing or going back and forth
0.0   contradicts itself, loops, or gives up
Asking back where the task is ambiguous, and saying honestly what cannot be known, are appropriate."""


class Confidence(Reply):
    score: Level
    reason: str = Field(min_length=1, description="why this level, in one or two sentences, with span numbers")
    evidence: list[int] = Field(default=[], description="numbers of the spans that decide it")


def confidence(case: Case) -> Judging:
    if said := wordless(plain_text(case.trace.output, last=True)):
        return Score(0.0, f"There is nothing to be confident in: {said}.")
    ask = 'Grade. JSON: {"nonce": "…", "score": 0 | 0.25 | 0.5 | 0.75 | 1, "reason": "…", "evidence": [span numbers]}'
    verdict: Confidence = yield question(case, "grade", TASK, Confidence, ask)
    if invented := [n for n in verdict.evidence if not 0 <= n <= case.rendering.spans]:
        return NotScored(f"the judge named spans that do not exist: {invented[:5]}")
    return Score(verdict.score, verdict.reason)
