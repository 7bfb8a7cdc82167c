"""Nothing is paid for twice: counted by the model that is asked, question by question, under processes that are killed."""

import os
import re
import signal
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from eventually import eventually
from system import SLOTS, System

NAMES = ("api-1", "resolver-1", "judge-1", "aggregator-1", "scheduler-1")
METRICS = ["task_completion", "step_efficiency", "confidence"]
# Two of the metrics ask one question alike, and each of the three has one of its own.
QUESTIONS = 4


@dataclass(frozen=True)
class Kill:
    """What had been asked when the judge died, how often, and whose answers were committed by then."""

    asked: Counter[str]
    kept: frozenset[str]

    @property
    def lost(self) -> frozenset[str]:
        return frozenset(self.asked) - self.kept


@pytest.mark.faults
async def test_an_answer_that_was_kept_is_never_paid_for_again_however_often_the_judge_is_killed(
    system: System,
) -> None:
    await system.start(*NAMES)
    await system.tell(delay=0.3, signed=True)
    await system.ingest(60)
    run_id = await system.request(metrics=METRICS)
    kills = []
    for least in (20, 70, 120, 170):
        kills.append(await killed(system, least))
        await system.start("judge-1")
    run = await system.done(run_id)
    assert (run["status"], run["evaluated_count"], run["failed_count"]) == ("COMPLETED", 60, 0)
    assert [p["outcome"] for p in await system.rows("SELECT outcome FROM pairs")] == ["SUCCESS"] * 180
    scores = await system.rows("SELECT trace_id, name FROM trace_scores")
    assert len(scores) == len({(s["trace_id"], s["name"]) for s in scores}) == 180

    asked = await questions(system)
    assert len(asked) == 60 * QUESTIONS
    for kill in kills:
        assert not {q for q in kill.kept if asked[q] != kill.asked[q]}, "what was kept was paid for again"
        # A conversation asks one question at a time, and while its answer is being committed it may ask the next.
        assert 0 < len(kill.lost) <= 2 * SLOTS
    lost = Counter(q for kill in kills for q in kill.lost)
    assert asked <= Counter(dict.fromkeys(asked, 1)) + lost, "paid for more often than it was lost"
    assert asked.total() <= 60 * QUESTIONS + lost.total()


async def test_a_run_that_takes_what_is_there_pays_nothing_and_says_so(system: System) -> None:
    await system.start(*NAMES)
    await system.tell()
    await system.ingest(10)
    for reuse, paid in ((False, 40), (True, 40), (False, 80)):
        run = await system.done(await system.request(metrics=METRICS, reuse=reuse))
        assert (run["evaluated_count"], run["failed_count"]) == (10, 0)
        assert await system.calls() == paid
        scores = await system.call("get", f"/evaluations/trace-runs/{run['id']}/scores")
        judges = [s["metadata"]["judge"] for s in scores]
        assert all(("reused_answers" in j) is reuse for j in judges) and len(judges) == 30
        assert sum(j.get("reused_answers", 0) for j in judges) == (40 if reuse else 0)


async def killed(system: System, least: int) -> Kill:
    """With kill -9, when at least so many answers are kept and calls are under way."""
    kept = await eventually(partial(frozen, system, least), f"{least} answers are kept, and calls are under way")
    await system.kill("judge-1")

    async def idle() -> bool:
        return not (await system.stats())["in_flight"]

    await eventually(idle, "the model has answered whoever asked")
    return Kill(await questions(system), kept)


async def frozen(system: System, least: int) -> frozenset[str] | None:
    """A judge that stands still keeps nothing more and asks nothing more: what is found is what it will die with."""
    if len(await answered(system)) < least:
        return None
    os.kill(system.pid("judge-1"), signal.SIGSTOP)
    under_way = (await system.stats())["in_flight"]
    if under_way:
        return await answered(system)
    os.kill(system.pid("judge-1"), signal.SIGCONT)
    return None


async def answered(system: System) -> frozenset[str]:
    """The questions whose answers are committed, by the marks that the model left in them."""
    replies = [str(r["reply"]) for r in await system.rows("SELECT reply FROM answers")]
    found = [re.search(r"question-[0-9a-f]{12}", reply) for reply in replies]
    assert all(found), "an answer without a mark"
    return frozenset(f.group() for f in found if f)


async def questions(system: System) -> Counter[str]:
    asked: dict[str, Any] = (await system.stats())["by_question"]
    return Counter(asked)
