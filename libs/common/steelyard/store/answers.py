"""What judges were asked and answered: replies are found again by what was asked, and every call is written down."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import text

from steelyard.store.database import Tx, dumps


@dataclass(frozen=True)
class Wanted:
    """A question, by the hash of all that decides its answer; `reuse` also takes what other runs of the project paid for."""

    project_id: UUID
    root_run_id: UUID
    key: bytes
    reuse: bool = False


@dataclass(frozen=True)
class Found:
    reply: Mapping[str, Any]
    root_run_id: UUID


@dataclass(frozen=True)
class Made:
    """One call of a model as it ended, and the reply where it can be used again."""

    wanted: Wanted
    run_id: UUID
    trace_id: UUID
    metric: str
    metric_version: str
    stage: str
    model: str
    attempt: int
    outcome: str
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cost: float | None = None
    seconds: float = 0.0
    reply: Mapping[str, Any] | None = field(default=None)


async def find(tx: Tx, wanted: Sequence[Wanted]) -> dict[Wanted, Found]:
    """The run's own answer before another one's, the newest of those."""
    given = {
        "n": list(range(len(wanted))),
        "projects": [w.project_id for w in wanted],
        "roots": [w.root_run_id for w in wanted],
        "keys": [w.key for w in wanted],
        "reuse": [w.reuse for w in wanted],
    }
    return {wanted[r.n]: Found(r.reply, r.root_run_id) for r in await tx.execute(_FIND, given)}


async def record(tx: Tx, made: Sequence[Made]) -> None:
    """Calls, their sum and what can be found again, together: each is committed before the outcome that it led to."""
    calls = [_call(m) for m in made]
    await tx.execute(_CALLS, {"rows": dumps(calls)})
    await tx.execute(_SPEND, {"rows": dumps(calls)})
    kept = [m for m in made if m.reply is not None]
    if kept:
        given = {
            "projects": [m.wanted.project_id for m in kept],
            "roots": [m.wanted.root_run_id for m in kept],
            "keys": [m.wanted.key for m in kept],
            "models": [m.model for m in kept],
            "replies": [dumps(m.reply) for m in kept],
        }
        await tx.execute(_KEEP, given)


async def forget(tx: Tx, days: int, page: int) -> int:
    return (await tx.execute(_FORGET, {"days": days, "page": page})).rowcount


def _call(m: Made) -> dict[str, Any]:
    return {
        "project_id": m.wanted.project_id, "run_id": m.run_id, "trace_id": m.trace_id, "metric": m.metric,
        "metric_version": m.metric_version, "stage": m.stage, "model": m.model, "attempt": m.attempt,
        "outcome": m.outcome, "input_tokens": m.input_tokens, "output_tokens": m.output_tokens,
        "cached_tokens": m.cached_tokens, "cost": m.cost, "seconds": m.seconds,
    }  # fmt: skip


# What is paid and spent.


async def spent(tx: Tx, project: UUID, run_id: UUID) -> list[dict[str, Any]]:
    """By metric and model: calls, tokens, dollars, and how many calls nobody knows the price of."""
    return [dict(r._mapping) for r in await tx.execute(_SPENT, {"project": project, "run": run_id})]


async def spent_by_project(tx: Tx, project: UUID, since: Any, until: Any) -> list[dict[str, Any]]:
    given = {"project": project, "since": since, "until": until}
    return [dict(r._mapping) for r in await tx.execute(_SPENT_BY_PROJECT, given)]


async def pace(tx: Tx, project: UUID, model: str) -> float | None:
    """Seconds that the project's latest calls of this model took on average."""
    return (await tx.execute(_PACE, {"project": project, "model": model})).scalar()


_FIND = text(
    """
    SELECT DISTINCT ON (w.n) w.n, a.reply, a.root_run_id
    FROM unnest(
        CAST(:n AS int[]), CAST(:projects AS uuid[]), CAST(:roots AS uuid[]), CAST(:keys AS bytea[]), CAST(:reuse AS bool[])
    ) AS w (n, project_id, root_run_id, key, reuse)
    JOIN answers a ON a.project_id = w.project_id AND a.key = w.key AND (a.root_run_id = w.root_run_id OR w.reuse)
    ORDER BY w.n, a.root_run_id = w.root_run_id DESC, a.created_at DESC
    """
)
_ROWS = """
    json_to_recordset(CAST(:rows AS json)) AS n (
        project_id uuid, run_id uuid, trace_id uuid, metric text, metric_version text, stage text, model text, attempt int,
        outcome text, input_tokens int, output_tokens int, cached_tokens int, cost float8, seconds float8
    )
"""
_COLUMNS = """
    project_id, run_id, trace_id, metric, metric_version, stage, model, attempt, outcome, input_tokens, output_tokens,
    cached_tokens, cost, seconds
"""
_CALLS = text(f"INSERT INTO calls ({_COLUMNS}) SELECT {_COLUMNS} FROM {_ROWS}")
# Of a run that is gone nobody asks what it cost; sorted, so that two judges never wait for each other in a circle.
_SPEND = text(
    f"""
    INSERT INTO run_spending AS s (run_id, project_id, calls, cost, unpriced)
    SELECT n.run_id, n.project_id, count(*), coalesce(sum(n.cost), 0), count(*) FILTER (WHERE n.cost IS NULL)
    FROM {_ROWS} JOIN runs r ON r.id = n.run_id
    GROUP BY n.run_id, n.project_id ORDER BY n.run_id
    ON CONFLICT (run_id) DO UPDATE SET calls = s.calls + excluded.calls, cost = s.cost + excluded.cost,
        unpriced = s.unpriced + excluded.unpriced
    """
)
_KEEP = text(
    """
    INSERT INTO answers (project_id, root_run_id, key, model, reply)
    SELECT DISTINCT ON (project_id, root_run_id, key) project_id, root_run_id, key, model, CAST(reply AS jsonb)
    FROM unnest(
        CAST(:projects AS uuid[]), CAST(:roots AS uuid[]), CAST(:keys AS bytea[]), CAST(:models AS text[]),
        CAST(:replies AS text[])
    ) AS n (project_id, root_run_id, key, model, reply)
    ORDER BY project_id, root_run_id, key
    ON CONFLICT DO NOTHING
    """
)
_FORGET = text(
    """
    DELETE FROM answers WHERE ctid IN (
        SELECT ctid FROM answers WHERE created_at < now() - make_interval(days => :days) LIMIT :page FOR UPDATE SKIP LOCKED
    )
    """
)
_SUMS = """
    count(*) AS calls, count(*) FILTER (WHERE outcome <> 'ok') AS failed_calls, sum(input_tokens)::bigint AS input_tokens,
    sum(output_tokens)::bigint AS output_tokens, sum(cached_tokens)::bigint AS cached_tokens,
    coalesce(sum(cost), 0) AS cost_usd, count(*) FILTER (WHERE cost IS NULL) AS unpriced_calls,
    avg(seconds) AS avg_seconds
"""
_SPENT = text(
    f"""
    SELECT metric, model, {_SUMS} FROM calls WHERE project_id = :project AND run_id = :run
    GROUP BY metric, model ORDER BY metric, model
    """
)
_SPENT_BY_PROJECT = text(
    f"""
    SELECT metric, model, {_SUMS} FROM calls
    WHERE project_id = :project AND created_at >= coalesce(CAST(:since AS timestamptz), '-infinity')
        AND created_at < coalesce(CAST(:until AS timestamptz), 'infinity')
    GROUP BY metric, model ORDER BY metric, model
    """
)
_PACE = text(
    """
    SELECT avg(seconds) FROM (
        SELECT seconds FROM calls WHERE project_id = :project AND model = :model AND outcome = 'ok'
        ORDER BY created_at DESC LIMIT 200
    ) latest
    """
)
