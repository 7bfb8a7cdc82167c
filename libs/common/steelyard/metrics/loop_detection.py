"""loop_detection: does the agent say again what it has just said in this session? By embeddings and by words."""

import re
from collections.abc import Sequence
from typing import Any

from steelyard.metrics.coherence import clamp, cosine
from steelyard.metrics.judging import Case, Earlier, Embed, Embedded, Judging, Score
from steelyard.metrics.plain import plain_text

VERSION = "1"
WINDOW = 3
# Words of languages that are written without spaces are told apart by their characters.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")
_COMMON = """a about above after again all also am an and any are as at be because been before being below between both but by
can could did do does doing don down during each few for from further had has have having he her here hers him his
how i if in into is it its just let ll may me more most my no nor not now of off on once only or other our ours out
over own please re s same she should so some such t than that the their theirs them then there these they this those
through to too under until up us ve very was we were what when where which while who whom why will with would you
your yours"""
_STOP_WORDS = frozenset(_COMMON.split())


def loop_detection(case: Case) -> Judging:
    """Raw cosine with every embedder: the words hold it in check, and a calibrated one would call each topic a loop."""
    said = plain_text(case.trace.output, last=True).strip()
    earlier = [(e, text) for e in window(case.earlier) if (text := plain_text(e.output, last=True).strip())]
    if not said or not earlier:
        why = "The trace has no output" if not said else "No earlier trace of the session has an output"
        told = {"window_size": WINDOW, "max_hybrid": 0.0, "comparisons": []}
        return Score(1.0, f"{why}: there is nothing to compare, which is no loop.", told)
    embedded: Embedded = yield Embed((said, *(text for _, text in earlier)))
    comparisons = compared(said, [text for _, text in earlier], embedded.vectors)
    told = {"comparisons": [{"trace_index": e.index, **c} for (e, _), c in zip(earlier, comparisons, strict=True)]}
    return scored([c["hybrid_score"] for c in comparisons], told | {"embedder": embedded.embedder})


def window(earlier: Sequence[Earlier]) -> Sequence[Earlier]:
    return earlier[-WINDOW:]


def compared(said: str, earlier: Sequence[str], vectors: Sequence[Sequence[float]]) -> list[dict[str, float]]:
    """`vectors` are of what was said and then of each earlier text."""
    own, *others = vectors
    found = [(cosine(own, other), jaccard(said, text)) for other, text in zip(others, earlier, strict=True)]
    return [
        {"cosine_similarity": round(c, 6), "jaccard_similarity": round(j, 6), "hybrid_score": round(c * j, 6)}
        for c, j in found
    ]


def scored(hybrids: Sequence[float], told: dict[str, Any]) -> Score:
    worst = max(hybrids)
    told = {"window_size": WINDOW, "max_hybrid": worst, **told}
    looks = "repeats" if worst >= 0.5 else "does not repeat"
    return Score(clamp(1 - worst), f"The output {looks} an earlier one of the session (hybrid {worst:.2f}).", told)


def jaccard(one: str, other: str) -> float:
    """Of the words that carry meaning; where a text has none of these, of all there is."""
    a, b = words_of(one), words_of(other)
    return len(a & b) / len(a | b) if a | b else float(one.strip() == other.strip())


def words_of(text: str) -> frozenset[str]:
    found = frozenset(_WORD.findall(text.lower()))
    return found - _STOP_WORDS or found
