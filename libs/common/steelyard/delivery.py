"""One message through its handler: its outcome is published or it is a dead letter before its offset moves."""

import asyncio
import inspect
import logging
import random
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable, Iterable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, Protocol, cast

from aiokafka.errors import KafkaError

from steelyard import telemetry
from steelyard.errors import Later, Never
from steelyard.events import Event, decode
from steelyard.reasons import reason
from steelyard.store.database import held_up, temporary

log = logging.getLogger(__name__)
Handler = Callable[..., Any]


class Post(Protocol):
    """What delivery needs of a publisher."""

    async def publish(self, events: Iterable[Event]) -> Any: ...

    async def bury(self, topic: str, record: Any, reason: str, service: str) -> None: ...


class MostlyFailing(Exception):
    """Most messages fail: that is a broken service or a broken sender, and moving everything aside would hide it."""


class Limit:
    """Dead letters are for the odd one out. Of the last `of` messages more than half failing stops the service."""

    def __init__(self, at_least: int = 20, of: int = 50) -> None:
        self._at_least, self._outcomes = at_least, deque[bool](maxlen=of)

    def passed(self) -> None:
        self._outcomes.append(True)

    def failed(self, reason: str) -> None:
        self._outcomes.append(False)
        failures = self._outcomes.count(False)
        if failures >= self._at_least and failures * 2 > len(self._outcomes):
            raise MostlyFailing(f"{failures} of the last {len(self._outcomes)} messages failed, the last one: {reason}")


class Delivery:
    """Handlers may be repeated at any time; what they must not be is skipped."""

    def __init__(
        self, service: str, topic: str, post: Post, limit: Limit | None = None, set_aside: bool = False
    ) -> None:
        self._service, self._topic, self._post, self._set_aside = service, topic, post, set_aside
        self._limit = limit or Limit()

    def puzzling(self, record: Any) -> str | None:
        """Why this version does not understand the record; it is not handed in, and waits for another version. Where such
        ones are set aside, it is handed in, and is a dead letter."""
        return None if self._set_aside else _unknown(record.value)

    async def one(self, record: Any, handler: Handler) -> None:
        """Returns when the record's offset may move. Raises only MostlyFailing, and when cancelled."""
        event = await self._decoded(record)
        if event is None:
            return
        name = type(event).__name__
        try:
            with telemetry.continued(f"{self._service} {name}", record.headers), self._handling(name):
                await self._patiently(lambda: self._handle(handler, event, name), name)
        except MostlyFailing:
            raise
        except Exception as e:
            await self._bury(record, name, e)
        else:
            self._passed(name)

    async def many(self, records: Sequence[Any], handler: Handler) -> list[Any]:
        """All at once; where that fails, in halves, so that one bad message does not take its neighbours along. Where rows
        of one run are held up, run by run. Returns the records that are still held up then, for a later attempt."""
        readable = [(r, e) for r in records if (e := await self._decoded(r)) is not None]
        return await self._parts(readable, handler) if readable else []

    async def _parts(self, readable: Sequence[tuple[Any, Event]], handler: Handler) -> list[Any]:
        events = [e for _, e in readable]
        try:
            with self._handling("batch"):
                await self._patiently(lambda: self._handle(handler, events, "batch"), "batch", ends=held_up)
        except Exception as e:
            if held_up(e):
                parts = _by_run(readable)
                if len(parts) == 1:
                    return [r for r, _ in readable]
            elif len(readable) == 1:
                await self._bury(readable[0][0], type(events[0]).__name__, e)
                return []
            else:
                middle = len(readable) // 2
                parts = [readable[:middle], readable[middle:]]
            return [record for part in parts for record in await self._parts(part, handler)]
        for event in events:
            self._passed(type(event).__name__)
        return []

    async def _handle(self, handler: Handler, given: Event | Sequence[Event], name: str) -> None:
        """An output that the broker does not take yet is kept and sent again: beginning anew would end what the handler
        has under way. However it ends, the handler has ended too when this returns."""
        async with aclosing(_outputs(handler(given))) as outputs:
            async for events in outputs:
                await self._patiently(partial(self._post.publish, events), name)

    async def _decoded(self, record: Any) -> Event | None:
        if self._set_aside and (why := _unknown(record.value)):
            await self._aside(record, why)
            return None
        found: list[Event] = []

        async def attempt() -> None:
            found.append(decode(record.value))

        try:
            await self._patiently(attempt, "unread")
        except Never as e:
            await self._bury(record, "unreadable", e)
            return None
        return found[0]

    async def _aside(self, record: Any, why: str) -> None:
        """On purpose, so it is no sign of a broken service."""
        log.warning("%s: the message at offset %d is set aside: %s", self._service, record.offset, why)
        telemetry.HANDLED.labels(service=self._service, event="unknown", outcome="dead").inc()
        await self._patiently(lambda: self._post.bury(self._topic, record, why, self._service), "unknown")

    async def _patiently(
        self, attempt: Callable[[], Awaitable[Any]], name: str, ends: Callable[[Exception], bool] = lambda _: False
    ) -> None:
        """A dependency that is away is waited for, here, with the offset where it is; but not for what `ends` the wait."""
        tries = 0
        while True:
            try:
                await attempt()
                return
            except Exception as e:
                if ends(e) or not _waits(e):
                    raise
                pause = _pause(tries, e)
                level = logging.WARNING if tries % 10 == 0 else logging.DEBUG
                log.log(level, "%s: %s waits %.1f s: %s", self._service, name, pause, reason(e))
                telemetry.WAITED.labels(service=self._service, event=name).inc()
                tries += 1
                await asyncio.sleep(pause)

    async def _bury(self, record: Any, name: str, error: Exception) -> None:
        why = reason(error)
        bug = not isinstance(error, Never)
        log.error(
            "%s: %s at offset %d to the dead letters: %s",
            self._service,
            name,
            record.offset,
            why,
            exc_info=error if bug else None,
        )
        telemetry.HANDLED.labels(service=self._service, event=name, outcome="dead").inc()
        self._limit.failed(why)
        await self._patiently(lambda: self._post.bury(self._topic, record, why, self._service), name)

    def _passed(self, name: str) -> None:
        telemetry.HANDLED.labels(service=self._service, event=name, outcome="ok").inc()
        self._limit.passed()

    def _handling(self, name: str) -> Any:
        return telemetry.handling(self._service, name)


async def _outputs(result: Any) -> AsyncGenerator[Sequence[Event], None]:
    """What a handler gives: nothing, events, or events one after the other as they become true."""
    if inspect.isasyncgen(result):
        async with aclosing(cast(AsyncGenerator[Event, None], result)) as events_in_turn:
            async for event in events_in_turn:
                yield (event,)
        return
    if inspect.isawaitable(result):
        result = await result
    events = list(result or ())
    if events:
        yield events


def run_of(event: Event) -> Hashable:
    return getattr(event, "run_id", None)


def _by_run(readable: Sequence[tuple[Any, Event]]) -> list[Sequence[tuple[Any, Event]]]:
    runs: dict[Hashable, list[tuple[Any, Event]]] = {}
    for record, event in readable:
        runs.setdefault(run_of(event), []).append((record, event))
    return list(runs.values())


def _unknown(value: bytes) -> str | None:
    try:
        decode(value)
    except Later as e:
        return str(e)
    except Never:
        return None
    return None


def _waits(error: Exception) -> bool:
    if isinstance(error, Later):
        return True
    return (isinstance(error, KafkaError) and bool(error.retriable)) or temporary(error)


def _pause(tries: int, error: Exception) -> float:
    if isinstance(error, Later) and error.after is not None:
        return error.after
    return float(min(30.0, 0.1 * 2 ** min(tries, 10)) * random.uniform(0.5, 1.0))
