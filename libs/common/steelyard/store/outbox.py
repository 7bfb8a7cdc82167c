"""Messages that follow a write: in its transaction, so that both happen or neither; relayed until acknowledged."""

import asyncio
import logging
from collections.abc import Iterable
from typing import Any, Generic, Protocol, TypeVar

from sqlalchemy import text

from steelyard import telemetry
from steelyard.events import Event
from steelyard.store.bells import Bells
from steelyard.store.database import Database, Tx, dumps, reason
from steelyard.tasks import rung

log = logging.getLogger(__name__)
E = TypeVar("E", bound=Event)
CHANNEL = "steelyard_outbox"


class Outbox(Generic[E]):
    """Its type parameter tells the map what a handler announces this way."""

    async def put(self, tx: Tx, *events: E) -> None:
        if not events:
            return
        headers = dumps({name: value.decode() for name, value in telemetry.headers()})
        rows = [{"topic": e.topic, "key": e.key(), "value": e.encode(), "headers": headers} for e in events]
        await tx.execute(_PUT, rows)
        await tx.execute(_NOTIFY)


class Sender(Protocol):
    async def send(self, messages: Iterable[tuple[str, bytes | None, bytes | None, Any]]) -> Any: ...


class Relay:
    """Any number may run. A row is deleted by the transaction that saw its message acknowledged.

    A relay killed in between sends a message twice. It never asks for ids above the last one it saw: transactions
    commit out of the order of their ids, and that would lose rows.
    """

    def __init__(self, database: Database, poll_seconds: float = 1.0, page: int = 200) -> None:
        self._database, self._poll_seconds, self._page = database, poll_seconds, page
        self._bell = asyncio.Event()

    async def run(self, sender: Sender) -> None:
        bells = Bells(self._database.url, {CHANNEL: self._bell})
        await bells.start()
        try:
            await self._forever(sender)
        finally:
            await bells.stop()

    async def _forever(self, sender: Sender) -> None:
        while True:
            try:
                while await self.turn(sender) == self._page:
                    pass
            except Exception as e:
                log.warning("outbox: %s, again in a moment", reason(e))
                await asyncio.sleep(1.0)
            await rung(self._bell, self._poll_seconds)
            self._bell.clear()

    async def turn(self, sender: Sender) -> int:
        async with self._database.begin() as tx:
            rows = (await tx.execute(_TAKE, {"page": self._page})).all()
            if rows:
                rows = sorted(rows, key=lambda r: r.id)
                messages = [
                    (r.topic, bytes(r.key), bytes(r.value), [(k, v.encode()) for k, v in r.headers.items()])
                    for r in rows
                ]
                # Locks are held while the broker answers: without a deadline its outage would hold them for ever.
                async with asyncio.timeout(10):
                    await sender.send(messages)
        telemetry.RELAYED.inc(len(rows))
        return len(rows)


_PUT = text("INSERT INTO outbox (topic, key, value, headers) VALUES (:topic, :key, :value, CAST(:headers AS jsonb))")
_NOTIFY = text(f"NOTIFY {CHANNEL}")
_TAKE = text(
    """
    WITH taken AS MATERIALIZED (SELECT id FROM outbox ORDER BY id LIMIT :page FOR UPDATE SKIP LOCKED)
    DELETE FROM outbox USING taken WHERE outbox.id = taken.id
    RETURNING outbox.id, topic, key, value, headers
    """
)
