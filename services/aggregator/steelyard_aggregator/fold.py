"""What a session's signals, once none is owed any more, make of it: a score, or why there is none. Pure.

Signals come in pages; what is kept of them is bounded, so a session may be of any size."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID, uuid5

from steelyard.metrics.sessions import SESSION_METRICS, SessionMetric, Signals, weights_of

_SCORES = UUID("1d0f1c4e-6a76-4c58-8f0a-b5d2f0a3c9e7")
# Of very many different reasons the rare ones are forgotten: what is told are the most frequent.
MOST_REASONS = 2000


@dataclass(frozen=True)
class Signal:
    """A pair of a run of sessions, settled: a value, or the reason why there is none."""

    trace_id: UUID
    name: str
    value: float | None
    reason: str | None


@dataclass(frozen=True)
class Ended:
    """A session of a run of which nothing is owed any more."""

    run_id: UUID
    project_id: UUID
    session_id: str
    size: int
    metrics: Sequence[str]
    weights: Mapping[str, float] | None
    snapshot_at: datetime


class Folding:
    """Takes a session's signals in the order of its traces, and gives a row for each metric."""

    def __init__(self, ended: Ended) -> None:
        weights = weights_of(ended.weights)
        self.ended = ended
        self._folds = {m: m.fold(weights, ended.size) for m in (SESSION_METRICS[name] for name in ended.metrics)}
        self._open: tuple[UUID, dict[str, float]] | None = None  # a trace whose signals may go on with the next page
        self._traces, self._signals = 0, 0
        self._present, self._missing, self._reasons = Counter[str](), Counter[str](), Counter[tuple[str, str]]()

    def add(self, signals: Sequence[Signal]) -> None:
        traces = list(self._traces_of(signals))
        for fold in self._folds.values():
            fold.add(traces)
        if len(self._reasons) > MOST_REASONS:
            self._reasons = Counter(dict(self._reasons.most_common(MOST_REASONS // 2)))

    def rows(self, version: str) -> list[dict[str, Any]]:
        """`version` is of all the session's traces: see `SessionVersion`."""
        if self._open is not None:
            last, self._open = [_whole(self._open)], None
            for fold in self._folds.values():
                fold.add(last)
        return [self._row(metric, version) for metric in self._folds]

    def _traces_of(self, signals: Iterable[Signal]) -> Iterator[Signals]:
        for signal in signals:
            if self._open is None or self._open[0] != signal.trace_id:
                if self._open is not None:
                    yield _whole(self._open)
                self._open = signal.trace_id, {}
                self._traces += 1
            self._signals += 1
            if signal.value is not None:
                self._open[1][signal.name] = signal.value
                self._present[signal.name] += 1
            else:
                self._missing[signal.name] += 1
                self._reasons[signal.name, signal.reason or "no reason"] += 1

    def _row(self, metric: SessionMetric, version: str) -> dict[str, Any]:
        ended, why, score = self.ended, self._why_not(metric), self._folds[metric].score()
        told = {**score.metadata, **self._coverage(metric, version)}
        told["success"] = why is None and score.value >= metric.threshold
        return {
            "id": score_id(ended.run_id, ended.session_id, metric.name),
            "project_id": ended.project_id,
            "session_id": ended.session_id,
            "eval_run_id": ended.run_id,
            "name": metric.name,
            "value": None if why else repr(score.value),
            "status": "FAILED" if why else "SUCCESS",
            "reason": why or self._said(score.reason),
            "metadata": told,
            "session_version": version,
            "traces_seen": ended.size,
            "snapshot_at": ended.snapshot_at.isoformat(),
        }

    def _why_not(self, metric: SessionMetric) -> str | None:
        """No number is made up: what rests on nothing is not scored."""
        if any(self._present[need] for need in metric.needs):
            return None
        (most, _), *_ = self._most_common(metric.needs, 1) or [("there are none", 0)]
        what = "signal" if len(metric.needs) > 1 else f"{metric.needs[0]} signal"
        return f"no {what} of the session's {self._traces} traces could be scored: {most}"[:2000]

    def _most_common(self, names: Iterable[str], most: int) -> list[tuple[str, int]]:
        counts, wanted = Counter[str](), set(names)
        for (name, reason), n in self._reasons.items():
            if name in wanted:
                counts[reason] += n
        return counts.most_common(most)

    def _coverage(self, metric: SessionMetric, version: str) -> dict[str, Any]:
        told: dict[str, Any] = {
            "threshold": metric.threshold,
            "metric_version": metric.version,
            "total_traces_in_session": self.ended.size,
            "snapshot_at": self.ended.snapshot_at.isoformat(),
            "session_version": version,
            "signals_expected": self._signals,
            "signals_present": self._present.total(),
        }
        if self._missing:
            told["signals_missing"] = dict(sorted(self._missing.items()))
            told["missing_because"] = dict(self._most_common(self._missing, 5))
        return told

    def _said(self, reason: str) -> str:
        present = self._present.total()
        return reason if present == self._signals else f"{reason} It rests on {present} of {self._signals} signals."


class SessionVersion:
    """The same for the same traces in the same versions: whether two scores saw the same session is plain to see. They
    come sorted, each pair once, in pages: the hash of a list of any length."""

    def __init__(self) -> None:
        self._hash, self._first = hashlib.blake2b(b"[", digest_size=8), True

    def add(self, traces: Iterable[tuple[UUID, int]]) -> None:
        for trace_id, version in traces:
            self._hash.update(f"{'' if self._first else ', '}{(str(trace_id), version)!r}".encode())
            self._first = False

    def value(self) -> str:
        whole = self._hash.copy()
        whole.update(b"]")
        return whole.hexdigest()


def score_id(run_id: UUID, session_id: str, metric: str) -> UUID:
    """Derived, so that a redelivery cannot invent a second score."""
    return uuid5(_SCORES, f"{run_id}/{metric}/{session_id}")


def _whole(trace: tuple[UUID, dict[str, float]]) -> Signals:
    return Signals(str(trace[0]), trace[1])
