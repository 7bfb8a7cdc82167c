"""A filter is a value with two readings: SQL over the traces table, and in memory over a trace."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from sqlalchemy import ColumnElement, Text, any_, cast, collate, func, literal, select
from sqlalchemy.dialects.postgresql import ARRAY
from sqlmodel import col

from steelyard.store.tables import TraceRow, TraceTag
from steelyard.traces import Trace, TraceStatus


def _no_number(said: Any) -> Any:
    """Seconds or milliseconds since 1970? Nobody can tell, and the two differ by a thousand."""
    if isinstance(said, int | float) or (
        isinstance(said, str) and said.strip().lstrip("+-").replace(".", "").isdigit()
    ):
        raise ValueError("a time as in ISO 8601, like 2026-03-01T10:00:00Z")
    return said


def _in_utc(when: datetime) -> datetime:
    """A time without a zone is UTC. Moving one at the calendar's edge would leave the calendar."""
    try:
        return when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
    except OverflowError as e:
        raise ValueError("a time between the years 1 and 9999, in UTC too") from e


Moment = Annotated[datetime, BeforeValidator(_no_number), AfterValidator(_in_utc)]


class TraceFilters(BaseModel):
    """Which traces a run means. `date_to` is exclusive, tags match any, `%` and `_` in a name are literal."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    date_from: Moment | None = Field(None, description="traces that started at this time or later")
    date_to: Moment | None = Field(None, description="traces that started before this time")
    status: TraceStatus | None = Field(None, description="exactly this one")
    session_id: str | None = Field(None, description="exactly this one")
    user_id: str | None = Field(None, description="exactly this one")
    tags: tuple[str, ...] | None = Field(None, description="traces with any of these tags")
    name: str | None = Field(None, description="part of the trace's name, in any case")

    def sql(self) -> Sequence[ColumnElement[bool]]:
        found: list[ColumnElement[bool]] = []
        if self.date_from is not None:
            found.append(col(TraceRow.started_at) >= self.date_from)
        if self.date_to is not None:
            found.append(col(TraceRow.started_at) < self.date_to)
        for column, wanted in (
            (col(TraceRow.status), self.status.value if self.status else None),
            (col(TraceRow.session_id), self.session_id),
            (col(TraceRow.user_id), self.user_id),
        ):
            if wanted is not None:
                found.append(column == wanted)
        if self.tags:
            tagged = select(col(TraceTag.trace_id)).where(
                col(TraceTag.project_id) == col(TraceRow.project_id), _any_tag(self.tags)
            )
            found.append(col(TraceRow.trace_id).in_(tagged))
        if self.name is not None:
            found.append(func.strpos(_folded(col(TraceRow.name)), _folded(literal(self.name))) > 0)
        return found

    def only_tags_and_times(self) -> bool:
        return bool(self.tags) and not set(self.as_json()) - {"tags", "date_from", "date_to"}

    def of_tags(self) -> Sequence[ColumnElement[bool]]:
        """Tags and times over the tags' own table, which repeats when each trace started."""
        found: list[ColumnElement[bool]] = [_any_tag(self.tags or ())]
        if self.date_from is not None:
            found.append(col(TraceTag.started_at) >= self.date_from)
        if self.date_to is not None:
            found.append(col(TraceTag.started_at) < self.date_to)
        return found

    def matches(self, trace: Trace) -> bool:
        return (
            (self.date_from is None or trace.started_at >= self.date_from)
            and (self.date_to is None or trace.started_at < self.date_to)
            and (self.status is None or trace.status == self.status)
            and (self.session_id is None or trace.session_id == self.session_id)
            and (self.user_id is None or trace.user_id == self.user_id)
            and (not self.tags or bool(set(self.tags) & set(trace.tags)))
            and (self.name is None or self.name.lower() in trace.name.lower())
        )

    def as_json(self) -> dict[str, object]:
        """Only what was set: an empty filter is an empty object."""
        return self.model_dump(mode="json", exclude_none=True)


class SessionRunFilters(BaseModel):
    """Which sessions a run means. A session is active from its first trace's start to its last one's; what is filtered is
    the session, and a session that matches is scored whole."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    date_from: Moment | None = Field(None, description="sessions whose last trace started at this time or later")
    date_to: Moment | None = Field(None, description="sessions whose first trace started before this time")
    user_id: str | None = Field(None, description="sessions with a trace of exactly this user")
    has_error: bool | None = Field(None, strict=True, description="with a trace whose status is ERROR, or without any")
    tags: tuple[str, ...] | None = Field(None, description="sessions with a trace that has any of these tags")
    min_trace_count: int | None = Field(
        None, strict=True, ge=1, le=2**31 - 1, description="sessions with at least so many traces"
    )

    def as_json(self) -> dict[str, object]:
        """Only what was set: an empty filter is an empty object."""
        return self.model_dump(mode="json", exclude_none=True)


def _any_tag(tags: Sequence[str]) -> ColumnElement[bool]:
    """One parameter for all of them: the driver takes 32,767, and a run may have been accepted with more tags. Of a
    single one an index gives its traces in the order of time."""
    if len(set(tags)) == 1:
        return col(TraceTag.tag) == tags[0]
    return col(TraceTag.tag) == any_(cast(list(tags), ARRAY(Text)))


def _folded(text: Any) -> ColumnElement[str]:
    """In any case of any alphabet, whatever locale the database was made with."""
    return func.lower(collate(text, "pg_c_utf8"))
