"""The ledger: pairs of runs are dispatched in a window, held back, sent again, and looked up by judges. What a run means is
written by `expansion`, what its results do by `settling`.

One order of locks in every transaction: runs (shared), pairs, traces, targets, sessions, runs (to count), each sorted. The
dispatcher waits for nobody's lock.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text

from steelyard.runs import PairState
from steelyard.store.database import Tx

REFILL = "steelyard_refill"
EVERYTHING: Mapping[UUID, "Watermark"] = {}
MOST_REDISPATCHES = 5


async def lock_run(tx: Tx, run_id: UUID) -> bool:
    """For dispatching: who expands the run meanwhile has a lock of its own."""
    return bool((await tx.execute(_LOCK_RUN, {"id": str(run_id)})).scalar())


@dataclass(frozen=True)
class Demand:
    run_id: UUID
    project_id: UUID
    model: str
    in_flight: int
    ready: int
    settled: int
    root_run_id: UUID
    reuse: bool
    grouped: bool | None
    owed: int
    spent: float
    max_cost_usd: float | None
    pair_cost_usd: float | None
    stopping: str | None
    target_type: str
    paused_why: str | None
    paused_until: datetime | None
    # Whether a paused run's time has come: by the database's clock, or because somebody resumed it.
    due: bool

    def affordable(self) -> int:
        """How many pairs may be under way at once: each could cost as much as it ever can, and what is spent is spent."""
        if self.max_cost_usd is None or not self.pair_cost_usd:
            return self.in_flight + self.ready
        if not math.isfinite(self.max_cost_usd - self.spent):
            return 0
        return max(0, math.floor((self.max_cost_usd - self.spent) / self.pair_cost_usd + 1e-9))

    def broke(self) -> bool:
        """Not one more pair can be paid for, and none under way can leave something over."""
        return self.owed > 0 and self.in_flight == 0 and self.affordable() == 0


@dataclass(frozen=True)
class Taken:
    trace_id: UUID
    metric: str
    target: str
    dispatch_no: int
    attempts: int


@dataclass(frozen=True)
class Watermark:
    """Of a run: no pair that is owed sorts before `owed`, none that is under way was sent before `sent`. Entries of pairs that
    are settled stay in the indexes for as long as anybody's old snapshot could see them: nothing below a watermark is read."""

    owed: tuple[datetime, UUID]
    sent: datetime


@dataclass(frozen=True)
class Pause:
    """For so many seconds by the database's clock, or until a time that the database named; neither where the model is being
    tried."""

    model: str
    why: str
    until: datetime | None = None
    seconds: float | None = None


async def demands(tx: Tx, most: int, marks: Mapping[UUID, Watermark] = EVERYTHING) -> list[Demand]:
    """What each unfinished run has under way and could have, the latter counted no further than anyone could use."""
    given = {
        "most": most,
        "often": MOST_REDISPATCHES,
        "runs": list(marks),
        "owed_ats": [m.owed[0] for m in marks.values()],
        "owed_traces": [m.owed[1] for m in marks.values()],
        "sent_ats": [m.sent for m in marks.values()],
    }
    return [Demand(*r) for r in await tx.execute(_DEMANDS, given)]


async def stop(tx: Tx, run_id: UUID, why: str, said: str) -> bool:
    """Nothing more is sent: what is owed will be settled as not scored. False when somebody else stopped it."""
    return bool((await tx.execute(_STOP, {"run": run_id, "why": why, "said": said})).rowcount)


async def pause(tx: Tx, pause: Pause, anew: bool) -> int:
    """Unfinished runs of a model whose quota is exhausted are held; `anew` also those that are held already, because a
    probe failed. Returns how many changed. For their locks the dispatcher waits: what settles holds them for moments."""
    given = {"model": pause.model, "why": pause.why, "until": pause.until, "seconds": pause.seconds, "anew": anew}
    return (await tx.execute(_PAUSE, given)).rowcount


async def unpause(tx: Tx, model: str) -> int:
    return (await tx.execute(_UNPAUSE, {"model": model})).rowcount


async def claim_probe(tx: Tx, model: str, seconds: float) -> bool:
    """One dispatcher probes a model: for the others its runs are not due, for as long as the answer takes to be heard."""
    return bool((await tx.execute(_CLAIM_PROBE, {"model": model, "seconds": seconds})).rowcount)


async def unsent(tx: Tx, run_id: UUID, page: int) -> list[PairState]:
    """Pairs of a stopped run that will never be sent, those that wait for a later time too."""
    return [state(r) for r in await tx.execute(_UNSENT, {"run": run_id, "page": page})]


async def under_way(tx: Tx, run_id: UUID, mark: Watermark | None, grace_seconds: float) -> tuple[int, Watermark]:
    """Asked again under the run's lock: another dispatcher may have filled the window since. And how far the watermark may
    move: up to the first pair that is owed, locked ones too, and up to the first job. What another transaction is just making
    owed it cannot see, so it stays behind by the longest that such a transaction takes."""
    row = (await tx.execute(_UNDER_WAY, {"run": run_id, "grace": grace_seconds} | _above(mark))).one()
    horizon = (row.horizon, UUID(int=0))
    owed = min((row.available_at, UUID(str(row.trace_id))), horizon) if row.available_at else horizon
    return int(row.n), Watermark(owed, min(row.sent, row.horizon) if row.sent else row.horizon)


async def take(tx: Tx, run_id: UUID, count: int, mark: Watermark | None = None, probe: bool = False) -> list[Taken]:
    """Pairs whose time has come, locked; metrics of one trace beside each other, so that they make one job. A probe is one
    that was put off already: others may ask nobody, and then nothing is found out."""
    given = {"run": run_id, "count": count, "often": MOST_REDISPATCHES} | _above(mark)
    return [Taken(*r) for r in await tx.execute(_TAKE_PROBE if probe else _TAKE, given)]


def _above(mark: Watermark | None) -> dict[str, Any]:
    if mark is None:
        return {"owed_at": None, "owed_trace": None, "sent_at": None}
    return {"owed_at": mark.owed[0], "owed_trace": mark.owed[1], "sent_at": mark.sent}


async def dispatched(
    tx: Tx, run_id: UUID, pairs: Sequence[Taken], places: Sequence[tuple[int, int]], incarnation: UUID
) -> None:
    """In the transaction that locked them, after the broker acknowledged: a crash before this repeats the jobs. A place
    means something in one incarnation of the topics."""
    given = {
        "run": run_id,
        "incarnation": incarnation,
        "traces": [p.trace_id for p in pairs],
        "metrics": [p.metric for p in pairs],
        "partitions": [partition for partition, _ in places],
        "offsets": [offset for _, offset in places],
    }
    await tx.execute(_DISPATCHED, given)


async def overdue(
    tx: Tx, before: datetime, consumed: Mapping[int, int], counted_from: datetime | None = None, page: int = 1000
) -> tuple[int, list[PairState]]:
    """Back to owed: pairs whose job the judges had read without an outcome. `consumed` is the judges' committed offset of
    each partition; what was sent before `counted_from` does not count. Returns how many went back, and those that were
    sent too often.
    """
    partitions = sorted(consumed)
    given = {"before": before, "partitions": partitions, "consumed": [consumed[p] for p in partitions], "page": page}
    given["counted_from"] = counted_from
    back = (await tx.execute(_OVERDUE, given)).rowcount
    return back, [state(r) for r in await tx.execute(_UNDELIVERABLE, {"page": page})]


async def lost(
    tx: Tx, before: datetime, incarnation: UUID, bounds: Mapping[int, tuple[int, int]], page: int = 1000
) -> int:
    """Back to owed, and not counted: pairs whose job or whose outcome's way the broker lost. `bounds` are the first and the
    end offset of each partition, asked after `before`; a job of another incarnation is gone wherever it was."""
    partitions = sorted(bounds)
    given = {
        "before": before,
        "incarnation": incarnation,
        "partitions": partitions,
        "firsts": [bounds[p][0] for p in partitions],
        "ends": [bounds[p][1] for p in partitions],
        "page": page,
    }
    return (await tx.execute(_LOST, given)).rowcount


async def oldest_dispatch(tx: Tx) -> tuple[datetime, datetime] | None:
    """When the oldest unsettled job was sent, and what time it is by the same clock."""
    row = (await tx.execute(_OLDEST_DISPATCH)).one()
    return (row.oldest, row.now) if row.oldest else None


async def wanted(tx: Tx, keys: Sequence[tuple[UUID, UUID]]) -> set[tuple[UUID, UUID, str]]:
    """Of these runs' traces the pairs that are not settled and whose run is not stopping."""
    given = {"runs": [run for run, _ in keys], "traces": [trace for _, trace in keys]}
    return {(r.run_id, r.trace_id, r.metric) for r in await tx.execute(_WANTED, given)}


async def ring(tx: Tx) -> None:
    """The window has room: whoever dispatches is told when this transaction commits."""
    await tx.execute(_RING)


def state(r: Any) -> PairState:
    return PairState(r.run_id, r.trace_id, r.metric, r.project_id, r.target, r.status, r.dispatch_no, r.attempts)


_LOCK_RUN = text("SELECT pg_try_advisory_xact_lock(hashtextextended(:id, 7))")
_FIRST = UUID(int=0)
_ABOVE = f"""
    (available_at, trace_id) >= (
        coalesce(CAST(:owed_at AS timestamptz), '-infinity'), coalesce(CAST(:owed_trace AS uuid), '{_FIRST}')
    )
"""
_DEMANDS = text(
    f"""
    SELECT r.id, r.project_id, r.judge_model, f.n, w.n, r.settled_count, coalesce(r.root_run_id, r.id), r.reuse,
        r.grouped, o.n, coalesce(s.cost, 0), r.max_cost_usd, r.pair_cost_usd, r.stopping, r.target_type, r.paused_why,
        r.paused_until, r.paused_why IS NOT NULL AND coalesce(r.paused_until <= now(), true)
    FROM runs r
    LEFT JOIN unnest(
        CAST(:runs AS uuid[]), CAST(:owed_ats AS timestamptz[]), CAST(:owed_traces AS uuid[]), CAST(:sent_ats AS timestamptz[])
    ) AS m (run_id, owed_at, owed_trace, sent_at) ON m.run_id = r.id
    CROSS JOIN LATERAL (
        SELECT count(*) AS n FROM pairs p
        WHERE p.run_id = r.id AND p.status = 'dispatched' AND p.dispatched_at >= coalesce(m.sent_at, '-infinity')
    ) f
    LEFT JOIN run_spending s ON s.run_id = r.id AND r.max_cost_usd IS NOT NULL
    CROSS JOIN LATERAL (
        SELECT count(*) AS n FROM (
            SELECT 1 FROM pairs p WHERE p.run_id = r.id AND p.status = 'owed' AND p.available_at <= now()
                AND (p.available_at, p.trace_id) >= (coalesce(m.owed_at, '-infinity'), coalesce(m.owed_trace, '{_FIRST}'))
                AND p.redispatches <= :often AND r.stopping IS NULL LIMIT :most
        ) capped
    ) w
    CROSS JOIN LATERAL (
        SELECT count(*) AS n FROM (
            SELECT 1 FROM pairs p WHERE p.run_id = r.id AND p.status = 'owed'
                AND (p.available_at, p.trace_id) >= (coalesce(m.owed_at, '-infinity'), coalesce(m.owed_trace, '{_FIRST}'))
                AND (r.max_cost_usd IS NOT NULL OR r.stopping IS NOT NULL) LIMIT 1
        ) any_owed
    ) o
    WHERE r.status IN ('PENDING', 'RUNNING') AND r.targets_written AND r.deleted_at IS NULL
    ORDER BY r.created_at, r.id
    """
)
_STOP = text(
    """
    UPDATE runs SET stopping = :why, error_message = :said
    WHERE id = :run AND stopping IS NULL AND status IN ('PENDING', 'RUNNING')
    """
)
_DUE = "paused_why IS NOT NULL AND coalesce(paused_until <= now(), true)"
_HELD = """
    SELECT id FROM runs
    WHERE judge_model = :model AND status IN ('PENDING', 'RUNNING') AND deleted_at IS NULL AND stopping IS NULL AND {which}
    ORDER BY id FOR NO KEY UPDATE
"""
_PAUSE = text(
    f"""
    WITH these AS ({_HELD.format(which="(paused_why IS NULL OR CAST(:anew AS bool))")})
    UPDATE runs r SET paused_why = :why,
        paused_until = coalesce(clock_timestamp() + make_interval(secs => CAST(:seconds AS float8)), CAST(:until AS timestamptz))
    FROM these WHERE r.id = these.id
    """
)
_UNPAUSE = text(
    f"""
    WITH these AS ({_HELD.format(which="paused_why IS NOT NULL")})
    UPDATE runs r SET paused_why = NULL, paused_until = NULL FROM these WHERE r.id = these.id
    """
)
_CLAIM_PROBE = text(
    f"""
    WITH these AS ({_HELD.format(which=_DUE)})
    UPDATE runs r SET paused_until = clock_timestamp() + make_interval(secs => :seconds) FROM these WHERE r.id = these.id
    """
)
_UNSENT = text(
    """
    SELECT p.run_id, trace_id, metric, p.project_id, target, p.status, dispatch_no, attempts
    FROM pairs p JOIN runs r ON r.id = p.run_id AND r.stopping IS NOT NULL AND r.expanded
    WHERE p.run_id = :run AND p.status = 'owed' ORDER BY trace_id, metric LIMIT :page
    """
)
_UNDER_WAY = text(
    f"""
    SELECT f.n, f.sent, o.available_at, o.trace_id, now() - make_interval(secs => :grace) AS horizon
    FROM (
        SELECT count(*) AS n, min(dispatched_at) AS sent FROM pairs WHERE run_id = :run AND status = 'dispatched'
            AND dispatched_at >= coalesce(CAST(:sent_at AS timestamptz), '-infinity')
    ) f LEFT JOIN LATERAL (
        SELECT available_at, trace_id FROM pairs WHERE run_id = :run AND status = 'owed' AND {_ABOVE}
        ORDER BY available_at, trace_id LIMIT 1
    ) o ON true
    """
)
_TAKE = text(
    f"""
    SELECT trace_id, metric, target, dispatch_no + 1, attempts FROM pairs
    WHERE run_id = :run AND status = 'owed' AND available_at <= now() AND redispatches <= :often AND {_ABOVE}
    ORDER BY available_at, trace_id, metric LIMIT :count FOR UPDATE SKIP LOCKED
    """
)
_TAKE_PROBE = text(
    f"""
    SELECT trace_id, metric, target, dispatch_no + 1, attempts FROM pairs
    WHERE run_id = :run AND status = 'owed' AND available_at <= now() AND redispatches <= :often AND {_ABOVE}
    ORDER BY reason IS NULL, metric IN ('coherence', 'loop_detection'), available_at, trace_id, metric
    LIMIT :count FOR UPDATE SKIP LOCKED
    """
)
_DISPATCHED = text(
    """
    UPDATE pairs p SET status = 'dispatched', dispatch_no = p.dispatch_no + 1, dispatched_at = clock_timestamp(),
        job_partition = d.partition, job_offset = d.offset, job_incarnation = :incarnation
    FROM unnest(
        CAST(:traces AS uuid[]), CAST(:metrics AS text[]), CAST(:partitions AS int[]), CAST(:offsets AS bigint[])
    ) AS d (trace_id, metric, partition, "offset")
    WHERE p.run_id = :run AND p.trace_id = d.trace_id AND p.metric = d.metric
    """
)
_OLDEST_DISPATCH = text(
    "SELECT min(dispatched_at) AS oldest, clock_timestamp() AS now FROM pairs WHERE status = 'dispatched'"
)
_OVERDUE = text(
    """
    WITH late AS (
        SELECT p.run_id, p.trace_id, p.metric FROM pairs p
        JOIN unnest(CAST(:partitions AS int[]), CAST(:consumed AS bigint[])) AS k (partition, consumed)
            ON k.partition = p.job_partition
        WHERE p.status = 'dispatched' AND p.dispatched_at < :before AND p.job_offset < k.consumed
        ORDER BY p.run_id, p.trace_id, p.metric LIMIT :page FOR UPDATE OF p SKIP LOCKED
    )
    UPDATE pairs p SET status = 'owed', available_at = now(),
        redispatches = redispatches + (dispatched_at >= coalesce(CAST(:counted_from AS timestamptz), '-infinity'))::int
    FROM late WHERE p.run_id = late.run_id AND p.trace_id = late.trace_id AND p.metric = late.metric
    """
)
_LOST = text(
    """
    WITH gone AS (
        SELECT p.run_id, p.trace_id, p.metric FROM pairs p
        JOIN unnest(CAST(:partitions AS int[]), CAST(:firsts AS bigint[]), CAST(:ends AS bigint[]))
            AS k (partition, first, "end") ON k.partition = p.job_partition
        WHERE p.status = 'dispatched' AND p.dispatched_at < :before
            AND (p.job_incarnation <> :incarnation OR p.job_offset < k.first OR p.job_offset >= k."end")
        ORDER BY p.run_id, p.trace_id, p.metric LIMIT :page FOR UPDATE OF p SKIP LOCKED
    )
    UPDATE pairs p SET status = 'owed', available_at = now()
    FROM gone WHERE p.run_id = gone.run_id AND p.trace_id = gone.trace_id AND p.metric = gone.metric
    """
)
# The number is MOST_REDISPATCHES, written out because the partial index is.
_UNDELIVERABLE = text(
    """
    SELECT run_id, trace_id, metric, p.project_id, target, p.status, dispatch_no, attempts
    FROM pairs p JOIN runs r ON r.id = p.run_id AND r.deleted_at IS NULL
    WHERE p.status = 'owed' AND redispatches > 5 LIMIT :page
    """
)
_WANTED = text(
    """
    SELECT p.run_id, p.trace_id, p.metric
    FROM unnest(CAST(:runs AS uuid[]), CAST(:traces AS uuid[])) AS k (run_id, trace_id)
    JOIN pairs p ON p.run_id = k.run_id AND p.trace_id = k.trace_id
    JOIN runs r ON r.id = p.run_id
    WHERE p.status <> 'settled' AND r.stopping IS NULL AND r.deleted_at IS NULL
    """
)
_RING = text(f"NOTIFY {REFILL}")
