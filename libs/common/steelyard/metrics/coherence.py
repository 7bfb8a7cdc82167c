"""coherence: is the answer about what was asked? By embeddings: it judges topic, not truth, and asks no model."""

import math
from collections.abc import Sequence
from typing import Any

from steelyard.metrics.judging import Case, Embed, Embedded, Judging, Score
from steelyard.metrics.plain import plain_text

VERSION = "1"


def coherence(case: Case) -> Judging:
    asked = plain_text(case.trace.input, last=True).strip()
    answered = plain_text(case.trace.output, last=True).strip()
    if not asked or not answered:
        missing = "input" if not asked else "output"
        return Score(
            1.0,
            f"The trace has no {missing}: there is nothing to compare, which is no incoherence.",
            {"coherence_gap": 0.0},
        )
    embedded: Embedded = yield Embed((asked, answered))
    similarity = cosine(*embedded.vectors)
    value = clamp(calibrated(similarity, embedded.calibration))
    told: dict[str, Any] = {"coherence_gap": round(1 - similarity, 6), "embedder": embedded.embedder}
    if embedded.calibration:
        told["calibration"] = {"a": embedded.calibration[0], "b": embedded.calibration[1]}
    near = "about" if value >= 0.5 else "not about"
    return Score(value, f"The answer is {near} what was asked (cosine similarity {similarity:.2f}).", told)


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    lengths = math.sqrt(sum(a * a for a in one)) * math.sqrt(sum(b * b for b in other))
    return dot / lengths if lengths else 0.0


def calibrated(similarity: float, calibration: tuple[float, float] | None) -> float:
    """A local embedder's raw cosine is no probability: its logistic makes 0.5 the place where topics part."""
    if calibration is None:
        return similarity
    a, b = calibration
    return 1 / (1 + math.exp(-(a * similarity + b)))


def clamp(value: float) -> float:
    return min(1.0, max(0.0, value))
