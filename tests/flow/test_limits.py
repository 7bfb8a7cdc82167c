"""A provider's limits, hung answers and exhausted quotas, met by real judges on a real Kafka."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from addresses import Urls
from eventually import eventually
from spine import Spine, spine
from steelyard.events import ProviderClosed
from steelyard.kafka import Cluster, make_topics
from steelyard.metrics import CATALOGUE
from steelyard.store import ledger, runs
from steelyard_judge.dialogue import scoring
from steelyard_judge.embeddings import ApiEmbedder
from steelyard_judge.gates import Gates
from steelyard_judge.handlers import judge
from steelyard_judge.model import Gateway, imported
from stub_model import Stub, stub_model

GPT, CLAUDE = "openai/gpt-5.4-mini", "anthropic/claude-haiku-4-5"
QUOTA: dict[str, Any] = {"status": 429, "code": "insufficient_quota", "message": "You exceeded your current quota."}
COUNTS = """
    SELECT count(*) FILTER (WHERE status = 'owed') AS owed, count(*) FILTER (WHERE status = 'dispatched') AS under_way,
        count(*) FILTER (WHERE dispatch_no = 0) AS never_sent, sum(attempts) AS attempts
    FROM pairs WHERE run_id = :run
"""


@dataclass
class Judged:
    """The system, with judges that ask two vendors, each of which is a stub."""

    system: Spine
    openai: Stub
    anthropic: Stub
    gateways: list[Gateway] = field(default_factory=list)

    def start_judge(self, name: str, quota_seconds: float = 600.0, **settings: Any) -> Gates:
        chosen = self.system.settings.model_copy(update=settings)
        address = self.anthropic.base_url.removesuffix("/v1")
        environ = {"OPENAI_API_KEY": "sk-1", "OPENAI_API_BASE": self.openai.base_url}
        environ |= {"ANTHROPIC_API_KEY": "sk-2", "ANTHROPIC_API_BASE": address}
        gateway = Gateway(chosen, environ, Gates(quota_seconds))
        self.gateways.append(gateway)
        score = scoring(gateway, ApiEmbedder(gateway, "openai/e"), CATALOGUE, chosen)
        service = judge(chosen.judge_slots, self.system.database, score, gateway.gates, chosen.judge_job_seconds)
        self.system.start(name, service, relays=False)
        return gateway.gates

    async def counts(self, run_id: UUID) -> dict[str, int]:
        (found,) = await self.system.rows(COUNTS, run=run_id)
        return found

    async def nothing_under_way(self, run_id: UUID) -> dict[str, int]:
        async def settled() -> dict[str, int] | None:
            found = await self.counts(run_id)
            sent = found["owed"] > found["never_sent"]
            return found if sent and not found["under_way"] else None

        found: dict[str, int] = await eventually(settled, "what was sent is owed again")
        return found

    async def paused(self, run_id: UUID, since: datetime | None = None) -> dict[str, Any]:
        """Until a time, and one that was not known before."""

        async def waits() -> dict[str, Any] | None:
            found = await self.system.run(run_id)
            until = found["paused_until"]
            return found if until and (since is None or until > since) else None

        found: dict[str, Any] = await eventually(waits, "the run is paused and waits")
        return found

    async def resume(self, run_id: UUID) -> None:
        async with self.system.database.begin() as tx:
            assert await runs.resume(tx, self.system.project, run_id)
            await ledger.ring(tx)


@pytest.fixture
async def judged(topics: Cluster, urls: Urls) -> AsyncIterator[Judged]:
    await asyncio.to_thread(imported)  # seconds, which the first call's deadline would count
    async with stub_model() as openai, stub_model() as anthropic:
        async with spine(topics, urls, judge_slots=4, redispatch_seconds=60) as system:
            made = Judged(system, openai, anthropic)
            system.start_resolver()
            system.start_aggregator()
            yield made
        for gateway in made.gateways:
            await gateway.stop()


async def test_a_limit_that_one_judge_meets_is_kept_by_all_and_its_pairs_wait_in_the_ledger(judged: Judged) -> None:
    judged.start_judge("judge 1")
    judged.openai.tell(status=429, retry_after=600)
    await judged.system.ingest(40)
    limited = await judged.system.request(["confidence"], judge_model=GPT)
    waiting = await judged.nothing_under_way(limited)
    asked = judged.openai.calls
    assert waiting["attempts"] == 0

    late = judged.start_judge("judge 2")
    free = await judged.system.request(["confidence"], judge_model=CLAUDE)
    assert (await judged.system.done(free))["failed_count"] == 0
    assert late.all() and late.all()[0].until > 0, "a judge that comes later knows"
    assert (await judged.system.run(limited))["status"] == "RUNNING"
    assert (await judged.counts(limited))["never_sent"] >= 30 and judged.openai.calls == asked


async def test_a_run_whose_limit_has_passed_goes_on_to_its_end(judged: Judged) -> None:
    judged.start_judge("judge")
    judged.openai.tell(status=429, retry_after=1, times=2)
    await judged.system.ingest(20)
    run = await judged.system.done(await judged.system.request(["confidence"], judge_model=GPT))
    assert (run["evaluated_count"], run["failed_count"]) == (20, 0)


@pytest.mark.parametrize("behaviour", ["hang", "trickle"])
@pytest.mark.parametrize("deadline", ["judge_call_seconds", "judge_job_seconds"])
async def test_answers_that_never_end_give_their_slots_back_and_other_traces_are_scored(
    judged: Judged, behaviour: str, deadline: str
) -> None:
    """As many as there are slots: who kept his would keep everybody waiting."""
    judged.start_judge("judge", **{deadline: 8.0})
    judged.openai.tell(behaviour, times=4)
    await judged.system.ingest(12)
    run_id = await judged.system.request(["confidence"], judge_model=GPT)
    run = await judged.system.done(run_id)
    assert (run["evaluated_count"], run["failed_count"]) == (12, 0)
    assert (await judged.counts(run_id))["attempts"] >= 4, "each was an attempt of its pair, and slow ones may be too"


async def test_an_exhausted_quota_pauses_the_run_and_one_pair_finds_out_whether_it_still_is(judged: Judged) -> None:
    judged.system.start_resolver("another resolver")
    judged.start_judge("judge")
    judged.openai.tell(**QUOTA)
    await judged.system.ingest(30)
    run_id = await judged.system.request(["confidence"], judge_model=GPT)
    run = await judged.paused(run_id)
    assert (run["status"], run["failed_count"], run["paused_why"]) == ("RUNNING", 0, f"the quota of {GPT} is exhausted")
    waiting = await judged.nothing_under_way(run_id)
    assert waiting["never_sent"] >= 20 and waiting["attempts"] == 0
    other = await judged.system.request(["confidence"], judge_model=GPT)
    await judged.paused(other)
    assert (await judged.counts(other))["never_sent"] == 30, "a run that comes later waits with it"

    asked = judged.openai.calls
    await judged.resume(run_id)
    await judged.paused(run_id, since=run["paused_until"])
    assert judged.openai.calls == asked + 1

    judged.openai.tell()
    await judged.resume(run_id)
    for each in (run_id, other):
        done = await judged.system.done(each)
        assert (done["evaluated_count"], done["failed_count"]) == (30, 0)
        assert (done["paused_why"], done["paused_until"], done["error_message"]) == (None, None, None)


async def test_a_paused_run_goes_on_by_itself_when_its_time_has_come(judged: Judged) -> None:
    judged.start_judge("judge", quota_seconds=1.0)
    judged.openai.tell(**QUOTA)
    await judged.system.ingest(20)
    run_id = await judged.system.request(["confidence"], judge_model=GPT)
    await judged.paused(run_id)
    asked = judged.openai.calls
    await eventually(lambda: judged.openai.calls >= asked + 2, "it is tried again, and again")
    judged.openai.tell()
    run = await judged.system.done(run_id)
    assert (run["evaluated_count"], run["failed_count"]) == (20, 0)


async def test_who_restarts_finds_the_pause_in_the_ledger_even_if_the_broker_forgot_it(judged: Judged) -> None:
    judged.start_judge("judge")
    judged.openai.tell(**QUOTA)
    await judged.system.ingest(20)
    run_id = await judged.system.request(["confidence"], judge_model=GPT)
    await judged.paused(run_id)
    waiting, asked = await judged.nothing_under_way(run_id), judged.openai.calls
    await judged.system.stop("resolver", "judge")
    await forget(judged.system.cluster)
    judged.openai.tell()
    judged.system.start_resolver()
    judged.start_judge("judge")
    free = await judged.system.request(["confidence"], judge_model=CLAUDE)
    await judged.system.done(free)
    assert await judged.counts(run_id) == waiting and judged.openai.calls == asked
    await judged.resume(run_id)
    assert (await judged.system.done(run_id))["failed_count"] == 0


async def forget(cluster: Cluster) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=cluster.bootstrap)
    await admin.start()
    await admin.delete_topics([cluster.topic(ProviderClosed.topic)])
    await admin.close()
    await make_topics(cluster)


async def test_a_paused_run_that_is_deleted_or_stopped_is_over(judged: Judged) -> None:
    judged.start_judge("judge")
    judged.openai.tell(**QUOTA)
    await judged.system.ingest(10)
    gone = await judged.system.request(["confidence"], judge_model=GPT)
    stopped = await judged.system.request(["confidence"], judge_model=GPT)
    for run_id in (gone, stopped):
        await judged.paused(run_id)
    async with judged.system.database.begin() as tx:
        assert await runs.hide(tx, judged.system.project, gone, with_scores=False)
        assert await ledger.stop(tx, stopped, "cancelled", "somebody cancelled it")
    done = await judged.system.done(stopped)
    assert (done["evaluated_count"], done["failed_count"], done["paused_why"]) == (10, 10, None)
