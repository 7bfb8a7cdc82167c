"""Why something failed, in a line for logs, dead letters and spans. Users' words are in traces and nowhere else: an exception's own
text may quote a value or a whole statement with its parameters, so it is shown only where it is known to speak of the system."""

import traceback
from collections.abc import Iterator
from pathlib import Path

from aiokafka.errors import KafkaError
from asyncpg import TargetServerAttributeNotMatched
from sqlalchemy.exc import TimeoutError as PoolTimeout

from steelyard.errors import Later, Never

# Classes of SQLSTATE whose messages name connections, locks, roles and our own statements. Class 22 and 23 quote values.
ABOUT_THE_SYSTEM = ("08", "25", "28", "3D", "40", "42", "53", "55", "57", "58")
PLAIN = (Later, Never)
OURS = (
    "steelyard",
    "steelyard_api",
    "steelyard_resolver",
    "steelyard_judge",
    "steelyard_aggregator",
    "steelyard_scheduler",
)


def reason(error: BaseException) -> str:
    if isinstance(error, PLAIN):
        return str(error)
    if (code := sqlstate(error)) is not None:
        return _of_postgres(error, code)
    inner = getattr(error, "orig", None) or error
    if isinstance(cause(error), TargetServerAttributeNotMatched):
        return "no server takes writes"
    if isinstance(inner, OSError | KafkaError | PoolTimeout):
        return ": ".join([type(inner).__name__, *str(inner).splitlines()[:1]])
    return " at ".join([type(inner).__name__, *_place(error)])


def sqlstate(error: BaseException) -> str | None:
    inner = getattr(error, "orig", None) or error
    return getattr(inner, "sqlstate", None) or getattr(inner, "pgcode", None)


def cause(error: BaseException) -> BaseException:
    """What the driver raised, below SQLAlchemy's two layers."""
    adapted = getattr(error, "orig", None)
    return (adapted.__cause__ or adapted) if isinstance(adapted, BaseException) else error


def stack(error: BaseException) -> str:
    """A traceback as Python prints it, with reasons in the place of the exceptions' texts."""
    return "\n".join(_stack(error, set()))


def _of_postgres(error: BaseException, code: str) -> str:
    """asyncpg's error has the name of the constraint; its first line, without DETAIL, is the server's message."""
    adapted = getattr(error, "orig", None) or error
    raised = adapted.__cause__ if getattr(adapted.__cause__, "sqlstate", None) else adapted
    words = f"{type(raised).__name__} ({code})"
    if code.startswith(ABOUT_THE_SYSTEM):
        return ": ".join([words, *str(raised).splitlines()[:1]])
    broken = getattr(raised, "constraint_name", None)
    return f"{words}: constraint {broken}" if broken else words


def _place(error: BaseException) -> Iterator[str]:
    """Where in our own code it came up."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if any(part in OURS for part in Path(f.filename).parts)]
    for frame in (ours or frames)[-1:]:
        yield f"{Path(frame.filename).name}:{frame.lineno}"


def _stack(error: BaseException, seen: set[int]) -> Iterator[str]:
    seen.add(id(error))
    earlier = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if earlier is not None and id(earlier) not in seen:
        yield from _stack(earlier, seen)
        yield "… which led to:"
    yield "Traceback (most recent call last):"
    yield from "".join(traceback.format_tb(error.__traceback__)).splitlines()
    yield f"{type(error).__module__}.{type(error).__qualname__}: {reason(error)}"
    for part in getattr(error, "exceptions", ()):
        if isinstance(part, BaseException) and id(part) not in seen:
            yield from _stack(part, seen)
