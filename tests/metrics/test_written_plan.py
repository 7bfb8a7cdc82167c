"""A plan is what an agent wrote down as one: by a planning tool, as JSON, or under a heading; nothing else is."""

from typing import Any

import pytest

from steelyard.metrics.tools import calls
from steelyard.metrics.written_plan import written_plan
from steelyard.traces import SpanKind, Trace
from traces_of import span, tools, trace

STEPS = ["Look for flights", "Book the cheapest"]


def plan_of(of: Trace) -> list[tuple[int, str]]:
    return [(s.span, s.step) for s in written_plan(of, calls(of))]


def said(text: Any, kind: SpanKind = SpanKind.LLM, answer: str = "Booked.") -> Trace:
    return trace("Fly me to Oslo", answer, (span(1, SpanKind.AGENT, "agent"), span(2, kind, "chat", "q", text)))


@pytest.mark.parametrize(
    "text",
    [
        "Plan:\n1. Look for flights\n2. Book the cheapest",
        "Sure.\n\n## My plan\n\n- Look for flights\n- Book the cheapest\n\nLet me begin.",
        "**Plan:**\n\n1) Look for flights\n2) Book the cheapest",
        "Here is the plan for your trip:\nStep 1: Look for flights\nStep 2: Book the cheapest",
        "Plan\n- [ ] Look for flights\n- [x] Book the cheapest",
        '{"plan": ["Look for flights", "Book the cheapest"]}',
        {"choices": [{"message": {"role": "assistant", "content": "Plan:\n* Look for flights\n* Book the cheapest"}}]},
    ],
)
def test_a_list_under_a_heading_that_calls_it_a_plan_is_one(text: Any) -> None:
    assert plan_of(said(text)) == [(2, step) for step in STEPS]


@pytest.mark.parametrize(
    "given",
    [
        {"todos": [{"content": s, "status": "pending"} for s in STEPS]},
        {"plan": [{"step": s, "status": "pending"} for s in STEPS], "explanation": "so"},
        {"steps": STEPS},
        {"todos": '[{"content": "Look for flights"}, {"content": "Book the cheapest"}]'},
    ],
)
@pytest.mark.parametrize("name", ["write_todos", "update_plan", "TodoWrite"])
def test_what_a_planning_tool_was_given_is_a_plan(name: str, given: Any) -> None:
    assert plan_of(trace("q", "a", tools(("look", {"list": STEPS}, 1), (name, given, "ok")))) == [(2, s) for s in STEPS]


@pytest.mark.parametrize(
    "text",
    [
        "1. Look for flights\n2. Book the cheapest",
        "Plan: I will look for flights and book one.",
        "Flights:\n1. SK 801\n2. DY 620",
        "The plan:\n1. Look for flights",
        "Explanation:\n- a thing\n- another",
        "",
        None,
        ["plan"],
        {"plan": "fly"},
    ],
)
def test_a_list_that_nobody_calls_a_plan_is_none(text: Any) -> None:
    assert plan_of(said(text)) == []


def test_a_plan_that_the_user_asked_for_is_the_answer_and_not_the_agents_plan() -> None:
    text = "Plan:\n1. Louvre\n2. Orsay"
    assert plan_of(said(text, answer=text)) == []


def test_what_a_tool_returned_is_not_the_agents_plan() -> None:
    assert plan_of(said("Plan:\n1. Look\n2. Book", SpanKind.TOOL)) == []


def test_the_first_plan_counts() -> None:
    first, then = (span(n, SpanKind.LLM, "chat", "q", f"Plan:\n1. look {n}\n2. book {n}") for n in (1, 2))
    assert plan_of(trace("q", "a", (first, then))) == [(1, "look 1"), (1, "book 1")]
