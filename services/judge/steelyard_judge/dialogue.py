"""Drives a metric's conversation to its end, with whoever answers, and says who that was."""

import asyncio
import hashlib
import hmac
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import orjson

from steelyard.errors import Later
from steelyard.metrics import SESSION_SIGNALS
from steelyard.metrics.grouped import GROUPED
from steelyard.metrics.judging import Case, Embed, Embedded, Metric, NotScored, Question, Reply, Score, metadata_of
from steelyard.metrics.rules import JUDGE, rule
from steelyard.providers import RULES
from steelyard.settings import Settings
from steelyard.traces import Trace
from steelyard_judge.embeddings import Embedder
from steelyard_judge.model import Gateway
from steelyard_judge.orders import Order
from steelyard_judge.paying import Book, Payer
from steelyard_judge.signals import BY_EMBEDDINGS, Basis, KnownSignals, reused
from steelyard_judge.usage import TooLarge, Unanswered, Usage

LONGEST, MOST_ITEMS = 8000, 200
# What takes more than a few milliseconds to render.
LARGE, MANY_SPANS = 50_000, 40
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


class Asker(Protocol):
    """The gateway, or what stands before it."""

    async def ask(self, question: Question, model: str, usage: Usage) -> Reply: ...


class Model:
    """What a shared answer cost is told by the conversation that asked for it; the others say that they shared one."""

    def __init__(self, gateway: Asker, model: str, shared: "Shared | None" = None, scope: str = "") -> None:
        """Only conversations of one `scope` share answers: what another run paid for has to be asked for."""
        self._gateway, self._model, self._usage, self._scope = gateway, model, Usage(), scope
        self._shared, self._taken = shared or Shared(), 0

    async def answer(self, question: Question) -> Reply:
        if not question.shared:
            return await self._gateway.ask(question, self._model, self._usage)
        bought = self._bought()
        try:
            reply = await self._shared.answer(question, f"{self._model} {self._scope}", lambda: self._ask(question))
        except Unanswered as e:
            raise type(e)(e.reason, self.judge(), e.reply) from None
        self._taken += self._bought() == bought
        return reply

    def _bought(self) -> int:
        """What this conversation got by itself, by a call or out of the book."""
        return self._usage.calls + int(getattr(self._gateway, "reused", 0))

    async def _ask(self, question: Question) -> Reply:
        return await self._gateway.ask(question, self._model, self._usage)

    def judge(self) -> dict[str, Any]:
        told = {"kind": "llm", "model": self._model, **self._usage.as_json()}
        return told | ({"shared_answers": self._taken} if self._taken else {})


class Shared:
    """Answers that several metrics of a trace need alike. One call is made for all who wait and for all who come soon
    after; it protects the money, and a lost answer costs one more call."""

    def __init__(self, most: int = 500) -> None:
        self._most = most
        self._asked: dict[tuple[str, str, bytes], asyncio.Task[Reply]] = {}
        self._waiting: Counter[asyncio.Task[Reply]] = Counter()

    async def answer(self, question: Question, model: str, ask: Callable[[], Coroutine[Any, Any, Reply]]) -> Reply:
        """The prompt holds all of the content: another version of the trace, or half of it, is another question."""
        said = f"{question.system}\0{question.prompt}".encode("utf-8", "replace")
        key = (model, question.stage, hashlib.blake2b(said, digest_size=16).digest())
        task = self._asked.pop(key, None) or _begun(ask())
        self._asked[key] = task
        self._waiting[task] += 1
        try:
            # Shielded: the conversation that began the call may be cancelled while others wait for its answer.
            return await asyncio.shield(task)
        finally:
            self._leave(key, task)

    def _leave(self, key: tuple[str, str, bytes], task: asyncio.Task[Reply]) -> None:
        """Nobody pays for an answer that nobody waits for, and a failure is not remembered."""
        self._waiting[task] -= 1
        if not self._waiting[task]:
            del self._waiting[task]
            task.cancel()
        lost = task.cancelling() or (task.done() and (task.cancelled() or task.exception() is not None))
        if lost and self._asked.get(key) is task:
            del self._asked[key]
        while len(self._asked) > self._most:
            del self._asked[next(iter(self._asked))]


def _begun(asking: Coroutine[Any, Any, Reply]) -> asyncio.Task[Reply]:
    task = asyncio.create_task(asking)
    task.add_done_callback(lambda t: t.cancelled() or t.exception())  # retrieved: its waiters may be gone
    return task


def case_of(trace: Trace, secret: str) -> Case:
    """Boundary and nonce derive from the content and a secret: the record's author cannot guess them, and the same
    record makes the same prompt again. The trace's version will not do: one that was deleted and sent again under its id
    begins at the first, and its author may have learnt that one's marks from a reason."""
    case = Case(trace)
    mark = hmac.new(secret.encode(), case.content, hashlib.sha256).hexdigest()
    return case.of_the_same_trace(boundary=f"record-{mark[:16]}", nonce=mark[16:28])


class Vectors(Protocol):
    """Who gives vectors to one conversation."""

    async def embed(self, texts: Sequence[str]) -> Embedded: ...


@dataclass
class Metered:
    """An embedder as one conversation uses it, and what that cost."""

    embedder: Embedder
    usage: Usage = field(default_factory=Usage)

    async def embed(self, texts: Sequence[str]) -> Embedded:
        return await self.embedder.embed(texts, self.usage)


async def converse(metric: Metric, case: Case, answerer: Answerer, embedder: Vectors) -> Score | NotScored:
    """A trace that is too large for the model is shown once more at half the size."""
    try:
        return await _conversation(metric, case, answerer, embedder)
    except TooLarge:
        case = case.of_the_same_trace(tokens=case.tokens // 2)
        await asyncio.to_thread(getattr, case, "rendering")
    try:
        return await _conversation(metric, case, answerer, embedder)
    except TooLarge as e:
        return _told(metric, case, NotScored(e.reason), e.judge, asked=True)


async def _conversation(metric: Metric, case: Case, answerer: Answerer, embedder: Vectors) -> Score | NotScored:
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
    """The traces under way, each rendered once for its job and large ones off the event loop: heartbeats must not wait."""

    def __init__(self, secret: str) -> None:
        self._secret = secret
        # Protects time: the metrics of a large trace arrive together, and one thread renders for all of them.
        self._rendering = asyncio.Lock()

    async def of(self, trace: Trace, kept: dict[str, Any]) -> Case:
        """`kept` is the job's: what outlives it would be memory that nobody admitted."""
        if not is_large(trace):
            return _known(trace, kept) or _keep(case_of(trace, self._secret), kept)
        async with self._rendering:
            case = _known(trace, kept) or _keep(await asyncio.to_thread(case_of, trace, self._secret), kept)
            await asyncio.to_thread(getattr, case, "rendering")
        return case


def _known(trace: Trace, kept: dict[str, Any]) -> Case | None:
    case: Case | None = kept.get("case")
    return case if case is not None and case.trace is trace else None


def _keep(case: Case, kept: dict[str, Any]) -> Case:
    kept["case"] = case
    return case


def is_large(trace: Trace) -> bool:
    """By its spans or its characters, of which no more are counted than it takes to know."""
    waiting, left = [trace.input, trace.output, *(x for s in trace.spans for x in (s.input, s.output, s.error))], LARGE
    while waiting and left > 0 and len(trace.spans) < MANY_SPANS:
        value = waiting.pop()
        left -= len(value) if isinstance(value, str) else 10
        if isinstance(value, list | tuple | Mapping):
            waiting += value.values() if isinstance(value, Mapping) else value
    return left <= 0 or len(trace.spans) >= MANY_SPANS


def scoring(
    gateway: Gateway,
    embedder: Embedder,
    catalogue: Mapping[str, Metric],
    settings: Settings,
    book: Book | None = None,
    grouped: bool = False,
    known: KnownSignals | None = None,
) -> Any:
    """The judge's scorer: a metric of a trace by the run's judge. The metrics of one job share one rendering, and what
    they ask alike is asked once. `grouped` asks models about several metrics at once; rules cost nothing alone. In a run of
    sessions a signal that is `known` and still holds is taken as it is."""
    cases, shared = _Cases(settings.deployment_secret.get_secret_value()), Shared()
    alone = {**catalogue, **SESSION_SIGNALS}
    in_groups = {**alone, **{name: m for name, m in GROUPED.items() if name in catalogue}}

    async def score(metric: str, trace: Trace, order: Order) -> Score | NotScored:
        together = (grouped if order.grouped is None else order.grouped) and order.model != RULES
        found = (in_groups if together else alone).get(metric)
        if found is None:
            raise Later(f"this judge does not know the metric {metric} yet", after=30, counts=False)
        case = await cases.of(trace, order.kept)
        if order.earlier:
            case = case.of_the_same_trace(earlier=order.earlier)
        who = await embedder.identity() if found.name in BY_EMBEDDINGS else ""
        basis = str(Basis(found, case, order.model, together, who, settings))
        if known and order.in_session:
            there = await reused(known, basis, order.project_id, case, found)
            if there is not None:
                return there
        result = await conversed(found, case, order)
        return replace(result, metadata={**result.metadata, "basis": basis}) if isinstance(result, Score) else result

    async def conversed(found: Metric, case: Case, order: Order) -> Score | NotScored:
        if order.probe and found.name not in BY_EMBEDDINGS:
            gateway.probe(order.model)
        payer = Payer(gateway, book, order, found, settings) if book else None
        model = Model(payer or gateway, order.model, shared, str(order.root_run_id))
        vectors = Metered(embedder)
        try:
            result = await converse(found, case, Rules() if order.model == RULES else model, vectors)
        finally:
            if payer:
                payer.embedded(vectors.usage)
                await payer.settled()
        if vectors.usage.calls:
            result = replace(result, metadata={**result.metadata, "embedding": vectors.usage.as_json()})
        return payer.told(result) if payer else result

    return score
