"""How well the local embedders tell an answer from none, and a loop from progress, by pairs that nothing is fitted to.

`make bench-embeddings` shows the figures."""

import json
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steelyard.metrics.coherence import coherence
from steelyard.metrics.judging import Case, Earlier, Embed, Judging, Score
from steelyard.metrics.loop_detection import loop_detection
from steelyard_judge.embeddings import LocalEmbedder
from traces_of import case

PAIRS = json.loads((Path(__file__).parent / "evaluation.json").read_text())
ENCODER, HASH = "local/use-multilingual-v3", "local/ngram-hash-v1"
# Below what was measured, .846 and .592, .938 and .917: what another machine's arithmetic moves is less than the margin.
COHERENCE, LOOPS = {ENCODER: 0.81, HASH: 0.56}, {ENCODER: 0.91, HASH: 0.88}
# By kind of pair, what the metric scored.
Scores = Mapping[str, Sequence[float]]


@pytest.fixture(params=[ENCODER, HASH])
async def embedder(request: pytest.FixtureRequest) -> AsyncIterator[LocalEmbedder]:
    made = LocalEmbedder(request.param)
    yield made
    await made.stop()


async def test_coherence_ranks_answers_above_what_answers_nothing(embedder: LocalEmbedder) -> None:
    def asked(question: str, answer: str) -> Case:
        return case(question, value_of(answer))

    about = await scores(embedder, PAIRS["coherence"]["about"], coherence, asked)
    other = await scores(embedder, PAIRS["coherence"]["not about"], coherence, asked)
    assert count(about) + count(other) >= 80
    assert told("coherence", embedder, about, other) >= COHERENCE[str(embedder._model)]


async def test_loop_detection_ranks_progress_above_loops(embedder: LocalEmbedder) -> None:
    def said(before: str, now: str) -> Case:
        return replace(case("q", value_of(now)), earlier=(Earlier(0, value_of(before)),))

    progress = await scores(embedder, PAIRS["loops"]["progress"], loop_detection, said)
    loops = await scores(embedder, PAIRS["loops"]["loop"], loop_detection, said)
    assert count(progress) + count(loops) >= 40
    assert told("loop_detection", embedder, progress, loops) >= LOOPS[str(embedder._model)]
    assert share(progress, True) >= 0.9 and share(loops, False) >= 0.5


async def scores(
    embedder: LocalEmbedder,
    groups: Mapping[str, Sequence[tuple[str, str]]],
    metric: Callable[[Case], Judging],
    made: Callable[[str, str], Case],
) -> Scores:
    return {kind: [await scored(embedder, metric(made(*pair))) for pair in pairs] for kind, pairs in groups.items()}


async def scored(embedder: LocalEmbedder, talk: Judging) -> float:
    asked = next(talk)
    assert isinstance(asked, Embed)
    vectors = await embedder.embed(asked.texts)
    try:
        talk.send(vectors)
    except StopIteration as end:
        assert isinstance(end.value, Score)
        return end.value.value
    raise AssertionError("it asks for vectors once")


def told(metric: str, embedder: LocalEmbedder, high: Scores, low: Scores) -> float:
    """The AUC, printed with the share of each kind that is on its side of one half."""
    found = auc(*([x for xs in scores.values() for x in xs] for scores in (high, low)))
    sys.stdout.write(f"\n{metric} by {embedder._model}: AUC {found:.3f} over {count(high) + count(low)} pairs\n")
    for scores, right in ((high, True), (low, False)):
        for kind, xs in scores.items():
            sys.stdout.write(f"  {round(share({kind: xs}, right) * len(xs)):2d} of {len(xs):2d}  {kind}\n")
    return found


def share(scores: Scores, right: bool) -> float:
    """Of all kinds together, how many are on their side of one half."""
    return sum((x >= 0.5) is right for xs in scores.values() for x in xs) / count(scores)


def auc(high: Sequence[float], low: Sequence[float]) -> float:
    """How often one that should be higher is."""
    return sum((h > x) + (h == x) / 2 for h in high for x in low) / (len(high) * len(low))


def count(scores: Scores) -> int:
    return sum(map(len, scores.values()))


def value_of(text: str) -> Any:
    """An agent's JSON is a value and not a text."""
    return json.loads(text) if text[0] in "[{" else text
