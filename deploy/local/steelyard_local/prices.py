"""`make prices`: the vendors' list prices out of the pinned litellm, into the table that the API reads without it."""

import json
import os
from pathlib import Path
from typing import Any

from steelyard.providers import PROVIDERS
from steelyard_local.processes import ROOT

FILE = ROOT / "libs/common/steelyard/prices.json"
ABOUT = "Dollars for a million tokens: read, written and, where it is known, read again from the provider's cache."


def listed() -> dict[str, list[float]]:
    """Of the models that judge: those of our providers that answer in text."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # its own copy, and no download
    import litellm  # heavy, and needed here alone

    prefixes = tuple(p for provider in PROVIDERS for p in provider.prefixes)
    ours = {provider.key for provider in PROVIDERS}
    found: dict[str, list[float]] = {}
    for name, told in sorted(litellm.model_cost.items()):
        vendor = str(told.get("litellm_provider")).removesuffix("-language-models")  # how it calls Vertex AI's own
        if vendor in ours and told.get("mode") in ("chat", "responses"):
            full = name if name.startswith(prefixes) else f"{vendor}/{name}"
            if price := _price(told):
                found[full] = price
    return found


def _price(told: dict[str, Any]) -> list[float]:
    read, written = told.get("input_cost_per_token"), told.get("output_cost_per_token")
    if read is None or written is None:
        return []
    cached = told.get("cache_read_input_token_cost")
    return [round(x * 1e6, 6) for x in (read, written, *([] if cached is None else [cached]))]


def text(prices: dict[str, list[float]]) -> str:
    lines = [f"  {json.dumps(model)}: {json.dumps(price)}" for model, price in prices.items()]
    return f'{{"about": {json.dumps(ABOUT)},\n "models": {{\n' + ",\n".join(lines) + "\n }\n}\n"


def main() -> None:
    FILE.write_text(text(listed()))
    print(f"{Path(FILE).relative_to(ROOT)}: {len(listed())} models")


if __name__ == "__main__":
    main()
