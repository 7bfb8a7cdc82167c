"""What scoring takes, before anything is asked: the metrics' own conversations say what they would ask."""

from collections.abc import Iterable
from dataclasses import dataclass

from steelyard.metrics.judging import Case, Embed, Metric, Question
from steelyard.metrics.preview import _SAMPLE, _sample_answer
from steelyard.metrics.rendering import BUDGET_TOKENS

CHARS_PER_TOKEN = 3.2
REPLY_TOKENS = 200


@dataclass(frozen=True)
class Effort:
    """Of one trace: calls, and what they read and write."""

    calls: int
    input_tokens: int
    output_tokens: int


def effort(metrics: Iterable[Metric], average_chars: float) -> Effort:
    """What several metrics ask alike is asked once."""
    asked: dict[tuple[str, str], int] = {}
    for metric in metrics:
        for question in questions(metric):
            key = ("shared" if question.shared else metric.name, question.stage)
            asked[key] = len(question.system) + len(question.prompt) - len(question.case.rendering.text)
    shown = min(BUDGET_TOKENS, average_chars / CHARS_PER_TOKEN)
    read = sum(round(shown + words / CHARS_PER_TOKEN) for words in asked.values())
    return Effort(len(asked), read, REPLY_TOKENS * len(asked))


def questions(metric: Metric) -> list[Question]:
    """Of a sample trace that gives every metric something to ask."""
    talk, answer, found = metric.judging(Case(_SAMPLE)), None, list[Question]()
    while True:
        try:
            asked: Question | Embed = talk.send(answer)
        except StopIteration:
            return found
        if isinstance(asked, Question):
            found.append(asked)
        answer = _sample_answer(asked)


def most_tokens(metric: Metric, most_bytes: int | None, reply_tokens: int) -> tuple[int, int]:
    """What one pair can ever read and write: each question asked twice, and no token of the trace longer than two bytes."""
    shown = round(BUDGET_TOKENS * CHARS_PER_TOKEN)
    if most_bytes is not None:
        shown = min(shown, most_bytes // 2 + 500)
    asked = questions(metric)
    words = [len(q.system) + len(q.prompt) - len(q.case.rendering.text) for q in asked]
    return sum(2 * (shown + w // 2 + 1) for w in words), 2 * reply_tokens * len(asked)
