"""What the trace was about: its task and its outcome, extracted once and shared by the metrics that need them."""

import unicodedata

from pydantic import Field

from steelyard.metrics.judging import Case, Question, Reply, question

TASK = """Your job now is extraction, not judgement. Say what the user wanted, and what the agent factually achieved.
Stick to what the record shows: a claim of the agent ("done!") is an outcome only where a tool's result supports it;
otherwise write that the agent claims it. Mention refusals, errors and things left undone."""


class TaskOutcome(Reply):
    task: str = Field(description="what the user wanted, in one or two sentences")
    outcome: str = Field(description="what the record shows was achieved, strictly factual, in one to three sentences")


def wordless(text: str) -> str | None:
    """Why this is no answer at all, or None. A lone ":" has been seen to earn full marks from large judges; a lone
    letter or digit may well be the answer."""
    if not text.strip():
        return "the agent gave no answer"
    if any(unicodedata.category(c)[0] in "LN" for c in text):
        return None
    symbols = [c for c in text if unicodedata.category(c)[0] == "S"]
    return None if len(symbols) > 1 else f"the agent's answer has no words: {text.strip()[:20]}"


def extraction(case: Case) -> Question:
    ask = 'Extract. JSON: {"nonce": "…", "task": "…", "outcome": "…"}'
    return question(case, "extract", TASK, TaskOutcome, ask)
