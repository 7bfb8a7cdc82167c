"""A relay as a process that stops between the broker's acknowledgement and its own mark, to be killed there."""

import asyncio
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from steelyard.kafka import Cluster, Publisher
from steelyard.store.database import Database
from steelyard.store.outbox import Relay


class Stuck:
    def __init__(self, publisher: Publisher, acknowledged: Path) -> None:
        self._publisher, self._acknowledged = publisher, acknowledged

    async def send(self, messages: Iterable[tuple[str, bytes | None, bytes | None, Any]]) -> None:
        await self._publisher.send(messages)
        self._acknowledged.touch()
        await asyncio.Event().wait()


async def main() -> None:
    publisher = Publisher(Cluster(os.environ["KAFKA_BOOTSTRAP"], os.environ["TOPIC_PREFIX"]))
    await publisher.start()
    await Relay(Database(os.environ["WORKER_DATABASE_URL"])).turn(Stuck(publisher, Path(sys.argv[1])))


if __name__ == "__main__":
    asyncio.run(main())
