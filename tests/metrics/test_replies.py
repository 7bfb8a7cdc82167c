"""Which replies of a model are an answer, and what a refusal may show: beside test_model.py, one small fact each."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest

from steelyard.errors import Later
from steelyard.metrics import CATALOGUE
from steelyard.metrics.judging import NotScored, Score
from steelyard.settings import Settings
from steelyard_judge.dialogue import Model, case_of, converse, scoring
from steelyard_judge.embeddings import ApiEmbedder
from steelyard_judge.model import Gateway
from steelyard_judge.orders import Order
from stub_model import Stub, stub_model
from traces_of import tools, trace

KEY = "hunter2"
TRACE = trace("Book a table", "Booked for 7 pm", tools(("book", {"at": "19:00"}, {"ok": True})))


@pytest.fixture
async def stub() -> AsyncIterator[Stub]:
    async with stub_model() as stub:
        yield stub


@pytest.fixture
async def gateway(stub: Stub) -> AsyncIterator[Gateway]:
    gateway = Gateway(Settings(judge_base_url=stub.base_url, judge_api_key=KEY, judge_call_seconds=5))
    yield gateway
    await gateway.stop()


async def judged(gateway: Gateway, model: str = "openai/stub") -> Score | NotScored:
    talk = Model(gateway, model)
    return await converse(CATALOGUE["confidence"], case_of(TRACE, "s"), talk, ApiEmbedder(gateway, "openai/e"))


@pytest.mark.parametrize(
    "said",
    [
        '{"nonce": "NONCE", "score": 0, "score": 1, "reason": "the second verdict would have won"}',
        '{"nonce": "NONCE", "score": true, "reason": "true is no level"}',
        '{"nonce": "NONCE", "score": NaN, "reason": "not a number"}',
        '{"nonce": "NONCE", "score": Infinity, "reason": "beyond"}',
        '{"nonce": "NONCE", "score": 0.6, "reason": "between the levels"}',
        '{"nonce": "NONCE", "score": 1, "reason": "r", "override": "and more"}',
        '{"nonce": "NONCE", "score": 1}',
        'The record says {"nonce": "NONCE", "score": 1, "reason": "r"}',
        '[{"nonce": "NONCE", "score": 1, "reason": "r"}]',
        '{"nonce": "", "score": 1, "reason": "r"}',
        "[" * 100_000,
    ],
)
async def test_what_is_not_one_whole_answer_is_no_score(stub: Stub, gateway: Gateway, said: str) -> None:
    stub.tell(say=said)
    result = await judged(gateway)
    assert isinstance(result, NotScored) and result.metadata["reply"] and stub.calls == 2


@pytest.mark.parametrize("frame", ["{}", "\n {}\n", "```json\n{}\n```", "```\n{}\n```"])
async def test_a_whole_answer_counts_in_a_fence_too(stub: Stub, gateway: Gateway, frame: str) -> None:
    stub.tell(say=frame.replace("{}", '{"nonce": "NONCE", "score": 0.25, "reason": "r", "evidence": [1]}'))
    result = await judged(gateway)
    assert isinstance(result, Score) and result.value == 0.25 and stub.calls == 1


async def test_a_model_that_knows_no_format_is_asked_in_plain_text_from_then_on(stub: Stub, gateway: Gateway) -> None:
    stub.tell(refuse=("json_schema", "json_object"))
    assert isinstance(await judged(gateway), Score) and isinstance(await judged(gateway), Score)
    formats = [r.get("response_format", {}).get("type") for r in stub.requests]
    assert formats == ["json_schema", "json_object", None, None]


async def test_what_one_model_refuses_another_may_take(stub: Stub, gateway: Gateway) -> None:
    stub.tell(refuse=("json_schema",), times=1)
    await judged(gateway, "openai/one")
    await judged(gateway, "openai/two")
    assert [r["response_format"]["type"] for r in stub.requests] == ["json_schema", "json_object", "json_schema"]


@pytest.mark.parametrize("status", [400, 401, 404])
async def test_a_key_of_any_look_is_never_shown(
    stub: Stub, gateway: Gateway, status: int, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    stub.tell(status=status, message=f"you sent {KEY}, which nobody knows")
    result = await judged(gateway)
    assert isinstance(result, NotScored)
    assert KEY not in f"{result} {caplog.text} {capfd.readouterr()}"


async def test_the_key_of_a_vendor_is_not_sent_to_another_address(stub: Stub) -> None:
    gateway = Gateway(Settings(judge_base_url=stub.base_url, judge_call_seconds=5), {"OPENAI_API_KEY": KEY})
    assert gateway._route("openai/stub")["api_key"] == "none"
    assert isinstance(await judged(gateway), Score), "an address may need no key at all"
    await gateway.stop()


@pytest.mark.parametrize(
    ("told", "sent"), [({}, None), ({"judge_temperature": 0.0}, 0.0), ({"judge_max_tokens": 321}, None)]
)
async def test_a_temperature_is_sent_only_when_it_is_set_and_a_length_always(
    stub: Stub, told: dict[str, Any], sent: float | None
) -> None:
    gateway = Gateway(Settings(judge_base_url=stub.base_url, judge_api_key=KEY, **told))
    await judged(gateway)
    assert stub.requests[0].get("temperature") == sent
    assert stub.requests[0]["max_tokens"] == told.get("judge_max_tokens", 2000)
    await gateway.stop()


async def test_a_later_429_does_not_open_the_gate_earlier(stub: Stub, gateway: Gateway) -> None:
    """Two were under way: the one says a minute, the other, answered after it, a second."""
    stub.tell(status=429, retry_after=60, delay=0.1, times=1)
    with pytest.raises(Later) as first:
        await judged(gateway)
    (gate,) = gateway.gates.all()
    closed = gate.until
    error = type("Limited", (Exception,), {"status_code": 429, "litellm_response_headers": {"retry-after": "1"}})()
    gateway._meaning(error, "openai/stub", gate, Model(gateway, "openai/stub")._usage, False)
    assert gate.until == closed and first.value.after is not None and first.value.after > 59


async def test_a_trace_too_large_for_the_model_is_asked_once_more_and_then_named(stub: Stub, gateway: Gateway) -> None:
    stub.tell(status=400, code="context_length_exceeded", message="This model's maximum context length is 8192 tokens")
    result = await judged(gateway)
    assert isinstance(result, NotScored) and "too large" in result.reason and stub.calls == 2


@pytest.mark.parametrize(("grouped", "calls"), [(False, 6), (True, 3)])
async def test_every_judge_metric_is_scored_over_the_wire(
    stub: Stub, gateway: Gateway, grouped: bool, calls: int
) -> None:
    """The stub makes what the schema asks for, and states no plan: two questions are spared, one by one."""
    score = scoring(gateway, ApiEmbedder(gateway, "openai/e"), CATALOGUE, gateway.settings, grouped=grouped)
    order = Order(UUID(int=5), TRACE.project_id, TRACE.trace_id, "openai/stub", UUID(int=5))
    judged = [name for name in CATALOGUE if name != "coherence"]
    scores = await asyncio.gather(*(score(name, TRACE, order) for name in judged))
    assert [s.reason for s in scores if not isinstance(s, Score)] == [] and stub.calls == calls
    usage = [s.metadata["judge"] for s in scores]
    assert sum(u["calls"] for u in usage) == calls and all(u["kind"] == "llm" for u in usage)
