"""heuristic/rules-v1: traces that went well rank above those that did not, and every score says what it rests on."""

from typing import Any

import pytest

from steelyard.metrics import CATALOGUE
from steelyard.metrics.extraction import TaskOutcome
from steelyard.metrics.judging import Case, Reply, Score
from steelyard.metrics.rules import RULES, rule
from steelyard.traces import SpanKind
from steelyard_judge.dialogue import Rules, converse
from traces_of import case, span, tools

GOOD = {
    "booking": case("Book seat 12A", "Seat 12A is booked, code K4.", tools(("book", {"seat": "12A"}, {"code": "K4"}))),
    "code": case(
        "Fix the parser",
        "The parser accepts empty lines again; all 31 tests pass.",
        tools(
            ("read", {"path": "p.py"}, "..."),
            ("run", {"t": "all"}, None, "1 failed"),
            ("edit", {"path": "p.py"}, "ok"),
            ("run", {"t": "all"}, "31 passed"),
        ),
    ),
    "answer": case("Capital of Peru?", "Lima."),
    "apology": case(
        "My cup came broken", "I'm sorry to hear that! A new cup is on its way.", tools(("send", {"sku": 1}, "ok"))
    ),
    "detour": case("A room in Ghent", "Unfortunately the Ritz was full, so I booked the Palace: code 77.", ()),
    "german": case("Wie hoch ist der Eiffelturm?", "Der Eiffelturm ist 330 Meter hoch."),
    "digit": case("2+2, digits only", "4"),
    "many tools": case("Compare", "B is cheaper.", tools(*((f"shop_{n}", {"q": "tv"}, n) for n in range(6)))),
}
TWO = [("w", 4, "ok"), ("x", 5, "ok")]
TESTED = [("edit", {"line": n}, "ok") if n % 2 else ("run", {"t": "all"}, f"{n} passed") for n in range(8)]
LOOP = tools(*[("search", {"q": "same"}, [])] * 5)
BAD = {
    "refused": case("Refund order 3", "I'm sorry, but I can't help with that request."),
    "refused, curly": case("Refund order 3", "I\u2019m sorry, but I can\u2019t assist with refunds."),
    "crashed": case("Cancel it", None, tools(("cancel", {"id": 1}, None, "504")), failed=True),
    "last call failed": case("Cancel it", "It is cancelled.", tools(("cancel", {"id": 1}, None, "504"))),
    "loop": case("Find it", "Here is what there is.", LOOP),
    "gave up": case("Find a hotel", "I was unable to find a hotel.", tools(("flights", {"to": "LIS"}, []))),
    "empty": case("Write the changelog", ""),
    "colon": case("Write the changelog", ":"),
    "same error again": case("Load", "Loaded.", tools(*[("load", {"f": 1}, None, "denied")] * 2)),
}


async def scored(metric: str, of: Case) -> Score:
    score = await converse(CATALOGUE[metric], of, Rules(), NoEmbedder())
    assert isinstance(score, Score)
    return score


@pytest.mark.parametrize("metric", ["task_completion", "confidence"])
async def test_what_went_well_ranks_above_what_did_not(metric: str) -> None:
    good = {name: (await scored(metric, c)).value for name, c in GOOD.items()}
    bad = {name: (await scored(metric, c)).value for name, c in BAD.items()}
    assert min(good.values()) > max(bad.values()), (good, bad)


@pytest.mark.parametrize("name", GOOD)
async def test_rules_never_give_full_marks_for_completion(name: str) -> None:
    score = await scored("task_completion", GOOD[name])
    assert score.value == 0.75 and "cannot see whether the answer is right" in score.reason


@pytest.mark.parametrize("name", [*GOOD, *BAD])
async def test_every_score_says_that_rules_made_it_or_that_it_was_plain_to_see(name: str) -> None:
    score = await scored("task_completion", (GOOD | BAD)[name])
    if score.metadata["judge"] != {"kind": "code"}:
        judge = score.metadata["judge"]
        assert (judge["kind"], judge["version"]) == ("heuristic", "rules-v1")
        assert bool(judge["rules_fired"]) == (name in BAD)


@pytest.mark.parametrize(
    ("of", "fired", "words"),
    [
        (
            case("q", "Done.", tools(*[("t", 1, None, "bad"), ("u", 2, None, "bad"), ("v", 3, None, "bad")], *TWO)),
            "most_tools_failed",
            "3 of 5 tool calls ended in errors",
        ),
        (BAD["loop"], "looped", "search was called 5 times with the same arguments"),
        (BAD["refused"], "refusal", "refuses the task"),
        (BAD["gave up"], "says_undone", "says that something was not done"),
    ],
)
async def test_the_reason_says_in_plain_words_what_was_counted(of: Case, fired: str, words: str) -> None:
    score = await scored("task_completion", of)
    assert fired in score.metadata["judge"]["rules_fired"] and words in score.reason


async def test_the_same_tool_with_other_arguments_is_no_loop() -> None:
    pages = tools(*(("read_page", {"page": n}, "text") for n in range(12)))
    assert (await scored("confidence", case("Read it all", "It is about whales.", pages))).value == 1


async def test_tests_that_run_again_after_each_edit_are_no_loop() -> None:
    edited = case("Make the tests pass", "All tests pass.", tools(*TESTED))
    assert (await scored("confidence", edited)).value == 1
    assert (await scored("task_completion", edited)).value == 0.75


async def test_an_error_that_was_made_good_costs_no_completion() -> None:
    mended = tools(("sql", {"q": "SELEC"}, None, "syntax"), ("sql", {"q": "SELECT"}, [3]))
    assert (await scored("task_completion", case("How many?", "Three.", mended))).value == 0.75


async def test_a_call_that_was_asked_for_and_never_ran_is_seen() -> None:
    wants = {"role": "assistant", "content": [{"type": "tool_use", "name": "pay", "input": {}}]}
    stopped = (*tools(("quote", {}, 3)), span(5, SpanKind.LLM, "chat", "q", wants))
    score = await scored("task_completion", case("Pay", "Paying now", stopped))
    assert score.value == 0.5 and score.metadata["judge"]["rules_fired"] == ["calls_unanswered"]


@pytest.mark.parametrize(
    ("said", "least", "most"),
    [
        ("It costs 40 euros.", 1, 1),
        ("It probably costs 40 euros.", 0.75, 0.75),
        ("Maybe 40? I think it could be 50, but I'm not sure. It depends.", 0, 0.5),
    ],
)
async def test_hedging_costs_confidence_by_how_much_of_it_there_is(said: str, least: float, most: float) -> None:
    assert least <= (await scored("confidence", case("What does it cost?", said))).value <= most


def test_every_question_that_the_catalogue_asks_has_rules() -> None:
    assert TaskOutcome in RULES and rule(GOOD["answer"], Unknown) is None


async def test_a_model_may_ask_for_anything_at_any_size() -> None:
    """Rules read what people sent: nothing of it may raise."""
    odd: list[Any] = [{"a": {"b": 2}}, [None, 3], 7, True, {"messages": "no list"}, {"choices": [1]}, "x" * 300_000]
    for value in odd:
        for metric in ("task_completion", "confidence"):
            await scored(metric, case(value, value, tools(("t", value, value))))


class Unknown(Reply):
    """A question that no rules know."""


class NoEmbedder:
    async def embed(self, texts: Any) -> Any:
        raise AssertionError(f"nobody asked to embed {texts}")

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def unwell(self) -> str | None: ...
