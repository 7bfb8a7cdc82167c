"""What was paid for is found again, and every call is written down: on a real database, with a gateway that is told what
to answer."""

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text

from addresses import Urls
from spine import new_project
from steelyard.errors import Later
from steelyard.metrics.judging import Metric, Question, Reply
from steelyard.settings import Settings
from steelyard.store import answers
from steelyard.store.database import Database
from steelyard_judge.model import Gateway
from steelyard_judge.orders import Order
from steelyard_judge.paying import Ledger, Payer
from steelyard_judge.usage import Unanswered, Usage
from traces_of import case


class Said(Reply):
    word: str


@dataclass
class Oracle:
    """Answers what it is told to, and counts."""

    replies: list[Any] = field(default_factory=list)
    asked: int = 0

    async def ask(self, question: Question, model: str, usage: Usage) -> Reply:
        self.asked += 1
        reply = self.replies.pop(0) if self.replies else Said(nonce="n", word="yes")
        usage.calls += 1
        usage.note(
            "ok" if isinstance(reply, Reply) else "timeout", Usage(input_tokens=100, output_tokens=10, cost=0.25)
        )
        if isinstance(reply, Exception):
            raise reply
        assert isinstance(reply, Reply)
        return reply


METRIC = Metric("m", "of the test", "1", lambda _: iter(()))  # type: ignore[arg-type,return-value]


def question(prompt: str = "is it?", shared: bool = False) -> Question:
    return Question("grade", "system", prompt, Said, case("in", "out"), shared)


@pytest.fixture
async def order(urls: Urls) -> Order:
    run = uuid4()
    return Order(run, await new_project(urls), uuid4(), "openai/gpt-5.4-mini", run)


def payer(oracle: Oracle, database: Database, order: Order, **settings: Any) -> Payer:
    gateway: Gateway = oracle  # type: ignore[assignment]
    return Payer(gateway, Ledger(database), order, METRIC, Settings(**settings))


async def asked(one: Payer, what: Question | None = None, model: str = "openai/gpt-5.4-mini") -> Reply:
    reply = await one.ask(what or question(), model, Usage())
    await one.settled()
    return reply


async def rows(database: Database, sql: str) -> list[dict[str, Any]]:
    async with database.begin() as tx:
        return [dict(r._mapping) for r in await tx.execute(text(sql))]


async def test_an_answer_is_found_again_in_its_run_and_its_retries(database: Database, order: Order) -> None:
    oracle = Oracle()
    first = await asked(payer(oracle, database, order))
    retry = replace(order, run_id=uuid4(), attempt=2)
    for again in (order, retry):
        found = payer(oracle, database, again)
        assert await asked(found) == first and found.reused == 1
    assert oracle.asked == 1
    assert len(await rows(database, "SELECT 1 FROM calls")) == 1


async def test_another_run_pays_for_itself_unless_it_asks_for_what_is_there(database: Database, order: Order) -> None:
    oracle = Oracle()
    await asked(payer(oracle, database, order))
    run = uuid4()
    other = replace(order, run_id=run, root_run_id=run)
    await asked(payer(oracle, database, other))
    assert oracle.asked == 2
    third = uuid4()
    thrifty = payer(oracle, database, replace(order, run_id=third, root_run_id=third, reuse=True))
    await asked(thrifty)
    assert oracle.asked == 2 and thrifty.reused == 1


async def test_another_projects_answer_is_never_taken(database: Database, order: Order, urls: Urls) -> None:
    oracle = Oracle()
    await asked(payer(oracle, database, order))
    stranger = await new_project(urls, "another organisation")
    await asked(payer(oracle, database, replace(order, project_id=stranger, reuse=True)))
    assert oracle.asked == 2


@pytest.mark.parametrize("change", ["prompt", "model", "tokens", "temperature", "version"])
async def test_what_decides_an_answer_makes_another_question(database: Database, order: Order, change: str) -> None:
    oracle = Oracle()
    await asked(payer(oracle, database, order))
    settings: dict[str, dict[str, Any]]
    settings = {"tokens": {"judge_max_tokens": 500}, "temperature": {"judge_temperature": 0.5}}
    other = payer(oracle, database, order, **settings.get(change, {}))
    other.metric = replace(METRIC, version="2") if change == "version" else METRIC
    prompt = question("is it not?") if change == "prompt" else question()
    await asked(other, prompt, "openai/other" if change == "model" else "openai/gpt-5.4-mini")
    assert oracle.asked == 2


async def test_what_metrics_ask_alike_is_found_for_all_of_them(database: Database, order: Order) -> None:
    oracle = Oracle()
    await asked(payer(oracle, database, order), question(shared=True))
    other = payer(oracle, database, order)
    other.metric = replace(METRIC, name="other")
    await asked(other, question(shared=True))
    assert oracle.asked == 1


async def test_a_failed_call_is_written_down_and_not_found(database: Database, order: Order) -> None:
    oracle = Oracle([Later("away"), Unanswered("nonsense", {})])
    for error in (Later, Unanswered):
        with pytest.raises(error):
            await asked(payer(oracle, database, order))
    await asked(payer(oracle, database, order))
    calls = await rows(database, "SELECT outcome, input_tokens, cost FROM calls ORDER BY id")
    assert [c["outcome"] for c in calls] == ["timeout", "timeout", "ok"] and oracle.asked == 3
    assert len(await rows(database, "SELECT 1 FROM answers")) == 1


async def test_an_answer_of_another_shape_is_asked_for_again(database: Database, order: Order) -> None:
    oracle = Oracle()
    await asked(payer(oracle, database, order))
    await rows(database, """UPDATE answers SET reply = '{"nonce": "n", "verdict": 1}' RETURNING 1""")
    await asked(payer(oracle, database, order))
    assert oracle.asked == 2


async def test_hundreds_at_once_are_written_in_few_transactions_and_none_is_told_too_early(
    database: Database, order: Order
) -> None:
    oracle, book = Oracle(), Ledger(database)
    gateway: Gateway = oracle  # type: ignore[assignment]

    async def one(n: int) -> None:
        mine = Payer(gateway, book, order, METRIC, Settings())
        await mine.ask(question(f"number {n}"), order.model, Usage())
        await mine.settled()
        found = await book.find(
            answers.Wanted(order.project_id, order.root_run_id, mine._key(question(f"number {n}"), order.model))
        )
        assert found is not None and found.reply["word"] == "yes"

    await asyncio.gather(*(one(n) for n in range(300)))
    assert len(await rows(database, "SELECT 1 FROM calls")) == 300
    assert len(await rows(database, "SELECT DISTINCT xmin::text FROM calls")) < 40


async def test_what_a_run_spent_is_the_sum_of_its_calls(database: Database, order: Order, urls: Urls) -> None:
    async with database.begin() as tx:
        statement = """
            INSERT INTO runs (id, project_id, metric_names, judge_model, snapshot)
            VALUES (:run, :project, '{m}', 'x', pg_current_snapshot()::text)
        """
        await tx.execute(text(statement), {"run": order.run_id, "project": order.project_id})
    oracle = Oracle([Said(nonce="n", word="a"), Later("away")])
    one = payer(oracle, database, order)
    await asked(one, question("one"))
    with pytest.raises(Later):
        await one.ask(question("two"), order.model, Usage())
    await one.settled()
    (spent,) = await rows(database, "SELECT run_id, calls, cost, unpriced FROM run_spending")
    assert spent == {"run_id": order.run_id, "calls": 2, "cost": 0.5, "unpriced": 0}
    async with database.begin() as tx:
        (told,) = await answers.spent(tx, order.project_id, order.run_id)
    assert (told["calls"], told["failed_calls"], told["input_tokens"], told["cost_usd"]) == (2, 1, 200, 0.5)
