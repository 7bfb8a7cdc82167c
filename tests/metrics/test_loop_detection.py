"""loop_detection: what was just said in the session and is said again costs; what is merely about the same does not."""

from dataclasses import replace
from typing import Any

import pytest

from steelyard.metrics.judging import Case, Earlier, Embed, Embedded, NotScored, Score
from steelyard.metrics.loop_detection import WINDOW, compared, jaccard, loop_detection
from traces_of import case


def said(output: Any, *earlier: Any) -> Case:
    before = tuple(Earlier(index, text) for index, text in enumerate(earlier))
    return replace(case("q", output), earlier=before)


def ended(of: Case, *vectors: tuple[float, ...]) -> tuple[Embed | None, Score | NotScored]:
    """What was to be embedded, and the score."""
    talk, asked = loop_detection(of), None
    try:
        asked = next(talk)
        talk.send(Embedded(vectors, "test", (9.7, -2.6)))
    except StopIteration as end:
        assert isinstance(asked, Embed | None)
        return asked, end.value
    raise AssertionError("it asks for vectors once")


def test_the_same_words_again_are_a_loop() -> None:
    asked, score = ended(said("Your parcel is on its way", "Your parcel is on its way"), (1.0, 0.0), (1.0, 0.0))
    assert asked == Embed(("Your parcel is on its way", "Your parcel is on its way"))
    comparison = {"trace_index": 0, "cosine_similarity": 1, "jaccard_similarity": 1, "hybrid_score": 1}
    told = {"window_size": 3, "max_hybrid": 1, "comparisons": [comparison], "embedder": "test"}
    assert isinstance(score, Score) and (score.value, score.metadata) == (0, told)


def test_the_score_is_one_minus_the_worst_product_of_cosine_and_jaccard() -> None:
    of = said("red green blue", "red green black", "white")
    _, score = ended(of, (1.0, 0.0), (0.8, 0.6), (1.0, 0.0))
    assert isinstance(score, Score) and score.value == pytest.approx(1 - 0.8 * 2 / 4)
    assert [c["hybrid_score"] for c in score.metadata["comparisons"]] == [pytest.approx(0.4), 0]
    assert score.metadata["max_hybrid"] == pytest.approx(0.4)


def test_only_the_three_last_outputs_are_compared_and_named_by_their_place() -> None:
    asked, score = ended(said("e", "a", "b", "c", "d"), *[(1.0, 0.0)] * 4)
    assert asked == Embed(("e", "b", "c", "d")) and WINDOW == 3
    assert [c["trace_index"] for c in score.metadata["comparisons"]] == [1, 2, 3]


def test_an_earlier_trace_without_an_output_is_skipped_and_keeps_its_place() -> None:
    asked, score = ended(said("c", "a", None), (1.0, 0.0), (0.0, 1.0))
    assert asked == Embed(("c", "a")) and [c["trace_index"] for c in score.metadata["comparisons"]] == [0]


@pytest.mark.parametrize(
    ("of", "why"), [(said("a"), "No earlier trace"), (said("a", None, ""), "No earlier"), (said("", "a"), "no output")]
)
def test_where_there_is_nothing_to_compare_it_is_no_loop_and_says_why(of: Case, why: str) -> None:
    asked, score = ended(of)
    assert asked is None and isinstance(score, Score) and score.value == 1 and why in score.reason
    assert score.metadata == {"window_size": 3, "max_hybrid": 0.0, "comparisons": []}


def test_opposite_vectors_are_one_and_not_more() -> None:
    _, score = ended(said("same words", "same words"), (1.0, 0.0), (-1.0, 0.0))
    assert isinstance(score, Score) and score.value == 1 and score.metadata["max_hybrid"] == -1


@pytest.mark.parametrize(
    ("one", "other", "share"),
    [
        ("The order is on its way", "THE ORDER WAS on the way!", 1),
        ("red green", "green blue", 1 / 3),
        ("It is what it is", "it is what it is", 1),
        ("yes it is", "no it is not", 0),
        ("", "", 1),
        ("👍👍", "👍👍", 1),
        ("👍👍", "👎", 0),
        ("你好世界", "你好朋友", 1 / 3),
        ("a b c", "x y z", 0),
    ],
)
def test_words_are_compared_without_those_that_every_sentence_has(one: str, other: str, share: float) -> None:
    assert jaccard(one, other) == pytest.approx(share)


def test_comparing_is_a_function_of_texts_and_vectors() -> None:
    (only,) = compared("red car", ["red car"], [(3.0, 4.0), (3.0, 4.0)])
    assert only == {"cosine_similarity": 1, "jaccard_similarity": 1, "hybrid_score": 1}
