"""Which pairs judges have under way, and what a judge's death says about those that it had.

A mark is written before a pair's trace is loaded and taken away when its outcome is published. A judge is alive while it
holds its advisory lock (`presence.py`); marks of one that is not are turned into counts of deaths, once."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import text

from steelyard.runs import Key
from steelyard.store.database import Tx
from steelyard.store.loading import STORED
from steelyard.store.presence import absent

# One death is nobody's fault: processes are killed from outside, and a pair under way then goes out beside others again.
FORGIVEN = 1
# A pair that was alone in its judge at so many deaths is not judged again.
MOST_DEATHS = 3


@dataclass(frozen=True)
class Standing:
    """What a judge has to know of a pair before it begins it. `orphaned`: its last judge has gone, and whether it died is
    not decided yet. `elsewhere`: a judge that lives has it under way."""

    metric: str
    deaths: int
    deaths_alone: int
    orphaned: bool
    elsewhere: bool = False

    @property
    def free(self) -> bool:
        """To go beside others. Whether its last judge died need not be known of a pair whom that would be forgiven."""
        return not self.suspect and not (self.orphaned and self.deaths >= FORGIVEN)

    @property
    def suspect(self) -> bool:
        return self.deaths > FORGIVEN

    @property
    def fatal(self) -> bool:
        return self.deaths_alone >= MOST_DEATHS


@dataclass(frozen=True)
class Prospect:
    """Of one trace of a run the pairs that are still to be judged; `stored` is what its values take in the database, None
    where it has very many spans."""

    stored: int | None
    pairs: tuple[Standing, ...]


async def look(tx: Tx, judge: UUID, keys: Sequence[tuple[UUID, UUID]]) -> dict[tuple[UUID, UUID], Prospect]:
    """Of these runs' traces what is not settled, and whose run is not stopping."""
    query = {"judge": judge, "runs": [run for run, _ in keys], "traces": [trace for _, trace in keys]}
    stored: dict[tuple[UUID, UUID], int | None] = {}
    pairs: dict[tuple[UUID, UUID], list[Standing]] = {}
    for r in await tx.execute(_LOOK, query):
        stored[r.run_id, r.trace_id] = r.stored
        standing = Standing(r.metric, r.deaths, r.deaths_alone, r.orphaned, r.elsewhere)
        pairs.setdefault((r.run_id, r.trace_id), []).append(standing)
    return {key: Prospect(stored[key], tuple(pairs[key])) for key in pairs}


async def mark(tx: Tx, judge: UUID, begun: Sequence[tuple[Key, bool]], ended: Sequence[Key]) -> None:
    """What this judge begins (and whether alone), and what it ended since it last wrote: one statement for both."""
    query = {
        "judge": judge,
        "runs": [k[0] for k, _ in begun],
        "traces": [k[1] for k, _ in begun],
        "metrics": [k[2] for k, _ in begun],
        "alone": [alone for _, alone in begun],
        "ended_runs": [k[0] for k in ended],
        "ended_traces": [k[1] for k in ended],
        "ended_metrics": [k[2] for k in ended],
    }
    await tx.execute(_MARK, query)


async def gone(tx: Tx) -> set[UUID]:
    """Judges with marks that hold no lock now: dead, or on their way back after a restart of the database."""
    return await absent(tx, {r.judge for r in await tx.execute(_MARKED)})


async def bury(tx: Tx, judge: UUID) -> int:
    """Its marks become deaths of its pairs; returns of how many. Under its own lock: one that came back keeps its marks,
    and of two that bury it only one counts."""
    if not (await tx.execute(_TRY, {"judge": str(judge)})).scalar():
        return 0
    return (await tx.execute(_BURY, {"judge": judge})).rowcount


_LOOK = text(
    f"""
    WITH k AS MATERIALIZED (
        SELECT run_id, trace_id, (SELECT {STORED} FROM traces t WHERE t.trace_id = n.trace_id) AS stored
        FROM unnest(CAST(:runs AS uuid[]), CAST(:traces AS uuid[])) AS n (run_id, trace_id)
    )
    SELECT p.run_id, p.trace_id, p.metric, p.deaths, p.deaths_alone, k.stored,
        coalesce(other.orphaned, false) AS orphaned, coalesce(other.elsewhere, false) AS elsewhere
    FROM k JOIN pairs p ON p.run_id = k.run_id AND p.trace_id = k.trace_id
    JOIN runs r ON r.id = p.run_id
    CROSS JOIN LATERAL (
        SELECT bool_or(gone) AS orphaned, bool_or(NOT gone) AS elsewhere FROM (
            SELECT pg_try_advisory_xact_lock_shared(hashtextextended(b.judge::text, 13)) AS gone FROM begun b
            WHERE b.run_id = p.run_id AND b.trace_id = p.trace_id AND b.metric = p.metric AND b.judge <> :judge
            OFFSET 0
        ) marks
    ) other
    WHERE p.status <> 'settled' AND r.stopping IS NULL AND r.deleted_at IS NULL
    """
)
_MARK = text(
    """
    WITH ended AS (
        DELETE FROM begun b USING unnest(
            CAST(:ended_runs AS uuid[]), CAST(:ended_traces AS uuid[]), CAST(:ended_metrics AS text[])
        ) AS e (run_id, trace_id, metric)
        WHERE b.judge = :judge AND b.run_id = e.run_id AND b.trace_id = e.trace_id AND b.metric = e.metric
    )
    INSERT INTO begun (run_id, trace_id, metric, judge, alone)
    SELECT run_id, trace_id, metric, :judge, alone FROM unnest(
        CAST(:runs AS uuid[]), CAST(:traces AS uuid[]), CAST(:metrics AS text[]), CAST(:alone AS bool[])
    ) AS n (run_id, trace_id, metric, alone)
    ON CONFLICT (run_id, trace_id, metric, judge) DO NOTHING
    """
)
_MARKED = text("SELECT DISTINCT judge FROM begun")
_TRY = text("SELECT pg_try_advisory_xact_lock(hashtextextended(:judge, 13))")
# Pairs are locked in the order in which everybody locks them.
_BURY = text(
    """
    WITH gone AS (DELETE FROM begun WHERE judge = :judge RETURNING run_id, trace_id, metric, alone),
    held AS (
        SELECT p.run_id, p.trace_id, p.metric, g.alone FROM pairs p
        JOIN gone g ON p.run_id = g.run_id AND p.trace_id = g.trace_id AND p.metric = g.metric
        WHERE p.status <> 'settled' ORDER BY p.run_id, p.trace_id, p.metric FOR UPDATE OF p
    )
    UPDATE pairs p SET deaths = p.deaths + 1, deaths_alone = p.deaths_alone + h.alone::int
    FROM held h WHERE p.run_id = h.run_id AND p.trace_id = h.trace_id AND p.metric = h.metric
    """
)
