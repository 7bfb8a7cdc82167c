"""Sessions of runs that have counted down: their signals, and what came of them."""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any
from uuid import UUID

from sqlalchemy import text

from steelyard.store.database import Tx

Key = tuple[UUID, str]
MOST_TRACES = 2500


async def signals(tx: Tx, ended: Sequence[Key]) -> AsyncIterator[tuple[Any, list[Any]]]:
    """Each with its pairs in the order of its traces. In portions: many small ones share a query, and of large ones not
    more is in memory at once than one. The caller has counted the targets, and so holds their locks."""
    sizes = {(r.run_id, r.target): r.size for r in await tx.execute(_SIZES, _keys(ended))}
    for portion in _portions(ended, sizes):
        rows = (await tx.execute(_SIGNALS, _keys(portion))).all()
        for _, group in groupby(rows, key=lambda r: (r.run_id, r.target)):
            found = list(group)
            yield found[0], found


def _portions(ended: Sequence[Key], sizes: Mapping[Key, int]) -> Iterator[list[Key]]:
    portion, traces = list[Key](), 0
    for key in ended:
        if portion and traces + sizes.get(key, 0) > MOST_TRACES:
            yield portion
            portion, traces = [], 0
        portion.append(key)
        traces += sizes.get(key, 0)
    if portion:
        yield portion


def _keys(ended: Sequence[Key]) -> dict[str, Any]:
    return {"runs": [run for run, _ in ended], "targets": [target for _, target in ended]}


async def hold(tx: Tx, sessions: Sequence[tuple[UUID, str]]) -> set[tuple[UUID, str]]:
    """Those that still are there; none of them can be deleted before this transaction ends."""
    if not sessions:
        return set()
    wanted = sorted(set(sessions))
    given = {"projects": [project for project, _ in wanted], "sessions": [session for _, session in wanted]}
    return {(r.project_id, r.session_id) for r in await tx.execute(_HOLD, given)}


async def failed(tx: Tx, outcomes: Sequence[tuple[UUID, str, Sequence[str]]]) -> None:
    """What a retry of the run will ask for again."""
    if outcomes:
        given = {
            "runs": [run for run, _, _ in outcomes],
            "targets": [target for _, target, _ in outcomes],
            "failed": [",".join(metrics) for _, _, metrics in outcomes],
        }
        await tx.execute(_FAILED, given)


_SIZES = text(
    """
    SELECT run_id, target, size FROM targets
    WHERE (run_id, target) IN (SELECT * FROM unnest(CAST(:runs AS uuid[]), CAST(:targets AS text[])))
    """
)
_SIGNALS = text(
    """
    SELECT t.run_id, t.target, t.size, t.metrics, p.trace_id, p.metric, p.value, p.reason, p.trace_version
    FROM targets t JOIN pairs p ON p.run_id = t.run_id AND p.target = t.target AND p.place IS NOT NULL
    WHERE (t.run_id, t.target) IN (SELECT * FROM unnest(CAST(:runs AS uuid[]), CAST(:targets AS text[])))
    ORDER BY t.run_id, t.target, p.place, p.metric
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
