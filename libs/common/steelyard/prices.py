"""What models cost, as their vendors list it: known to the API too, which may not import litellm for it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from steelyard.providers import RULES, provider_of


@dataclass(frozen=True)
class Price:
    """Dollars for one token."""

    read: float
    written: float
    cached: float

    def of(self, input_tokens: int, output_tokens: int, cached_tokens: int = 0) -> float:
        return (input_tokens - cached_tokens) * self.read + cached_tokens * self.cached + output_tokens * self.written


FREE = Price(0.0, 0.0, 0.0)


def price_of(model: str, base_url: str | None = None) -> Price | None:
    """None where nobody lists one: unknown is not free. Whatever an address of one's own serves has no list price."""
    if model == RULES:
        return FREE
    provider = provider_of(model)
    if provider is None or (base_url and provider.key == "openai"):
        return None
    name = model if model.startswith(provider.prefixes) else f"{provider.key}/{model}"
    return _listed().get(name)


@cache
def _listed() -> Mapping[str, Price]:
    listed = json.loads((files("steelyard") / "prices.json").read_text())["models"]
    return {
        model: Price(read / 1e6, written / 1e6, (cached[0] if cached else read) / 1e6)
        for model, (read, written, *cached) in listed.items()
    }
