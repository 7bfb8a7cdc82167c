"""The frame of a service: event in, events out. Ack, retry, dead letters, health and shutdown are here, once."""

import asyncio
import inspect
import logging
import os
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from types import UnionType
from typing import Any, Generic, Protocol, TypeVar, Union, get_args, get_origin, get_type_hints

from aiokafka.errors import KafkaError
from aiokafka.structs import RecordMetadata
from faststream import AckPolicy
from faststream.kafka import KafkaBroker, KafkaMessage

from steelyard import telemetry
from steelyard.batches import Batches
from steelyard.bulkhead import note
from steelyard.delivery import Delivery, Handler, MostlyFailing
from steelyard.errors import Later
from steelyard.events import Event
from steelyard.following import Following
from steelyard.health import Health
from steelyard.kafka import Cluster, Publisher
from steelyard.positions import METADATA_MS, Positions
from steelyard.reasons import reason
from steelyard.settings import Settings
from steelyard.store.database import temporary
from steelyard.store.outbox import Outbox, Relay
from steelyard.tasks import ended, rung
from steelyard.topics import Topics
from steelyard.window import FETCH_WAIT_MS, Window, heartbeat_ms

log = logging.getLogger(__name__)
E = TypeVar("E", bound=Event)
H = TypeVar("H", bound=Callable[..., Any])


class Part(Protocol):
    """Something a service needs while it runs: started in order, stopped in reverse."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def unwell(self) -> str | None: ...


class Publish(Generic[E]):
    """Publishing from inside a transaction: returns what the broker acknowledged, and where it is."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    async def __call__(self, events: Iterable[E]) -> list[RecordMetadata]:
        return await self._publisher.publish(events)


@dataclass(frozen=True)
class Flow:
    """One handler as its signature tells it."""

    service: str
    handler: str
    takes: tuple[type[Event], ...] = ()
    gives: tuple[type[Event], ...] = ()
    outbox: tuple[type[Event], ...] = ()
    many: bool = False
    each: bool = False


@dataclass
class Service:
    """A list of handlers, and what they need. Nothing runs before `run`."""

    name: str
    # What its members of a group are called by, beside the service's name: whoever sees that it died evicts them.
    identity: str | None = None
    flows: list[Flow] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    _handlers: dict[str, tuple[Handler, Flow]] = field(default_factory=dict)
    _windows: list[tuple[Handler, Flow, int]] = field(default_factory=list)
    _followers: list[tuple[Handler, Flow]] = field(default_factory=list)
    _loops: list[tuple[str, Callable[[Any], Awaitable[bool]], float, "asyncio.Event | None"]] = field(
        default_factory=list
    )

    def on(self, handler: H) -> H:
        """Events of one topic, one after the other, or as many as there are where it takes a Sequence."""
        flow = self._note(handler)
        topic = _topic(flow)
        if topic in self._handlers:
            raise TypeError(f"{self.name} has two handlers for {topic}")
        self._handlers[topic] = (handler, flow)
        return handler

    def window(self, slots: int) -> Callable[[H], H]:
        """Events of one topic, as many at once as there are slots."""

        def register(handler: H) -> H:
            self._windows.append((handler, self._note(handler), slots))
            return handler

        return register

    def follow(self, handler: H) -> H:
        """Events of one small topic, heard by each process from the first one on, and before it is ready. A plain
        function: what it changes is in memory."""
        flow = replace(self._note(handler), each=True)
        self.flows[-1] = flow
        self._followers.append((handler, flow))
        return handler

    def loop(self, every: float, bell: "asyncio.Event | None" = None) -> Callable[[H], H]:
        """Work that is found and not sent: again at once while it returns True, else when the bell rings or in time."""

        def register(turn: H) -> H:
            self._note(turn)
            publishes = any(get_origin(hint) is Publish for hint in get_type_hints(turn).values())
            self._loops.append((turn.__name__, turn if publishes else lambda _: turn(), every, bell))
            return turn

        return register

    def writes(self, function: H) -> H:
        """Marks a function that is called by users and not by messages, for the map."""
        self._note(function)
        return function

    def _note(self, handler: Callable[..., Any]) -> Flow:
        flow = _read(self.name, handler)
        self.flows.append(flow)
        return flow

    async def run(
        self, settings: Settings, cluster: Cluster, outbox: Relay | None = None, stop: "asyncio.Event | None" = None
    ) -> None:
        """Until SIGTERM (or `stop`) or until it cannot go on; then everything in flight is finished or handed back."""
        await _Running(self, settings, cluster, outbox).until_stopped(stop or _stopped_by_signal())


class _Running:
    """One run of a service: what was started, and in which order it stops."""

    def __init__(self, service: Service, settings: Settings, cluster: Cluster, relay: Relay | None) -> None:
        self._service, self._settings, self._cluster, self._relay = service, settings, cluster, relay
        self._publisher = Publisher(cluster)
        self._topics = Topics(cluster, self._publisher.renew)
        self._windows: list[Window] = []
        self._batches: list[Batches] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._started: list[Callable[[], Awaitable[None]]] = []
        self._stopping = asyncio.Event()
        self._ready = False

    async def until_stopped(self, stop: "asyncio.Event") -> None:
        health = Health(self._service.name, self._settings.http_host, self._settings.http_port, self._unwell)
        await health.start()
        starting = asyncio.create_task(self._start())
        stopping = asyncio.create_task(stop.wait())
        try:
            await _first(starting, stopping)
            if starting.done():
                starting.result()
                await _first(stopping, self._failure)
            if self._failure.done():
                self._failure.result()
        finally:
            stopping.cancel()
            await ended([starting])
            log.info("%s: stopping", self._service.name)
            await self._stop()
            await health.stop()

    async def _start(self) -> None:
        await self._begin(self._publisher)
        await self._begin(self._topics)
        for part in self._service.parts:
            await self._begin(part)
        if self._relay is not None:
            self._spawn(self._relay.run(self._publisher))
        for handler, flow in self._service._followers:
            following = Following(self._cluster, flow.takes[0], handler)
            await self._begin(following)
            self._spawn(following.listening)
        for handler, flow, slots in self._service._windows:
            await self._patiently(partial(self._open_window, handler, flow, slots), "the consumer")
        if self._service._handlers:
            await self._patiently(self._open_subscribers, "the consumers")
        for name, turn, every, bell in self._service._loops:
            self._spawn(self._turning(name, turn, every, bell))
        self._ready = True
        log.info("%s: ready, pid %d", self._service.name, os.getpid())

    async def _begin(self, part: Publisher | Topics | Part | Following) -> None:
        await self._patiently(part.start, type(part).__name__)
        self._started.append(part.stop)

    async def _patiently(self, start: Callable[[], Awaitable[None]], what: str) -> None:
        """A dependency that is not up yet is waited for: services may be started in any order."""
        tries = 0
        while True:
            try:
                return await start()
            except Exception as e:
                if not isinstance(e, Later | KafkaError) and not temporary(e):
                    raise
                if tries % 20 == 0:
                    log.warning(
                        "%s: waiting for %s: %s",
                        self._service.name,
                        what,
                        reason(e),
                    )
                tries += 1
                await asyncio.sleep(min(2.0, 0.1 * 1.5**tries))

    async def _open_window(self, handler: Handler, flow: Flow, slots: int) -> None:
        window = self._window(handler, flow, slots)
        await window.start()
        self._windows.append(window)
        self._started.append(window.stop)

    async def _open_subscribers(self) -> None:
        s = self._settings
        broker = KafkaBroker(
            self._cluster.bootstrap.split(","),
            consumer_only=True,
            allow_auto_create_topics=False,  # FastStream would make a missing topic with one partition
            apply_types=False,
            graceful_timeout=s.drain_seconds,
            logger=None,
            metadata_max_age_ms=METADATA_MS,
        )
        batches: list[Batches] = []
        try:
            for topic, (handler, flow) in self._service._handlers.items():
                batches.append(await self._subscribe(broker, topic, handler, flow))
            await broker.start()
        except BaseException:
            await broker.stop()  # what it began is not left half open when it is begun anew
            for begun in batches:
                await begun.stop()
            raise
        self._batches = batches
        for begun in batches:
            self._spawn(begun.watch())
            self._spawn(begun.retry())
            self._started.append(begun.stop)
        self._started.append(broker.stop)

    async def _subscribe(self, broker: KafkaBroker, topic: str, handler: Handler, flow: Flow) -> Batches:
        delivery = self._delivery(topic)
        positions = Positions(self._cluster, topic, self._service.name)

        async def work(records: Sequence[Any]) -> Sequence[Any]:
            if flow.many:
                return await delivery.many(records, handler)
            for record in records:
                await delivery.one(record, handler)
            return ()

        batches = Batches(positions, delivery.puzzling, work)
        subscriber = broker.subscriber(
            self._cluster.topic(topic),
            group_id=self._cluster.group(self._service.name),
            batch=True,  # one commit for a batch: a commit per message is 170 messages a second
            max_records=500,
            batch_timeout_ms=20,
            ack_policy=AckPolicy.MANUAL,  # the default, ACK_FIRST, loses the message a crash interrupts
            auto_offset_reset="earliest",  # the default, latest, loses what was sent before the first start
            rebalance_timeout_ms=30_000,
            session_timeout_ms=int(self._settings.kafka_session_seconds * 1000),
            heartbeat_interval_ms=heartbeat_ms(self._settings.kafka_session_seconds),
            fetch_max_wait_ms=FETCH_WAIT_MS,
            decoder=_as_it_is,
            listener=batches,
        )

        async def deliver(message: KafkaMessage) -> None:
            if self._stopping.is_set():
                return  # not handled, not committed: the next owner's
            records = message.raw_message if isinstance(message.raw_message, tuple) else (message.raw_message,)
            try:
                await batches.handle(records)
            except MostlyFailing as e:
                await self._give_up(e)

        subscriber(deliver)
        await batches.start(lambda: subscriber.consumer)
        return batches

    def _delivery(self, topic: str) -> Delivery:
        return Delivery(self._service.name, topic, self._publisher, set_aside=self._settings.set_aside_unknown)

    def _window(self, handler: Handler, flow: Flow, slots: int) -> Window:
        topic = _topic(flow)
        delivery = self._delivery(topic)
        window = Window(
            self._cluster,
            topic,
            self._service.name,
            lambda record: delivery.one(record, handler),
            slots=slots,
            drain_seconds=self._settings.drain_seconds,
            rebalance_drain_seconds=self._settings.rebalance_drain_seconds,
            session_seconds=self._settings.kafka_session_seconds,
            puzzling=delivery.puzzling,
            client_id=f"{self._service.name}-{self._service.identity or os.getpid()}",
        )
        self._spawn(_raised(window.failure))
        return window

    async def _turning(
        self, name: str, turn: Callable[[Any], Awaitable[bool]], every: float, bell: "asyncio.Event | None"
    ) -> None:
        """For ever: an error that does not pass is seen in log and metrics, and keeps neither this loop's later turns nor the
        service's other loops from their work."""
        publish: Publish[Any] = Publish(self._publisher)
        tries = 0
        while True:
            again = False
            try:
                again = await turn(publish)
                tries = 0
            except Exception as e:
                if isinstance(e, Later | KafkaError) or temporary(e):
                    log.warning("%s: %s, again in a moment", self._service.name, reason(e))
                else:
                    note(self._service.name, "loop", name, e)
                tries += 1
                await asyncio.sleep(min(10.0, 0.2 * 2**tries))
            if not again:
                await rung(bell or asyncio.Event(), every)
                if bell:
                    bell.clear()

    async def _give_up(self, error: Exception) -> None:
        """Says so and waits for the stop, so that no later batch moves the offset; a drain has nothing to wait for here."""
        self._failed(error)
        await self._stopping.wait()

    def _failed(self, error: BaseException) -> None:
        if not self._failure.done():
            log.error("%s: cannot go on: %s", self._service.name, _words(error))
            self._failure.set_exception(error)

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        task.add_done_callback(self._died)
        self._tasks.append(task)

    def _died(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()):
            self._failed(error)

    async def _stop(self) -> None:
        """Consumers first, so that what is in flight can still publish; the publisher last."""
        self._stopping.set()
        for stop in reversed(self._started[2 + len(self._service.parts) :]):
            with suppress(KafkaError):
                await stop()
        await ended(self._tasks)
        for stop in reversed(self._started[: 2 + len(self._service.parts)]):
            with suppress(Exception):
                await stop()

    async def _unwell(self) -> str | None:
        if not self._ready:
            return "starting"
        parts: list[Part | Batches | Window] = [self._topics, *self._windows, *self._batches, *self._service.parts]
        for part in parts:
            if why := await part.unwell():
                return why
        return await self._publisher.unwell()


def main(name: str, settings: Settings, build: Callable[[], Awaitable[None]]) -> None:
    """A service's `__main__`: logs, traces, the loop; a failure is one line and exit code 1."""
    telemetry.start_logging(settings.log_level, settings.log_format)
    telemetry.start_tracing(name, settings.otel_exporter_otlp_endpoint)
    try:
        asyncio.run(_await(build))
    except MostlyFailing as e:
        sys.exit(f"{name}: stopped, because most messages fail: {e}")
    except KeyboardInterrupt:
        sys.exit(130)


def _stopped_by_signal() -> asyncio.Event:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


def _words(error: BaseException) -> str:
    """What most messages fail for is a reason already."""
    return str(error) if isinstance(error, MostlyFailing) else reason(error)


async def _await(build: Callable[[], Awaitable[None]]) -> None:
    asyncio.get_running_loop().set_exception_handler(telemetry.log_loop_error)
    await build()


async def _as_it_is(message: KafkaMessage) -> KafkaMessage:
    return message


async def _raised(failure: "asyncio.Future[None]") -> None:
    await failure


async def _first(*waited: "asyncio.Future[Any]") -> None:
    await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)


# Reading signatures.


def _read(service: str, handler: Callable[..., Any]) -> Flow:
    hints = get_type_hints(handler)
    returned = hints.pop("return", None)
    takes: tuple[type[Event], ...] = ()
    outbox: tuple[type[Event], ...] = ()
    gives, many = _events(returned), False
    for hint in hints.values():
        if get_origin(hint) is Outbox:
            outbox = _events(get_args(hint)[0])
        elif get_origin(hint) is Publish:
            gives = (*gives, *_events(get_args(hint)[0]))
        elif found := _events(hint):
            takes, many = found, get_origin(hint) is not None and get_origin(hint) not in (Union, UnionType)
    return Flow(service, handler.__name__, takes, gives, outbox, many)


def _events(hint: Any) -> tuple[type[Event], ...]:
    if inspect.isclass(hint) and issubclass(hint, Event):
        return (hint,)
    wrappers = (Union, UnionType, Sequence, Iterable, AsyncIterator, AsyncIterable, AsyncGenerator)
    origin = get_origin(hint)
    if origin in wrappers or origin in (list, tuple):
        return tuple(kind for part in get_args(hint) for kind in _events(part))
    return ()


def _topic(flow: Flow) -> str:
    topics = {kind.topic for kind in flow.takes}
    if len(topics) != 1:
        raise TypeError(f"{flow.handler} must take the events of exactly one topic, not of {sorted(topics) or 'none'}")
    return topics.pop()
