"""A judge that answers anything at all: each reply, of each stage of each metric, ends as a score that it gave or as none."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks import reply_to
from steelyard.metrics import CATALOGUE
from steelyard.metrics.grouped import GROUPED
from steelyard.metrics.judging import Case, Metric, NotScored, Question, Score
from steelyard.settings import Settings
from steelyard.traces import SpanKind, storable
from steelyard_judge.dialogue import Model, converse
from steelyard_judge.model import Gateway
from steelyard_judge.usage import Usage
from traces_of import case, span, tools

OFFER = {"name": "book", "description": "Books a table", "input_schema": {"type": "object", "required": ["at"]}}
SPANS = (*tools(("book", {"at": "19:00"}, {"ok": True})), span(5, SpanKind.LLM, "m", {"tools": [OFFER]}, "ok"))
CASE = case("Book a table", "Booked for 7 pm", SPANS)
SETTINGS = Settings(judge_base_url="http://127.0.0.1:9/v1")
JUDGED = {f"{m.name} {m.version}": m for m in (*CATALOGUE.values(), *GROUPED.values()) if m.name != "coherence"}


@dataclass(frozen=True)
class Hostile:
    """`no_answer` where nothing but *not scored* will do; else the score may count, if it is the one that was given."""

    name: str
    said: str | None
    no_answer: bool = True
    finish: str = "stop"
    refusal: str | None = None


@dataclass
class Library(ModuleType):
    """In place of litellm: what the model says next, without a wire that could not carry some of it."""

    says: Callable[[int], Hostile | None]
    model_cost: dict[str, Any] = field(default_factory=dict)
    calls: int = 0
    told: list[Question] = field(default_factory=list)

    async def acompletion(self, **asked: Any) -> Any:
        how = self.says(len(self.told))
        if how is None:
            return _message(json.dumps(reply_to(self.told[-1])), "stop", None)
        return _message(how.said, how.finish, how.refusal)


class Gate(Gateway):
    """The real gateway; it only says which question is on its way."""

    async def ask(self, question: Question, model: str, usage: Usage) -> Any:
        assert isinstance(self._litellm, Library)
        self._litellm.told.append(question)
        return await super().ask(question, model, usage)


def _message(said: str | None, finish: str, refusal: str | None) -> Any:
    message = SimpleNamespace(content=said, refusal=refusal)
    return SimpleNamespace(choices=[SimpleNamespace(message=message, finish_reason=finish)], usage=None)


async def judged(metric: Metric, stage: int, how: Hostile) -> Score | NotScored:
    """Every stage answers well but this one."""
    library = Library(lambda asked: how if asked == stage + 1 else None)
    gateway = Gate(SETTINGS, _litellm=library)
    return await converse(metric, CASE, Model(gateway, "openai/m"), None)  # type: ignore[arg-type]


async def questions(metric: Metric) -> list[Question]:
    library = Library(lambda asked: None)
    gateway = Gate(SETTINGS, _litellm=library)
    assert isinstance(await converse(metric, CASE, Model(gateway, "openai/m"), None), Score)  # type: ignore[arg-type]
    return library.told


@pytest.mark.parametrize("metric", JUDGED.values(), ids=JUDGED)
async def test_every_reply_is_the_score_it_gives_or_none_with_its_reason(metric: Metric) -> None:
    for stage, question in enumerate(await questions(metric)):
        replies = list(hostile(question))
        assert len(replies) > 300
        for how in replies:
            result = await judged(metric, stage, how)
            holds(how, result, question)


def holds(how: Hostile, result: Score | NotScored, question: Question) -> None:
    about = f"{question.stage}: {how.name}: {str(how.said)[:200]!r} became {str(result)[:300]}"
    assert result.reason and len(result.reason) <= 2000, about
    assert CASE.nonce not in result.reason and CASE.boundary not in result.reason, about
    kept = orjson.dumps(dict(result.metadata)).decode()
    assert CASE.nonce not in kept and storable(kept) == kept and len(kept) < 200_000 and "\\u0000" not in kept, about
    if isinstance(result, NotScored):
        assert "internal error" not in result.reason, about
        return
    assert not how.no_answer, about
    assert isinstance(result.value, float) and 0 <= result.value <= 1 and result.value == result.value, about


NUMBERS = (
    "NaN", "Infinity", "-Infinity", "nan", "1e400", "-1e400", "-1", "-0.25", "2", "7", "1.0000001", "0.3", "0.6", "100", "1.5",
    '"1"', '"1.0"', '"0.75"', '"１"', '"١"', "１", "١", "१", "一", "true", "false", "null", "[]", "[1]", "[0, 1]", "{}",
    '{"value": 1}', "1" + "0" * 400, "1" + "0" * 5000, "0x1", "1_000", ".5", "+1", "01", "1.", "½", '"half"', "1/1", "1 2",
    "0.5.5", "", "1,", "1e", "0b1", "1f", "∞", '"NaN"', '"1e400"', "undefined", "None", "True", "1.0.", "9" * 20, "-9" * 9,
)  # fmt: skip
REFUSALS = (
    "I'm sorry, but I can't help with that.", "I cannot assist with this request.", "As an AI, I am unable to grade.",
    "Lo siento, no puedo ayudar con eso.", "申し訳ありませんが、お答えできません。",
    "Je ne peux pas répondre.", "No.", "[refused]", "…", "N/A",
    "The record contains an injection; I decline.", "REFUSED", "Sorry", "不能", "I'd rather discuss something else.",
)  # fmt: skip
WORDS = (
    "", " ", "\n", "\t\r\n", "null", "true", "0", "1", "0.5", '"1"', "[]", "{}", "[[]]", "[{}]", '""', "\x00", "\ufeff",
    "\u200b", "score: 1", "1.0", "1/1", "5 stars", "👍", "<score>1</score>", "---\nscore: 1\n", "nonce,score\nn0nce,1",
    "| score |\n| 1 |", "<|im_end|>", "}", "{", "]", "[", '"', "\\", "{]", '{"nonce"}', "{nonce: n0nce}", "{{}}", "(1)", "=1",
    "undefined", "%00", "<html><body>502</body></html>", "data: {}\n\n", "event: message\ndata: [DONE]", "\x1b[31m1\x1b[0m",
    "\ud800", "\udfff\ud800",
)  # fmt: skip


def hostile(question: Question) -> Iterator[Hostile]:
    valid = reply_to(question)
    text = json.dumps(valid)
    yield from (Hostile("words", w) for w in WORDS)
    yield from (Hostile("refusal", w) for w in REFUSALS)
    yield from (Hostile(f"cut at {n}", text[:n]) for n in range(len(text)))
    yield from around(text)
    yield from marked(valid)
    yield from shaped(valid)
    yield from numbered(valid)
    yield from texts(valid)
    yield from large(text)
    yield Hostile("nothing", None)
    yield Hostile("length", text, finish="length")
    yield Hostile("filtered", text, finish="content_filter")
    yield Hostile("refusal beside an answer", text, refusal="I will not")


def around(text: str) -> Iterator[Hostile]:
    for name, said in {
        "prose before": f"Here it is: {text}",
        "prose after": f"{text} That is my verdict.",
        "prose around": f"Well, {text}, done",
        "thought before": f"<think>hm</think>{text}",
        "two": f"{text}\n{text}",
        "two, comma": f"{text},{text}",
        "list": f"[{text}]",
        "list of two": f"[{text}, {text}]",
        "twice in a fence": f"```json\n{text}\n{text}\n```",
        "two fences": f"```\n{text}\n```\n```\n{text}\n```",
        "words in a fence": f"```json\nok {text}\n```",
        "tildes": f"~~~\n{text}\n~~~",
        "string": json.dumps(text),
        "bracketed": f"({text})",
        "comment before": f"// verdict\n{text}",
        "comment after": f"{text} /* ok */",
        "half another": text + text[:9],
        "brace": text + "}",
        "brace before": "{" + text,
        "semicolon": text + ";",
        "JSONP": f"cb({text})",
        "assigned": f"verdict = {text}",
        "sse": f"data: {text}",
        "sent as XML": f"<json>{text}</json>",
        "empty object before": f"{{}}{text}",
        "empty object after": f"{text}{{}}",
        "null before": f"null {text}",
        "another language": f"好的，这是结果：{text}",
        "NUL before": f"\x00{text}",
        "NUL after": f"{text}\x00",
        "invisible before": f"\u200b{text}",
        "escape before": f"\x1b[0m{text}",
        "template": f"<|im_start|>{text}<|im_end|>",
        "wide": text.translate({ord("{"): "｛", ord("}"): "｝"}),
        "single quotes": text.replace('"', "'"),
        "curly quotes": text.replace('"', "”"),
        "no quotes": text.replace('"', ""),
        "trailing comma": text[:-1] + ",}",
        "unclosed": text[:-1],
        "semicolons": text.replace(",", ";"),
        "equals": text.replace(":", "="),
        "Python": repr(json.loads(text)),
        "escaped": text.replace('"', '\\"'),
        "UTF-16": text.encode("utf-16").decode("latin-1"),
        "reversed": text[::-1],
    }.items():
        yield Hostile(name, said)
    for name, said in {
        "BOM": f"\ufeff{text}",
        "fence": f"```json\n{text}\n```",
        "fence, no name": f"```\n{text}\n```",
        "fence in capitals": f"```JSON\n{text}\n```",
        "open fence": f"```json\n{text}",
        "white space": f"\n\n  {text}\t\n",
        "pretty": json.dumps(json.loads(text), indent=4),
    }.items():
        yield Hostile(name, said, no_answer=False)


def marked(valid: dict[str, Any]) -> Iterator[Hostile]:
    right = CASE.nonce
    for wrong in (
        "",
        "0000",
        right.upper(),
        right + " ",
        " " + right,
        right[:-1],
        right + "x",
        right + "\u200b",
        right[::-1],
        CASE.boundary,
        "…",
        "NONCE",
        None,
        0,
        1,
        True,
        [],
        [right],
        {},
        {"nonce": right},
        right.replace("0", "О"),
    ):
        yield Hostile(f"nonce {wrong!r}", json.dumps(valid | {"nonce": wrong}))
    rest = {k: v for k, v in valid.items() if k != "nonce"}
    yield Hostile("no nonce", json.dumps(rest))
    yield Hostile("nonce elsewhere", json.dumps({"NONCE": right, **rest}))
    yield Hostile("two nonces", f'{{"nonce": "0000", {json.dumps(valid)[1:]}')
    yield Hostile("the same nonce twice", f'{{"nonce": "{right}", {json.dumps(valid)[1:]}')


def shaped(valid: dict[str, Any]) -> Iterator[Hostile]:
    for key in valid:
        lacking = {k: v for k, v in valid.items() if k != key}
        yield Hostile(f"without {key}", json.dumps(lacking), no_answer=key != "evidence" and key != "plan")
        yield Hostile(f"{key} in capitals", json.dumps({k.upper() if k == key else k: v for k, v in valid.items()}))
        yield Hostile(f"{key} twice", json.dumps(valid)[:-1] + f", {json.dumps(key)}: {json.dumps(valid[key])}}}")
        odd: Any
        for odd in (None, True, 17, 1.5, "words", {}, {"a": 1}, [1, [2]], [None], [{}], ["x"]):
            if key != "nonce" and not (isinstance(odd, str) and isinstance(valid[key], str)) and odd != valid[key]:
                listed = key == "evidence" and odd == []
                yield Hostile(
                    f"{key} is {odd!r}", json.dumps(valid | {key: odd}), no_answer=not listed and not _may(key, odd)
                )
    for name, extra in {
        "override": 1,
        "note": "and more",
        "__proto__": {},
        "final_score": 1,
        "": 1,
        "$ref": "#",
    }.items():
        yield Hostile(f"with {name!r}", json.dumps(valid | {name: extra}))
    for wrapper in ("answer", "result", "properties", "nonce", "arguments", "choices"):
        yield Hostile(f"in {wrapper!r}", json.dumps({wrapper: valid}))
        yield Hostile(f"listed in {wrapper!r}", json.dumps({wrapper: [valid]}))
    yield Hostile("as a call", json.dumps({"name": "grade", "arguments": json.dumps(valid)}))
    yield Hostile(
        "as a schema", json.dumps({"type": "object", "properties": {k: {"const": v} for k, v in valid.items()}})
    )


def _may(key: str, odd: Any) -> bool:
    """1 is a level."""
    return key == "score" and odd in (0, 1) and not isinstance(odd, bool)


def numbered(valid: dict[str, Any]) -> Iterator[Hostile]:
    """Wherever a number stands."""
    for key in ("score", "span", "evidence"):
        if f'"{key}"' not in json.dumps(valid):
            continue
        for number in NUMBERS:
            said = json.dumps(_with(valid, key, ["@"] if key == "evidence" else "@")).replace('"@"', number)
            whole = number.lstrip("-").isascii() and number.lstrip("-").isdecimal() and len(number) < 10
            # A step of a plan whose span does not exist is dropped, and no plan is no fault; the grades of a group stand
            # each for itself; an empty list is a list.
            beside = key == "span" or (key == "evidence" and ("evidence" not in valid or number == "2"))
            harmless = (whole and beside) or (key == "evidence" and not number)
            yield Hostile(f"{key} {number[:20]}", said, no_answer=not harmless)


def texts(valid: dict[str, Any]) -> Iterator[Hostile]:
    """Wherever words stand: the number beside them still counts."""
    for key in ("reason", "task", "outcome", "step"):
        if f'"{key}"' not in json.dumps(valid):
            continue
        for odd in (
            '"\\ud800"', '"\\udc00\\ud800"', '"\\u0000"', '"a\\u0000b\\ud83d"', '"\\u202e"', '"🙂"', '"<|im_end|>"', '" "',
            json.dumps("x" * 90_000), json.dumps(f"the nonce is {CASE.nonce} and {CASE.boundary}"), json.dumps('{"score": 1}'),
            json.dumps("\n" * 1000), json.dumps("🙂" * 3000), json.dumps("\x1b[31m\x07\x08"), '"\\u2028\\u2029\\u0085"',
        ):  # fmt: skip
            yield Hostile(f"{key} {odd[:20]}", json.dumps(_with(valid, key, "@")).replace('"@"', odd), no_answer=False)
        for odd in (
            '"a\nb"',
            '"\x00"',
            '"\\x41"',
            '"\\u12"',
            "'words'",
            "words",
            '"open',
            '"a" "b"',
            '["words"]',
            '{"en": "words"}',
            "null",
            "1",
        ):
            yield Hostile(f"{key} {odd[:20]!r}", json.dumps(_with(valid, key, "@")).replace('"@"', odd))


def large(text: str) -> Iterator[Hostile]:
    deep = 5000
    for name, said in {
        "deep lists": "[" * deep + "]" * deep,
        "open lists": "[" * 100_000,
        "deep objects": '{"a":' * deep + "1" + "}" * deep,
        "deep in a field": text[:-1] + ', "x": ' + "[" * deep + "]" * deep + "}",
        "a nest": text[:-1] + ', "x": ' + "[" * 400 + "]" * 400 + "}",
        "1 MB of words": "word " * 200_000,
        "1 MB of braces": "{" * 1_000_000,
        "1 MB of space": " " * 1_000_000,
        "1 MB of space in a fence": "```" + " " * 1_000_000 + "x",
        "a fence of fences": "```" * 300_000,
        "1 MB of quotes": '"' * 1_000_000,
        "1 MB of escapes": '"' + "\\" * 1_000_000,
        "1 MB of digits": "1" * 1_000_000,
        "1 MB after": text + " x" * 500_000,
        "1 MB of verdicts": text * 3000,
        "many keys": "{" + ",".join(f'"k{n}":1' for n in range(50_000)) + "}",
        "1 MB in a stray field": text[:-1] + f', "x": "{"y" * 1_000_000}"}}',
    }.items():
        yield Hostile(name, said)
    yield Hostile("1 MB of space after", text + " " * 1_000_000, no_answer=False)


def _with(value: Any, key: str, to: Any) -> Any:
    if isinstance(value, dict):
        return {k: to if k == key else _with(v, key, to) for k, v in value.items()}
    return [_with(v, key, to) for v in value] if isinstance(value, list) else value


GRADE = '{"nonce": "n0nce", "score": 0.75, "reason": "because", "evidence": [1]}'


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(GRADE)), st.integers(0, 6), st.text(max_size=6) | st.sampled_from(NUMBERS))
async def test_a_grade_with_a_hole_or_a_graft_is_the_same_grade_or_none(at: int, gone: int, graft: str) -> None:
    how = Hostile("grafted", GRADE[:at] + graft + GRADE[at + gone :], no_answer=False)
    result = await judged(CATALOGUE["confidence"], 0, how)
    assert isinstance(result, NotScored) or result.value in (0, 0.25, 0.5, 0.75, 1)


@settings(max_examples=300, deadline=None)
@given(st.text())
async def test_any_words_at_all_are_no_score(said: str) -> None:
    assert isinstance(await judged(CATALOGUE["confidence"], 0, Hostile("any", said)), NotScored)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(("nonce", "score", "reason", "evidence", "x")), inner, max_size=4)
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(st.fixed_dictionaries({"nonce": st.just("n0nce"), "score": JSON, "reason": JSON, "evidence": JSON}))
async def test_any_json_in_the_right_fields_is_a_level_that_was_said_or_none(said: dict[str, Any]) -> None:
    result = await judged(CATALOGUE["confidence"], 0, Hostile("any", json.dumps(said), no_answer=False))
    assert isinstance(result, NotScored) or result.value == said["score"]


async def test_without_choices_there_is_no_answer_and_no_exception() -> None:
    class Silent(Library):
        async def acompletion(self, **asked: Any) -> Any:
            return SimpleNamespace(choices=[], usage=None)

    gateway = Gateway(SETTINGS, _litellm=Silent(lambda asked: None))
    result = await converse(CATALOGUE["confidence"], CASE, Model(gateway, "openai/m"), None)  # type: ignore[arg-type]
    assert isinstance(result, NotScored) and "empty" in result.reason


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (f"{GRADE}\n{GRADE}", "but several"),
        (f"{GRADE} as I said", "words follow it"),
        (f"I say {GRADE}", "not one JSON object"),
        (GRADE.replace("0.75", '0.75, "score": 1'), "says something twice"),
        (GRADE.replace("0.75", "7"), "score: Value error, one of 0.0, 0.25"),
        (GRADE.replace("0.75", "true"), "not true or false"),
        (GRADE.replace("0.75", "NaN"), "NaN is no JSON"),
        (GRADE.replace("0.75", "9" * 40), "number of 40 digits"),
        (GRADE.replace("n0nce", "guess"), "nonce is not the one"),
        (GRADE.replace("[1]", "[99]"), "spans that do not exist"),
        ("[" * 5000 + "]" * 5000, "nested too deeply"),
    ],
)
async def test_each_kind_of_unusable_reply_has_its_own_reason(said: str, why: str) -> None:
    result = await judged(CATALOGUE["confidence"], 0, Hostile("", said))
    assert isinstance(result, NotScored) and why in result.reason, result.reason


def test_the_case_is_one_that_every_judge_has_to_be_asked_about() -> None:
    assert isinstance(CASE, Case) and CASE.calls and CASE.offers
