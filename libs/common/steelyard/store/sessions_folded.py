"""Sessions of runs that have counted down: a row of `folds` each, until their signals are folded into scores."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import TextClause, text

from steelyard.store.database import Tx

Key = tuple[UUID, str]


@dataclass(frozen=True)
class ToFold:
    run_id: UUID
    target: str
    project_id: UUID
    size: int
    metrics: Sequence[str]
    filters: Mapping[str, Any]
    created_at: datetime

    @property
    def key(self) -> Key:
        return self.run_id, self.target


async def put(tx: Tx, ended: Sequence[Key]) -> None:
    """In the transaction that settled their last pairs."""
    if ended:
        await tx.execute(_PUT, _keys(ended))


async def claim(tx: Tx, metrics: Sequence[str], large: bool, small: int, limit: int) -> list[ToFold]:
    """The longest waiting of the small ones or of the large ones, locked; what others have locked is left to them. A
    session of a metric that is not among these waits for a newer aggregator."""
    given = {"metrics": list(metrics), "large": large, "small": small, "limit": limit}
    return [ToFold(**r._mapping) for r in await tx.execute(_CLAIM, given)]


async def signals(tx: Tx, keys: Sequence[Key], page: int) -> AsyncIterator[Sequence[Any]]:
    """Of these sessions, in the order of their traces."""
    async for rows in _pages(tx, _SIGNALS, keys, page):
        yield rows


async def trace_versions(tx: Tx, keys: Sequence[Key], page: int) -> AsyncIterator[Sequence[Any]]:
    """Which traces, in which version, the signals are of; sorted, each once."""
    async for rows in _pages(tx, _TRACE_VERSIONS, keys, page):
        yield rows


async def _pages(tx: Tx, statement: TextClause, keys: Sequence[Key], page: int) -> AsyncIterator[Sequence[Any]]:
    """By a cursor on the server: not more than a page is in memory here, or handled at once."""
    rows = await tx.stream(statement, _keys(keys), execution_options={"yield_per": page})
    async for part in rows.partitions(page):
        yield part


async def hold(tx: Tx, sessions: Sequence[tuple[UUID, str]]) -> set[tuple[UUID, str]]:
    """Those that still are there; none of them can be deleted before this transaction ends."""
    if not sessions:
        return set()
    wanted = sorted(set(sessions))
    given = {"projects": [project for project, _ in wanted], "sessions": [session for _, session in wanted]}
    return {(r.project_id, r.session_id) for r in await tx.execute(_HOLD, given)}


async def done(tx: Tx, outcomes: Sequence[tuple[Key, Sequence[str]]]) -> None:
    """They are folded. The metrics that failed are what a retry of the run will ask for again."""
    if outcomes:
        keys = _keys([key for key, _ in outcomes])
        await tx.execute(_FAILED, keys | {"failed": [",".join(metrics) for _, metrics in outcomes]})
        await tx.execute(_DONE, keys)


async def put_off(tx: Tx, key: Key) -> None:
    await tx.execute(_PUT_OFF, {"run": key[0], "target": key[1]})


def _keys(keys: Sequence[Key]) -> dict[str, Any]:
    return {"runs": [run for run, _ in keys], "targets": [target for _, target in keys]}


_PUT = text(
    """
    INSERT INTO folds (run_id, target, project_id, size)
    SELECT run_id, target, project_id, size FROM targets
    WHERE (run_id, target) IN (SELECT * FROM unnest(CAST(:runs AS uuid[]), CAST(:targets AS text[])))
    ORDER BY run_id, target
    """
)
# Nothing but the rows of `folds` is locked: a run that is deleted meanwhile is found out at the end.
_CLAIM = text(
    """
    SELECT f.run_id, f.target, f.project_id, f.size, coalesce(t.metrics, r.metric_names) AS metrics, r.filters, r.created_at
    FROM folds f JOIN targets t ON t.run_id = f.run_id AND t.target = f.target JOIN runs r ON r.id = f.run_id
    WHERE f.since <= now() AND (f.size > :small) = :large AND r.deleted_at IS NULL
        AND coalesce(t.metrics, r.metric_names) <@ CAST(:metrics AS text[])
    ORDER BY f.since, f.run_id, f.target LIMIT :limit FOR UPDATE OF f SKIP LOCKED
    """
)
_OF_THESE = """
    FROM unnest(CAST(:runs AS uuid[]), CAST(:targets AS text[])) AS k (run_id, target)
    JOIN pairs p ON p.run_id = k.run_id AND p.target = k.target AND p.place IS NOT NULL
"""
_SIGNALS = text(
    f"""
    SELECT p.run_id, p.target, p.trace_id, p.metric, p.value, p.reason {_OF_THESE}
    ORDER BY p.run_id, p.target, p.place, p.metric
    """
)
_TRACE_VERSIONS = text(
    f"""
    SELECT DISTINCT p.run_id, p.target, p.trace_id, p.trace_version {_OF_THESE} AND p.trace_version IS NOT NULL
    ORDER BY p.run_id, p.target, p.trace_id, p.trace_version
    """
)
_HOLD = text(
    """
    SELECT s.project_id, s.session_id FROM sessions s
    JOIN unnest(CAST(:projects AS uuid[]), CAST(:sessions AS text[])) AS k (project_id, session_id)
        ON s.project_id = k.project_id AND s.session_id = k.session_id
    ORDER BY s.project_id, s.session_id FOR KEY SHARE OF s
    """
)
_FAILED = text(
    """
    UPDATE targets t SET failed_metrics = string_to_array(k.failed, ',')
    FROM unnest(CAST(:runs AS uuid[]), CAST(:targets AS text[]), CAST(:failed AS text[])) AS k (run_id, target, failed)
    WHERE t.run_id = k.run_id AND t.target = k.target
    """
)
_DONE = text(
    """
    DELETE FROM folds f USING unnest(CAST(:runs AS uuid[]), CAST(:targets AS text[])) AS k (run_id, target)
    WHERE f.run_id = k.run_id AND f.target = k.target
    """
)
_PUT_OFF = text("UPDATE folds SET since = now() + interval '1 minute' WHERE run_id = :run AND target = :target")
