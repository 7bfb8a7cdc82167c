"""What a job asks for beside its metrics: whose money, which judge, and what was paid for already."""

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from steelyard.events import Owed, TraceJob
from steelyard.metrics.judging import Earlier


@dataclass(frozen=True)
class Order:
    """`root_run_id` is the run that this one, or what it retries, goes back to; `grouped` None is the deployment's way.
    `earlier` is what came before the trace in its session, where the metric asks for that. `kept` is what the metrics of one
    job share, its rendering: it lives as long as the job does, and so does what admission counts for it."""

    run_id: UUID
    project_id: UUID
    trace_id: UUID
    model: str
    root_run_id: UUID
    reuse: bool = False
    grouped: bool | None = None
    attempt: int = 0
    probe: bool = False
    in_session: bool = False
    earlier: tuple[Earlier, ...] = ()
    kept: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(
        cls, job: TraceJob, owed: Owed, earlier: tuple[Earlier, ...] = (), kept: dict[str, Any] | None = None
    ) -> "Order":
        return cls(
            job.run_id, job.project_id, job.trace_id, job.model, job.root_run_id or job.run_id, job.reuse, job.grouped,
            owed.attempt, job.probe, job.in_session, earlier, {} if kept is None else kept,
        )  # fmt: skip
