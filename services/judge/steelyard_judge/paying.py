"""Between a conversation and the gateway: what was paid for is found again, and every call is written down.

An answer that arrived is committed before the outcome it led to is published. So only a death between an answer's arrival
and its commit may pay for it again."""

import asyncio
import hashlib
import itertools
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from pydantic import ValidationError

from steelyard.metrics.judging import Metric, NotScored, Question, Reply, Score
from steelyard.settings import Settings
from steelyard.store import answers
from steelyard.store.answers import Found, Made, Wanted
from steelyard.store.database import Database, reason, temporary
from steelyard.tasks import ended
from steelyard_judge.lookup import Batched
from steelyard_judge.model import Gateway
from steelyard_judge.orders import Order
from steelyard_judge.usage import CallNote, Usage

log = logging.getLogger(__name__)
MOST_ROWS = 500
LONGEST_PAUSE = 5.0


class Book(Protocol):
    """Where answers are looked for, and calls written down."""

    async def find(self, wanted: Wanted) -> Found | None: ...

    def write(self, made: Sequence[Made]) -> "asyncio.Future[None]": ...


class Ledger:
    """The database's book. What is written while a transaction is on its way goes into the next one. While calls cannot be
    written down nothing new is paid for: whoever wants to ask waits, so what is kept in memory is what was under way."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._wanted: Batched[Wanted, Found] = Batched(self._find, most=MOST_ROWS)
        self._waiting: list[tuple[Sequence[Made], asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    async def find(self, wanted: Wanted) -> Found | None:
        await self._writable.wait()
        return await self._wanted.get(wanted)

    def write(self, made: Sequence[Made]) -> "asyncio.Future[None]":
        """Begun at once, and to be awaited before the outcome is told."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((made, done))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())
        return done

    async def start(self) -> None: ...

    async def stop(self) -> None:
        """What was paid for is written down, whoever is still there to hear of it."""
        if self._writing is None:
            return
        await asyncio.wait([self._writing], timeout=10)
        if not self._writing.done():
            log.error("the database is still away: calls that were paid for are not written down")
            await ended([self._writing])

    async def unwell(self) -> str | None:
        return None

    async def _find(self, wanted: Sequence[Wanted]) -> dict[Wanted, Found]:
        async with self._database.begin() as tx:
            return await answers.find(tx, wanted)

    async def _write(self) -> None:
        try:
            while self._waiting:
                group, self._waiting = self._waiting[:MOST_ROWS], self._waiting[MOST_ROWS:]
                await self._commit(group)
        finally:
            self._writing = None

    async def _commit(self, group: Sequence[tuple[Sequence[Made], "asyncio.Future[None]"]]) -> None:
        error: Exception | None = None
        try:
            await self._patiently([m for made, _ in group for m in made])
        except Exception as e:
            log.error("%d calls could not be written down: %s", len(group), reason(e), exc_info=e)
            error = e
        self._writable.set()
        for _, done in group:
            _end(done, error)

    async def _patiently(self, made: Sequence[Made]) -> None:
        """An absent database is waited for: what was paid is not forgotten because it could not be written at once."""
        for tries in itertools.count():
            try:
                async with self._database.begin() as tx:
                    await answers.record(tx, made)
                return
            except Exception as e:
                if not temporary(e):
                    raise
                log.warning("calls cannot be written down yet: %s", reason(e))
                self._writable.clear()
                await asyncio.sleep(min(LONGEST_PAUSE, 0.1 * 2 ** min(tries, 10)) * random.uniform(0.5, 1.0))


def _end(done: "asyncio.Future[None]", error: Exception | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)
        done.exception()  # retrieved: its conversation may be gone


@dataclass
class Payer:
    """Asks for one metric of one trace: first the book, then the gateway. Used like a gateway by a conversation."""

    gateway: Gateway
    book: Book
    order: Order
    metric: Metric
    settings: Settings
    reused: int = 0
    _written: list["asyncio.Future[None]"] = field(default_factory=list)

    async def ask(self, question: Question, model: str, usage: Usage) -> Reply:
        wanted = Wanted(self.order.project_id, self.order.root_run_id, self._key(question, model), self.order.reuse)
        if (known := self._known(question, await self.book.find(wanted))) is not None:
            self.reused += 1
            return known
        before, reply = len(usage.notes), None
        try:
            reply = await self.gateway.ask(question, model, usage)
            return reply
        finally:
            notes = usage.notes[before:]
            if notes:
                made = [self._made(n, wanted, question, model, reply if n is notes[-1] else None) for n in notes]
                self._written.append(self.book.write(made))

    def embedded(self, usage: Usage) -> None:
        """Vectors that an API was paid for: written down, and found again only as long as this process remembers them."""
        model, wanted = str(self.settings.embedding_model), Wanted(self.order.project_id, self.order.root_run_id, b"")
        if usage.notes:
            made = [self._call(n, wanted, "embed", model, n.outcome, None) for n in usage.notes]
            self._written.append(self.book.write(made))

    async def settled(self) -> None:
        """All that this conversation paid for is committed."""
        for written in self._written:
            await asyncio.shield(written)

    def told(self, result: Score | NotScored) -> Score | NotScored:
        """A score says how many of its answers were found and not asked for: those cost nothing this time."""
        if not self.reused:
            return result
        judge = dict(result.metadata.get("judge", {})) | {"reused_answers": self.reused}
        return replace(result, metadata={**result.metadata, "judge": judge})

    def _known(self, question: Question, found: Found | None) -> Reply | None:
        if found is None:
            return None
        try:
            return question.reply.model_validate(found.reply)
        except ValidationError:
            return None  # of another version of the schema

    def _made(self, note: CallNote, wanted: Wanted, question: Question, model: str, reply: Reply | None) -> Made:
        outcome = "unusable" if note.outcome == "ok" and reply is None else note.outcome
        return self._call(note, wanted, question.stage, model, outcome, reply)

    def _call(self, note: CallNote, wanted: Wanted, stage: str, model: str, outcome: str, reply: Reply | None) -> Made:
        return Made(
            wanted=wanted, run_id=self.order.run_id, trace_id=self.order.trace_id, metric=self.metric.name,
            metric_version=self.metric.version, stage=stage, model=model, attempt=self.order.attempt,
            outcome=outcome, input_tokens=note.input_tokens, output_tokens=note.output_tokens,
            cached_tokens=note.cached_tokens, cost=note.cost, seconds=note.seconds,
            reply=reply.model_dump(mode="json") if reply is not None else None,
        )  # fmt: skip

    def _key(self, question: Question, model: str) -> bytes:
        """All that decides an answer. What several metrics ask alike is the same question whoever asks it."""
        version = "" if question.shared else f"{self.metric.name} {self.metric.version}"
        asked: tuple[Any, ...] = (
            model, self.settings.judge_max_tokens, self.settings.judge_temperature, version, question.stage,
            question.system, question.prompt,
        )  # fmt: skip
        return hashlib.blake2b("\0".join(map(str, asked)).encode("utf-8", "replace"), digest_size=20).digest()
