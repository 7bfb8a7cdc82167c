"""A signal that is there already is taken as long as it rests on the same content, version and judge, and on nothing less."""

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest

from addresses import Urls
from session_runs import METRICS, assert_folded, request, scores, talk
from spine import Spine, spine
from steelyard.kafka import Cluster
from steelyard.metrics import CATALOGUE
from steelyard.metrics.judging import Embedded
from steelyard.metrics.sessions import SIGNALS
from steelyard.store import traces
from steelyard_judge.dialogue import scoring
from steelyard_judge.model import Gateway
from steelyard_judge.paying import Ledger
from steelyard_judge.signals import StoredSignals
from steelyard_judge.usage import Usage
from stub_model import Stub, stub_model

MODEL = "openai/stub"


class Vectors:
    name = "test"

    async def identity(self) -> str:
        return self.name

    async def embed(self, texts: Sequence[str], usage: Usage | None = None) -> Embedded:
        return Embedded(tuple((1.0, float(len(t))) for t in texts), self.name)

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def unwell(self) -> str | None: ...


@dataclass
class Deployment:
    system: Spine
    stub: Stub
    vectors: Vectors

    async def run(self, **more: Any) -> dict[str, Any]:
        return await self.system.done(await request(self.system, **{"judge_model": MODEL, **more}))

    async def signals(self, run: dict[str, Any]) -> list[dict[str, Any]]:
        return await self.system.rows("SELECT * FROM trace_scores WHERE eval_run_id = :r", r=run["id"])

    async def asked_again(self, run: dict[str, Any]) -> Counter[str]:
        """Of the run's signals those that were not found, by name."""
        found = await self.signals(run)
        return Counter(s["name"] for s in found if "reused" not in s["metadata"])

    async def patch(self, trace: UUID, **changes: Any) -> None:
        async with self.system.database.begin() as tx:
            assert await traces.patch(tx, self.system.project, trace, changes)


@pytest.fixture
async def deployment(topics: Cluster, urls: Urls) -> AsyncIterator[Deployment]:
    async with stub_model() as stub, spine(topics, urls, judge_base_url=stub.base_url) as system:
        gateway, book = Gateway(system.settings), Ledger(system.database)
        known, vectors = StoredSignals(system.database), Vectors()
        system.start_resolver()
        system.start_aggregator()
        system.start_judge(scoring(gateway, vectors, CATALOGUE, system.settings, book, known=known))
        yield Deployment(system, stub, vectors)
        await system.stop()
        await gateway.stop()


async def test_a_second_run_of_an_unchanged_session_asks_nobody_and_says_so(deployment: Deployment) -> None:
    ids = await talk(deployment.system, "s", 5)
    first = await deployment.run()
    assert deployment.stub.calls > 0 and await deployment.asked_again(first) == dict.fromkeys(SIGNALS, 5)
    deployment.stub.calls = 0
    second = await deployment.run()
    assert deployment.stub.calls == 0 and not await deployment.asked_again(second)
    before = {(s["trace_id"], s["name"]): s for s in await deployment.signals(first)}
    for signal in await deployment.signals(second):
        there = before[signal["trace_id"], signal["name"]]
        assert signal["metadata"]["reused"]["score_id"] == str(there["id"]) and signal["value"] == there["value"]
        judge = signal["metadata"].get("judge", {})
        assert not any(judge.get(cost) for cost in ("calls", "input_tokens", "output_tokens", "cost"))
    assert await assert_folded(deployment.system, second["id"]) == 2
    values = [[s["value"] for s in await scores(deployment.system, r["id"])] for r in (first, second)]
    assert values[0] == values[1] and len(ids) == 5


async def test_what_a_run_of_traces_scored_is_a_signal_too(deployment: Deployment) -> None:
    await talk(deployment.system, "s", 3)
    by_hand = await deployment.system.request(["confidence", "coherence"])
    await deployment.system.rows("UPDATE runs SET judge_model = :m WHERE id = :r RETURNING 1", m=MODEL, r=by_hand)
    await deployment.system.done(by_hand)
    run = await deployment.run()
    assert await deployment.asked_again(run) == {"tool_correctness": 3, "loop_detection": 3}


async def test_a_changed_trace_is_asked_again_and_the_three_after_it_are_compared_again(deployment: Deployment) -> None:
    ids = await talk(deployment.system, "s", 6)
    await deployment.run()
    await deployment.patch(ids[1], output="something else")
    run = await deployment.run()
    asked = {(s["trace_id"], s["name"]) for s in await deployment.signals(run) if "reused" not in s["metadata"]}
    assert asked == {(ids[1], s) for s in SIGNALS} | {(ids[n], "loop_detection") for n in (2, 3, 4)}


async def test_another_judge_and_another_version_ask_for_themselves(deployment: Deployment) -> None:
    await talk(deployment.system, "s", 2)
    await deployment.run()
    other = await deployment.run(judge_model="openai/another")
    assert await deployment.asked_again(other) == {"confidence": 2, "tool_correctness": 2}, "embeddings are no judge's"
    await deployment.system.rows(
        "UPDATE trace_scores SET metadata = metadata || '{\"basis\": \"of an older version\"}' WHERE name = 'coherence' RETURNING 1"
    )
    assert await deployment.asked_again(await deployment.run()) == {"coherence": 2}


async def test_a_trace_that_was_sent_again_unchanged_is_not_paid_again(deployment: Deployment) -> None:
    ids = await talk(deployment.system, "s", 2)
    first = await deployment.run()
    await deployment.patch(ids[0], tags=["filed"], environment="elsewhere", user_id="ann")
    second = await deployment.run()
    assert not await deployment.asked_again(second)
    versions = [[s["session_version"] for s in await scores(deployment.system, r["id"])] for r in (first, second)]
    assert versions[0] != versions[1], "the session was written to, and the scores show it"


async def test_vectors_of_another_embedder_are_no_signals_of_this_one(deployment: Deployment) -> None:
    """The fallback took over, or the encoder is back: nobody set anything, and all the same they are not compared."""
    await talk(deployment.system, "s", 2)
    await deployment.run()
    deployment.vectors.name = "another"
    assert await deployment.asked_again(await deployment.run()) == {"coherence": 2, "loop_detection": 2}


async def test_what_a_person_changed_is_that_persons_word_and_no_signal(deployment: Deployment) -> None:
    await talk(deployment.system, "s", 2)
    await deployment.run()
    await deployment.system.rows(
        "UPDATE trace_scores SET source = 'ANNOTATION', value = '0' WHERE name = 'confidence' RETURNING 1"
    )
    run = await deployment.run()
    assert await deployment.asked_again(run) == {"confidence": 2}
    assert await assert_folded(deployment.system, run["id"]) == len(METRICS)
