"""A trace of megabytes, and traces of any shape: within the budget, errors kept, cuts told. What that takes: test_linear.py."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.metrics.judging import Case
from steelyard.metrics.plain import harmless
from steelyard.metrics.rendering import BUDGET_TOKENS, CHARACTERS_PER_TOKEN, render
from steelyard.traces import SpanKind, SpanStatus, Trace
from traces_of import span, trace

WORDS = "the quick brown fox reads a page of the very long manual and says so. "
LISTING = "\n".join(f"line {n}: {WORDS}" for n in range(400))


def chat(n: int, size: int, alphabet: str) -> Any:
    said = (alphabet * (size // len(alphabet) + 1))[:size]
    return span(n, SpanKind.LLM, "chat", {"messages": [{"role": "user", "content": f"{n} {said}"}]}, f"{n} {said}")


LARGE = {
    "one long document": trace(WORDS * 75_000, "done", (span(1, SpanKind.TOOL, "read", "x", "y", "boom"),)),
    "many long lines": trace("q", "a", tuple(span(n, SpanKind.TOOL, f"t{n}", LISTING, LISTING) for n in range(70))),
    "a chat of thousands of turns": trace("q", "a", tuple(chat(n, 1000, WORDS) for n in range(2500))),
    "not in ASCII": trace("q", "a", tuple(chat(n, 10_000, "Größe überall – 漢字 👍 ") for n in range(250))),
    "all of it failed": trace("q", "a", tuple(span(n, SpanKind.TOOL, f"t{n}", None, None, WORDS * 14) for n in range(5000))),
    "one base64": trace("q", "a", (span(1, SpanKind.TOOL, "shot", None, "iVBORw0KGgo" * 450_000),)),
    "brackets": trace("<" * 2_500_000, ">" * 2_500_000, (span(1, SpanKind.TOOL, "t", "<|" * 10_000, "|>" * 10_000),)),
}  # fmt: skip

# What was in the way of the words is named and not sent, so nothing of them is cut.
SHRUNK = {"one base64": "characters of base64", "brackets": "⟨mark removed⟩"}


@pytest.mark.parametrize("name", LARGE)
def test_five_megabytes_are_rendered_within_the_budget_and_say_what_was_cut(name: str) -> None:
    seen = render(LARGE[name], "record-b0a7")
    assert len(seen.text) <= BUDGET_TOKENS * CHARACTERS_PER_TOKEN
    if name in SHRUNK:
        assert SHRUNK[name] in seen.text
    else:
        assert seen.cut.get("characters_cut", 0) > 100_000 or seen.cut["spans_collapsed"] > 2000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "tool"]), "content": JSON}), max_size=4
).map(lambda messages: {"messages": messages})
VALUE = JSON | MESSAGES
ERROR = st.none() | st.text(min_size=1, max_size=1000)
STEP = st.tuples(st.sampled_from(SpanKind), st.text(max_size=60), VALUE, VALUE, ERROR)
TRACES = st.builds(
    lambda asked, said, steps: trace(asked, said, tuple(span(n, *step) for n, step in enumerate(steps))),
    VALUE,
    VALUE,
    st.lists(STEP, max_size=25),
)


@settings(max_examples=150, deadline=None)
@given(TRACES, st.integers(100, 4000))
def test_a_trace_of_any_shape_stays_within_any_budget_and_makes_the_same_text_again(of: Trace, tokens: int) -> None:
    seen = render(of, "record-b0a7", tokens)
    assert len(seen.text) <= int(tokens * CHARACTERS_PER_TOKEN)
    assert render(of.model_copy(), "record-b0a7", tokens) == seen


@settings(max_examples=150, deadline=None)
@given(TRACES, st.integers(4000, 24_000))
def test_every_failed_span_keeps_its_line_and_the_beginning_of_its_error(of: Trace, tokens: int) -> None:
    lines = render(of, "", tokens).text.splitlines()
    for n, step in enumerate(of.spans, 1):
        if step.status == SpanStatus.ERROR:
            assert any(line.startswith(f"[{n}] {step.kind} ") and "ERROR" in line for line in lines)
            said = harmless((step.error or "").replace("\r\n", "\n")).strip().splitlines()
            assert not said or any(line.startswith(f"[{n}] error: {said[0][:40]}") for line in lines)


@settings(max_examples=60, deadline=None)
@given(TRACES)
def test_what_was_cut_is_told_exactly_when_something_was(of: Trace) -> None:
    whole, small = Case(of, tokens=200_000).rendering, Case(of, tokens=300).rendering
    assert "characters_cut" not in whole.cut
    assert (len(small.text) < len(whole.text)) <= bool(small.cut)
