"""Which judges exist and which of them this deployment can use, without importing any of them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

RULES = "heuristic/rules-v1"
LONGEST_NAME = 255
_SEGMENT = r"[A-Za-z0-9@][A-Za-z0-9._:@-]*"
_NAME = re.compile(rf"(?!.*\.\.){_SEGMENT}(?:/{_SEGMENT})*")
# What litellm takes in a name's second part for another interface of the vendor than a model's.
_INTERFACES = ("responses", "agent_engine")


@dataclass(frozen=True)
class Provider:
    key: str
    name: str
    description: str
    variables: tuple[str, ...]
    default_model: str
    prefixes: tuple[str, ...]
    bare: tuple[str, ...] = ()
    # Another address than the vendor's, and what is needed beside a key: all of it.
    addresses: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()

    def configured(self, environment: Mapping[str, str]) -> bool:
        return not self.missing(environment)

    def missing(self, environment: Mapping[str, str]) -> list[str]:
        """What has to be set, each with its alternatives."""
        key = [] if _first(self.variables, environment) else [" or ".join(self.variables)]
        return [*(v for v in self.beside if not environment.get(v)), *key]


# In the order in which a deployment without JUDGE_MODEL tries them.
# fmt: off
PROVIDERS = (
    Provider("openai", "OpenAI", "GPT models", ("OPENAI_API_KEY",),
             "openai/gpt-5.4-mini", ("openai/",), ("gpt-", "o1", "o3", "o4"), ("OPENAI_BASE_URL", "OPENAI_API_BASE")),
    Provider("anthropic", "Anthropic", "Claude models", ("ANTHROPIC_API_KEY",),
             "anthropic/claude-haiku-4-5", ("anthropic/",), ("claude-",),
             ("ANTHROPIC_API_BASE", "ANTHROPIC_BASE_URL")),
    Provider("gemini", "Google Gemini", "Gemini models by API key", ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
             "gemini/gemini-3-flash-preview", ("gemini/",), ("gemini-",), ("GEMINI_API_BASE",)),
    Provider("mistral", "Mistral", "Mistral models", ("MISTRAL_API_KEY",),
             "mistral/mistral-small-latest", ("mistral/",), ("mistral-",), ("MISTRAL_API_BASE",)),
    Provider("groq", "Groq", "open models on Groq", ("GROQ_API_KEY",),
             "groq/llama-3.3-70b-versatile", ("groq/",), (), ("GROQ_API_BASE",)),
    Provider("vertex_ai", "Google Vertex AI", "Gemini models by a Google Cloud project",
             ("VERTEXAI_CREDENTIALS", "GOOGLE_APPLICATION_CREDENTIALS"), "vertex_ai/gemini-3-flash-preview", ("vertex_ai/",),
             (), ("VERTEXAI_API_BASE",), ("VERTEXAI_PROJECT", "VERTEXAI_LOCATION")),
)
# fmt: on


def why_no_name(model: str) -> str | None:
    """A vendor's address is built from the name, and asked with the operator's key: a name that could lead to another path,
    or add a query to it, is none. What vendors use is allowed: letters, digits and . _ - : @ in parts between slashes."""
    if len(model) > LONGEST_NAME or not _NAME.fullmatch(model) or model.split("/")[1:2] in [[i] for i in _INTERFACES]:
        return (
            "this is no name of a model: letters, digits and . _ - : @ in parts between slashes, as in provider/model, "
            f"at most {LONGEST_NAME} characters"
        )
    return None


def provider_of(model: str) -> Provider | None:
    """By prefix (`openai/…`) or, without one, by how the vendor names its models (`gpt-…`)."""
    for p in PROVIDERS:
        if model.startswith(p.prefixes) or ("/" not in model and model.startswith(p.bare or ("\0",))):
            return p
    return None


def access(provider: Provider, environment: Mapping[str, str]) -> dict[str, str]:
    """What litellm is told, so that it looks nothing up in the process's environment."""
    key, address = _first(provider.variables, environment), _first(provider.addresses, environment)
    if provider.key == "vertex_ai":
        told = {"vertex_credentials": key, "vertex_project": environment.get("VERTEXAI_PROJECT")}
        told["vertex_location"] = environment.get("VERTEXAI_LOCATION")
    else:
        told = {"api_key": key or "none"}
    return {name: value for name, value in {**told, "api_base": address}.items() if value}


def _first(names: tuple[str, ...], environment: Mapping[str, str]) -> str | None:
    return next((value for n in names if (value := environment.get(n))), None)


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
    if why := why_no_name(model):
        return why
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
    if missing := provider.missing(environment):
        lacks = "is not configured" if provider.beside else "has no key"
        return f"provider '{provider.key}' of model '{model}' {lacks}: set {' and '.join(missing)}"
    return None
