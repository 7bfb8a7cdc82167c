"""What the trace was about: task, outcome and plan, extracted once and shared by the metrics that need them."""

import unicodedata

from pydantic import BaseModel, ConfigDict, Field

from steelyard.metrics.judging import Case, Question, Reply, one_line, question
from steelyard.metrics.plain import plain_text

TASK = """Your job now is extraction, not judgement. Say what the user wanted, what the agent factually achieved, and
what its plan was.
Stick to what the record shows: a claim of the agent ("done!") is an outcome only where a tool's result supports it;
otherwise write that the agent claims it. Mention refusals, errors and things left undone.
The plan is what the agent set out to do, in its own order. Where it wrote one down, take its steps as they were
written, also those that it never carried out. Where it wrote none but its messages show what it intends to do next,
take these intentions. Every step names the number of the span that states it. Steps that were merely executed are no
plan, and neither is what you would have planned: where nothing states an intention, the plan is an empty list."""


class PlanStep(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    step: str = Field(min_length=1, description="what the agent set out to do, in one sentence")
    span: int = Field(description="number of the span that states it")


class TaskOutcome(Reply):
    task: str = Field(description="what the user wanted, in one or two sentences")
    outcome: str = Field(description="what the record shows was achieved, strictly factual, in one to three sentences")
    plan: list[PlanStep] = Field(default=[], description="what the agent set out to do; empty where nothing states it")


def wordless(text: str) -> str | None:
    """Why this is no answer at all, or None. A lone ":" has been seen to earn full marks from large judges; a lone
    letter or digit may well be the answer."""
    if not text.strip():
        return "the agent gave no answer"
    if any(unicodedata.category(c)[0] in "LN" for c in text):
        return None
    symbols = [c for c in text if unicodedata.category(c)[0] == "S"]
    return None if len(symbols) > 1 else f"the agent's answer has no words: {text.strip()[:20]}"


def unanswered(case: Case) -> str | None:
    return wordless(plain_text(case.trace.output, last=True))


def asked_of(case: Case, most: int = 2000) -> str:
    """What the user said, in the trace's own words: no judge is needed to know it."""
    return plain_text(case.trace.input, last=True)[:most]


def extraction(case: Case) -> Question:
    ask = 'Extract. JSON: {"nonce": "…", "task": "…", "outcome": "…", "plan": [{"step": "…", "span": span number}]}'
    return question(case, "extract", TASK, TaskOutcome, ask, shared=True)


def as_extracted(case: Case, **said: str) -> str:
    return "\n".join(f"{name.capitalize()}, as extracted: {one_line(text, case)}" for name, text in said.items())
