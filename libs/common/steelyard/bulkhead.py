"""Bulkheads: an error of one run ends that run's turn, with a backoff of its own, and nobody else's."""

import logging
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

from aiokafka.errors import KafkaError, MessageSizeTooLargeError

from steelyard import telemetry
from steelyard.errors import Later
from steelyard.reasons import reason, sqlstate
from steelyard.store.database import away

log = logging.getLogger(__name__)
MOST_SECONDS = 60.0


class Bulkheads:
    """One for each run (or model, or chore), as long as it fails. In memory: a restart tries everything once more."""

    def __init__(
        self, service: str, turn: str, seconds: float = 1.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._service, self._turn, self._seconds, self._clock = service, turn, seconds, clock
        self._failing: dict[Hashable, tuple[int, float]] = {}

    def closed(self, key: Hashable) -> bool:
        """Whether it failed a moment ago and is not tried yet."""
        return key in self._failing and self._clock() < self._failing[key][1]

    @contextmanager
    def around(self, key: Hashable) -> Iterator[None]:
        """What is everybody's trouble passes; what is this one's is noted, counted, and ends here."""
        try:
            yield
        except Exception as e:
            if everybodys(e):
                raise
            tries = self._failing[key][0] + 1 if key in self._failing else 1
            pause = min(MOST_SECONDS, self._seconds * 2.0 ** min(tries - 1, 10))
            self._failing[key] = tries, self._clock() + pause
            note(self._service, self._turn, key, e)
        else:
            self._failing.pop(key, None)

    def keep(self, keys: set[Hashable]) -> None:
        """What is over need not be remembered."""
        self._failing = {k: v for k, v in self._failing.items() if k in keys}


def everybodys(error: Exception) -> bool:
    """A broker or a database that is away is nobody's fault, and the next one would meet it as well."""
    if isinstance(error, KafkaError):
        return not isinstance(error, MessageSizeTooLargeError)
    return isinstance(error, Later) or away(error)


def note(service: str, turn: str, key: Hashable, error: Exception) -> None:
    """Seen in the log and in the metrics, where a bug shows as a bug, by its kind and its place."""
    telemetry.TURNS_FAILED.labels(service=service, turn=turn, error=kind(error)).inc()
    log.error("%s: %s of %s failed and is put off: %s", service, turn, key, reason(error))


def kind(error: BaseException) -> str:
    return sqlstate(error) or type(error).__name__
