"""Which judges exist and which of them this deployment can use, without importing any of them."""

from collections.abc import Mapping
from dataclasses import dataclass

RULES = "heuristic/rules-v1"


@dataclass(frozen=True)
class Provider:
    key: str
    name: str
    description: str
    variables: tuple[str, ...]
    default_model: str
    prefixes: tuple[str, ...]
    bare: tuple[str, ...] = ()

    def configured(self, environment: Mapping[str, str]) -> bool:
        return any(environment.get(v) for v in self.variables)


# In the order in which a deployment without JUDGE_MODEL tries them.
# fmt: off
PROVIDERS = (
    Provider("openai", "OpenAI", "GPT models", ("OPENAI_API_KEY",),
             "openai/gpt-5.4-mini", ("openai/",), ("gpt-", "o1", "o3", "o4")),
    Provider("anthropic", "Anthropic", "Claude models", ("ANTHROPIC_API_KEY",),
             "anthropic/claude-haiku-4-5", ("anthropic/",), ("claude-",)),
    Provider("gemini", "Google Gemini", "Gemini models by API key", ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
             "gemini/gemini-3-flash-preview", ("gemini/",), ("gemini-",)),
    Provider("mistral", "Mistral", "Mistral models", ("MISTRAL_API_KEY",),
             "mistral/mistral-small-latest", ("mistral/",), ("mistral-",)),
    Provider("groq", "Groq", "open models on Groq", ("GROQ_API_KEY",),
             "groq/llama-3.3-70b-versatile", ("groq/",)),
)
# fmt: on


def provider_of(model: str) -> Provider | None:
    """By prefix (`openai/…`) or, without one, by how the vendor names its models (`gpt-…`)."""
    for p in PROVIDERS:
        if model.startswith(p.prefixes) or ("/" not in model and model.startswith(p.bare or ("\0",))):
            return p
    return None


def at_own_address(model: str, base_url: str | None, environment: Mapping[str, str]) -> bool:
    """Whether JUDGE_BASE_URL is asked. What runs there may be called anything, `mistral-nemo` too: a name without a
    prefix means the vendor only where there is a key for it."""
    provider = provider_of(model)
    if not base_url or provider is None or provider.key == "openai":
        return bool(base_url)
    return not model.startswith(provider.prefixes) and not provider.configured(environment)


def default_model(judge_model: str | None, base_url: str | None, environment: Mapping[str, str]) -> str:
    """What was asked for, else the first provider with a key, else rules: never a silent change after a failed call."""
    if judge_model:
        return judge_model
    if base_url:
        return "openai/default"
    return next((p.default_model for p in PROVIDERS if p.configured(environment)), RULES)


def why_not(model: str, base_url: str | None, environment: Mapping[str, str]) -> str | None:
    """The sentence for a model that this deployment cannot call, or None where it can."""
    if model == RULES:
        return None
    if model.startswith("heuristic/"):
        return f"there is no judge '{model}'; the rules judge is '{RULES}'"
    if at_own_address(model, base_url, environment):
        return None
    provider = provider_of(model)
    if provider is None:
        known = ", ".join(p.key for p in PROVIDERS)
        return (
            f"no provider is known for model '{model}': use provider/model with one of {known}, or set JUDGE_BASE_URL"
        )
    if not provider.configured(environment):
        return f"provider '{provider.key}' of model '{model}' has no key: set {' or '.join(provider.variables)}"
    return None
