"""The gateway to models: litellm, imported here alone and when first needed, with one retry layer: the ledger."""

import asyncio
import contextlib
import hashlib
import json
import logging
import math
import os
import random
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from types import ModuleType
from typing import Any

from pydantic import ValidationError

from steelyard.clock import utc_now
from steelyard.errors import Later
from steelyard.metrics.judging import Case, Question, Reply
from steelyard.providers import PROVIDERS, RULES, at_own_address, default_model, provider_of
from steelyard.settings import Settings
from steelyard.traces import storable

log = logging.getLogger(__name__)
# From strict to lax; what a model refuses is remembered, and not tried again with it.
LADDER = ("schema", "json", "text")
# How vendors and servers say that they do not take a schema, or this one.
_FORMAT = re.compile(
    r"response_?(?:format|schema|json_?schema|mime_?type)|json[_ ]?(?:schema|mode|object|validate)|output_(?:format|config)"
    r"|structured[_ ]?output|guided_|grammar|tool_choice|tool_use_failed|\bschema\b",
    re.IGNORECASE,
)
_SECRET = re.compile(r"(sk|key|token|bearer|api)[-_ :=\"'a-z]*[A-Za-z0-9_\-]{12,}", re.IGNORECASE)

_NO_MONEY = re.compile(
    r"insufficient_quota|exceeded your current quota|billing_(?:not_active|hard_limit)|billing hard limit"
    r"|check your billing|credit balance is too low",
    re.IGNORECASE,
)
_RETRY_DELAY = re.compile(r'"retryDelay": *"(\d+(?:\.\d+)?)s"')
# How long a call waits for its turn. Longer, and the conversations of a slow provider would hold all of a judge's slots.
PATIENCE = 5.0
# A provider may quote the whole request: no more of its words is looked at, or a pattern takes half a minute.
MOST_SAID = 2000
# A server may ignore our max_tokens, and reading a megabyte of stray fields takes a second of the event loop.
LONGEST_REPLY = 100_000


class Unanswered(Exception):
    """No usable answer, and asking again would bring none: becomes *not scored, because …*."""

    def __init__(self, reason: str, judge: Mapping[str, Any], reply: str | None = None) -> None:
        super().__init__(reason)
        self.reason, self.judge, self.reply = reason, judge, reply


class TooLarge(Unanswered):
    """The model cannot take this much text; less of it may do."""


@dataclass(frozen=True)
class CallNote:
    """One call as it ended. `cost` is None where nobody lists a price."""

    outcome: str
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    cost: float | None
    seconds: float


@dataclass
class Usage:
    """What a conversation cost. `cost` is None as soon as one price is unknown: unknown is not free."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cost: float | None = 0.0
    seconds: float = 0.0
    notes: list[CallNote] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        cost = None if self.cost is None else round(self.cost, 8)
        said = {k: v for k, v in self.__dict__.items() if k != "notes"}
        return {**said, "cost": cost, "seconds": round(self.seconds, 3)}

    def note(self, outcome: str, one: "Usage") -> None:
        """Adds a call that ended to the sums."""
        self.input_tokens += one.input_tokens
        self.output_tokens += one.output_tokens
        self.cached_tokens += one.cached_tokens
        self.seconds += one.seconds
        self.cost = None if self.cost is None or one.cost is None else self.cost + one.cost
        cost, tokens = one.cost, (one.input_tokens, one.output_tokens, one.cached_tokens)
        self.notes.append(CallNote(outcome, *tokens, cost, one.seconds))


@dataclass
class Gate:
    """What one provider takes on one key. A 429 closes it until the time its answer named, and halves how many calls
    go out at once afterwards; each round of answers adds one. Nothing is known, and nothing limited, before the first."""

    until: float = 0.0
    why: str = ""
    at_once: float = math.inf
    busy: int = 0
    lowered: float = 0.0
    patience: float = PATIENCE
    waiting: deque["asyncio.Future[None]"] = field(default_factory=deque)

    @contextlib.asynccontextmanager
    async def passed(self, model: str) -> AsyncIterator[None]:
        self._open()
        if self.full:
            await self._turn(model)
        else:
            self.busy += 1
        try:
            self._open()  # it may have closed meanwhile
            yield
        finally:
            self._leave()

    @property
    def full(self) -> bool:
        return self.busy + 1 > self.at_once

    def close(self, why: str, seconds: float) -> None:
        self.until, self.why = max(self.until, time.monotonic() + seconds), why

    def fewer(self, began: float) -> None:
        """Calls that were under way together are limited together, and count once."""
        if began >= self.lowered:
            self.at_once = max(1.0, min(self.at_once, self.busy) / 2)
            self.lowered = time.monotonic()

    def more(self) -> None:
        """Only as long as the limit is felt: what is not tried says nothing."""
        if self.full:
            self.at_once += 1 / self.at_once

    def _open(self) -> None:
        if (wait := self.until - time.monotonic()) > 0:
            raise Later(self.why, after=wait + _jitter(wait), counts=False)

    async def _turn(self, model: str) -> None:
        """First come, first served. Who leaves hands its place on, so it is counted already when the turn comes."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append(turn)
        try:
            async with asyncio.timeout(self.patience):
                await turn
        except (TimeoutError, asyncio.CancelledError) as e:
            if turn.done() and not turn.cancelled():
                self._leave()  # it came in the moment in which nobody waited for it any more
            if isinstance(e, TimeoutError):
                rounds = min(12.0, 1 + len(self.waiting) / self.at_once)
                why = f"{model} takes {int(self.at_once)} calls at once"
                raise Later(why, after=self.patience * rounds + _jitter(self.patience), counts=False) from None
            raise

    def _leave(self) -> None:
        self.busy -= 1
        while self.waiting and (self.waiting[0].done() or not self.full):
            turn = self.waiting.popleft()
            if not turn.done():
                self.busy += 1
                turn.set_result(None)


@dataclass
class Gateway:
    settings: Settings
    _rung: dict[str, int] = field(default_factory=dict)
    _gates: dict[str, Gate] = field(default_factory=dict)
    _litellm: ModuleType | None = None
    _session: Any = None

    async def start(self) -> None:
        """Where a model will be asked, its library is loaded before the first question waits for it."""
        if default_model(self.settings.judge_model, self.settings.judge_base_url, os.environ) != RULES:
            await self._library()

    async def stop(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def unwell(self) -> str | None:
        return None

    async def ask(self, question: Question, model: str, usage: Usage) -> Reply:
        """One question, one validated answer; a reply that cannot be read is asked for once more."""
        said, problem = "", ""
        for _ in range(2):
            said = await self._complete(question, model, usage)
            try:
                return _read(said, question, self._kept_from(question.case))
            except ValueError as e:
                problem = str(e)
        why = f"the judge's reply cannot be used: {problem}"
        raise Unanswered(why, self._judge(model, usage), _without(storable(said), self._kept_from(question.case)))

    async def embed(self, model: str, texts: Sequence[str], usage: Usage) -> tuple[Sequence[float], ...]:
        answer = await self._call("aembedding", model, usage, input=list(texts))
        rows = sorted(answer.data, key=lambda d: d["index"])
        if len(rows) != len(texts):
            raise ValueError("not one vector for each text")
        return tuple(tuple(float(x) for x in row["embedding"]) for row in rows)

    def _judge(self, model: str, usage: Usage) -> dict[str, Any]:
        return {"kind": "llm", "model": model, **usage.as_json()}

    async def _complete(self, question: Question, model: str, usage: Usage) -> str:
        s = self.settings
        messages = [{"role": "system", "content": question.system}, {"role": "user", "content": question.prompt}]
        more: dict[str, Any] = {"messages": messages, "max_tokens": s.judge_max_tokens}
        if s.judge_temperature is not None:
            more["temperature"] = s.judge_temperature
        answer = await self._formatted(question, model, usage, more)
        said, why = _said(answer)
        if why:
            said = _without(storable(said), self._kept_from(question.case))
            raise Unanswered(why, self._judge(model, usage), said)
        return said

    async def _formatted(self, question: Question, model: str, usage: Usage, more: Mapping[str, Any]) -> Any:
        """Down the ladder while the request is refused; a lower rung is remembered when it was taken."""
        first = self._rung.get(model, 0)
        for rung in range(first, len(LADDER)):
            try:
                answer = await self._call("acompletion", model, usage, **more, **_format(LADDER[rung], question.reply))
            except _FormatRefused:
                continue
            if rung > self._rung.get(model, 0):
                self._rung[model] = rung
                log.info("%s refuses response_format %s; from now on: %s", model, LADDER[first], LADDER[rung])
            return answer
        raise AssertionError("without a response_format nothing is refused because of one")

    async def _call(self, verb: str, model: str, usage: Usage, **more: Any) -> Any:
        gate = self._gates.setdefault(self._account(model), Gate())
        litellm = await self._library()
        async with gate.passed(model):
            return await self._asked(litellm, verb, model, gate, usage, more)

    async def _asked(
        self, litellm: ModuleType, verb: str, model: str, gate: Gate, usage: Usage, more: Mapping[str, Any]
    ) -> Any:
        began, one, outcome = time.monotonic(), Usage(), "cancelled"
        usage.calls += 1
        try:
            async with asyncio.timeout(self.settings.judge_call_seconds):
                answer = await getattr(litellm, verb)(**self._route(model), **self._manners(verb), **more)
            outcome = "ok"
            _count(litellm, answer, model, one)
        except TimeoutError as e:
            outcome = "timeout"
            raise Later(f"{model} did not answer within {self.settings.judge_call_seconds:.0f} s") from e
        except Exception as e:
            outcome = _outcome_of(e)
            meaning = self._meaning(e, model, gate, usage, bool(more.get("response_format")))
            if outcome == "rate_limited" and isinstance(meaning, Later):
                gate.fewer(began)
            raise meaning from None
        finally:
            one.seconds = time.monotonic() - began
            usage.note(outcome, one)
        gate.more()
        return answer

    def _manners(self, verb: str) -> dict[str, Any]:
        """By default one 429 became three requests and fourteen seconds of a blocked slot."""
        seconds = self.settings.judge_call_seconds
        manners: dict[str, Any] = {"num_retries": 0, "max_retries": 0, "timeout": seconds, "drop_params": True}
        return manners | ({"shared_session": self._session} if verb == "acompletion" else {})

    def _route(self, model: str) -> dict[str, Any]:
        """Models of our own address speak OpenAI's wire, whatever they are called."""
        s = self.settings
        if at_own_address(model, s.judge_base_url, os.environ):
            key = s.judge_api_key.get_secret_value() if s.judge_api_key else "none"
            name = model if model.startswith("openai/") else f"openai/{model}"
            return {"model": name, "api_base": s.judge_base_url, "api_key": key}
        provider = provider_of(model)
        if provider and not model.startswith(provider.prefixes):
            return {"model": f"{provider.key}/{model}"}
        return {"model": model}

    def _account(self, model: str) -> str:
        """Limits belong to a provider's key."""
        route = self._route(model)
        return f"{route['model'].split('/')[0]} {hashlib.sha256(str(route.get('api_key')).encode()).hexdigest()[:12]}"

    def _meaning(self, e: Exception, model: str, gate: Gate, usage: Usage, formatted: bool) -> Exception:
        """A provider's error as one of few words. Its text may quote our key or the judged text, so little of it stays."""
        status = getattr(e, "status_code", None)
        kind, said = type(e).__name__, self._without_keys(str(e))[:300]
        judge = self._judge(model, usage)
        quota = _exhausted(e, status)
        if status == 429 and not quota:
            wait = _retry_after(e)
            gate.close(f"{model} is rate limited", wait)
            return Later(gate.why, after=wait + _jitter(wait), counts=False)
        if quota:
            return Unanswered(f"the quota of {model} is exhausted", judge)
        if kind == "ContextWindowExceededError":
            return TooLarge("the trace is too large for the model", judge)
        if kind in ("Timeout", "APIConnectionError") or status is None or status == 408 or status >= 500:
            return Later(f"{model} is not reachable ({kind})")
        if status in (400, 422) and formatted and _FORMAT.search(str(e)[:MOST_SAID]):
            return _FormatRefused()
        if status in (401, 403):
            return Unanswered(f"{model} refuses the key (status {status})", judge)
        return Unanswered(f"{model} refuses the request (status {status}: {said})", judge)

    def _without_keys(self, text: str) -> str:
        """Our keys by what they are, others by what they look like."""
        known = str(_without(text, [k for k in self._keys() if len(k) >= 4]))
        return _SECRET.sub("…", known[:MOST_SAID])

    def _keys(self) -> list[str]:
        ours = [os.environ.get(v, "") for p in PROVIDERS for v in p.variables]
        ours += [self.settings.judge_api_key.get_secret_value()] if self.settings.judge_api_key else []
        return sorted(filter(None, ours), key=len, reverse=True)

    def _kept_from(self, case: Case) -> list[str]:
        """What no reader of a reply may learn. A record may make its judge tell the marks, for the next record to use;
        a server may quote its own key. Short keys are words ("EMPTY", "ollama"), and a reason may use them."""
        return [k for k in self._keys() if len(k) >= 12] + [case.nonce, case.boundary]

    async def _library(self) -> ModuleType:
        if self._litellm is None:
            # Neither when it is imported nor with the first call to Anthropic does it fetch anything.
            os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
            os.environ.setdefault("LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS", "True")
            os.environ.setdefault("LITELLM_LOG", "ERROR")
            litellm: Any = await asyncio.to_thread(_imported)
            if self._litellm is None:
                import aiohttp

                litellm.suppress_debug_info = True
                litellm.telemetry = False
                litellm.DEFAULT_MAX_RETRIES = 0  # its embeddings take our max_retries=0 for "none was given"
                # At DEBUG they write down whole prompts, with people's words and the marks around them.
                for name in ("openai", "httpx", "httpcore", "LiteLLM"):
                    logging.getLogger(name).setLevel(logging.WARNING)
                # httpx collapses above a hundred connections; aiohttp does not.
                self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
                self._litellm = litellm
        return self._litellm


class _FormatRefused(Exception):
    pass


def _imported() -> ModuleType:
    import litellm  # two seconds and 157 MB: only the judge pays, and only when a model is asked

    module: ModuleType = litellm
    return module


def _format(rung: str, reply: type[Reply]) -> dict[str, Any]:
    if rung == "schema":
        schema = {"name": reply.__name__, "schema": reply.model_json_schema(), "strict": False}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    return {"response_format": {"type": "json_object"}} if rung == "json" else {}


def _said(answer: Any) -> tuple[str, str | None]:
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


def _read(said: str, question: Question, secrets: Sequence[str]) -> Reply:
    """The whole text is the answer, or there is none: the first JSON object in some prose may be the record's own."""
    if len(said) > LONGEST_REPLY:
        raise ValueError(f"it is longer than any answer ({len(said)} characters)")
    try:
        given = storable(_parsed(_unfenced(said)))
        if not isinstance(given, dict):
            raise ValueError("it is not one JSON object")
        given = {k: v if k == "nonce" else _without(v, secrets) for k, v in given.items()}
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


def _without(value: Any, secrets: Sequence[str]) -> Any:
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, "…")
        return value
    if isinstance(value, dict):
        return {_without(k, secrets): _without(v, secrets) for k, v in value.items()}
    return [_without(v, secrets) for v in value] if isinstance(value, list) else value


def _jitter(wait: float) -> float:
    """So that not everybody who waited knocks in the same moment."""
    return random.uniform(0.05, 0.05 + min(5.0, wait * 0.05))


def _count(litellm: ModuleType, answer: Any, model: str, usage: Usage) -> None:
    given = getattr(answer, "usage", None)
    if given is None:
        usage.cost = None
        return
    details = getattr(given, "prompt_tokens_details", None)
    cached = int(getattr(details, "cached_tokens", 0) or 0)
    asked, answered = int(given.prompt_tokens or 0), int(getattr(given, "completion_tokens", 0) or 0)
    usage.input_tokens += asked
    usage.output_tokens += answered
    usage.cached_tokens += cached
    price = litellm.model_cost.get(model) or litellm.model_cost.get(model.split("/", 1)[-1])
    if not price or price.get("input_cost_per_token") is None or usage.cost is None:
        usage.cost = None
        return
    read = price.get("cache_read_input_token_cost") or price["input_cost_per_token"]
    usage.cost += (asked - cached) * price["input_cost_per_token"] + cached * read
    usage.cost += answered * (price.get("output_cost_per_token") or 0.0)


def _outcome_of(e: Exception) -> str:
    """For the record: how a call that brought nothing ended, in one word."""
    status = getattr(e, "status_code", None)
    if status == 429:
        return "rate_limited"
    return "refused" if isinstance(status, int) and 400 <= status < 500 else "failed"


def _exhausted(e: Exception, status: int | None) -> bool:
    """The money is gone, and waiting brings none. Not where "billing" merely occurs: a quoted trace may be about it,
    and Gemini says it of every limit by the minute, as RESOURCE_EXHAUSTED."""
    body = getattr(e, "body", None)
    code = body.get("code") if isinstance(body, dict) else None
    said = f"{code} {str(e)[:MOST_SAID]}"
    limited = "RESOURCE_EXHAUSTED" in said
    return status == 402 or (status in (400, 403, 429) and not limited and _NO_MONEY.search(said) is not None)


def _retry_after(e: Exception) -> float:
    """litellm keeps the headers here and not in the response; seconds or a date, and never more than an hour."""
    headers = {str(k).lower(): v for k, v in (getattr(e, "litellm_response_headers", None) or {}).items()}
    said = headers.get("retry-after") or headers.get("llm_provider-retry-after")
    if said is None and (found := _RETRY_DELAY.search(str(e)[:MOST_SAID])):
        said = found.group(1)  # Gemini has it in the body
    wait = 5.0
    with contextlib.suppress(TypeError, ValueError):
        wait = float(str(said))
        return min(3600.0, max(0.5, wait))
    with contextlib.suppress(TypeError, ValueError):
        wait = (parsedate_to_datetime(str(said)) - utc_now()).total_seconds()
    return min(3600.0, max(0.5, wait))
