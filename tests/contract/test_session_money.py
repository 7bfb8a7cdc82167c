"""What a run of sessions may cost, told before and kept to: by a deployment that has a key."""

from typing import Any
from uuid import UUID

import httpx
import pytest
from sqlalchemy import text

from contract_sessions import RUNS, new_session
from steelyard.store.database import Database

RUN = {"metrics": ["agent_reliability"]}


@pytest.fixture
def environ() -> dict[str, str]:
    return {"OPENAI_API_KEY": "sk-test"}


async def test_an_estimate_counts_traces_times_signals(client: httpx.AsyncClient) -> None:
    for n in range(4):
        await new_session(client, f"s{n}", 3, input="x" * 3200)
    asked = RUN | {"model": "openai/gpt-5.4-mini", "sampling_rate": 0.5}
    said = (await client.post(f"{RUNS}/estimate", json=asked)).json()
    # Confidence and tool_correctness ask the model; the other two signals are of embeddings.
    assert (said["total_targets"], said["pairs"], said["calls"]) == (2, 6 * 4, 6 * 2)
    assert said["output_tokens"] == 6 * 2 * 200 and said["cost_usd"] > 0 and said["seconds"] > 0
    none = (await client.post(f"{RUNS}/estimate", json={**asked, "filters": {"min_trace_count": 9}})).json()
    assert (none["total_targets"], none["pairs"], none["cost_usd"]) == (0, 0, 0)
    assert (await client.get(RUNS)).json()["total"] == 0


async def test_a_limit_reserves_what_the_dearest_signal_may_cost(client: httpx.AsyncClient, database: Database) -> None:
    await new_session(client, "small")
    await new_session(client, "large", output="y" * 20_000)
    model = {"model": "openai/gpt-5.4-mini"}

    async def reserved(path: str, **asked: Any) -> float:
        answer = await client.post(path, json={**RUN, **model, "max_cost_usd": 5, **asked})
        assert answer.status_code == 202 and answer.json()["max_cost_usd"] == 5, answer.text
        async with database.begin() as tx:
            given = {"id": UUID(answer.json()["id"])}
            found = await tx.execute(text("SELECT pair_cost_usd FROM runs WHERE id = :id"), given)
            return float(found.scalar_one())

    every, named = await reserved(RUNS), await reserved(f"{RUNS}/batch", session_ids=["small"])
    assert every > 1.5 * named > 0
    assert await reserved(f"{RUNS}/batch", session_ids=["small", "large"]) == every
    tight = await client.post(RUNS, json={**RUN, **model, "max_cost_usd": 0.0001})
    assert tight.status_code == 400 and tight.json()["errors"][0]["field"] == "max_cost_usd"
    unknown = {**RUN, "model": "openai/gpt-from-tomorrow", "max_cost_usd": 5}
    assert (await client.post(RUNS, json=unknown)).status_code == 400
    assert (await client.post(RUNS, json={**unknown, "allow_unknown_price": True})).status_code == 202
