"""Drives a metric's conversation to its end, with whoever answers, and says who that was."""

import asyncio
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol
from uuid import UUID

import orjson

from steelyard.errors import Later
from steelyard.metrics.judging import Case, Embed, Metric, NotScored, Question, Reply, Score, metadata_of
from steelyard.metrics.rules import JUDGE, rule
from steelyard.providers import RULES
from steelyard.traces import Trace
from steelyard_judge.embeddings import Embedder
from steelyard_judge.model import Gateway, TooLarge, Unanswered, Usage

LONGEST, MOST_ITEMS = 8000, 200
# An outcome travels in one message of at most 256 KiB.
MOST_BYTES = 100_000


# Some things are plain to see: then nobody is asked, whoever the judge is.
DECIDED = {"kind": "code"}


class Answerer(Protocol):
    """Who answers the questions of one conversation; `judge` is what the score says about them afterwards."""

    async def answer(self, question: Question) -> Reply: ...

    def judge(self) -> dict[str, Any]: ...


class Rules:
    def __init__(self) -> None:
        self._fired: list[str] = []

    async def answer(self, question: Question) -> Reply:
        ruling = rule(question.case, question.reply)
        if ruling is None:
            raise Unanswered(f"{RULES} has no rules for this metric", dict(JUDGE))
        self._fired += ruling.fired
        return ruling.reply

    def judge(self) -> dict[str, Any]:
        return {**JUDGE, "rules_fired": self._fired}


class Model:
    def __init__(self, gateway: Gateway, model: str) -> None:
        self._gateway, self._model, self._usage = gateway, model, Usage()

    async def answer(self, question: Question) -> Reply:
        return await self._gateway.ask(question, self._model, self._usage)

    def judge(self) -> dict[str, Any]:
        return {"kind": "llm", "model": self._model, **self._usage.as_json()}


def case_of(trace: Trace, secret: str) -> Case:
    """Boundary and nonce derive from the content and a secret: the record's author cannot guess them, and the same
    record makes the same prompt again."""
    what = f"{trace.project_id}/{trace.trace_id}/{trace.version}".encode()
    mark = hmac.new(secret.encode(), what, hashlib.sha256).hexdigest()
    return Case(trace, boundary=f"record-{mark[:16]}", nonce=mark[16:28])


async def converse(metric: Metric, case: Case, answerer: Answerer, embedder: Embedder) -> Score | NotScored:
    """A trace that is too large for the model is shown once more at half the size."""
    try:
        return await _conversation(metric, case, answerer, embedder)
    except TooLarge:
        case = replace(case, tokens=case.tokens // 2)
    try:
        return await _conversation(metric, case, answerer, embedder)
    except TooLarge as e:
        return _told(metric, case, NotScored(e.reason), e.judge, asked=True)


async def _conversation(metric: Metric, case: Case, answerer: Answerer, embedder: Embedder) -> Score | NotScored:
    asked_judge = asked_any = False
    talk = metric.judging(case)
    answer: Any = None
    try:
        while True:
            asked: Question | Embed = talk.send(answer)
            asked_any = True
            if isinstance(asked, Embed):
                answer = await embedder.embed(asked.texts)
            else:
                asked_judge, answer = True, await answerer.answer(asked)
    except StopIteration as end:
        result: Score | NotScored = end.value
        judge = answerer.judge() if asked_judge else {} if asked_any else DECIDED
    except TooLarge:
        raise
    except Unanswered as e:
        result = NotScored(e.reason, {"reply": e.reply} if e.reply else {})
        judge = dict(e.judge)
    finally:
        talk.close()
    return _told(metric, case, result, judge, asked_judge)


def _told(
    metric: Metric, case: Case, result: Score | NotScored, judge: Mapping[str, Any], asked: bool
) -> Score | NotScored:
    told = metadata_of(metric, result) | ({"judge": dict(judge)} if judge else {})
    if asked and case.rendering.cut:
        told["rendering"] = case.rendering.cut
    if asked and case.rendering.suspected:
        told["injection_suspected"] = list(case.rendering.suspected)
    return replace(result, reason=clipped(result.reason, 2000), metadata=small(told))


def small(told: dict[str, Any]) -> dict[str, Any]:
    """Cut visibly, and harder until all of it fits."""
    longest, most = LONGEST, MOST_ITEMS
    while True:
        cut: dict[str, Any] = _clipped(told, longest, most)
        if len(orjson.dumps(cut, option=orjson.OPT_NON_STR_KEYS, default=str)) <= MOST_BYTES or longest <= 60:
            return cut
        longest, most = longest // 2, max(10, most // 2)


def _clipped(value: Any, longest: int, most: int) -> Any:
    if isinstance(value, str):
        return clipped(value, longest)
    if isinstance(value, dict):
        kept = {k: _clipped(v, longest, most) for k, v in list(value.items())[:most]}
        return kept | ({"…": f"{len(value) - most} more were cut"} if len(value) > most else {})
    if isinstance(value, list | tuple):
        some = [_clipped(v, longest, most) for v in value[:most]]
        return some + ([f"…{len(value) - most} more were cut…"] if len(value) > most else [])
    return value


def clipped(text: str, size: int) -> str:
    return text if len(text) <= size else f"{text[: size - 30]} …{len(text) - size + 30} characters cut…"


class _Cases:
    """The traces under way, each rendered once and large ones off the event loop: heartbeats must not wait."""

    def __init__(self, secret: str, most: int = 32, many_spans: int = 40) -> None:
        self._secret, self._most, self._many_spans = secret, most, many_spans
        self._known: dict[tuple[UUID, int], Case] = {}

    async def of(self, trace: Trace) -> Case:
        key = (trace.trace_id, trace.version)
        case = self._known.pop(key, None) or case_of(trace, self._secret)
        self._known[key] = case
        while len(self._known) > self._most:
            del self._known[next(iter(self._known))]
        if len(trace.spans) >= self._many_spans:
            await asyncio.to_thread(getattr, case, "rendering")
        return case


def scoring(gateway: Gateway, embedder: Embedder, catalogue: Mapping[str, Metric], secret: str) -> Any:
    """The judge's scorer: a metric of a trace by the run's judge. The metrics of one job share one rendering."""
    cases = _Cases(secret)

    async def score(metric: str, trace: Trace, model: str) -> Score | NotScored:
        found = catalogue.get(metric)
        if found is None:
            raise Later(f"this judge does not know the metric {metric} yet", after=30, counts=False)
        answerer: Answerer = Rules() if model == RULES else Model(gateway, model)
        return await converse(found, await cases.of(trace), answerer, embedder)

    return score
