"""Signals of sessions, as judges look for them: earlier traces of a session, and values that still hold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text

from steelyard.metrics.judging import Earlier
from steelyard.metrics.loop_detection import WINDOW
from steelyard.store.database import Tx
from steelyard.store.loading import cut_json

Place = tuple[UUID, UUID]
# Characters of an earlier output; an embedder reads 8,000 or 24,000 of it.
MOST_OF_EARLIER = 32_768


@dataclass(frozen=True)
class WantedSignal:
    project_id: UUID
    trace_id: UUID
    name: str
    basis: str


@dataclass(frozen=True)
class KnownSignal:
    score_id: UUID
    run_id: UUID | None
    value: float
    reason: str
    metadata: Mapping[str, Any]
    created_at: datetime


async def earlier(tx: Tx, places: Sequence[Place]) -> dict[Place, tuple[Earlier, ...]]:
    """Of these runs' traces the few before them in their session, oldest first, in the order that the run was expanded
    with: whoever asks, and whenever, compares with the same traces. Deleted ones are passed over."""
    given = {"runs": [run for run, _ in places], "traces": [trace for _, trace in places], "window": WINDOW}
    found: dict[Place, list[Earlier]] = {place: [] for place in places}
    for r in await tx.execute(_EARLIER, given):
        found[r.run_id, r.trace_id].append(Earlier(r.place, r.output))
    return {place: tuple(before) for place, before in found.items()}


async def find(tx: Tx, wanted: Sequence[WantedSignal]) -> dict[WantedSignal, KnownSignal]:
    """The newest automated score that rests on exactly the same; what a person changed is that person's word."""
    given = {
        "n": list(range(len(wanted))),
        "projects": [w.project_id for w in wanted],
        "traces": [w.trace_id for w in wanted],
        "names": [w.name for w in wanted],
        "bases": [w.basis for w in wanted],
    }
    return {
        wanted[r.n]: KnownSignal(r.id, r.eval_run_id, r.number, r.reason or "", r.metadata, r.created_at)
        for r in await tx.execute(_FIND, given)
    }


_EARLIER = text(
    f"""
    SELECT own.run_id, own.trace_id, before.output, before.place FROM unnest(
        CAST(:runs AS uuid[]), CAST(:traces AS uuid[])
    ) AS k (run_id, trace_id)
    JOIN pairs own ON own.run_id = k.run_id AND own.trace_id = k.trace_id AND own.metric = 'loop_detection'
    CROSS JOIN LATERAL (
        SELECT {cut_json("t.output", MOST_OF_EARLIER)} AS output, b.place
        FROM pairs b JOIN traces t ON t.trace_id = b.trace_id AND t.project_id = own.project_id
        WHERE b.run_id = own.run_id AND b.target = own.target AND b.place < own.place AND b.metric = 'loop_detection'
        ORDER BY b.place DESC LIMIT :window
    ) before
    ORDER BY own.run_id, own.trace_id, before.place
    """
)
_FIND = text(
    """
    SELECT k.n, s.id, s.eval_run_id, s.number, s.reason, s.metadata, s.created_at FROM unnest(
        CAST(:n AS int[]), CAST(:projects AS uuid[]), CAST(:traces AS uuid[]), CAST(:names AS text[]), CAST(:bases AS text[])
    ) AS k (n, project_id, trace_id, name, basis)
    CROSS JOIN LATERAL (
        SELECT * FROM trace_scores s
        WHERE s.trace_id = k.trace_id AND s.name = k.name AND s.project_id = k.project_id AND s.source = 'AUTOMATED'
            AND s.status = 'SUCCESS' AND s.number IS NOT NULL AND s.metadata ->> 'basis' = k.basis
        ORDER BY s.created_at DESC LIMIT 1
    ) s
    """
)
