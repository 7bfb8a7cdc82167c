"""From a model's words to an answer of the schema that was asked for, or to why they are none."""

import json
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from steelyard.metrics.judging import Question, Reply
from steelyard.traces import storable

# A server may ignore our max_tokens, and reading a megabyte of stray fields takes a second of the event loop.
LONGEST_REPLY = 100_000


def said(answer: Any) -> tuple[str, str | None]:
    """The model's words, and why they are no answer where they are none."""
    if not getattr(answer, "choices", None):
        return "", "the judge's reply is empty"
    choice = answer.choices[0]
    said, refusal = choice.message.content or "", getattr(choice.message, "refusal", None)
    if choice.finish_reason == "length":
        return said, "the judge's reply was cut off (JUDGE_MAX_TOKENS)"
    if refusal or choice.finish_reason == "content_filter":
        return str(refusal or said), "the judge refused to answer"
    return said, None


def read(said: str, question: Question, secrets: Sequence[str]) -> Reply:
    """The whole text is the answer, or there is none: the first JSON object in some prose may be the record's own."""
    if len(said) > LONGEST_REPLY:
        raise ValueError(f"it is longer than any answer ({len(said)} characters)")
    try:
        given = storable(_parsed(_unfenced(said)))
        if not isinstance(given, dict):
            raise ValueError("it is not one JSON object")
        given = {k: v if k == "nonce" else without(v, secrets) for k, v in given.items()}
        # Strict: "1", true and [1] are not the number 1.
        reply = question.reply.model_validate(given, strict=True)
    except ValidationError as e:
        first = e.errors(include_input=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if reply.nonce != question.case.nonce:
        raise ValueError("its nonce is not the one that was asked for")
    return reply


def _unfenced(said: str) -> str:
    """No pattern: one that looks for the end of the white space takes hours on a reply of nothing else."""
    text = said.strip().removeprefix("\ufeff").strip()
    if text.startswith("```"):
        text = text.removeprefix("```").removesuffix("```")
        text = text[4:] if text[:4].lower() == "json" else text
    return text.strip()


def _parsed(text: str) -> Any:
    try:
        given, end = _DECODER.raw_decode(text)
    except json.JSONDecodeError:
        raise ValueError("it is not one JSON object") from None
    if text[end:].lstrip()[:1] in ("{", "["):
        raise ValueError("it is not one JSON object but several, and nobody knows which of them counts")
    if end < len(text):
        raise ValueError("it is not one JSON object: words follow it")
    return given


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """orjson would take the last of two verdicts."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("it says something twice")
    return fields


def _no_number(constant: str) -> float:
    raise ValueError(f"it is not one JSON object: {constant} is no JSON")


def _whole(digits: str) -> int:
    """No span has such a number, and neither our messages nor the database could hold it."""
    if len(digits) > 15:
        raise ValueError(f"it holds a number of {len(digits)} digits")
    return int(digits)


_DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_number, parse_int=_whole)


def without(value: Any, secrets: Sequence[str]) -> Any:
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, "…")
        return value
    if isinstance(value, dict):
        return {without(k, secrets): without(v, secrets) for k, v in value.items()}
    return [without(v, secrets) for v in value] if isinstance(value, list) else value
