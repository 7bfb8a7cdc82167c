"""What a job asks for beside its metrics: whose money, which judge, and what was paid for already."""

from dataclasses import dataclass
from uuid import UUID

from steelyard.events import Owed, TraceJob
from steelyard.metrics.judging import Earlier


@dataclass(frozen=True)
class Order:
    """`root_run_id` is the run that this one, or what it retries, goes back to; `grouped` None is the deployment's way.
    `earlier` is what came before the trace in its session, where the metric asks for that."""

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

    @classmethod
    def of(cls, job: TraceJob, owed: Owed, earlier: tuple[Earlier, ...] = ()) -> "Order":
        return cls(
            job.run_id, job.project_id, job.trace_id, job.model, job.root_run_id or job.run_id, job.reuse, job.grouped,
            owed.attempt, job.probe, job.in_session, earlier,
        )  # fmt: skip
