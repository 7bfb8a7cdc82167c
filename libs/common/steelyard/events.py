"""THE MAP: every message between the services, with its topic, key and partitions on the class."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, ClassVar, Self
from uuid import UUID

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from steelyard.errors import Later, Never

LARGEST = 256 * 1024
# No deferral and no closing is longer: whatever a sender's clock, a bug or a provider says.
LONGEST_WAIT = 3600.0


class Event(BaseModel):
    """Events that share a topic share its partition count; fields that a reader does not know are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    topic: ClassVar[str]
    keyed_by: ClassVar[str]
    partitions: ClassVar[int]
    version: ClassVar[int]
    compacted: ClassVar[bool]

    def __init_subclass__(
        cls, *, topic: str, keyed_by: str, partitions: int, version: int = 1, compacted: bool = False, **rest: Any
    ) -> None:
        """A class without a topic fails here, at import, and not in production."""
        super().__init_subclass__(**rest)
        for other in KINDS.values():
            if other.topic == topic and other.partitions != partitions:
                raise TypeError(f"{cls.__name__} and {other.__name__} disagree about the partitions of {topic}")
        cls.topic, cls.keyed_by, cls.partitions, cls.version = topic, keyed_by, partitions, version
        cls.compacted = compacted
        KINDS[cls.__name__] = cls

    @classmethod
    def __pydantic_init_subclass__(cls, **rest: Any) -> None:
        if not set(cls.keyed_by.split(", ")) <= set(cls.model_fields):
            raise TypeError(f"{cls.__name__} is keyed by {cls.keyed_by}, which is none of its fields")

    def key(self) -> bytes:
        return " ".join(str(getattr(self, name)) for name in self.keyed_by.split(", ")).encode()

    def encode(self) -> bytes:
        body = self.model_dump_json().encode()
        head = b'{"event":"%s","version":%d' % (type(self).__name__.encode(), self.version)
        whole = head + (b"," + body[1:] if len(body) > 2 else b"}")
        if len(whole) > LARGEST:
            raise Oversize(f"{type(self).__name__} of {len(whole)} bytes; at most {LARGEST} travel in one message")
        return whole

    def aged(self, seconds: float) -> Self:
        """What it means to who hears it so much later; most messages mean the same."""
        return self

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Self:
        return cls.model_validate(fields)


KINDS: dict[str, type[Event]] = {}


class Oversize(Never):
    """Too large for a message: said before the broker is asked."""


def decode(value: bytes | None) -> Event:
    """The event in these bytes. Unreadable is never; a newer version than ours waits for our upgrade."""
    try:
        fields = orjson.loads(value or b"")
        name, version = fields["event"], fields["version"]
    except (orjson.JSONDecodeError, KeyError, TypeError) as e:
        raise Never(f"not an event: {type(e).__name__}: {e}") from e
    if not isinstance(name, str) or not isinstance(version, int):
        raise Never("not an event: its name or version is of another type")
    kind = KINDS.get(name)
    if kind is None or version > kind.version:
        raise Later(f"event {name} version {version} is newer than this service; it waits for the upgrade", after=5)
    try:
        return kind.of(fields)
    except ValidationError as e:
        first = e.errors(include_url=False, include_input=False)[0]
        raise Never(f"unreadable {name}: {e.error_count()} errors, first: {first['type']} in {first['loc'][:1]}") from e


def topics() -> dict[str, int]:
    """Every topic with its partitions."""
    return {kind.topic: kind.partitions for kind in KINDS.values()}


def compacted() -> set[str]:
    """Topics of which the newest message of each key stays, and the others need not."""
    return {kind.topic for kind in KINDS.values() if kind.compacted}


def dead(topic: str) -> str:
    return f"{topic}.dead"


class RunRequested(Event, topic="runs.requested", keyed_by="run_id", partitions=6):
    """A run is in the ledger. It only wakes the resolver, whose loop would find the run anyway."""

    run_id: UUID
    project_id: UUID


class Owed(BaseModel):
    """One metric of a job. `dispatch_no` tells a stale deferral from a current one."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    metric: str
    dispatch_no: int
    attempt: int


class TraceJob(Event, topic="jobs.trace", keyed_by="trace_id", partitions=24):
    """Score one trace by the metrics it still owes to one run. `root_run_id` is the run that it, or what it retries, goes
    back to: what was paid for under it is found again, and with `reuse` whatever the project paid for. In a run of
    sessions the target is the session, and the metrics are signals of it. `probe`: the judge's quota is exhausted, and this
    one is to find out whether it still is."""

    run_id: UUID
    project_id: UUID
    target: str
    trace_id: UUID
    model: str
    owed: tuple[Owed, ...]
    root_run_id: UUID | None = None
    reuse: bool = False
    grouped: bool | None = None
    in_session: bool = False
    probe: bool = False


class TraceScored(Event, topic="scores.trace", keyed_by="target", partitions=12):
    """The outcome of one pair; `value` is None where there is no score, and `reason` says why."""

    run_id: UUID
    project_id: UUID
    target: str
    trace_id: UUID
    metric: str
    value: float | None
    reason: str
    metadata: Mapping[str, Any] = {}
    trace_version: int | None = None


class TraceDeferred(Event, topic="scores.trace", keyed_by="target", partitions=12):
    """Not now: the pair waits in the ledger for `after` seconds, counted by the database's clock from when it is settled.
    `counts` is False where the try was not the pair's own. `until` is the same by the judge's clock, for the release before,
    and is read only where `after` is not there."""

    run_id: UUID
    project_id: UUID
    target: str
    trace_id: UUID
    metric: str
    dispatch_no: int
    until: datetime
    reason: str
    counts: bool = True
    after: float | None = None

    def seconds(self, now: datetime) -> float:
        wait = (self.until - now).total_seconds() if self.after is None else self.after
        return min(LONGEST_WAIT, max(0.0, wait))


class RunExpanded(Event, topic="scores.trace", keyed_by="run_id", partitions=12):
    """All pairs of the run are written: its hold is released, and a run without any finishes."""

    run_id: UUID
    project_id: UUID


class RunFinished(Event, topic="runs.finished", keyed_by="run_id", partitions=6):
    """Every pair of the run is settled."""

    run_id: UUID
    project_id: UUID
    status: str


class ProviderClosed(Event, topic="providers.closed", keyed_by="account, model", partitions=1, compacted=True):
    """A provider takes no call on this account for this model for as long as from `at` to `until`: each judge and each
    dispatcher keeps to it. Both are the sender's times, and only what lies between them counts: whoever hears it counts from
    then, by a clock of his own. It is open again where that is nothing. An account is a provider and a hash of its key."""

    account: str
    model: str
    at: datetime
    until: datetime
    why: str
    exhausted: bool = False

    @property
    def opens(self) -> bool:
        return self.until <= self.at

    @property
    def seconds(self) -> float:
        return min(LONGEST_WAIT, max(0.0, (self.until - self.at).total_seconds()))

    def aged(self, seconds: float) -> Self:
        """Over is not open: that is a word of its own."""
        if self.opens:
            return self
        left = max(timedelta(microseconds=1), self.until - self.at - timedelta(seconds=seconds))
        return self.model_copy(update={"until": self.at + left})
