"""Vectors of an API cost money like any call: each is written down, counted in the run's spending, and asked for once."""

from collections.abc import AsyncIterator

import pytest

from addresses import Urls
from session_runs import assert_folded, request, talk
from spine import Spine, spine
from steelyard.kafka import Cluster
from steelyard.metrics import CATALOGUE
from steelyard_judge.dialogue import scoring
from steelyard_judge.embeddings import ApiEmbedder
from steelyard_judge.model import Gateway
from steelyard_judge.paying import Ledger
from steelyard_judge.vectors import Remembering
from stub_model import Stub, stub_model

MODEL = "openai/text-embedding-3-small"


@pytest.fixture
async def stub() -> AsyncIterator[Stub]:
    async with stub_model() as made:
        yield made


@pytest.fixture
async def system(topics: Cluster, urls: Urls, stub: Stub) -> AsyncIterator[Spine]:
    async with spine(topics, urls, judge_base_url=stub.base_url, embedding_model=MODEL) as made:
        gateway = Gateway(made.settings)
        embedder = Remembering(ApiEmbedder(gateway, MODEL))
        made.start_resolver()
        made.start_aggregator()
        made.start_judge(scoring(gateway, embedder, CATALOGUE, made.settings, Ledger(made.database)))
        yield made
        await made.stop()
        await gateway.stop()


async def test_embeddings_are_recorded_and_each_text_is_paid_for_once(system: Spine, stub: Stub) -> None:
    """By the rules judge, so that nothing else is paid for."""
    await talk(system, "s", 6)
    run = await system.done(await request(system))
    assert await assert_folded(system, run["id"]) == 2
    calls = await system.rows("SELECT * FROM calls WHERE run_id = :r", r=run["id"])
    assert len(calls) == stub.calls > 0
    assert {(c["stage"], c["model"], c["outcome"]) for c in calls} == {("embed", MODEL, "ok")}
    assert {c["metric"] for c in calls} <= {"coherence", "loop_detection"}
    (spent,) = await system.rows("SELECT calls FROM run_spending WHERE run_id = :r", r=run["id"])
    assert spent["calls"] == len(calls)
    paid = await system.rows("SELECT metadata -> 'embedding' AS told FROM trace_scores WHERE metadata ? 'embedding'")
    assert sum(p["told"]["calls"] for p in paid) == len(calls)
    embedded = [text for r in stub.requests for text in r["input"]]
    assert len(embedded) == len(set(embedded)) == 12
