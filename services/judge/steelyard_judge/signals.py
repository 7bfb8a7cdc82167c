"""Signals of sessions: what came before a trace in its session, and values that are there already and still hold."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

from steelyard.metrics.judging import Case, Metric, Score
from steelyard.metrics.rules import JUDGE
from steelyard.providers import RULES
from steelyard.settings import Settings
from steelyard.store import signals
from steelyard.store.database import Database
from steelyard.store.signals import KnownSignal, WantedSignal
from steelyard_judge.lookup import Batched

BY_EMBEDDINGS = frozenset({"coherence", "loop_detection"})
# What a judge is told apart by, and not what it cost.
COSTS = {"calls": 0, "input_tokens": 0, "output_tokens": 0, "cached_tokens": 0, "cost": 0.0, "seconds": 0.0}


class KnownSignals(Protocol):
    async def find(self, wanted: WantedSignal) -> KnownSignal | None: ...


class StoredSignals:
    """The project's scores, asked for many at a time."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._found: Batched[WantedSignal, KnownSignal] = Batched(self._find, most=500)

    async def find(self, wanted: WantedSignal) -> KnownSignal | None:
        return await self._found.get(wanted)

    async def _find(self, wanted: Sequence[WantedSignal]) -> dict[WantedSignal, KnownSignal]:
        async with self._database.begin() as tx:
            return await signals.find(tx, wanted)


@dataclass(frozen=True)
class Basis:
    """All that decides a value: the trace's content, what it is compared with, the metric's version and who judges."""

    metric: Metric
    case: Case
    model: str
    grouped: bool
    embedder: str
    settings: Settings

    def __str__(self) -> str:
        s = self.settings
        who: tuple[Any, ...]
        if self.metric.name in BY_EMBEDDINGS:
            who = ("embeddings", self.embedder)
        elif self.model == RULES:
            who = (RULES, JUDGE["version"])
        else:
            who = (self.model, s.judge_base_url, s.judge_max_tokens, s.judge_temperature, self.grouped)
        earlier = self.case.earlier if self.metric.name == "loop_detection" else ()
        said = (self.metric.name, self.metric.version, *who, self.case.content.hex(), repr(earlier))
        return hashlib.blake2b("\0".join(map(str, said)).encode("utf-8", "replace"), digest_size=16).hexdigest()


async def reused(known: KnownSignals, basis: str, project: UUID, case: Case, metric: Metric) -> Score | None:
    """A value that is there already, as a score of this run that says where it comes from and cost nothing."""
    found = await known.find(WantedSignal(project, case.trace.trace_id, metric.name, basis))
    if found is None:
        return None
    told = dict(found.metadata)
    for who in ("judge", "embedding"):
        if isinstance(cost := told.get(who), dict):
            told[who] = {k: COSTS.get(k, v) for k, v in cost.items() if k not in ("reused_answers", "shared_answers")}
    told["reused"] = {
        "score_id": str(found.score_id),
        "eval_run_id": str(found.run_id) if found.run_id else None,
        "scored_at": found.created_at.isoformat(),
    }
    return Score(found.value, found.reason, told)
