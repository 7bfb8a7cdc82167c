"""Runs of sessions on the spine: asked for as the API does, judged by a scorer with known values, and checked."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from naive_folds import NAIVE, WEIGHTS
from spine import Spine
from steelyard.events import RunRequested
from steelyard.filters import SessionRunFilters
from steelyard.metrics.judging import NotScored, Score
from steelyard.metrics.sessions import SIGNALS
from steelyard.providers import RULES
from steelyard.runs import sample_size
from steelyard.store import runs, sessions, traces
from steelyard.store.outbox import Outbox
from steelyard.traces import Trace
from steelyard_judge.orders import Order

START = datetime(2026, 1, 1, tzinfo=UTC)
METRICS = ["agent_reliability", "agent_consistency"]


@dataclass
class Chance:
    """A value for each signal of each trace, always the same; `failing` of a hundred are not scored."""

    failing: int = 0
    asked: list[tuple[UUID, str, Order]] = field(default_factory=list)

    async def __call__(self, metric: str, trace: Trace, order: Order) -> Score | NotScored:
        self.asked.append((trace.trace_id, metric, order))
        number = int.from_bytes(hashlib.sha256(f"{trace.trace_id}{metric}".encode()).digest()[:4], "big")
        return NotScored("no luck") if number % 100 < self.failing else Score(number % 1013 / 1012, "by chance")


async def talk(system: Spine, session: str, count: int, **fields: Any) -> list[UUID]:
    """A session of so many traces, a minute apart."""
    made: list[UUID] = []
    async with system.database.begin() as tx:
        for n in range(count):
            trace = {"trace_id": uuid4(), "name": f"turn {n}", "input": f"ask {n}", "output": f"answer {n}"}
            trace |= {"started_at": START + timedelta(minutes=n), "session_id": session} | fields
            await traces.put(tx, system.project, trace, [])
            made.append(UUID(str(trace["trace_id"])))
    return made


async def request(
    system: Spine, metrics: Sequence[str] = METRICS, filters: SessionRunFilters | None = None, **more: Any
) -> UUID:
    wanted, weights = filters or SessionRunFilters(), more.pop("signal_weights", None)
    async with system.database.begin() as tx:
        found, snapshot = await sessions.matching(tx, system.project, wanted)
        rate = more.get("sampling_rate", 1.0)
        run = {
            "id": uuid4(), "project_id": system.project, "metric_names": list(metrics), "judge_model": RULES,
            "total_targets": sample_size(found, rate), "snapshot": snapshot, "target_type": runs.SESSIONS,
            "filters": wanted.as_json() | ({"signal_weights": weights} if weights else {}), **more,
        }  # fmt: skip
        await runs.put(tx, run)
        await Outbox[RunRequested]().put(tx, RunRequested(run_id=run["id"], project_id=system.project))
    return UUID(str(run["id"]))


async def scores(system: Spine, run_id: UUID) -> list[dict[str, Any]]:
    return await system.rows("SELECT * FROM session_scores WHERE eval_run_id = :r ORDER BY session_id, name", r=run_id)


async def assert_folded(system: Spine, run_id: UUID, metrics: Sequence[str] = METRICS) -> int:
    """Every session of the run has one score per metric, equal to a recomputation from the stored signals."""
    (run,) = await system.rows("SELECT filters, total_targets FROM runs WHERE id = :r", r=run_id)
    weights = run["filters"].get("signal_weights") or WEIGHTS
    stored = await scores(system, run_id)
    assert len(stored) == len({(s["session_id"], s["name"]) for s in stored}) == run["total_targets"] * len(metrics)
    signals = await _signals(system, run_id)
    for score in stored:
        known = list(signals[score["session_id"]].values())
        expected = NAIVE[score["name"]](known, weights)
        if expected is None:
            assert (score["status"], score["value"]) == ("FAILED", None)
        else:
            assert abs(float(score["value"]) - expected) < 1e-9, score
        assert score["metadata"]["signals_present"] == sum(len(v) for v in known)
    return len(stored)


async def _signals(system: Spine, run_id: UUID) -> Mapping[str, Mapping[UUID, dict[str, float]]]:
    """As they are stored: scores of the run's traces, by session and trace."""
    rows = await system.rows(
        """
        SELECT t.session_id, s.trace_id, s.name, s.number FROM trace_scores s JOIN traces t ON t.trace_id = s.trace_id
        WHERE s.eval_run_id = :r
        """,
        r=run_id,
    )
    found: dict[str, dict[UUID, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        assert row["name"] in SIGNALS
        known = found[row["session_id"]][row["trace_id"]]
        if row["number"] is not None:
            known[row["name"]] = row["number"]
    return found
