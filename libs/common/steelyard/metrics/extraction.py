"""What the trace was about: its task and its outcome, extracted once and shared by the metrics that need them."""

from pydantic import Field

from steelyard.metrics.judging import Case, Question, Reply, question

TASK = """Your job now is extraction, not judgement. Say what the user wanted, and what the agent factually achieved.
Stick to what the record shows: a claim of the agent ("done!") is an outcome only where a tool's result supports it;
otherwise write that the agent claims it. Mention refusals, errors and things left undone."""


class TaskOutcome(Reply):
    task: str = Field(description="what the user wanted, in one or two sentences")
    outcome: str = Field(description="what the record shows was achieved, strictly factual, in one to three sentences")


def extraction(case: Case) -> Question:
    ask = 'Extract. JSON: {"nonce": "…", "task": "…", "outcome": "…"}'
    return question(case, "extract", TASK, TaskOutcome, ask)
