"""The gateway to models: real litellm over HTTP, against a server that does what it is told."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from eventually import eventually
from steelyard.errors import Later
from steelyard.metrics import CATALOGUE
from steelyard.metrics.judging import NotScored, Score
from steelyard.settings import Settings
from steelyard.traces import Trace
from steelyard_judge.dialogue import Model, case_of, converse
from steelyard_judge.embeddings import ApiEmbedder
from steelyard_judge.model import Gateway
from stub_model import Stub, stub_model

KEY = "sk-canary-0123456789abcdefghij"
TRACE = Trace(
    trace_id=UUID(int=1),
    project_id=UUID(int=2),
    name="sum",
    input="What is two plus two?",
    output="Two plus two is four.",
    started_at=datetime(2026, 3, 1, tzinfo=UTC),
)


@pytest.fixture
async def stub() -> AsyncIterator[Stub]:
    async with stub_model() as stub:
        yield stub


@pytest.fixture
async def gateway(stub: Stub) -> AsyncIterator[Gateway]:
    gateway = made(stub)
    yield gateway
    await gateway.stop()


def made(stub: Stub, **settings: Any) -> Gateway:
    return Gateway(Settings(judge_base_url=stub.base_url, judge_api_key=KEY, **{"judge_call_seconds": 5, **settings}))


async def judged(gateway: Gateway, metric: str = "confidence", model: str = "openai/stub") -> Score | NotScored:
    embedder = ApiEmbedder(gateway, "openai/text-embedding-stub")
    return await converse(CATALOGUE[metric], case_of(TRACE, "secret"), Model(gateway, model), embedder)


async def test_a_model_scores_and_says_what_it_cost(stub: Stub, gateway: Gateway) -> None:
    score = await judged(gateway, "task_completion")
    assert isinstance(score, Score) and score.value in (0, 0.25, 0.5, 0.75, 1)
    assert score.metadata["task"] and score.metadata["outcome"] and score.metadata["threshold"] == 0.5
    judge = score.metadata["judge"]
    assert (judge["kind"], judge["model"], judge["calls"], stub.calls) == ("llm", "openai/stub", 2, 2)
    assert judge["input_tokens"] > 100 and judge["output_tokens"] > 10
    assert judge["cost"] is None, "an unknown price is unknown, not free"


async def test_a_known_price_is_counted(gateway: Gateway) -> None:
    score = await judged(gateway, model="openai/gpt-5.4-mini")
    assert score.metadata["judge"]["cost"] > 0


async def test_the_record_is_fenced_and_instructions_are_in_the_system_message_alone(
    stub: Stub, gateway: Gateway
) -> None:
    await judged(gateway)
    system, user = stub.requests[-1]["messages"]
    case = case_of(TRACE, "secret")
    assert (system["role"], user["role"]) == ("system", "user")
    assert "two plus two" not in system["content"].lower()
    assert case.boundary in system["content"] and user["content"].startswith(f"<<<{case.boundary}\n[0] TRACE")
    assert case.nonce in system["content"] and case.nonce not in user["content"]
    assert case_of(TRACE, "another secret").boundary != case.boundary


async def test_a_rate_limit_closes_the_gate_until_its_time(stub: Stub, gateway: Gateway) -> None:
    stub.tell(status=429, retry_after=7)
    with pytest.raises(Later) as limited:
        await judged(gateway)
    assert limited.value.after is not None and 6.5 < limited.value.after <= 7.5
    stub.tell()
    with pytest.raises(Later, match="rate limited"):
        await judged(gateway)
    assert stub.calls == 1, "something was sent while the gate was closed"


async def test_the_gate_opens_again(stub: Stub, gateway: Gateway) -> None:
    stub.tell(status=429, retry_after=0.5, times=1)
    with pytest.raises(Later):
        await judged(gateway)

    async def scored() -> bool:
        with contextlib.suppress(Later):
            return isinstance(await judged(gateway), Score)
        return False

    await eventually(scored, "the gate opens again", 10)


@pytest.mark.parametrize("behaviour", [{"status": 500}, {"status": 503}, {"hang": True}, {"trickle": True}])
async def test_a_model_that_is_away_is_asked_later_and_gives_its_slot_back(
    stub: Stub, behaviour: dict[str, Any]
) -> None:
    gateway = made(stub, judge_call_seconds=1)
    stub.tell(**behaviour)
    with pytest.raises(Later):
        await judged(gateway)
    assert stub.calls == 1, "the gateway has a retry layer of its own"
    await gateway.stop()


async def test_nobody_at_the_address_is_later_too() -> None:
    gateway = Gateway(Settings(judge_base_url="http://127.0.0.1:9/v1", judge_api_key=KEY))
    with pytest.raises(Later):
        await judged(gateway)
    await gateway.stop()


VERDICT = '{"nonce": "NONCE", "score": 1, "reason": "because", "evidence": []}'


@pytest.mark.parametrize(
    ("behaviour", "why"),
    [
        ({"nonsense": True}, "not one JSON object"),
        ({"say": f"{VERDICT}\n{VERDICT}"}, "not one JSON object"),
        ({"say": f"Here it is: {VERDICT}"}, "not one JSON object"),
        ({"say": VERDICT.replace("1,", "7,")}, "score"),
        ({"say": VERDICT.replace("1,", "NaN,")}, "not one JSON object"),
        ({"say": VERDICT.replace("[]", "[99]")}, "do not exist"),
        ({"say": VERDICT.replace("NONCE", "guessed")}, "nonce"),
        ({"wrong_nonce": True}, "nonce"),
        ({"truncate": True}, "cut off"),
    ],
)
async def test_an_unusable_reply_is_no_score_and_says_why(
    stub: Stub, gateway: Gateway, behaviour: dict[str, Any], why: str
) -> None:
    stub.tell(**behaviour)
    score = await judged(gateway)
    assert isinstance(score, NotScored) and why in score.reason, score.reason
    assert score.metadata["success"] is False
    once = why in ("cut off", "do not exist")
    assert stub.calls == (1 if once else 2), "asked once more, and no more often than that"
    assert once or score.metadata["reply"], "the reader cannot see what the judge said"


async def test_one_unusable_reply_is_forgiven(stub: Stub, gateway: Gateway) -> None:
    stub.tell(nonsense=True, times=1)
    assert isinstance(await judged(gateway), Score)


async def test_a_model_without_schemas_is_asked_without_from_then_on(stub: Stub, gateway: Gateway) -> None:
    stub.tell(refuse=("json_schema",))
    assert isinstance(await judged(gateway), Score)
    assert isinstance(await judged(gateway), Score)
    formats = [r["response_format"]["type"] for r in stub.requests]
    assert formats == ["json_schema", "json_object", "json_object"]


MONEY = "You exceeded your current quota, please check your plan and billing details."


async def test_a_limit_by_the_minute_that_speaks_of_billing_is_a_limit(stub: Stub, gateway: Gateway) -> None:
    """Gemini's words for every 429; its time stands in the body."""
    stub.tell(status=429, message=f'{MONEY} "status": "RESOURCE_EXHAUSTED" "retryDelay": "26s"')
    with pytest.raises(Later, match="rate limited") as limited:
        await judged(gateway)
    assert limited.value.after is not None and 25 < limited.value.after < 28


@pytest.mark.parametrize(
    "behaviour",
    [
        {"status": 429, "code": "insufficient_quota", "message": MONEY},
        {"status": 429, "code": "billing_not_active", "message": "Your account is not active."},
        {"status": 400, "message": "Your credit balance is too low. Please go to Plans & Billing."},
        {"status": 402, "message": "payment required"},
    ],
)
async def test_money_that_is_gone_is_no_score(stub: Stub, gateway: Gateway, behaviour: dict[str, Any]) -> None:
    stub.tell(**behaviour)
    score = await judged(gateway)
    assert isinstance(score, NotScored) and "quota" in score.reason and stub.calls == 1


async def test_a_trace_about_billing_does_not_exhaust_a_quota(stub: Stub, gateway: Gateway) -> None:
    """Servers quote what they were sent."""
    stub.tell(status=503, message="the billing backend restarts")
    with pytest.raises(Later):
        await judged(gateway)
    stub.tell(status=422, message="cannot read: 'where is my billing address?'")
    refused = await judged(gateway)
    assert isinstance(refused, NotScored) and "refuses the request" in refused.reason
    stub.tell(status=400, message="response_format is not supported for: billing", times=1)
    assert isinstance(await judged(gateway), Score)


async def test_an_error_that_quotes_the_whole_trace_does_not_hold_up_the_loop(stub: Stub, gateway: Gateway) -> None:
    """Looking for keys in 80,000 characters took 24 seconds, and no heartbeat went out meanwhile."""
    stub.tell(status=400, message="ask the api " * 7000)
    async with asyncio.timeout(5):
        score = await judged(gateway)
    assert isinstance(score, NotScored) and len(score.reason) < 500


@pytest.mark.parametrize(
    ("behaviour", "why"),
    [
        ({"status": 401, "message": f"bad key {KEY}"}, "refuses the key"),
        ({"status": 403, "message": f"no access for {KEY}"}, "refuses the key"),
        ({"status": 400, "message": f"unknown parameter; authorization: Bearer {KEY}"}, "refuses the request"),
        ({"status": 429, "code": "insufficient_quota", "message": "insufficient_quota"}, "quota"),
    ],
)
async def test_a_refusal_is_no_score_and_never_shows_the_key(
    stub: Stub, gateway: Gateway, behaviour: dict[str, Any], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    stub.tell(**behaviour)
    score = await judged(gateway)
    assert isinstance(score, NotScored) and why in score.reason, score.reason
    assert KEY not in f"{score} {caplog.text}"
    assert stub.calls == 1


async def test_embeddings_by_api_hold_the_documented_formula(stub: Stub, gateway: Gateway) -> None:
    score = await judged(gateway, "coherence")
    assert isinstance(score, Score)
    assert score.value == pytest.approx(1 - score.metadata["coherence_gap"], abs=1e-6)
    assert score.metadata["embedder"] == "openai/text-embedding-stub" and "calibration" not in score.metadata
    assert "judge" not in score.metadata


async def test_a_long_text_is_cut_before_it_is_sent_to_an_api(stub: Stub, gateway: Gateway) -> None:
    embedded = await ApiEmbedder(gateway, "openai/e").embed(["short", "long words " * 10_000])
    assert len(embedded.vectors) == 2 and embedded.calibration is None
    assert [len(t) for t in stub.requests[0]["input"]] == [5, 24_000]


async def test_embeddings_that_are_limited_wait_and_close_the_gate(stub: Stub, gateway: Gateway) -> None:
    stub.tell(status=429, retry_after=7)
    for _ in range(2):
        with pytest.raises(Later):
            await judged(gateway, "coherence")
    assert stub.calls == 1


async def test_two_hundred_conversations_at_once_are_carried(stub: Stub, gateway: Gateway) -> None:
    stub.tell(delay=0.5)
    scores = await asyncio.gather(*(judged(gateway) for _ in range(200)))
    assert all(isinstance(s, Score) for s in scores) and stub.max_in_flight > 100
