"""A metric is a conversation without IO: a generator that asks and, in the end, says a score or why there is none."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from steelyard.traces import Trace


class Reply(BaseModel):
    """What a judge answers: a closed schema, so that nothing but an answer is taken for one."""

    model_config = ConfigDict(frozen=True, extra="forbid")


R = TypeVar("R", bound=Reply)


@dataclass(frozen=True)
class Case:
    """One trace before the judges, with the boundary that its text is fenced by and cannot guess."""

    trace: Trace
    boundary: str = "trace"
    nonce: str = "0000"


@dataclass(frozen=True)
class Question:
    """One call of a model: instructions only in `system`, the hostile text only in `prompt`."""

    stage: str
    system: str
    prompt: str
    reply: type[Reply]
    case: Case


@dataclass(frozen=True)
class Embed:
    """Vectors for these texts, in this order."""

    texts: tuple[str, ...]


@dataclass(frozen=True)
class Embedded:
    """Unit vectors and who made them; `calibration` is (a, b) of its logistic, None where cosine is meant."""

    vectors: tuple[Sequence[float], ...]
    embedder: str
    calibration: tuple[float, float] | None = None


@dataclass(frozen=True)
class Score:
    """A value in [0, 1], higher is better."""

    value: float
    reason: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class NotScored:
    """An answer, not an exception: no number was made up, and this is why."""

    reason: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


Judging = Generator[Question | Embed, Any, Score | NotScored]


@dataclass(frozen=True)
class Metric:
    """`version` changes with the prompt: scores of different versions are not the same measurement."""

    name: str
    description: str
    version: str
    judging: Callable[[Case], Judging]
    category: str = "trace"
    threshold: float = 0.5
