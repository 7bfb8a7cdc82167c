"""A project of a size at which a list that reads everything is seen: written by SQL, as the tables' owner."""

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import asyncpg

import steelyard.store
from steelyard_local.bench.stage import ORGANIZATION, Clock

PROJECT = "large"
NEIGHBOURS = 5
RUNS = 20
SPANS = 10
# The trigger that keeps sessions compares each session with the statement's traces: many small statements are faster.
PAGE = 500


@dataclass(frozen=True)
class Size:
    traces: int
    runs: int
    traces_in_run: int


LARGE = Size(traces=100_000, runs=RUNS, traces_in_run=3_000)
# All the neighbours together are another tenth of everything.
SMALL = Size(traces=2_000, runs=2, traces_in_run=600)


def version() -> str:
    """Of the tables and of these rows: data that was kept is used again only if both are the same."""
    migrations = Path(steelyard.store.__path__[0]) / "migrations" / "versions"
    files = [*sorted(migrations.glob("*.py")), Path(__file__)]
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()


async def seed(url: str, clock: Clock) -> None:
    """Spans and scores come by two connections at once, without foreign keys: the rows are known to be right."""
    owner = await asyncpg.connect(url)
    try:
        org = await owner.fetchval("SELECT id FROM organizations WHERE name = $1", ORGANIZATION)
        sizes = {PROJECT: LARGE} | {f"neighbour-{n}": SMALL for n in range(1, NEIGHBOURS + 1)}
        for name, size in sizes.items():
            await _traces(owner, org, name, size)
            clock.say(f"{name}: {size.traces} traces, their sessions kept by the triggers")
    finally:
        await owner.close()
    await asyncio.gather(*(_alone(url, sizes, work) for work in (_spans, _scores)))
    clock.say("spans and scores are there")
    await _tidied(url)
    clock.say("vacuumed and analysed")


async def _traces(owner: "asyncpg.Connection[Any]", org: UUID, name: str, size: Size) -> None:
    project = uuid5(org, name)
    await owner.execute("INSERT INTO projects (id, org_id, name) VALUES ($1, $2, $3)", project, org, name)
    for first in range(0, size.traces, PAGE):
        await owner.execute(_TRACES, project, first, min(first + PAGE, size.traces) - 1, size.traces)


async def _alone(url: str, sizes: Mapping[str, Size], work: Any) -> None:
    owner = await asyncpg.connect(url)
    try:
        await owner.execute("SET session_replication_role = replica")
        await owner.execute("SET work_mem = '256MB'")
        for row in await owner.fetch("SELECT id, name FROM projects WHERE name = ANY($1)", list(sizes)):
            await work(owner, row["id"], sizes[row["name"]])
    finally:
        await owner.close()


async def _spans(owner: "asyncpg.Connection[Any]", project: UUID, size: Size) -> None:
    await owner.execute(_SPANS, project, SPANS, TEXT)


async def _scores(owner: "asyncpg.Connection[Any]", project: UUID, size: Size) -> None:
    for run in range(size.runs):
        run_id = uuid5(project, f"run-{run}")
        first = (size.traces - size.traces_in_run) * run // max(size.runs - 1, 1)
        await owner.execute(_SCORES, project, run_id, first, size.traces_in_run)
        await owner.execute(_RUN, project, run_id, run, size.traces_in_run)


async def _tidied(url: str) -> None:
    owner = await asyncpg.connect(url)
    try:
        await owner.execute("VACUUM ANALYZE")
        await owner.execute("CHECKPOINT")
    finally:
        await owner.close()


TEXT = " ".join(
    f"{who} asked about {what} number {n} and the answer named the {where}."
    for n, (who, what, where) in enumerate(
        (who, what, where)
        for who in ("a customer", "an agent", "the shop")
        for what in ("an order", "a refund", "a delivery")
        for where in ("receipt", "warehouse", "timetable")
    )
)
# Ids and choices are functions of a row's number: the same rows each time. Five traces are a session, minutes apart;
# every fiftieth session belongs to one busy user.
_TRACES = f"""
    INSERT INTO traces (
        trace_id, project_id, name, status, input, output, metadata, started_at, ended_at, session_id, user_id, tags,
        environment, release, span_count, prompt_tokens, completion_tokens, total_tokens, total_cost
    )
    SELECT md5($1::uuid::text || i)::uuid, $1::uuid,
        CASE WHEN i % 5000 = 17 THEN 'nightly-export' ELSE
            (ARRAY['support', 'booking', 'coder', 'research'])[1 + h % 4] || '/' ||
            (ARRAY['answer', 'search', 'plan', 'refund', 'summarise', 'triage', 'review', 'draft'])[1 + h / 4 % 8]
        END,
        CASE WHEN i > $4::int - 100 THEN 'RUNNING' WHEN h % 20 = 0 THEN 'ERROR' ELSE 'COMPLETED' END,
        json_build_object('question', repeat('what happened to my order, please? ', 8)),
        json_build_object('answer', repeat('your order left the warehouse today. ', 8)),
        jsonb_build_object('channel', 'web', 'attempt', h % 3),
        started, CASE WHEN i <= $4::int - 100 THEN started + (200 + h % 20000) * interval '1 ms' END,
        format('session-%s', session),
        CASE WHEN session % 50 = 0 THEN 'user-busy' ELSE 'user-' || abs(hashint4(session)) % 5000 END,
        ARRAY['chat'] || CASE WHEN h % 3 = 0 THEN ARRAY['mail'] ELSE '{{}}' END
            || CASE WHEN h % 40 = 0 THEN ARRAY['beta'] ELSE '{{}}' END
            || CASE WHEN i % 4000 = 42 THEN ARRAY['incident'] ELSE '{{}}' END,
        (ARRAY['production', 'staging', 'test', 'development'])[1 + (h % 10 > 5)::int + (h % 10 > 7)::int + (h % 10 > 8)::int],
        '2026.' || i * 12 / $4::int, {SPANS}, 4 * (100 + h % 800), 4 * (20 + h % 200), 4 * (120 + h % 800 + h % 200),
        4 * (1 + h % 100) * 1e-4
    FROM (
        SELECT i, i / 25 * 5 + i % 5 AS session, abs(hashint4(i)) % 1000000 AS h,
            now() - interval '60 days' * (1 - i::float8 / $4::int) AS started
        FROM generate_series($2::int, $3::int) AS i
    ) n
"""
# Four of ten spans ask a model; texts differ, as they do in life.
_SPANS = """
    INSERT INTO spans (
        trace_id, span_id, project_id, parent_span_id, position, name, kind, status, input, output, model, token_usage,
        started_at, ended_at, cost, prompt_tokens, completion_tokens, total_tokens, total_cost
    )
    SELECT trace_id, md5(trace_id::text || p)::uuid, project_id,
        CASE WHEN p > 0 THEN md5(trace_id::text || 0)::uuid END, p, 'step-' || p,
        CASE WHEN p = 0 THEN 'AGENT' WHEN llm THEN 'LLM' ELSE 'TOOL' END, 'OK',
        CAST('{"content":"' || substr($3, 1 + (h + 31 * p) % 1000, 280) || '"}' AS json),
        CAST('{"content":"' || substr($3, 1 + (h + 67 * p) % 1000, 280) || '"}' AS json),
        CASE WHEN llm THEN (ARRAY['gpt-5.4', 'gpt-5.4-mini', 'claude-sonnet-5', 'gemini-3-flash'])[1 + h % 4] END,
        CASE WHEN llm THEN json_build_object('prompt_tokens', prompt_tokens / 4, 'completion_tokens', completion_tokens / 4) END,
        started_at + p * interval '20 ms', started_at + (p + 1) * interval '20 ms',
        CASE WHEN llm THEN json_build_object('total', total_cost / 4) END,
        CASE WHEN llm THEN prompt_tokens / 4 END, CASE WHEN llm THEN completion_tokens / 4 END,
        CASE WHEN llm THEN total_tokens / 4 END, CASE WHEN llm THEN total_cost / 4 END
    FROM (
        SELECT t.*, p, p IN (1, 3, 5, 7) AS llm, abs(hashtext(trace_id::text)) % 1000000 AS h
        FROM traces t CROSS JOIN generate_series(0, $2::int - 1) AS p
        WHERE project_id = $1 ORDER BY started_at, trace_id, p
    ) n
"""
_SCORES = """
    INSERT INTO trace_scores (
        id, project_id, trace_id, eval_run_id, name, value, data_type, source, status, reason, environment, metadata,
        trace_version, created_at, updated_at
    )
    SELECT md5($2::uuid::text || trace_id || name)::uuid, $1, trace_id, $2, name,
        CASE WHEN h % 50 > 0 THEN CASE name WHEN 'resolved' THEN (h % 3 > 0)::text ELSE round(h % 101 / 100.0, 2)::text END END,
        CASE name WHEN 'resolved' THEN 'BOOLEAN' ELSE 'NUMERIC' END,
        CASE WHEN h % 12 = 0 THEN 'PROGRAMMATIC' WHEN h % 41 = 0 THEN 'ANNOTATION' ELSE 'AUTOMATED' END,
        CASE WHEN h % 50 > 0 THEN 'SUCCESS' ELSE 'FAILED' END, repeat('the answer names its source. ', 5), environment,
        '{"threshold": 0.5}', 1, scored, scored
    FROM (
        SELECT t.trace_id, t.environment, name, abs(hashtext($2::uuid::text || t.trace_id || name)) % 1000000 AS h,
            max(t.started_at) OVER () + interval '1 hour' + row_number() OVER (ORDER BY t.started_at) * interval '5 ms' AS scored
        FROM (
            SELECT trace_id, environment, started_at FROM traces WHERE project_id = $1
            ORDER BY started_at, trace_id OFFSET $3 LIMIT $4
        ) t CROSS JOIN unnest(ARRAY['task_completion', 'confidence', 'coherence', 'tool_use', 'resolved']) AS name
    ) n
"""
_RUN = """
    INSERT INTO runs (
        id, project_id, name, status, metric_names, judge_model, total_targets, evaluated_count, failed_count,
        settled_count, "left", held, snapshot, targets_written, expanded, created_at, completed_at
    )
    SELECT $2, $1, 'run ' || $3::int, CASE $3::int % 20 WHEN 7 THEN 'FAILED' WHEN 13 THEN 'RUNNING' ELSE 'COMPLETED' END,
        ARRAY['task_completion', 'confidence', 'coherence', 'tool_use', 'resolved'], 'heuristic/rules-v1', $4::int, $4::int,
        count(*) FILTER (WHERE status = 'FAILED'), $4::int * 5, 0, false, '1:1:', true, true,
        min(created_at) - interval '1 minute', max(created_at)
    FROM trace_scores WHERE project_id = $1 AND eval_run_id = $2
"""
