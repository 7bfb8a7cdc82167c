"""task_completion: did the agent do what its user wanted? Extract task and outcome, then compare them."""

from pydantic import Field

from steelyard.metrics.extraction import TaskOutcome, extraction, wordless
from steelyard.metrics.judging import Case, Judging, Level, NotScored, Reply, Score, question
from steelyard.metrics.plain import harmless, plain_text

VERSION = "1"
TASK = """Your job now is to say how far the outcome achieves the task. Levels:
1.0   everything the user wanted was achieved, and the record shows it
0.75  achieved, with a small part missing or unproven
0.5   about half: a main part is achieved and a main part is not
0.25  little: a first step, or help that does not lead to what was wanted
0.0   nothing, a refusal of a legitimate task, a wrong result, or another task than the one asked for
A polite or long answer is worth nothing by itself. Errors that the agent recovered from do not lower the level."""


class Completion(Reply):
    score: Level
    reason: str = Field(min_length=1, description="why this level, in one or two sentences, with span numbers")
    evidence: list[int] = Field(default=[], description="numbers of the spans that decide it")


def task_completion(case: Case) -> Judging:
    """An answer without words needs no judge."""
    if said := wordless(plain_text(case.trace.output, last=True)):
        told = {"task": plain_text(case.trace.input, last=True)[:2000], "outcome": said}
        return Score(0.0, f"Nothing was completed: {said}.", told)
    seen: TaskOutcome = yield extraction(case)
    verdict: Completion = yield question(case, "compare", TASK, Completion, compared(seen, case.boundary))
    told = {"task": seen.task, "outcome": seen.outcome}
    if invented := [n for n in verdict.evidence if not 0 <= n <= case.rendering.spans]:
        return NotScored(f"the judge named spans that do not exist: {invented[:5]}", told)
    return Score(verdict.score, verdict.reason, told)


def compared(seen: TaskOutcome, boundary: str) -> str:
    """What was extracted may repeat the record's own words, and stands outside its fence: one harmless line each."""
    task, outcome = (" ".join(harmless(said, boundary).split()) for said in (seen.task, seen.outcome))
    return (
        f"Task, as extracted: {task}\nOutcome, as extracted: {outcome}\n\n"
        'Grade. JSON: {"nonce": "…", "score": 0 | 0.25 | 0.5 | 0.75 | 1, "reason": "…", "evidence": [span numbers]}'
    )
