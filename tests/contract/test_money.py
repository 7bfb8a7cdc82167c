"""Estimates, limits and usage, as a client sees them."""

from typing import Any
from uuid import UUID

import httpx
import pytest

from contract_helpers import new_trace
from steelyard.store import answers
from steelyard.store.answers import Made, Wanted
from steelyard.store.database import Database

RUNS = "/evaluations/trace-runs"
RUN = {"metrics": ["task_completion", "confidence", "coherence"], "model": "openai/gpt-5.4-mini"}


@pytest.fixture
def environ() -> dict[str, str]:
    return {"OPENAI_API_KEY": "sk-test"}


async def estimated(client: httpx.AsyncClient, **asked: Any) -> dict[str, Any]:
    answer = await client.post(f"{RUNS}/estimate", json={**RUN, **asked})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def test_an_estimate_counts_and_starts_nothing(client: httpx.AsyncClient) -> None:
    for _ in range(10):
        await new_trace(client, input="x" * 3200, output="y" * 3200)
    made = await estimated(client, sampling_rate=0.5)
    assert (made["total_targets"], made["pairs"], made["judge_model"]) == (5, 15, "openai/gpt-5.4-mini")
    # Extracting, comparing and confidence; coherence asks no model.
    assert made["calls"] == 15 and made["output_tokens"] == 15 * 200
    assert 15 * 2000 < made["input_tokens"] < 15 * 4000
    expected = made["input_tokens"] * 0.75e-6 + made["output_tokens"] * 4.5e-6
    assert made["cost_usd"] == pytest.approx(expected, abs=1e-6) and made["seconds"] > 0
    assert (await client.get(RUNS)).json()["total"] == 0


async def test_larger_traces_cost_more_and_rules_cost_nothing(client: httpx.AsyncClient) -> None:
    await new_trace(client, output="y" * 1000)
    small = await estimated(client)
    await new_trace(client, output="y" * 400_000)
    assert (await estimated(client))["input_tokens"] > 10 * small["input_tokens"]
    rules = await estimated(client, model="heuristic/rules-v1")
    assert (rules["calls"], rules["cost_usd"], rules["pairs"]) == (0, 0, 6)
    none = await estimated(client, filters={"session_id": "none like it"})
    assert (none["total_targets"], none["calls"], none["cost_usd"]) == (0, 0, 0)


async def test_a_model_without_a_price_is_estimated_without_one(client: httpx.AsyncClient) -> None:
    await new_trace(client)
    assert (await estimated(client, model="openai/gpt-from-tomorrow"))["cost_usd"] is None


async def test_a_limit_that_cannot_be_kept_is_refused(client: httpx.AsyncClient) -> None:
    await new_trace(client)
    unknown = {**RUN, "model": "openai/gpt-from-tomorrow", "max_cost_usd": 5}
    answer = await client.post(RUNS, json=unknown)
    assert answer.status_code == 400 and answer.json()["errors"][0]["field"] == "max_cost_usd"
    assert "allow_unknown_price" in answer.json()["detail"]
    assert (await client.post(RUNS, json={**unknown, "allow_unknown_price": True})).status_code == 202


async def test_a_limit_that_no_pair_fits_into_is_refused(client: httpx.AsyncClient) -> None:
    trace = await new_trace(client)
    for path, asked in ((RUNS, RUN), (f"{RUNS}/batch", {**RUN, "trace_ids": [trace]})):
        answer = await client.post(path, json={**asked, "max_cost_usd": 0.0001})
        assert answer.status_code == 400 and "at most" in answer.json()["detail"], answer.text
        made = await client.post(path, json={**asked, "max_cost_usd": 5})
        assert made.status_code == 202 and made.json()["max_cost_usd"] == 5


@pytest.mark.parametrize("limit", [0, -1, 1e9, "much"])
async def test_a_limit_is_a_sum_of_money(client: httpx.AsyncClient, limit: Any) -> None:
    await new_trace(client)
    answer = await client.post(RUNS, json={**RUN, "max_cost_usd": limit})
    assert answer.status_code == 422 and answer.json()["errors"][0]["field"] == "max_cost_usd"


async def test_usage_adds_up_every_call_of_a_run_and_of_the_project(
    client: httpx.AsyncClient, database: Database
) -> None:
    trace = await new_trace(client)
    run = (await client.post(RUNS, json={**RUN, "max_cost_usd": 5})).json()
    project = UUID(run["project_id"])

    def call(metric: str, outcome: str, cost: float | None, of: str = run["id"]) -> Made:
        wanted = Wanted(project, UUID(of), metric.encode())
        return Made(wanted, UUID(of), UUID(trace), metric, "1", "grade", "m", 0, outcome, 100, 10, 50, cost, 2.0)

    other = (await client.post(RUNS, json=RUN)).json()["id"]
    async with database.begin() as tx:
        await answers.record(tx, [call("a", "ok", 0.5), call("a", "timeout", 0.0), call("b", "ok", None)])
        await answers.record(tx, [call("a", "ok", 0.25, other)])
    usage = (await client.get(f"{RUNS}/{run['id']}/usage")).json()
    assert (usage["calls"], usage["cost_usd"], usage["unpriced_calls"], usage["max_cost_usd"]) == (3, 0.5, 1, 5)
    assert (usage["input_tokens"], usage["output_tokens"], usage["cached_tokens"]) == (300, 30, 150)
    assert [(m["metric"], m["calls"], m["failed_calls"], m["cost_usd"]) for m in usage["by_metric"]] == [
        ("a", 2, 1, 0.5), ("b", 1, 0, 0.0),
    ]  # fmt: skip
    whole = (await client.get("/evaluations/usage")).json()
    assert (whole["calls"], whole["cost_usd"]) == (4, 0.75)
    none = await client.get("/evaluations/usage", params={"date_to": "2020-01-01T00:00:00Z"})
    assert (none.json()["calls"], none.json()["by_metric"]) == (0, [])
    stranger = {"X-Project-Name": "stranger"}
    assert (await client.get(f"{RUNS}/{run['id']}/usage", headers=stranger)).status_code == 404
    assert (await client.get("/evaluations/usage", headers=stranger)).json()["calls"] == 0
