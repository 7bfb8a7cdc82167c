"""What calls cost, and that a call may bring nothing."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any


class Unanswered(Exception):
    """No usable answer, and asking again would bring none: becomes *not scored, because …*."""

    def __init__(self, reason: str, judge: Mapping[str, Any], reply: str | None = None) -> None:
        super().__init__(reason)
        self.reason, self.judge, self.reply = reason, judge, reply


class TooLarge(Unanswered):
    """The model cannot take this much text; less of it may do."""


@dataclass(frozen=True)
class CallNote:
    """One call as it ended. `cost` is None where nobody lists a price."""

    outcome: str
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    cost: float | None
    seconds: float


@dataclass
class Usage:
    """What a conversation cost. `cost` is None as soon as one price is unknown: unknown is not free."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cost: float | None = 0.0
    seconds: float = 0.0
    notes: list[CallNote] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        cost = None if self.cost is None else round(self.cost, 8)
        said = {k: v for k, v in self.__dict__.items() if k != "notes"}
        return {**said, "cost": cost, "seconds": round(self.seconds, 3)}

    def note(self, outcome: str, one: "Usage") -> None:
        """Adds a call that ended to the sums."""
        self.input_tokens += one.input_tokens
        self.output_tokens += one.output_tokens
        self.cached_tokens += one.cached_tokens
        self.seconds += one.seconds
        self.cost = None if self.cost is None or one.cost is None else self.cost + one.cost
        cost, tokens = one.cost, (one.input_tokens, one.output_tokens, one.cached_tokens)
        self.notes.append(CallNote(outcome, *tokens, cost, one.seconds))


def count(litellm: ModuleType, answer: Any, model: str, usage: Usage) -> None:
    given = getattr(answer, "usage", None)
    if given is None:
        usage.cost = None
        return
    details = getattr(given, "prompt_tokens_details", None)
    cached = int(getattr(details, "cached_tokens", 0) or 0)
    asked, answered = int(given.prompt_tokens or 0), int(getattr(given, "completion_tokens", 0) or 0)
    usage.input_tokens += asked
    usage.output_tokens += answered
    usage.cached_tokens += cached
    price = litellm.model_cost.get(model) or litellm.model_cost.get(model.split("/", 1)[-1])
    if not price or price.get("input_cost_per_token") is None or usage.cost is None:
        usage.cost = None
        return
    read = price.get("cache_read_input_token_cost") or price["input_cost_per_token"]
    usage.cost += (asked - cached) * price["input_cost_per_token"] + cached * read
    usage.cost += answered * (price.get("output_cost_per_token") or 0.0)
