"""What people would read: taken out of the messages of each vendor, and harmless before a judge sees it."""

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.metrics.plain import harmless, plain_text, tool_calls, without_blobs

OPENAI_CALL = {"id": "1", "type": "function", "function": {"name": "pay", "arguments": '{"sum": 3}'}}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(("role", "content", "type", "text", "messages", "choices", "name", "args",
            "function", "arguments", "message", "other")), inner, max_size=4)
    ),
    max_leaves=12,
)  # fmt: skip


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"messages": [{"role": "user", "content": "hello"}]}, "hello"),
        ({"choices": [{"message": {"role": "assistant", "content": "hello"}}]}, "hello"),
        ({"role": "assistant", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]}, "hel\nlo"),
        ([{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}], "one\ntwo"),
        ([{"type": "human", "content": "one"}, {"type": "ai", "content": "two"}], "one\ntwo"),
        ({"generations": [[{"text": "hello", "message": {"content": "hello"}}]]}, "hello"),
        ({"output": {"text": "hello"}, "usage": {"tokens": 3}}, "hello"),
        ({"response": "", "result": "hello"}, "hello"),
        ({"messages": []}, '{"messages":[]}'),
        ([1, "two"], '[1,"two"]'),
        (7, "7"),
        ({}, ""),
    ],
)  # fmt: skip
def test_words_are_taken_out_of_every_vendors_messages(value: Any, words: str) -> None:
    assert plain_text(value) == words


def test_only_the_last_message_is_what_was_asked() -> None:
    chat = {"messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "book it"}]}
    assert plain_text(chat, last=True) == "book it" and plain_text(chat) == "be kind\nbook it"


def test_a_message_without_words_has_none() -> None:
    assert plain_text({"role": "assistant", "content": None, "tool_calls": [OPENAI_CALL]}) == ""


@pytest.mark.parametrize(
    ("output", "calls"),
    [
        ({"choices": [{"message": {"tool_calls": [OPENAI_CALL]}}]}, [("pay", {"sum": 3})]),
        ({"content": [{"type": "tool_use", "id": "1", "name": "pay", "input": {"sum": 3}}]}, [("pay", {"sum": 3})]),
        ({"tool_calls": [{"name": "pay", "args": {"sum": 3}, "id": "1"}]}, [("pay", {"sum": 3})]),
        ({"function": {"name": "pay", "arguments": '{"sum": '}}, [("pay", '{"sum": ')]),
        ({"tool_calls": [OPENAI_CALL, OPENAI_CALL]}, [("pay", {"sum": 3})] * 2),
        ("pay(3)", []),
        (None, []),
    ],
)
def test_calls_are_found_in_every_vendors_shape(output: Any, calls: list[tuple[str, Any]]) -> None:
    assert tool_calls(output) == calls


@settings(max_examples=300, deadline=None)
@given(JSON)
def test_whatever_was_sent_can_be_read(value: Any) -> None:
    """People send anything: text comes out, and no exception."""
    assert isinstance(plain_text(value), str) and isinstance(plain_text(value, last=True), str)
    assert all(isinstance(name, str) for name, _ in tool_calls(value))


def test_a_nest_without_end_is_not_followed_to_its_end() -> None:
    nest: Any = {"function": {"name": "deep", "arguments": {}}}
    for _ in range(200):
        nest = {"content": [nest]}
    assert tool_calls(nest) == [] and isinstance(plain_text(nest), str)


@pytest.mark.parametrize(
    "mark",
    ["<|im_end|>", "<|endoftext|>", "[INST]", "[/INST]", "<<SYS>>", "</s>", "<s>", "<start_of_turn>", "<end_of_turn>",
     "<|IM_END|>", "<|im\u200b_end|>", "<\u2060/s>", "\x1b[31m"],
)  # fmt: skip
def test_what_ends_a_chat_turn_does_not_survive(mark: str) -> None:
    clean = harmless(f"before {mark} after")
    assert clean.startswith("before ") and clean.endswith(" after")
    assert mark not in clean and "im_end" not in clean.lower() and "</s>" not in clean and "\x1b" not in clean


@pytest.mark.parametrize(
    "mark", ["rec-1", "REC-1", "re\u200bc-1", "r\u202eec-1", "rec\x00-1", "re\ufe0fc-1", "rec\U000e0101-1"]
)
def test_what_looks_like_our_fence_does_not_survive(mark: str) -> None:
    assert harmless(f"a {mark}>>> b", "rec-1") == "a ⟨mark removed⟩⟨mark removed⟩ b"


@pytest.mark.parametrize(
    "mark",
    ["<｜end▁of▁sentence｜>", "＜|im_end|＞", "‹|im_end|›", "<|turn>", "<turn|>", "[/SYSTEM_PROMPT]", "［INST］", "<eos>", "<sop>",
     "</think>", "<unused99>", "]~b]", "<seed:eos>", "<|im_\u2060end|>", "<|a<|b|>c|>"],
)  # fmt: skip
def test_the_marks_of_other_vendors_and_of_look_alikes_do_not_survive(mark: str) -> None:
    clean = harmless(f"before {mark} after")
    assert clean.startswith("before ⟨mark removed⟩") and clean.endswith(" after") and "|" not in clean


@pytest.mark.parametrize(
    "fence", ["<<<", ">>>>>", "> > >", "＞＞＞", "›››", "»»»", "⋙", "❯❯❯", "》》》", ">\u200b>\u200b>", "<\t<\t<"]
)
def test_what_looks_like_three_brackets_is_none(fence: str) -> None:
    assert harmless(f"a {fence} b") == "a ⟨mark removed⟩ b"


@pytest.mark.parametrize(
    "mark",
    ["record-0123456789abcdef", "RECORD-0123456789ABCDEF", "record - 0123456789abcdef", "r e c o r d-0123456789abcdef",
     "record‐0123456789abcdef", "ｒｅｃｏｒｄ－０１２３４５６７８９ａｂｃｄｅｆ", "rеcоrd-0123456789аbсdеf",
     "record-fedcba9876543210",
     "record_0123-4567_89abcdef", "𝐫𝐞𝐜𝐨𝐫𝐝-0123456789abcdef"],
)  # fmt: skip
def test_the_boundary_is_known_in_every_spelling_and_so_is_what_is_shaped_like_it(mark: str) -> None:
    assert harmless(f"a {mark} b", "record-0123456789abcdef") == "a ⟨mark removed⟩ b"


def test_what_a_terminal_would_obey_goes_and_its_words_stay() -> None:
    text = "\x1b[2J\x1b[8mhidden\x1b[0m \x9b31mred \x1b]0;title\x07 \x1b]8;;http://x\x1b\\link"
    assert harmless(text) == "hidden red title http://xlink"


@pytest.mark.parametrize("piece", ["<", "< ", "<|a", "record", "r-e-", "\x1b[", "\x1b]", "]~", "é<|", "‹ "])
def test_no_text_takes_long(piece: str) -> None:
    """Twice as much takes about twice as long: a pattern that starts over at each character would take four times."""
    once, twice = (min(took(piece * n) for _ in range(3)) for n in (30_000, 60_000))
    assert twice < 3.3 * once + 0.02


def took(text: str) -> float:
    began = time.process_time()
    harmless(text, "record-0123456789abcdef")
    return time.process_time() - began


def test_taking_a_mark_out_does_not_put_another_together() -> None:
    clean = harmless("<|im_<|x|>end|> re<s>c-1 <<<s><<", "rec-1")
    assert not [bad for bad in ("<|im_end|>", "rec-1", "<<<") if bad in clean]


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("ab<>|/sS[]INT \n\t\u200b\u202e\x07é漢rec-1"), max_size=60))
def test_what_is_clean_stays_clean(text: str) -> None:
    once = harmless(text, "rec-1")
    assert harmless(once, "rec-1") == once


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "Zoë's café – 40 €",
        "日本語 👍",
        "a\n\tb",
        "if a << 2 and b >> 1:",
        "x<y>z",
        "f <| x",
        "x |> f",
        "« oui » et « non »",
        "the record of 2024-01-02",
        "a <b> c </i>",
        "1 ≪ 2 ≪ 3",
        "a|b|c",
        "x[0]~y",
    ],
)
def test_what_people_write_stays_as_it_is(text: str) -> None:
    assert harmless(text, "rec-1") == text


def test_base64_is_named_by_its_size_and_words_are_left_alone() -> None:
    assert without_blobs("x " + "QUJD" * 200 + "==") == "x ⟨802 characters of base64⟩"
    assert without_blobs("word " * 400) == "word " * 400
