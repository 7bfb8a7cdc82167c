"""What an agent did: a trace and its spans, as the judges read them."""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple
from uuid import UUID

from pydantic import BaseModel, ConfigDict


class TraceStatus(StrEnum):
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    ERROR = "ERROR"


class SpanKind(StrEnum):
    AGENT = "AGENT"
    TOOL = "TOOL"
    LLM = "LLM"
    RETRIEVER = "RETRIEVER"
    CHAIN = "CHAIN"
    EMBEDDING = "EMBEDDING"
    OTHER = "OTHER"


class SpanStatus(StrEnum):
    UNSET = "UNSET"
    OK = "OK"
    ERROR = "ERROR"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class Span(_Frozen):
    span_id: UUID
    parent_span_id: UUID | None = None
    name: str
    kind: SpanKind = SpanKind.OTHER
    status: SpanStatus = SpanStatus.UNSET
    input: Any = None
    output: Any = None
    model: str | None = None
    token_usage: Mapping[str, Any] | None = None
    metadata: Mapping[str, Any] = {}
    started_at: datetime
    ended_at: datetime | None = None
    error: str | None = None
    completion_start_time: datetime | None = None
    model_parameters: Mapping[str, Any] | None = None
    cost: Mapping[str, float] | None = None


class Trace(_Frozen):
    """Spans come in the order they started; `version` moves with every write to the trace or to a span of it."""

    trace_id: UUID
    project_id: UUID
    name: str
    status: TraceStatus = TraceStatus.COMPLETED
    input: Any = None
    output: Any = None
    metadata: Mapping[str, Any] = {}
    started_at: datetime
    ended_at: datetime | None = None
    session_id: str | None = None
    user_id: str | None = None
    tags: tuple[str, ...] = ()
    environment: str | None = None
    release: str | None = None
    version: int = 1
    spans: tuple[Span, ...] = ()


def storable(value: Any) -> Any:
    """The same value with what Postgres cannot hold replaced by U+FFFD: NUL characters and lone surrogates."""
    if isinstance(value, str):
        if "\x00" in value:
            value = value.replace("\x00", "\ufffd")
        try:
            value.encode()
        except UnicodeEncodeError:
            value = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return value
    if isinstance(value, dict):
        return {storable(k): storable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [storable(v) for v in value]
    return value


# More than any honest sum; a user's number beyond it would make every sum it enters useless, or overflow.
MOST = 10**12


class Usage(NamedTuple):
    """What a span used up, read out of its own words for it; None where it does not say."""

    prompt_tokens: int | None
    completion_tokens: int | None
    total_tokens: int | None
    total_cost: float | None


NO_USAGE = Usage(None, None, None, None)


def usage(tokens: Mapping[str, Any] | None, cost: Mapping[str, Any] | None) -> Usage:
    """OpenAI's names or Anthropic's; a total that is not said is the sum of its parts."""
    if not tokens and not cost:
        return NO_USAGE
    said = {k: n for k, v in (tokens or {}).items() if (n := _amount(v)) is not None}
    prompt, completion = (said.get(f"{a}_tokens", said.get(f"{b}_tokens")) for a, b in _SPELLINGS)
    parts = [n for n in (prompt, completion) if n is not None]
    total = said.get("total_tokens", sum(parts) if parts else None)
    dollars = {k: n for k, v in (cost or {}).items() if (n := _amount(v)) is not None}
    spent = dollars.get("total", sum(dollars.values()) if dollars else None)
    return Usage(_whole(prompt), _whole(completion), _whole(total), spent)


_SPELLINGS = (("prompt", "input"), ("completion", "output"))


def _whole(n: float | None) -> int | None:
    return None if n is None else int(n)


def _amount(said: Any) -> float | None:
    if isinstance(said, bool) or not isinstance(said, int | float) or said != said:
        return None
    return min(max(said, 0), MOST)


def milliseconds(start: datetime | None, end: datetime | None) -> float | None:
    return (end - start).total_seconds() * 1000 if start and end else None
