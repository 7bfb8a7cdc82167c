"""What people would read: text taken out of messages, and made harmless before a judge sees it."""

import re
import unicodedata
from collections.abc import Iterator
from typing import Any

import orjson

# Chat templates' own marks: a judge's server may take them for the end of the judged text.
_TEMPLATE = re.compile(
    r"<\|[^|<>\n]{1,40}\|>|\[/?INST\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>|\x1b\[[0-9;]*[A-Za-z]", re.IGNORECASE
)
# Invisible, though Unicode files them under marks and letters: variation selectors, joiners, fillers.
_INVISIBLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_BASE64 = re.compile(r"(?:data:[\w/+.-]+;base64,)?[A-Za-z0-9+/]{400,}={0,2}")
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
    if text.isascii():  # a hundred times faster, and nearly all that agents write
        text = _CONTROL.sub("", text)
    else:
        text = _INVISIBLE.sub("", text)
        text = "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cf", "Cc", "Co", "Cs", "Cn"))
    text = _TEMPLATE.sub("⟨mark removed⟩", text)
    if boundary:
        text = re.sub(re.escape(boundary), "⟨mark removed⟩", text, flags=re.IGNORECASE)
    return re.sub(r"<{3,}|>{3,}", "⟨mark removed⟩", text)


def without_blobs(text: str) -> str:
    return _BASE64.sub(lambda m: f"⟨{len(m.group())} characters of base64⟩", text)


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
