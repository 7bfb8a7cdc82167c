"""What judges do to text takes steps in proportion to its length, whatever it says: one trace of megabytes must not hold a judge.
Steps are counted, of regular expressions by a matcher of our own, of Python by the lines that run; no clock decides."""

import importlib
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator
from types import FrameType, ModuleType
from typing import Any

import pytest

import steelyard.metrics
import steelyard_judge
from regex_steps import found, steps
from steelyard.metrics import plain
from steelyard.metrics.extraction import wordless
from steelyard.metrics.facts import Facts, repeated, wasted
from steelyard.metrics.judging import Case, one_line
from steelyard.metrics.loop_detection import jaccard, words_of
from steelyard.metrics.plain import harmless, plain_text, without_blobs
from steelyard.metrics.rendering import render
from steelyard.metrics.schemas import misfit
from steelyard.metrics.tools import calls, offered
from steelyard.metrics.written_plan import written_plan
from steelyard.traces import SpanKind, Trace
from steelyard_judge.dialogue import clipped, is_large, small
from traces_of import span, trace

# Doubled input, doubled steps; the rest is for what is done once, and for bounds that are reached on the way.
MOST = 2.3
SIZE = 100


def modules(package: ModuleType) -> Iterator[ModuleType]:
    for found_module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        if not found_module.name.endswith("__main__"):
            yield importlib.import_module(found_module.name)


def patterns() -> dict[str, re.Pattern[str]]:
    """All there are, so that a new one is held to it too."""
    known = {
        f"{module.__name__}.{name}": value
        for package in (steelyard.metrics, steelyard_judge)
        for module in modules(package)
        for name, value in vars(module).items()
        if isinstance(value, re.Pattern)
    }
    (boundary,) = plain._boundaries("record-0123456789abcdef")
    return known | {"a boundary": boundary}


PATTERNS = patterns()
ATOMS = (
    *("a", "A1", "0", " ", "<", "< ", "<|", "|>", "[", "-", "_", "'", ":", "\n", "\x1b[", "data:", "data:a/", "key", "key ", "/"),
    *("record", "record-", "rec-ord", "plan ", ": ", "1. ", "[ ] ", "was not a ", "could not ", "score is ", "give me ", "maybe "),
    *('"retryDelay": ', "ignore ", "not ", "漢", "é", "\u200b", "<seed:", "="),
)  # fmt: skip
LEADS = ("key", "plan:", "data:", '"retryDelay": "', "<|", "1.", "was not ")
TEXTS = [("", atom) for atom in ATOMS] + [(lead, atom) for lead in LEADS for atom in ("a", " ", "0", "- ")]


@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_takes_steps_in_proportion_to_the_text(name: str) -> None:
    for lead, atom in TEXTS:
        one, two = (steps(PATTERNS[name], lead + atom * (n // len(atom))) for n in (SIZE, 2 * SIZE))
        assert two <= MOST * one + 200, f"{lead + atom!r} again and again"


def test_the_steps_of_a_pattern_that_reads_each_run_from_each_of_its_letters_are_too_many() -> None:
    quadratic = re.compile(r"[A-Za-z0-9+/]{400,}={0,2}")
    assert steps(quadratic, "a" * 2 * SIZE) > 3 * steps(quadratic, "a" * SIZE)


@pytest.mark.parametrize("name", PATTERNS)
def test_the_counting_matcher_finds_what_the_real_one_finds(name: str) -> None:
    text = (
        "".join(ATOMS)
        + "Record-0123 4567-89ab\ncdef "
        + "QUJD" * 110
        + "= you are the judge, unable to help; 1) [x] plan"
    )
    assert found(PATTERNS[name], text) == [m.span() for m in PATTERNS[name].finditer(text)]


def lines_run(work: Callable[[], Any]) -> int:
    """Lines of Python, of generators and comprehensions too."""
    counted = 0

    def count(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal counted
        counted += event == "line"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        work()
    finally:
        sys.settrace(before)
    return counted


def talk(n: int) -> list[dict[str, Any]]:
    return [{"role": "user", "content": f"{i} words"} for i in range(n)]


def asking(n: int) -> dict[str, Any]:
    """A model's answer with n calls, of a few names and as many arguments."""
    made = [{"id": str(i), "function": {"name": f"t{i % 7}", "arguments": {"n": i}}} for i in range(n)]
    return {"role": "assistant", "content": "", "tool_calls": made}


def asked_and_run(n: int) -> Trace:
    """n calls, and n runs that fit none of them until the last: each is looked for among all that wait."""
    ran = tuple(span(i + 2, SpanKind.TOOL, f"other{i}", {"n": -1 - i}, "result") for i in range(n))
    return trace("go", "done", (span(1, SpanKind.LLM, "model", talk(1), asking(n)), *ran))


def chatting(n: int) -> Trace:
    return trace(talk(n), talk(n), tuple(span(i + 1, SpanKind.LLM, "model", talk(3), f"answer {i}") for i in range(n)))


def written(n: int) -> Trace:
    items = "\n".join(f"{i % 90}. step" for i in range(n))
    return trace("go", "done", (span(1, SpanKind.LLM, "model", "go", f"my plan:\n- plan: one\n{items}"),))


FUNCTIONS: dict[str, Callable[[int], Callable[[], Any]]] = {
    "plain_text": lambda n: lambda: plain_text(talk(n)),
    "plain_text, deep": lambda n: lambda: plain_text(nested(min(n, 150))),
    "harmless": lambda n: lambda: harmless("<<< <|x|> ‹‹‹ Größe " * n, "record-0123456789abcdef"),
    "without_blobs": lambda n: lambda: without_blobs(("a" * 399 + " ") * n),
    "one_line": lambda n: lambda: one_line("é <<< " * n, Case(trace("q", "a", ()))),
    "render, spans": lambda n: lambda: render(chatting(n), "record-0123456789abcdef"),
    "render, calls": lambda n: lambda: render(asked_and_run(n)),
    "calls": lambda n: lambda: calls(asked_and_run(n)),
    "offered": lambda n: (
        lambda: offered(trace("q", "a", (span(1, SpanKind.LLM, "m", {"tools": asking(n)["tool_calls"]}),)))
    ),
    "facts": lambda n: lambda: Facts.of(Case(asked_and_run(n))),
    "repeated": lambda n: lambda: repeated(calls(asked_and_run(n))),
    "wasted": lambda n: lambda: wasted(asked_and_run(n).spans),
    "written_plan": lambda n: lambda: written_plan(written(n), ()),
    "wordless": lambda n: lambda: wordless(": " * n),
    "words_of": lambda n: lambda: words_of("漢字 words " * n),
    "jaccard": lambda n: lambda: jaccard("a b c " * n, "b c d " * n),
    "is_large": lambda n: lambda: is_large(chatting(n)),
    "small": lambda n: lambda: small({"a": ["x" * 50] * n}),
    "clipped": lambda n: lambda: clipped("x" * n, 100),
}


def nested(depth: int) -> Any:
    value: Any = {"content": ""}
    for _ in range(depth):
        value = {"role": "user", "content": value, "text": {"role": "user"}, "result": []}
    return value


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_runs_lines_in_proportion_to_what_it_reads(name: str) -> None:
    prepared = [FUNCTIONS[name](n) for n in (60, 120)]
    for work in prepared:
        work()  # what is made once and kept is not counted
    one, two = map(lines_run, prepared)
    assert two <= MOST * one + 200


def test_of_an_answer_with_thousands_of_calls_no_more_are_looked_for_in_its_words_than_are_shown() -> None:
    of = trace("q", "a", (span(1, SpanKind.LLM, "m", talk(1), {**asking(1000), "content": "I call them."}),))
    text = render(of, tokens=200_000).text
    assert text.count("calls t") == 200


def test_what_nobody_will_read_is_not_cleaned_and_counts_as_cut() -> None:
    words = "the quick brown fox " * 500_000
    seen = render(trace(words, "done", ()), tokens=1000)
    assert len(seen.text) <= 3200 and seen.text.endswith("done")
    assert seen.cut["characters_cut"] > len(words) - 3200
    cleaned = lines_run(lambda: render(trace("Größe " * 200_000, "done", ()), tokens=1000))
    assert cleaned < lines_run(lambda: render(trace("Größe " * 20_000, "done", ()), tokens=1000)) + 100


def test_words_between_two_pictures_are_read_however_large_the_pictures_are() -> None:
    picture = "iVBORw0KGgo" * 100_000
    seen = render(trace([{"role": "user", "content": f"{picture} what is this? {picture}"}], "a cat", ()), tokens=1000)
    assert "what is this?" in seen.text and seen.text.count("characters of base64") == 2 and not seen.cut


def test_a_rendering_that_was_made_is_kept_for_the_same_trace_in_its_session() -> None:
    case = Case(trace("q", "a", ()), boundary="record-1")
    rendering, content = case.rendering, case.content
    later = case.of_the_same_trace(earlier=())
    assert later.rendering is rendering and later.content is content
    smaller = case.of_the_same_trace(tokens=50)
    assert smaller.content is content and smaller.rendering is not rendering
    assert case.of_the_same_trace(boundary="record-2").rendering is not rendering


class Counted(str):
    """Membership in a list runs no line of Python, so its comparisons are counted."""

    compared = 0
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return str.__eq__(self, other)


def checked_by_long_lists(n: int) -> Callable[[], Any]:
    """n values that fit, each by lists of n entries in which the one that it needs comes last."""
    allowed = [*(Counted(f"v{i}") for i in range(n)), "last"]
    item = {"type": ["string"] * n + ["object"], "required": ["a"] * n, "properties": {"a": {"enum": allowed}}}
    values = [[{"a": "last"}] * 10] * (n // 10)
    return lambda: misfit({"items": {"items": item}}, values)


def test_arguments_are_checked_in_proportion_to_them_and_to_their_schema_and_not_to_the_product() -> None:
    taken = list[int]()
    for n in (100, 200):
        work, Counted.compared = checked_by_long_lists(n), 0
        assert work() is None
        taken.append(lines_run(work) + Counted.compared)
    assert taken[1] <= MOST * taken[0] + 200
