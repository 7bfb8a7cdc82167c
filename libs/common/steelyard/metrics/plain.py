"""What people would read: text taken out of messages, and made harmless before a judge sees it."""

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import orjson

# Chat templates' own marks, of ChatML, Llama, Mistral, Gemma, DeepSeek, GLM, Qwen and their kin: a judge's server may
# take them for the end of the judged text. Searched in folded text.
_TEMPLATE = re.compile(
    r"<\|[^|<>\n]{1,60}\|>|<\|\w{1,40}>|<\w{1,40}\|>|<\|(?=\w)|(?<=\w)\|>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|THINK|gMASK)\]|<</?SYS>>"
    r"|</?(?:s|bos|eos|pad|unk|sop|eop|eoh|eoa|start_of_turn|end_of_turn|think|tool_call|tool_response)>"
    r"|<(?:reserved_\d{1,4}|unused\d{1,4}|seed:[a-z:_]{1,30})>|\][~!]{1,2}b[\[\]]|\[e~\[",
    re.IGNORECASE,
)
_FENCE = re.compile(r"(?:<[ \t]?){2,}<|(?:>[ \t]?){2,}>|[⋘⋙]")
# Invisible, though Unicode files them under marks and letters: variation selectors, joiners, fillers.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
# What a terminal would obey. Only the orders go: the words between them were shown.
_ANSI = re.compile(r"(?:\x1b\[|\x9b)[0-9;:?<=>]{0,40}[ -/]{0,4}[@-~]|\x1b\][0-9;]{0,20}|\x1b[PX^_@-Z\\]")
REMOVED = "⟨mark removed⟩"
# Looked for where a run of its letters begins and nowhere within: words are such runs, too, and from each of their letters a
# search would read on to their end.
_BASE64 = re.compile(r"(?:data:[\w/+.-]{1,100};base64,|(?<![A-Za-z0-9+/]))[A-Za-z0-9+/]{400,}={0,2}")
_CONTENT = (
    "content",
    "text",
    "output_text",
    "input_text",
    "message",
    "output",
    "answer",
    "response",
    "result",
    "query",
)


def plain_text(value: Any, last: bool = False) -> str:
    """The words in a value: of messages (OpenAI, Anthropic, LangChain shapes) their contents, else JSON.

    `last` takes only the last message: what was asked, or what was answered, without the history before it.
    """
    messages = _messages(value)
    if messages:
        return "\n".join(t for m in (messages[-1:] if last else messages) if (t := _words(m)))
    return _words(value)


def harmless(text: str, boundary: str = "") -> str:
    """Without what is invisible, what turns text around, what ends a chat turn, and what looks like our fence."""
    text = _ANSI.sub("", text)
    if text.isascii():  # a hundred times faster, and nearly all that agents write
        text = folded = _CONTROL.sub("", text)
    else:
        text = _INVISIBLE.sub("", text)
        text = "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cf", "Cc", "Co", "Cs", "Cn"))
        folded = text.translate(_ALIKE)
    for mark in (_TEMPLATE, *_boundaries(boundary), _FENCE):
        text, folded = _without(mark, text, folded)
    return text


def _without(mark: re.Pattern[str], text: str, folded: str) -> tuple[str, str]:
    """Found in the folded text, taken out of both: they are equally long, character for character."""
    if text is folded:
        text = folded = mark.sub(REMOVED, text)
        return text, folded
    kept, kept_folded, end = list[str](), list[str](), 0
    for found in mark.finditer(folded):
        kept += [text[end : found.start()], REMOVED]
        kept_folded += [folded[end : found.start()], REMOVED]
        end = found.end()
    return "".join([*kept, text[end:]]), "".join([*kept_folded, folded[end:]])


@lru_cache(maxsize=64)
def _boundaries(boundary: str) -> tuple[re.Pattern[str], ...]:
    """Itself however it is spelled, with anything but letters between its letters, and whatever is shaped like it."""
    if not boundary:
        return ()
    itself = r"[\W_]{0,3}".join(re.escape(c) for c in boundary.translate(_ALIKE) if c.isalnum())
    shaped = r"|\brecord[\W_]{0,3}[0-9a-f]{12,}"
    return (re.compile(itself + shaped, re.IGNORECASE),)


def _alike() -> dict[int, str]:
    """One character for one: what looks like an ASCII character, to a reader or to a tokenizer that normalises."""
    wide = (*range(0x2100, 0x2150), *range(0x2460, 0x2500), *range(0xFE50, 0xFF60), *range(0x1D400, 0x1D800))
    forms = {n: unicodedata.normalize("NFKC", chr(n)) for n in (*wide, 0x2024, *range(0x2070, 0x20A0))}
    table = {n: form for n, form in forms.items() if len(form) == 1 and form.isascii()}
    for ascii_one, others in _LOOKS_LIKE.items():
        table |= dict.fromkeys(map(ord, others), ascii_one)
    return table


_LOOKS_LIKE = {
    "<": "‹«≪《〈❮❰⟪˂ᐸ≺⪡🞀", ">": "›»≫》〉❯❱⟫˃ᐳ≻⪢🞂", "|": "｜│┃∣❘ǀ⎮ￜ‖", "_": "▁＿‗", "/": "⁄∕╱", "[": "【〔［⟦", "]": "】〕］⟧",
    "-": "‐‑‒–—―−﹣－⁃", "a": "аαɑ", "b": "Ьᖯ", "c": "сϲⅽ", "d": "ԁⅾ", "e": "еєҽ", "f": "ƒϝ", "i": "іιı", "m": "ⅿ", "n": "ոп",
    "o": "оοօ", "r": "гᴦ", "s": "ѕ", "t": "тτ", "u": "υս", "0": "ОΟ", "1": "Іӏ", "A": "АΑ", "B": "ВΒ", "C": "СϹ", "D": "Ꭰ",
    "E": "ЕΕ", "I": "Ι", "N": "Ν", "R": "Ꭱ", "S": "Ѕ", "T": "ТΤ", "Y": "ΥҮ",
}  # fmt: skip
_ALIKE = _alike()


def without_blobs(text: str) -> str:
    return _BASE64.sub(lambda m: f"⟨{len(m.group())} characters of base64⟩", text)


def ends(text: str, most: int) -> tuple[str, int]:
    """Its beginning and its end, with a mark between them that says how much was left out, and that number."""
    if (omitted := len(text) - most) <= 0:
        return text, 0
    tail = most // 4
    return f"{text[: most - tail]} …{omitted} characters cut… {text[len(text) - tail :]}", omitted


def tool_calls(value: Any) -> list[tuple[str, Any]]:
    """Calls that an LLM span's output asks for: (name, arguments), in OpenAI, Anthropic and LangChain shapes."""
    found: list[tuple[str, Any]] = []
    for part in _walk(value):
        function = part.get("function")
        if isinstance(function, dict) and isinstance(function.get("name"), str) and "arguments" in function:
            found.append((function["name"], _parsed(function["arguments"])))
        elif part.get("type") == "tool_use" and isinstance(part.get("name"), str):
            found.append((part["name"], part.get("input")))
        elif isinstance(part.get("name"), str) and "args" in part:
            found.append((part["name"], part["args"]))
    return found


def _messages(value: Any) -> list[Any]:
    if isinstance(value, dict):
        for key in ("messages", "choices", "generations"):
            if isinstance(value.get(key), list) and value[key]:
                # LangChain's generations are a list for each prompt.
                said = value[key][0] if isinstance(value[key][0], list) else value[key]
                return _messages(said) or list(said)
        return []
    if isinstance(value, list) and value and all(isinstance(m, dict) and _is_message(m) for m in value):
        return value
    return []


def _is_message(value: dict[str, Any]) -> bool:
    return "role" in value or "message" in value or (value.get("type") in ("human", "ai", "system", "tool"))


def _words(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        for key in _CONTENT:
            if key in value and (found := _words(value[key])):
                return found
        return "" if "role" in value else _compact(value)
    if isinstance(value, list) and value and all(isinstance(v, dict) and "type" in v for v in value):
        return "\n".join(t for v in value if (t := _words(v.get("text"))))
    return _compact(value)


def _compact(value: Any) -> str:
    return dumped(value) if value not in ({}, []) else ""


def dumped(value: Any) -> str:
    """orjson reads deeper than it writes: arguments that came as a string may nest beyond what it can say again."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS, default=str).decode()
    except TypeError:
        return "⟨nested too deeply to be shown⟩"


def _parsed(arguments: Any) -> Any:
    if isinstance(arguments, str):
        try:
            return orjson.loads(arguments)
        except orjson.JSONDecodeError:
            return arguments
    return arguments


def _walk(value: Any, depth: int = 0) -> Iterator[dict[str, Any]]:
    if depth > 12:
        return
    if isinstance(value, dict):
        yield value
        for child in value.values():
            yield from _walk(child, depth + 1)
    elif isinstance(value, list):
        for child in value:
            yield from _walk(child, depth + 1)
