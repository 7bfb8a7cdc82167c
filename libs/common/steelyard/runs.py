"""What a run is: how many targets it means, which ones a sample takes, and what a pair's outcome does to it."""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID, uuid5

from steelyard.events import TraceDeferred, TraceScored

GONE = "trace deleted"
_SCORES = UUID("5f0c8f8e-5f0b-4a36-9c5e-2f6f5b1f6a10")


def sample_size(matching: int, rate: float) -> int:
    """floor(n x rate), and at least one while anything matches and the rate is above 0."""
    if matching <= 0 or rate <= 0:
        return 0
    return max(1, math.floor(matching * rate + 1e-9))


def sample(run_id: UUID, targets: Iterable[str], size: int) -> list[str]:
    """Which ones is a function of run and target: expanding twice takes the same."""
    return sorted(targets, key=lambda t: (hashlib.md5(f"{run_id}{t}".encode()).hexdigest(), t))[:size]


def score_id(run_id: UUID, trace_id: UUID, metric: str) -> UUID:
    """Derived, so that a redelivery cannot invent a second score."""
    return uuid5(_SCORES, f"{run_id}/{trace_id}/{metric}")


Key = tuple[UUID, UUID, str]


@dataclass(frozen=True)
class PairState:
    """A pair that is not settled, as the ledger holds it."""

    run_id: UUID
    trace_id: UUID
    metric: str
    project_id: UUID
    target: str
    status: str
    dispatch_no: int
    attempts: int

    @property
    def key(self) -> Key:
        return self.run_id, self.trace_id, self.metric


@dataclass(frozen=True)
class Settled:
    pair: PairState
    value: float | None
    reason: str
    metadata: Mapping[str, object]
    trace_version: int | None

    @property
    def outcome(self) -> str:
        return "FAILED" if self.value is None else "SUCCESS"


@dataclass(frozen=True)
class Postponed:
    pair: PairState
    seconds: float
    attempts: int
    reason: str


def key_of(result: TraceScored | TraceDeferred) -> Key:
    return result.run_id, result.trace_id, result.metric


def distinct(results: Iterable[TraceScored | TraceDeferred]) -> dict[Key, TraceScored | TraceDeferred]:
    """One result per pair: a score beats a deferral, the first score later ones, the last deferral earlier ones."""
    kept: dict[Key, TraceScored | TraceDeferred] = {}
    for result in results:
        before = kept.get(key_of(result))
        if not isinstance(before, TraceScored):
            kept[key_of(result)] = result
    return kept


def settle(
    pairs: Sequence[PairState],
    results: Mapping[Key, TraceScored | TraceDeferred],
    most_attempts: int,
    now: datetime,
) -> tuple[list[Settled], list[Postponed]]:
    """What the results do to the pairs that are not settled. A score counts from anyone, a deferral only from the
    current dispatch; a pair that was put off too often is not scored, and says why. `now` is for messages of the release
    before, which name a time."""
    settled: list[Settled] = []
    postponed: list[Postponed] = []
    for pair in pairs:
        result = results[pair.key]
        if isinstance(result, TraceScored):
            settled.append(Settled(pair, result.value, result.reason, result.metadata, result.trace_version))
        elif pair.status == "dispatched" and result.dispatch_no == pair.dispatch_no:
            attempts = pair.attempts + (1 if result.counts else 0)
            if attempts >= most_attempts:
                reason = f"gave up after {attempts} tries: {result.reason}"
                settled.append(Settled(pair, None, reason, {"attempts": attempts}, None))
            else:
                postponed.append(Postponed(pair, result.seconds(now), attempts, result.reason))
    return settled, postponed


def shares(total: int, demands: Mapping[UUID, int]) -> dict[UUID, int]:
    """Max-min: everybody gets what he asks for as long as nobody gets more than an equal part of what is left."""
    given: dict[UUID, int] = {}
    left = total
    for n, (run, wanted) in enumerate(sorted(demands.items(), key=lambda d: (d[1], d[0]))):
        fair = left // (len(demands) - n)
        given[run] = min(wanted, max(fair, 1))
        left = max(0, left - given[run])
    return given


def window(slots: int, settled_per_second: float, refill_seconds: float) -> int:
    """How many pairs are under way in all: the slots, and what they finish while the window is being refilled."""
    wanted = slots + settled_per_second * refill_seconds
    return round(min(4 * slots, max(1.25 * slots, wanted)))
