"""What judging costs: calls and tokens of the seven judge metrics on the demo's traces, one by one and in groups.

`python -m steelyard_local.bench.judging`; a scripted model answers at once and always with a plan, so that no metric
is spared its questions. Tokens are characters ÷ 3.2, as everywhere here."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from steelyard.clock import utc_now
from steelyard.metrics import CATALOGUE
from steelyard.metrics.judging import Embedded, NotScored, Question, Reply
from steelyard.metrics.rendering import CHARACTERS_PER_TOKEN
from steelyard.settings import Settings
from steelyard.traces import Trace
from steelyard_judge.dialogue import scoring
from steelyard_judge.model import Gateway
from steelyard_judge.orders import Order
from steelyard_judge.usage import Usage
from steelyard_local.bench.figures import table
from steelyard_local.demo_traces import demo_traces

RUN = UUID(int=1)
JUDGED = [name for name in CATALOGUE if name != "coherence"]
# As long as such answers usually are.
WORDS = {"task": 100, "outcome": 200, "step": 60, "reason": 140}


@dataclass
class Scripted(Gateway):
    """Gives every question an answer that its schema allows, and counts."""

    calls: Counter[UUID] = field(default_factory=Counter)
    asked: int = 0
    answered: int = 0

    async def ask(self, question: Question, model: str, usage: Usage) -> Reply:
        usage.calls += 1
        schema = question.reply.model_json_schema()
        reply = question.reply.model_validate(
            _made(schema, schema.get("$defs", {}), "") | {"nonce": question.case.nonce}
        )
        self.calls[question.case.trace.trace_id] += 1
        self.asked += len(question.system) + len(question.prompt)
        self.answered += len(reply.model_dump_json())
        await asyncio.sleep(0)  # the others get to ask, as they do while a model thinks
        return reply


class NoVectors:
    async def identity(self) -> str:
        return "test"

    async def embed(self, texts: Sequence[str], usage: Usage | None = None) -> Embedded:
        raise AssertionError("no judge metric needs an embedding")

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def unwell(self) -> str | None:
        return None


async def judged(traces: Sequence[Trace], grouped: bool) -> Scripted:
    """All metrics of a trace at the same time, as in one job."""
    model = Scripted(Settings())
    score = scoring(model, NoVectors(), CATALOGUE, model.settings, grouped=grouped)
    for trace in traces:
        order = Order(RUN, trace.project_id, trace.trace_id, "openai/scripted", RUN)
        for result in await asyncio.gather(*(score(metric, trace, order) for metric in JUDGED)):
            assert not isinstance(result, NotScored), result.reason
    return model


def told() -> list[Trace]:
    return [Trace.model_validate({"project_id": UUID(int=1), **payload}) for payload in demo_traces(utc_now())]


def _made(schema: Mapping[str, Any], defs: Mapping[str, Any], name: str) -> Any:
    if "$ref" in schema:
        return _made(defs[schema["$ref"].rpartition("/")[2]], defs, name)
    if "enum" in schema:
        return schema["enum"][0] if isinstance(schema["enum"][0], str) else 0.75
    if schema.get("type") == "object":
        return {key: _made(inner, defs, key) for key, inner in schema["properties"].items()}
    if schema.get("type") == "array":
        some = {"plan": 3, "evidence": 0}.get(name, schema.get("minItems", 0))
        return [_made(schema["items"], defs, name) for _ in range(some)]
    return 1 if schema.get("type") == "integer" else "x" * WORDS.get(name, 12)


def row(name: str, model: Scripted, traces: int) -> list[str]:
    tokens = [int(n / CHARACTERS_PER_TOKEN) for n in (model.asked, model.answered)]
    most, calls = max(model.calls.values()), model.calls.total()
    return [name, str(calls), f"{calls / traces:.1f}", str(most), *(f"{n:,}" for n in (*tokens, tokens[0] // traces))]


async def main() -> None:
    traces = told()
    ways = {"isolated": await judged(traces, False), "grouped": await judged(traces, True)}
    print(f"{len(JUDGED)} judge metrics of {len(traces)} traces, a scripted model")
    head = ["judging", "calls", "a trace", "at most", "tokens in", "tokens out", "in a trace"]
    print(table(head, [row(name, model, len(traces)) for name, model in ways.items()]))
    one, other = ways.values()
    print(
        f"  grouped: {one.calls.total() / other.calls.total():.1f} × fewer calls, {one.asked / other.asked:.1f} × fewer tokens in"
    )


if __name__ == "__main__":
    asyncio.run(main())
