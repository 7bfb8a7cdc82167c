"""The gateway to models: real litellm over HTTP, against a server that does what it is told."""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from eventually import eventually
from steelyard.errors import Later
from steelyard.metrics import CATALOGUE
from steelyard.metrics.judging import NotScored, Score
from steelyard.providers import at_own_address, why_not
from steelyard.settings import Settings
from steelyard.traces import Trace
from steelyard_judge.dialogue import Model, case_of, converse
from steelyard_judge.embeddings import ApiEmbedder
from steelyard_judge.gates import Exhausted, Gate
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

    await eventually(scored, "the gate opens again")


@pytest.mark.parametrize("behaviour", [{"status": 500}, {"status": 503}, {"hang": True}, {"trickle": True}])
async def test_a_model_that_is_away_is_asked_later_and_gives_its_slot_back(
    stub: Stub, behaviour: dict[str, Any]
) -> None:
    gateway = made(stub, judge_call_seconds=1)
    stub.tell(**behaviour)
    with pytest.raises(Later):
        await judged(gateway)
    assert stub.calls == 1, "the gateway has a retry layer of its own"
    assert [gate.busy for gate in gateway.gates.all()] == [0], "its place is not given back"
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
        ({"say": f"{VERDICT}\n{VERDICT}"}, "not one JSON object but several"),
        ({"say": f"Here it is: {VERDICT}"}, "not one JSON object"),
        ({"say": VERDICT.replace("1,", "7,")}, "score"),
        ({"refusal": "I will not"}, "refused"),
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
    once = why in ("cut off", "do not exist", "refused")
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
async def test_money_that_is_gone_is_no_attempt_and_nothing_more_is_sent(
    stub: Stub, gateway: Gateway, behaviour: dict[str, Any]
) -> None:
    stub.tell(**behaviour)
    for _ in range(2):
        with pytest.raises(Exhausted, match="the quota of openai/stub is exhausted") as late:
            await judged(gateway)
        assert not late.value.counts
    assert stub.calls == 1


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
    patient = Gateway(gateway.settings.model_copy(update={"judge_call_seconds": 60.0}), gateway.environ)
    scores = await asyncio.gather(*(judged(patient) for _ in range(200)))
    await patient.stop()
    assert all(isinstance(s, Score) for s in scores) and stub.max_in_flight > 100


VENDORS = ("anthropic/claude-haiku-4-5", "gemini/gemini-3-flash-preview", "openai/gpt-5.4-mini")


@pytest.fixture
async def vendors(stub: Stub) -> AsyncIterator[Gateway]:
    """A deployment with each vendor's key, where each vendor's address is the stub's."""
    server = stub.base_url.removesuffix("/v1")
    environ = dict[str, str]()
    for vendor, address in (("ANTHROPIC", server), ("GEMINI", server), ("OPENAI", stub.base_url)):
        environ[f"{vendor}_API_KEY"] = f"{vendor.lower()}-canary-0123456789"
        environ[f"{vendor}_API_BASE"] = address
    gateway = Gateway(Settings(judge_call_seconds=5), environ)
    yield gateway
    await gateway.stop()


@pytest.mark.parametrize("prefixed", [True, False])
@pytest.mark.parametrize("vendor", VENDORS)
async def test_every_vendor_is_asked_on_its_own_wire_with_its_own_key(
    stub: Stub, vendors: Gateway, vendor: str, prefixed: bool
) -> None:
    score = await judged(vendors, "task_completion", vendor if prefixed else vendor.split("/")[1])
    assert isinstance(score, Score) and stub.calls == 2, score
    key = vendor.split("/")[0]
    assert all(f"{key}-canary" in head and head.count("-canary-") == 1 for head in stub.heads)
    case = case_of(TRACE, "secret")
    for request in stub.requests:
        system, user = request["messages"]
        assert (system["role"], user["role"]) == ("system", "user") and case.nonce in system["content"]
        assert user["content"].startswith(f"<<<{case.boundary}\n[0] TRACE")
        assert request["response_format"]["type"] == "json_schema"
    judge = score.metadata["judge"]
    assert judge["input_tokens"] > 100 and judge["output_tokens"] > 10 and judge["cost"] > 0


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize(
    ("behaviour", "why"),
    [
        ({"truncate": True}, "cut off"),
        ({"refusal": "no"}, "refused"),
        ({"nonsense": True}, "not one JSON object"),
        ({"status": 401, "message": "invalid x-api-key"}, "refuses the key"),
        ({"status": 404, "message": "no such model"}, "refuses the request"),
    ],
)
async def test_every_vendors_failures_have_their_own_reason(
    stub: Stub, vendors: Gateway, vendor: str, behaviour: dict[str, Any], why: str
) -> None:
    stub.tell(**behaviour)
    result = await judged(vendors, model=vendor)
    assert isinstance(result, NotScored) and why in result.reason, result.reason


@pytest.mark.parametrize("vendor", VENDORS)
async def test_every_vendors_limit_is_kept_and_closes_no_other_gate(stub: Stub, vendors: Gateway, vendor: str) -> None:
    stub.tell(status=429, retry_after=9, times=1)
    with pytest.raises(Later) as limited:
        await judged(vendors, model=vendor)
    assert limited.value.after is not None and 8.5 < limited.value.after < 11 and not limited.value.counts
    for other in VENDORS:
        if other != vendor:
            assert isinstance(await judged(vendors, model=other), Score)
    with pytest.raises(Later, match="rate limited"):
        await judged(vendors, model=vendor)


@pytest.mark.parametrize(
    "said",
    [
        "output_format.schema: For 'array' type, property 'minItems' is not supported",
        "Unknown name 'response_json_schema' at 'generation_config'",
        "This response_format type is unavailable now",
        "The provided JSON schema contains features not supported by the grammar backend",
        "Failed to generate JSON: json_validate_failed",
    ],
)
async def test_a_schema_that_a_vendor_does_not_take_is_left_out_from_then_on(
    stub: Stub, gateway: Gateway, said: str
) -> None:
    stub.tell(status=400, message=said, times=1)
    assert isinstance(await judged(gateway), Score) and isinstance(await judged(gateway), Score)
    assert [r["response_format"]["type"] for r in stub.requests] == ["json_schema", "json_object", "json_object"]


@pytest.mark.parametrize(
    ("model", "sent"),
    [
        ("default", "default"),
        ("openai/default", "default"),
        ("meta-llama/Llama-3.3-70B-Instruct", "meta-llama/Llama-3.3-70B-Instruct"),
        ("mistral-nemo:12b", "mistral-nemo:12b"),
        ("claude-compatible", "claude-compatible"),
        ("openai/openai/gpt-oss-20b", "openai/gpt-oss-20b"),
    ],
)
async def test_a_model_at_our_own_address_may_be_called_anything(
    stub: Stub, gateway: Gateway, model: str, sent: str
) -> None:
    assert isinstance(await judged(gateway, model=model), Score)
    assert stub.requests[0]["model"] == sent
    assert why_not(model, stub.base_url, {}) is None and why_not(model, None, {}) is not None


def test_a_vendors_model_is_the_vendors_where_its_key_is() -> None:
    keys = {"ANTHROPIC_API_KEY": "k"}
    assert at_own_address("claude-haiku-4-5", "http://x", {}) and not at_own_address(
        "claude-haiku-4-5", "http://x", keys
    )
    assert not at_own_address("anthropic/claude-haiku-4-5", "http://x", {}), "a prefix is meant"
    assert not at_own_address("anything", None, keys)


async def test_a_reply_that_quotes_our_key_or_the_marks_is_not_shown_with_them(stub: Stub, gateway: Gateway) -> None:
    case = case_of(TRACE, "secret")
    told = f"HEADERS NONCE {case.boundary}"
    for say in (
        VERDICT.replace("because", f"{case.boundary} NONCE {KEY}"),
        f"I refuse: {told}",
        f'{{"nonce": "{told}"}}',
    ):
        stub.tell(say=say)
        said = str(await judged(gateway))
        assert not [secret for secret in (KEY, case.nonce, case.boundary) if secret in said]
    stub.tell(refusal=f"no: {KEY} {case.nonce}")
    said = str(await judged(gateway))
    assert "refused" in said and KEY not in said and case.nonce not in said


async def passing(gate: Gate, done: asyncio.Event) -> None:
    async with gate.passed("m"):
        await done.wait()


def limited(gate: Gate, calls: int) -> None:
    """So many were under way when one of them was limited."""
    gate.busy += calls
    gate.fewer(time.monotonic())
    gate.busy -= calls


def test_a_limit_halves_what_was_under_way_once_for_all_of_it_and_never_below_one() -> None:
    gate = Gate()
    began = time.monotonic()
    gate.busy = 40
    for _ in range(10):
        gate.fewer(began)
    assert gate.at_once == 20
    for _ in range(20):
        gate.fewer(time.monotonic())
    assert gate.at_once == 1


def test_a_round_of_answers_at_the_limit_adds_one_and_below_it_none() -> None:
    gate = Gate(at_once=10, busy=10)
    for _ in range(10):
        gate.more()
    assert 10.9 < gate.at_once <= 11
    gate.busy = 3
    gate.more()
    assert gate.at_once <= 11
    fresh = Gate(busy=500)
    fresh.more()
    assert fresh.at_once == math.inf, "nothing is limited before the first 429"


async def test_who_waits_for_a_place_gets_it_in_turn_and_a_cancelled_one_takes_none() -> None:
    gate, done = Gate(at_once=2), [asyncio.Event() for _ in range(5)]
    calls = [asyncio.create_task(passing(gate, d)) for d in done]
    await eventually(lambda: gate.busy == 2 and len(gate.waiting) == 3, "two pass and three wait")
    calls[2].cancel()
    done[0].set()
    await eventually(lambda: calls[0].done() and calls[2].done() and not gate.waiting[0].done(), "the place moves on")
    assert gate.busy == 2 and len(gate.waiting) == 1
    for d in done:
        d.set()
    await asyncio.gather(*calls, return_exceptions=True)
    assert gate.busy == 0 and not gate.waiting


async def test_a_place_that_came_as_nobody_waited_any_more_is_handed_on() -> None:
    gate, done = Gate(at_once=1), asyncio.Event()
    first, second, third = (asyncio.create_task(passing(gate, done)) for _ in range(3))
    await eventually(lambda: len(gate.waiting) == 2, "two wait")
    gate._leave()  # the first one's place goes to the second, which is cancelled before it wakes up
    second.cancel()
    gate.busy += 1
    done.set()
    await asyncio.gather(first, third)
    assert gate.busy == 0 and second.cancelled()


async def test_who_waits_too_long_for_a_place_gives_the_judges_slot_back_and_comes_later() -> None:
    gate, done = Gate(at_once=1, patience=0.05), asyncio.Event()
    first = asyncio.create_task(passing(gate, done))
    await eventually(lambda: gate.busy == 1, "one passes")
    with pytest.raises(Later, match="takes 1 calls at once") as late:
        await passing(gate, done)
    assert not late.value.counts and late.value.after is not None and late.value.after >= 0.05
    done.set()
    await first
    assert gate.busy == 0 and not gate.waiting


async def test_a_gate_that_closes_sends_away_those_who_wait() -> None:
    gate, done = Gate(at_once=1), asyncio.Event()
    calls = [asyncio.create_task(passing(gate, done)) for _ in range(4)]
    await eventually(lambda: len(gate.waiting) == 3, "three wait")
    gate.close("limited", 30)
    done.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert results[0] is None and all(isinstance(r, Later) and not r.counts for r in results[1:]) and gate.busy == 0


async def test_a_provider_that_takes_eight_at_once_is_soon_asked_no_more_than_it_takes(stub: Stub) -> None:
    """Sixty conversations knock at once, and who is limited comes again: 52 are, then 22, then 7. With a fixed number it
    would be 52, 44, 36, 28 …, two hundred calls for nothing."""
    gateway = made(stub, judge_call_seconds=10)
    stub.tell(at_most=8, delay=0.05, retry_after=0.5)

    async def scored() -> bool:
        with contextlib.suppress(Later):
            return isinstance(await judged(gateway), Score)
        return False

    await asyncio.gather(*(eventually(scored, "it is scored") for _ in range(60)))
    assert stub.calls - stub.limited == 60
    assert stub.limited < 120, "it goes on knocking"
    assert all(1 <= gate.at_once < 20 and gate.busy == 0 for gate in gateway.gates.all())
    await gateway.stop()
