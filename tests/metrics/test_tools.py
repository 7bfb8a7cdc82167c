"""Tools called and tools at hand, read out of the shapes that clients and tracers really send."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.metrics.tools import asked_for, calls, offered
from steelyard.traces import Span, SpanKind, Trace
from traces_of import span, tools, trace

ARGUMENTS = {"city": "Ghent"}
FUNCTION = {"id": "call_1", "type": "function", "function": {"name": "search", "arguments": '{"city": "Ghent"}'}}
USE = {"type": "tool_use", "id": "toolu_1", "name": "search", "input": ARGUMENTS}
LANGCHAIN = {"name": "search", "args": ARGUMENTS, "id": "call_1", "type": "tool_call"}
AI = {"type": "ai", "content": "", "tool_calls": [LANGCHAIN], "additional_kwargs": {"tool_calls": [FUNCTION]}}
ANSWERS: dict[str, Any] = {
    "openai": {"choices": [{"message": {"role": "assistant", "content": None, "tool_calls": [FUNCTION]}}]},
    "openai message": {"role": "assistant", "tool_calls": [FUNCTION]},
    "openai legacy": {"role": "assistant", "function_call": {"name": "search", "arguments": '{"city": "Ghent"}'}},
    "openai responses": {
        "output": [
            {"type": "reasoning", "summary": []},
            {"type": "function_call", "call_id": "c", "id": "fc", "name": "search", "arguments": '{"city": "Ghent"}'},
        ]
    },
    "anthropic": {"role": "assistant", "content": [{"type": "text", "text": "I look."}, USE], "stop_reason": "tool_use"},
    "anthropic blocks": [{"type": "text", "text": "I look."}, USE],
    "langchain": AI,
    "langchain generations": {"generations": [[{"text": "", "message": AI}]]},
    "langchain serialised": {
        "lc": 1, "type": "constructor", "id": ["langchain", "schema", "messages", "AIMessage"], "kwargs": AI,
    },
    "gemini": {"candidates": [{"content": {"parts": [{"functionCall": {"name": "search", "args": ARGUMENTS}}]}}]},
    "bedrock": {"output": {"message": {"content": [{"toolUse": {"toolUseId": "t", "name": "search", "input": ARGUMENTS}}]}}},
    "as a string": '{"role": "assistant", "tool_calls": [{"name": "search", "args": {"city": "Ghent"}}]}',
    "the whole conversation": {
        "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "tool_calls": [FUNCTION]},
            {"role": "tool", "tool_call_id": "call_1", "content": "…"},
            {"role": "assistant", "content": [{**USE, "id": "toolu_2"}]},
        ]
    },
}  # fmt: skip


@pytest.mark.parametrize("shape", ANSWERS)
def test_a_call_is_found_once_in_every_shape(shape: str) -> None:
    assert asked_for(ANSWERS[shape]) == [("search", ARGUMENTS)]


@pytest.mark.parametrize("value", [None, "I call search(city)", {"name": "search"}, [{"type": "text", "text": "x"}], 7])
def test_words_about_a_tool_are_no_call(value: Any) -> None:
    assert asked_for(value) == []


def test_two_calls_of_one_message_are_two() -> None:
    two = [FUNCTION, {**FUNCTION, "id": "call_2"}]
    assert asked_for({"role": "assistant", "tool_calls": two}) == [("search", ARGUMENTS)] * 2


def made(*spans: Span) -> list[tuple[int, str, Any, bool]]:
    return [(c.span, c.name, c.parameters, c.ran) for c in calls(trace("q", "a", spans))]


def asks(n: int, *names: str, inside: Span | None = None) -> Span:
    wanted = [{"name": name, "args": {"n": n}, "id": f"{n}{name}"} for name in names]
    asked = span(n, SpanKind.LLM, "chat", None, {"role": "assistant", "tool_calls": wanted})
    return asked.model_copy(update={"parent_span_id": inside.span_id}) if inside else asked


def ran(n: int, name: str, given: Any = None) -> Span:
    return span(n, SpanKind.TOOL, name, given, "ok")


def test_a_tools_span_and_the_models_wish_for_it_are_one_call() -> None:
    assert made(asks(1, "search"), ran(2, "search", {"n": 1})) == [(2, "search", {"n": 1}, True)]


def test_what_a_model_asked_for_and_no_span_shows_is_a_call_that_did_not_run() -> None:
    assert made(asks(1, "a", "b"), ran(2, "b", {"n": 1})) == [(1, "a", {"n": 1}, False), (2, "b", {"n": 1}, True)]


def test_without_tool_spans_the_models_wishes_are_the_calls() -> None:
    assert [name for _, name, _, _ in made(asks(1, "a"), asks(2, "a"), asks(3, "b"))] == ["a", "a", "b"]


def test_a_tool_that_runs_under_another_name_is_not_counted_twice() -> None:
    assert made(asks(1, "search"), ran(2, "SearchTool.run", {"n": 1})) == [(2, "SearchTool.run", {"n": 1}, True)]
    assert made(asks(1, "search"), ran(2, "tool call", {"other": 1})) == [(2, "tool call", {"other": 1}, True)]


def test_a_tool_that_ran_before_the_model_spoke_stands_for_none_of_its_wishes() -> None:
    assert [c[1] for c in made(ran(1, "load_profile"), asks(2, "pay"))] == ["load_profile", "pay"]


def test_a_span_around_another_one_of_the_same_call_is_not_counted() -> None:
    outer = asks(1, "search")
    inner = asks(1, "search", inside=outer).model_copy(update={"span_id": ran(9, "x").span_id})
    assert len(made(outer, inner)) == 1
    tool = ran(3, "search", {"q": 1})
    again = ran(4, "search", {"q": 1}).model_copy(update={"parent_span_id": tool.span_id})
    assert made(tool, again) == [(2, "search", {"q": 1}, True)]


def test_parameters_that_the_tools_span_lacks_are_those_the_model_gave() -> None:
    assert made(asks(1, "search"), ran(2, "search")) == [(2, "search", {"n": 1}, True)]


@pytest.mark.parametrize(
    "given",
    [
        {"city": "Ghent"},
        '{"city": "Ghent"}',
        {"args": [], "kwargs": {"city": "Ghent"}},
        {"kwargs": {"city": "Ghent"}},
        {"arguments": '{"city": "Ghent"}'},
        {"name": "search", "args": {"city": "Ghent"}, "id": "1", "type": "tool_call"},
    ],
)
def test_a_tools_parameters_are_taken_out_of_their_wrapping(given: Any) -> None:
    assert made(ran(1, "search", given)) == [(1, "search", ARGUMENTS, True)]


def test_a_call_that_failed_says_so() -> None:
    (call,) = calls(trace("q", "a", tools(("pay", {"eur": 3}, None, "503"))))
    assert call.failed and call.error == "503" and call.called() == 'pay({"eur":3}) and fails'


SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
PLAIN = {"name": "search", "description": "Finds hotels"}
DECLARED: dict[str, Any] = {
    "openai": {"tools": [{"type": "function", "function": {**PLAIN, "parameters": SCHEMA}}]},
    "openai legacy": {"functions": [{**PLAIN, "parameters": SCHEMA}]},
    "openai responses": {"tools": [{"type": "function", **PLAIN, "parameters": SCHEMA}]},
    "anthropic": {"tools": [{**PLAIN, "input_schema": SCHEMA}]},
    "gemini": {"config": {"tools": [{"function_declarations": [{**PLAIN, "parameters": SCHEMA}]}]}},
    "bedrock": {"toolConfig": {"tools": [{"toolSpec": {**PLAIN, "inputSchema": {"json": SCHEMA}}}]}},
    "langchain": {"invocation_params": {"tools": [{"type": "function", "function": {**PLAIN, "parameters": SCHEMA}}]}},
    "by name": {"tools": {"search": {"description": "Finds hotels", "parameters": SCHEMA}}},
    "an attribute": {
        "gen_ai.tool.definitions": '[{"name": "search", "description": "Finds hotels", '
        '"parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}]'
    },
}


@pytest.mark.parametrize("place", ["input", "model_parameters", "metadata"])
@pytest.mark.parametrize("shape", DECLARED)
def test_a_declared_tool_is_found_in_every_shape_and_place(shape: str, place: str) -> None:
    model = span(1, SpanKind.LLM, "chat").model_copy(update={place: DECLARED[shape]})
    (tool,) = offered(trace("q", "a", (model,)))
    assert (tool.span, tool.name, tool.description, tool.schema) == (1, "search", "Finds hotels", SCHEMA)


def test_a_vendors_own_tool_goes_by_its_type_and_a_bare_name_is_enough() -> None:
    model = span(1, SpanKind.LLM, "chat", {"tools": [{"type": "web_search"}, "calculator", {"type": "function"}, 7]})
    assert [t.name for t in offered(trace("q", "a", (model,)))] == ["web_search", "calculator"]


def test_a_tool_that_every_call_declares_is_at_hand_once() -> None:
    models = tuple(span(n, SpanKind.LLM, "chat", {"tools": [{**PLAIN, "description": str(n)}]}) for n in range(3))
    assert [(t.name, t.description) for t in offered(trace("q", "a", models))] == [("search", "0")]


def test_what_was_said_about_tools_declares_none() -> None:
    talk = {"messages": [{"role": "user", "content": "x", "tools": [PLAIN]}]}
    spans = (span(1, SpanKind.LLM, "chat", talk), span(2, SpanKind.TOOL, "t", {"tools": [PLAIN]}))
    assert offered(trace("q", "a", spans)) == ()


KEYS = st.sampled_from(
    ["tools", "functions", "function", "name", "args", "arguments", "kwargs", "input", "type", "tool_calls", "content",
     "messages", "choices", "generations", "message", "id", "role", "toolUse", "output", "function_declarations"]
)  # fmt: skip
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.sampled_from(["search", "tool_use", "ai", "user", "{", "[1]", ""])
)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4))
SPANS = st.tuples(st.sampled_from([SpanKind.LLM, SpanKind.TOOL]), VALUES, VALUES)
TRACES = st.lists(SPANS, max_size=5).map(
    lambda steps: trace("q", "a", tuple(span(n, kind, "s", asked, said) for n, (kind, asked, said) in enumerate(steps)))
)


@settings(max_examples=300, deadline=None)
@given(TRACES)
def test_whatever_people_send_is_read_without_raising_and_in_the_order_of_its_spans(of: Trace) -> None:
    found, at_hand = calls(of), offered(of)
    assert [c.span for c in found] == sorted(c.span for c in found) and all(t.name for t in at_hand)
    assert sum(c.ran for c in found) == sum(s.kind == SpanKind.TOOL for s in of.spans)
