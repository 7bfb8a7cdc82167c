"""/evaluations/session-runs: what is accepted and what it means, what is refused and how, what is retried and deleted."""

import asyncio
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from contract_helpers import new_trace
from contract_sessions import RUNS, STRANGE, a_score, new_session, put
from steelyard.events import RunRequested, decode
from steelyard.metrics.sessions import WEIGHTS
from steelyard.store import sessions
from steelyard.store.database import Database

RUN = {"metrics": ["agent_reliability"]}
TRACE_RUNS = "/evaluations/trace-runs"


async def made(client: httpx.AsyncClient, path: str = RUNS, **asked: Any) -> dict[str, Any]:
    answer = await client.post(path, json={**RUN, **asked})
    assert answer.status_code == 202, answer.text
    return dict(answer.json())


async def one(database: Database, statement: str, **given: Any) -> Any:
    async with database.begin() as tx:
        return (await tx.execute(text(statement), given)).one()


async def finished(database: Database, run: str, *failed: tuple[str, list[str]]) -> None:
    """What the services do to a run: its targets, what of them failed, and its end."""
    async with database.begin() as tx:
        for session, metrics in failed:
            await tx.execute(
                text(
                    """
                    INSERT INTO targets (run_id, target, project_id, failed_metrics)
                    SELECT id, :session, project_id, :metrics FROM runs WHERE id = :run
                    ON CONFLICT (run_id, target) DO UPDATE SET failed_metrics = excluded.failed_metrics
                    """
                ),
                {"run": UUID(run), "session": session, "metrics": metrics},
            )
        over = "UPDATE runs SET status = 'COMPLETED', completed_at = now() WHERE id = :run"
        await tx.execute(text(over), {"run": UUID(run)})


async def test_a_run_of_sessions_is_answered_with_what_it_means(client: httpx.AsyncClient, database: Database) -> None:
    for n in range(4):
        await new_session(client, f"s{n}", tags=["x"] if n else [])
    asked: dict[str, Any] = {
        "name": "weekly",
        "metrics": ["agent_consistency", "agent_reliability", "agent_consistency"],
    }
    run = await made(client, **asked, filters={"tags": ["x"]}, sampling_rate=0.7)
    assert (run["status"], run["total_traces"], run["total_targets"], run["target_type"]) == (
        "PENDING", 2, 2, "SESSION",
    )  # fmt: skip
    assert run["metric_names"] == ["agent_consistency", "agent_reliability"]
    assert (run["filters"], run["sampling_rate"], run["judge_model"]) == ({"tags": ["x"]}, 0.7, "heuristic/rules-v1")
    assert (run["evaluated_count"], run["failed_count"], run["monitor_id"], run["reuse"]) == (0, 0, None, False)
    assert (await client.get(f"{RUNS}/{run['id']}")).json() == run
    assert (await client.get(RUNS, params={"status": "PENDING"})).json()["items"] == [run]
    assert (await client.get(RUNS, params={"status": "FAILED"})).json()["total"] == 0
    assert (await client.get(f"{RUNS}/{run['id']}/scores")).json() == []
    assert (await client.get(f"{RUNS}/{run['id']}/usage")).json()["calls"] == 0
    event = decode(bytes((await one(database, "SELECT value FROM outbox")).value))
    assert isinstance(event, RunRequested) and str(event.run_id) == run["id"]


async def test_a_run_means_the_sessions_that_its_filters_match(client: httpx.AsyncClient) -> None:
    await new_session(client, "short", started_at="2026-03-01T10:00:00Z", user_id="ada", tags=["x"])
    await new_session(client, "long", 3, started_at="2026-03-05T10:00:00Z", user_id="bob")
    await new_session(client, "long", started_at="2026-03-09T10:00:00Z", user_id="ada", status="ERROR")
    await new_trace(client)
    for filters, expected in (
        ({}, 2), ({"min_trace_count": 2}, 1), ({"min_trace_count": 4, "has_error": True}, 1), ({"has_error": False}, 1),
        ({"user_id": "ada"}, 2), ({"user_id": "bob"}, 1), ({"tags": ["x", "y"]}, 1), ({"tags": []}, 2),
        ({"date_from": "2026-03-01T10:00:00.000001Z"}, 1), ({"date_to": "2026-03-05T10:00:00Z"}, 1),
        ({"date_from": "2026-03-06T00:00:00Z", "date_to": "2026-03-07T00:00:00Z"}, 1),
    ):  # fmt: skip
        run = await made(client, filters=filters)
        assert run["total_targets"] == expected, filters
        assert run["filters"] == {k: [*v] if isinstance(v, list) else v for k, v in filters.items()}


async def test_some_weights_are_told_with_the_usual_ones_of_the_others(client: httpx.AsyncClient) -> None:
    await new_session(client, "s")
    weighed = await made(
        client, filters={"min_trace_count": 1}, signal_weights={"coherence": 0, "tool_correctness": 2.5}
    )
    merged = {"confidence": 1.0, "loop_detection": 1.0, "tool_correctness": 2.5, "coherence": 0.0}
    assert weighed["filters"] == {"min_trace_count": 1, "signal_weights": merged}
    batch = await made(client, f"{RUNS}/batch", session_ids=["s"], signal_weights={})
    assert batch["filters"] == {"signal_weights": dict(WEIGHTS)}
    assert (await made(client, signal_weights=None))["filters"] == {}


async def test_a_batch_means_each_named_session_once(client: httpx.AsyncClient, database: Database) -> None:
    for name in STRANGE:
        await new_session(client, name, 2)
    run = await made(client, f"{RUNS}/batch", session_ids=[*STRANGE, *STRANGE[:3]])
    assert (run["total_targets"], run["total_traces"], run["filters"]) == (len(STRANGE), len(STRANGE), {})
    row = await one(
        database,
        "SELECT array_agg(target) AS targets, min(size) AS size FROM targets WHERE run_id = :run",
        run=UUID(run["id"]),
    )
    assert set(row.targets) == {name.replace("\x00", "\ufffd") for name in STRANGE} and row.size == 2


async def test_a_batch_of_sessions_that_are_not_there_names_them(client: httpx.AsyncClient, database: Database) -> None:
    await new_session(client, "s")
    unknown = ["no, such", *(f"missing {n}" for n in range(20)), "x" * 255]
    answer = await client.post(f"{RUNS}/batch", json={**RUN, "session_ids": ["s", *unknown]})
    assert answer.status_code == 400 and answer.json()["errors"][0]["field"] == "session_ids"
    assert "'no, such', 'missing 0'" in answer.json()["detail"] and "and 7 more" in answer.json()["detail"]
    assert "'s'" not in answer.json()["detail"]
    assert (await one(database, "SELECT count(*) AS n FROM runs")).n == 0


async def test_a_session_that_a_batch_names_stays_until_the_run_is_written(
    client: httpx.AsyncClient, api_database: Database, database: Database
) -> None:
    """Or the run would count on a session that nobody scores, and never end."""
    project = await new_session(client, "s")
    async with api_database.begin(project) as tx:
        assert await sessions.missing(tx, project, ["s", "none"]) == ["none"]
        with pytest.raises(DBAPIError, match="could not obtain lock"):
            await one(database, "SELECT 1 FROM sessions WHERE session_id = 's' FOR UPDATE NOWAIT")
        await one(database, "SELECT 1 FROM sessions WHERE session_id = 's' FOR NO KEY UPDATE NOWAIT")  # as an ingest


@pytest.mark.parametrize(
    ("asked", "status", "field"),
    [
        ({"metrics": ["nonsense"]}, 400, "metrics"),
        ({"metrics": ["coherence"]}, 400, "metrics"),
        ({"metrics": ["agent_reliability", "loop_detection"]}, 400, "metrics"),
        ({"metrics": []}, 422, "metrics"),
        ({}, 422, "metrics"),
        (RUN | {"sampling_rate": 0}, 400, "sampling_rate"),
        (RUN | {"sampling_rate": 1.5}, 422, "sampling_rate"),
        (RUN | {"model": "nobody/knows"}, 400, "model"),
        (RUN | {"filters": {"user_id": "nobody"}}, 400, "filters"),
        (RUN | {"filters": {"min_trace_count": 2}}, 400, "filters"),
        (RUN | {"filters": {"min_trace_count": 0}}, 400, "filters.min_trace_count"),
        (RUN | {"filters": {"min_trace_count": "2"}}, 400, "filters.min_trace_count"),
        (RUN | {"filters": {"has_error": "yes"}}, 400, "filters.has_error"),
        (RUN | {"filters": {"session_id": "s"}}, 400, "filters.session_id"),
        (RUN | {"filters": {"date_from": 1767225600}}, 400, "filters.date_from"),
        (RUN | {"signal_weights": {"luck": 1}}, 400, "signal_weights"),
        (RUN | {"signal_weights": {"confidence": -0.1}}, 422, "signal_weights.confidence"),
        (RUN | {"signal_weights": {"confidence": 1_000_001}}, 422, "signal_weights.confidence"),
        (RUN | {"signal_weights": {"confidence": "1"}}, 422, "signal_weights.confidence"),
        (RUN | {"signal_weights": {"confidence": True}}, 422, "signal_weights.confidence"),
        (RUN | {"signal_weights": {"confidence": None}}, 422, "signal_weights.confidence"),
        (RUN | {"signal_weights": [1]}, 422, "signal_weights"),
        (RUN | {"max_cost_usd": 0}, 422, "max_cost_usd"),
        ([], 422, "body"),
    ],
)
async def test_a_run_that_cannot_be_is_refused_by_its_field(
    client: httpx.AsyncClient, asked: Any, status: int, field: str, database: Database
) -> None:
    await new_session(client, "s")
    answer = await client.post(RUNS, json=asked)
    assert answer.status_code == status, answer.text
    assert [e["field"] for e in answer.json()["errors"]] == [field]
    assert (await one(database, "SELECT count(*) AS n FROM runs")).n == 0


@pytest.mark.parametrize("weight", ["NaN", "Infinity", "-Infinity", "1e400", "1e7"])
async def test_a_weight_is_a_number_that_can_be_multiplied_with(client: httpx.AsyncClient, weight: str) -> None:
    await new_session(client, "s")
    body = f'{{"metrics": ["agent_reliability"], "signal_weights": {{"coherence": {weight}}}}}'
    answer = await client.post(RUNS, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422 and answer.json()["errors"], answer.text


async def test_a_refusal_names_what_is_known(client: httpx.AsyncClient) -> None:
    await new_session(client, "s")
    unknown = (await client.post(RUNS, json={"metrics": ["nonsense", "coherence"]})).json()["detail"]
    assert "known are agent_reliability, agent_consistency" in unknown and "'coherence' is said of traces" in unknown
    weights = (await client.post(RUNS, json=RUN | {"signal_weights": {"luck": 1}})).json()["detail"]
    assert "'luck'" in weights and "known are confidence, loop_detection, tool_correctness, coherence" in weights
    trace_run = (await client.post(TRACE_RUNS, json=RUN)).json()["detail"]
    assert "metric of sessions" in trace_run


@pytest.mark.parametrize(
    ("ids", "field"), [([], "session_ids"), (["s" * 256], "session_ids.0"), ([1], "session_ids.0")]
)
async def test_a_batch_of_no_ids_is_a_422(client: httpx.AsyncClient, ids: list[Any], field: str) -> None:
    answer = await client.post(f"{RUNS}/batch", json={**RUN, "session_ids": ids})
    assert answer.status_code == 422 and answer.json()["errors"][0]["field"] == field, answer.text


async def test_a_run_of_traces_is_none_of_sessions(client: httpx.AsyncClient) -> None:
    await new_session(client, "s")
    of_sessions = (await made(client))["id"]
    of_traces = (await client.post(TRACE_RUNS, json={"metrics": ["coherence"]})).json()["id"]
    for path, run in ((RUNS, of_traces), (TRACE_RUNS, of_sessions)):
        for method, what in (("GET", ""), ("GET", "/scores"), ("GET", "/usage"), ("POST", "/retry"), ("DELETE", "")):
            answer = await client.request(method, f"{path}/{run}{what}")
            assert (answer.status_code, answer.json()) == (404, {"detail": "Run not found"}), (method, path, what)
    assert [r["id"] for r in (await client.get(RUNS)).json()["items"]] == [of_sessions]
    assert [r["id"] for r in (await client.get(TRACE_RUNS)).json()["items"]] == [of_traces]


async def test_the_metrics_of_sessions_say_what_they_are(client: httpx.AsyncClient) -> None:
    metrics = (await client.get("/evaluations/session-metrics")).json()
    assert [m["name"] for m in metrics] == ["agent_reliability", "agent_consistency"]
    for m in metrics:
        assert m["description"] and (m["category"], m["default_threshold"], m["prompt_preview"]) == ("session", 0.5, [])
        assert m["signal_weights"] == dict(WEIGHTS)


# Money.


@pytest.mark.parametrize("path", [RUNS, f"{RUNS}/batch"])
async def test_the_same_request_again_makes_one_run(client: httpx.AsyncClient, path: str) -> None:
    await new_session(client, "s")
    body, key = {**RUN, "session_ids": ["s"]}, {"Idempotency-Key": "mine"}
    first, again = [await client.post(path, json=body, headers=key) for _ in range(2)]
    assert (first.status_code, first.content) == (again.status_code, again.content) == (202, first.content)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert (await client.get(RUNS)).json()["total"] == 1
    assert (await client.post(path, json={**body, "name": "other"}, headers=key)).status_code == 422


async def test_fifty_a_minute_are_taken_and_of_each_endpoint_its_own(client: httpx.AsyncClient) -> None:
    await new_session(client, "s")
    answers = await asyncio.gather(*(client.post(RUNS, json=RUN) for _ in range(60)))
    assert [a.status_code for a in answers].count(202) == 50
    refused = [a for a in answers if a.status_code == 429]
    assert len(refused) == 10 and all(1 <= int(a.headers["Retry-After"]) <= 60 for a in refused)
    assert (await client.post(f"{RUNS}/batch", json={**RUN, "session_ids": ["s"]})).status_code == 202
    assert (await client.post(TRACE_RUNS, json={"metrics": ["coherence"]})).status_code == 202


async def test_a_retry_means_the_failed_metrics_of_sessions_that_are_there(
    client: httpx.AsyncClient, database: Database
) -> None:
    for name in ("a", "b", "gone"):
        await new_session(client, name)
    weights: dict[str, Any] = {"signal_weights": {"coherence": 3}}
    both: dict[str, Any] = {"metrics": ["agent_reliability", "agent_consistency"]}
    parent = await made(client, **both, filters={"min_trace_count": 1}, sampling_rate=0.9, name="n", **weights)
    early = await client.post(f"{RUNS}/{parent['id']}/retry")
    assert early.status_code == 409
    failed = ("a", ["agent_consistency"]), ("gone", ["agent_consistency", "agent_reliability"])
    await finished(database, parent["id"], *failed, ("b", []))
    await client.delete("/sessions/gone")
    answer = await client.post(f"{RUNS}/{parent['id']}/retry")
    again = answer.json()
    assert answer.status_code == 202, answer.text
    assert (again["parent_run_id"], again["target_type"], again["total_targets"]) == (parent["id"], "SESSION", 1)
    assert again["metric_names"] == ["agent_consistency"]
    assert {k: again[k] for k in ("filters", "sampling_rate", "name", "judge_model")} == {
        k: parent[k] for k in ("filters", "sampling_rate", "name", "judge_model")
    }
    await finished(database, again["id"], ("a", ["agent_consistency"]))
    third = (await client.post(f"{RUNS}/{again['id']}/retry")).json()
    root = await one(database, "SELECT root_run_id FROM runs WHERE id = :id", id=UUID(third["id"]))
    assert str(root.root_run_id) == parent["id"] and third["parent_run_id"] == again["id"]


async def test_there_is_nothing_to_retry_of_a_run_without_failures_or_of_deleted_sessions(
    client: httpx.AsyncClient, database: Database
) -> None:
    await new_session(client, "s")
    clean, lost = await made(client), await made(client)
    await finished(database, clean["id"], ("s", []))
    await finished(database, lost["id"], ("s", ["agent_reliability"]))
    await client.delete("/sessions/s")
    for run, said in ((clean, "no failed"), (lost, "deleted")):
        answer = await client.post(f"{RUNS}/{run['id']}/retry")
        assert answer.status_code == 422 and said in answer.json()["errors"][0]["message"]


@pytest.mark.parametrize("with_scores", [True, False])
async def test_a_deleted_run_treats_its_sessions_scores_and_their_signals_alike(
    client: httpx.AsyncClient, database: Database, with_scores: bool
) -> None:
    project = await new_session(client, "s")
    run, other = UUID((await made(client))["id"]), UUID((await made(client))["id"])
    await put(database, a_score(project, "s", eval_run_id=run), a_score(project, "s", eval_run_id=other))
    signal = "INSERT INTO trace_scores (id, project_id, trace_id, eval_run_id, name, value) VALUES (:i, :p, :i, :r, 'x', '1')"
    async with database.begin() as tx:
        await tx.execute(text(signal), {"i": uuid4(), "p": project, "r": run})
    assert len((await client.get(f"{RUNS}/{run}/scores")).json()) == 1
    deleted = await client.delete(f"{RUNS}/{run}", params={"delete_scores": with_scores})
    assert deleted.status_code == 204
    assert (await client.get(f"{RUNS}/{run}")).status_code == 404
    assert (await client.get(f"{RUNS}/{run}/scores")).status_code == 404
    assert (await client.delete(f"{RUNS}/{run}")).status_code == 404
    of_sessions = (await client.get("/evaluations/session-scores")).json()["items"]
    of_traces = (await client.get("/evaluations/trace-scores")).json()["items"]
    assert sorted(str(s["eval_run_id"]) for s in of_sessions) == sorted(
        [str(other)] if with_scores else [str(other), "None"]
    )
    assert [s["eval_run_id"] for s in of_traces] == ([] if with_scores else [None])
