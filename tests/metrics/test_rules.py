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


JUDGED = [name for name in CATALOGUE if name != "coherence"]
PLAN = "Plan:\n1. Search flights to Oslo\n2. Book the cheapest flight\n3. Tell the user"
PLANNED = span(0, SpanKind.LLM, "chat", "q", PLAN)


def model_with(*offers: dict[str, Any]) -> Any:
    return span(50, SpanKind.LLM, "chat", {"tools": list(offers), "messages": []}, "ok")


@pytest.mark.parametrize("metric", JUDGED)
async def test_every_metric_of_the_catalogue_is_scored_without_a_key(metric: str) -> None:
    of = case("Fly me to Oslo", "Booked.", (PLANNED, *tools(("search_flights", {}, 1), ("book_flight", {"id": 1}, 2))))
    score = await scored(metric, of)
    assert (score.metadata["judge"]["kind"], score.metadata["judge"]["version"]) == ("heuristic", "rules-v1")
    assert score.reason and 0 < score.value <= 1


@pytest.mark.parametrize("metric", ["tool_correctness", "argument_correctness", "step_efficiency"])
async def test_what_was_called_well_ranks_above_what_was_not(metric: str) -> None:
    good = await scored(metric, GOOD["many tools"])
    offer = {"name": "load", "input_schema": {"type": "object", "required": ["path"]}}
    bad = await scored(metric, case("q", "a", (model_with(offer), *tools(*[("load", {"f": 1}, None, "denied")] * 3))))
    assert good.value == 1 and bad.value <= 0.25


@pytest.mark.parametrize(
    ("calls", "value", "fired"),
    [
        ((("a", 1, "ok"), ("b", 2, "ok")), 1, []),
        ((("a", 1, "ok"), ("b", 2, None, "503")), 0.5, ["call_failed"]),
        ((("a", 1, "ok"), ("a", 1, "ok"), ("b", 2, "ok"), ("c", 2, "ok")), 0.75, ["call_repeated"]),
        ((("a", 1, None, "503"), ("a", 1, "ok")), 0.5, ["call_failed"]),
        ((("a", 1, None, "503"),) * 3, 0, ["call_failed", "call_repeated"]),
        (tuple(TESTED), 1, []),
    ],
)
async def test_tool_correctness_is_the_share_of_calls_without_error_or_repetition(
    calls: Any, value: float, fired: list[str]
) -> None:
    score = await scored("tool_correctness", case("q", "a", tools(*calls)))
    assert (score.value, score.metadata["judge"]["rules_fired"]) == (value, fired)


async def test_a_call_of_a_tool_that_nobody_declared_is_no_right_choice() -> None:
    spans = (model_with({"name": "search"}), *tools(("search", 1, "ok"), ("teleport", 2, "ok")))
    score = await scored("tool_correctness", case("q", "a", spans))
    assert score.value == 0.5 and score.metadata["judge"]["rules_fired"] == ["undeclared_tool"]
    others = (model_with({"name": "search"}), *tools(("SearchTool", 1, "ok")))
    assert (await scored("tool_correctness", case("q", "a", others))).value == 1, "spans may have names of their own"


@pytest.mark.parametrize(
    ("said", "value"), [("I'm unable to help with that.", 0.25), ("It might be two years.", 0.5), ("Two years.", 1)]
)
async def test_tools_at_hand_that_were_left_alone_count_by_what_came_of_it(said: str, value: float) -> None:
    of = case("How long is the warranty?", said, (model_with({"name": "warranty"}),))
    assert (await scored("tool_correctness", of)).value == value


async def test_arguments_are_checked_by_the_schema_that_the_trace_declares() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    spans = (model_with({"name": "t", "input_schema": schema}), *tools(("t", {"n": 1}, 1), ("t", {"n": "1"}, 1)))
    score = await scored("argument_correctness", case("q", "a", spans))
    assert score.value == 0.5 and "n should be integer" in score.reason
    assert [v["verdict"] for v in score.metadata["verdicts"]] == ["yes", "no"]
    assert score.metadata["judge"]["rules_fired"] == ["schema_broken"]


@pytest.mark.parametrize(
    ("error", "value"),
    [
        ("TypeError: got an unexpected keyword", 0),
        ("422: field required", 0),
        ("504 Gateway Timeout", 1),
        ("denied", 1),
    ],
)
async def test_without_a_schema_the_tools_own_complaint_counts(error: str, value: float) -> None:
    score = await scored("argument_correctness", case("q", "a", tools(("t", {"n": 1}, None, error))))
    assert score.value == value


async def test_efficiency_is_the_share_of_steps_that_were_not_repeated_in_vain() -> None:
    assert (await scored("step_efficiency", GOOD["code"])).value == 1
    assert (await scored("step_efficiency", BAD["loop"])).value == 0
    again = tools(("a", 1, None, "503"), ("a", 1, "ok"), ("b", 2, "ok"), ("c", 3, "ok"))
    score = await scored("step_efficiency", case("q", "a", again))
    assert score.value == 0.75 and score.metadata["judge"]["rules_fired"] == ["steps_repeated"]
    assert "1 of 4 steps" in score.reason


async def test_a_model_that_is_asked_in_between_makes_no_call_new() -> None:
    models = [span(n, SpanKind.LLM, "chat", f"turn {n}", "again") for n in (0, 2, 4)]
    polls = [span(n, SpanKind.TOOL, "poll", {"id": 1}, f"{n} of 9") for n in (1, 3, 5)]
    steps = tuple(s for pair in zip(models, polls, strict=True) for s in pair)
    score = await scored("step_efficiency", case("q", "a", steps))
    assert score.value == 0.5 and "2 of 6 steps" in score.reason


@pytest.mark.parametrize("metric", ["plan_adherence", "plan_quality"])
async def test_only_a_written_plan_is_one_for_rules(metric: str) -> None:
    score = await scored(metric, GOOD["code"])
    assert score.value == 1 and score.metadata["plan"] == [] and "No plan" in score.reason
    planned = await scored(metric, case("Oslo?", "Booked.", (PLANNED,)))
    assert planned.metadata["plan"] == ["Search flights to Oslo", "Book the cheapest flight", "Tell the user"]


@pytest.mark.parametrize(
    ("calls", "value"),
    [
        ((("search_flights", {"to": "Oslo"}, 1), ("book_flight", {"id": 1}, 2)), 1),
        ((("weather", {"at": "sea"}, 1),), 0.25),
        ((), 0.25),
    ],
)
async def test_a_planned_step_that_no_later_call_is_about_was_dropped(calls: Any, value: float) -> None:
    """The last one may be the answer itself."""
    assert (await scored("plan_adherence", case("Fly", "Booked.", (PLANNED, *tools(*calls))))).value == value


@pytest.mark.parametrize(
    ("task", "plan", "value", "fired"),
    [
        ("Fly me to Oslo", PLAN, 0.75, []),
        ("Write a poem", PLAN, 0.25, ["plan_off_task"]),
        ("Fly to Oslo", "Plan:\n- book flight\n- book flight", 0.25, ["plan_off_task", "plan_repeats_itself"]),
        ("Book it", "Plan:\n- book\n- think", 0.5, ["plan_steps_vague"]),
        ("Find words", "Plan:\n" + "\n".join(f"- find word {n}" for n in range(16)), 0.5, ["plan_too_long"]),
    ],
)
async def test_what_can_be_counted_in_a_plan_is_held_against_it(
    task: str, plan: str, value: float, fired: list[str]
) -> None:
    score = await scored("plan_quality", case(task, "Done.", (span(0, SpanKind.LLM, "chat", "q", plan),)))
    assert (score.value, score.metadata["judge"]["rules_fired"]) == (value, fired)


def test_every_question_that_the_catalogue_asks_has_rules() -> None:
    assert TaskOutcome in RULES and rule(GOOD["answer"], Unknown) is None


async def test_a_model_may_ask_for_anything_at_any_size() -> None:
    """Rules read what people sent: nothing of it may raise."""
    odd: list[Any] = [{"a": {"b": 2}}, [None, 3], 7, True, {"messages": "no list"}, {"choices": [1]}, "x" * 300_000]
    for value in odd:
        for metric in JUDGED:
            model = span(9, SpanKind.LLM, "chat", {"tools": value}, value)
            await scored(metric, case(value, value, (*tools(("t", value, value), ("plan", value, value)), model)))


class Unknown(Reply):
    """A question that no rules know."""


class NoEmbedder:
    async def embed(self, texts: Any) -> Any:
        raise AssertionError(f"nobody asked to embed {texts}")

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def unwell(self) -> str | None: ...
