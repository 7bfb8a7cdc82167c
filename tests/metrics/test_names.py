"""No name of a model leads to another address of the vendor than a model's: the operator's key would go there, too."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from pydantic import ValidationError

from steelyard.metrics import CATALOGUE
from steelyard.metrics.judging import NotScored, Score
from steelyard.providers import PROVIDERS, RULES, why_no_name, why_not
from steelyard.settings import Settings
from steelyard.traces import Trace
from steelyard_judge.dialogue import Model, case_of, converse
from steelyard_judge.embeddings import ApiEmbedder
from steelyard_judge.model import Gateway
from steelyard_judge.usage import Unanswered, Usage

NAMES = [
    "openai/gpt-5.4-mini", "gpt-5.4-mini", "o3", "openai/ft:gpt-4o-mini-2024-07-18:my-org::abc123", "anthropic/claude-haiku-4-5",
    "gemini/gemini-3-flash-preview", "mistral/mistral-small-latest", "groq/meta-llama/llama-4-scout-17b-16e-instruct",
    "groq/llama-3.3-70b-versatile", "vertex_ai/gemini-3-flash-preview", "vertex_ai/claude-sonnet-4@20250514",
    "vertex_ai/meta/llama-4-maverick-17b-128e-instruct-maas", "vertex_ai/4965075652664360960", "openai/qwen3:8b",
    "openai/hf.co/bartowski/Llama-3.2-3B-Instruct-GGUF:Q4_K_M", "openai/@cf/meta/llama-3-8b-instruct", "Qwen/Qwen2.5-7B_Instruct",
    "bedrock/arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.model-v1:0", "local/use-multilingual-v3", RULES,
]  # fmt: skip
NO_NAMES = [
    "gemini/x/../../../upload/v1beta/files?a=", "gemini/..", "../x", "gemini/x/..", "gemini/a..b", "gemini/x/./y", "gemini/x?a=b",
    "gemini/x#", "gemini/x%2e%2e/y", "gemini/x\\y", "gemini/x y", "gemini/x\n", "gemini/x\ty", "gemini/\u202ex", "gemini/é", "/x",
    "gemini//x", "gemini/x/", "gemini/", "", " ", ".", "gemini/x&y", "gemini/x;y", "gemini/{x}", "gemini/x=y", "http://evil.example/x",
    "gemini/x\x00", "openai/-x", "openai/.x", "openai/" + "x" * 249, "openai/responses/x", "vertex_ai/agent_engine/1",
]  # fmt: skip
TRACE = Trace(
    trace_id=UUID(int=1),
    project_id=UUID(int=2),
    name="sum",
    input="What is two plus two?",
    output="Two plus two is four.",
    started_at=datetime(2026, 3, 1, tzinfo=UTC),
)


async def judged(gateway: Gateway, model: str) -> Score | NotScored:
    embedder = ApiEmbedder(gateway, "openai/text-embedding-stub")
    return await converse(CATALOGUE["confidence"], case_of(TRACE, "secret"), Model(gateway, model), embedder)


@pytest.mark.parametrize("name", NAMES)
def test_what_vendors_call_their_models_is_a_name(name: str) -> None:
    assert why_no_name(name) is None


@pytest.mark.parametrize("name", NO_NAMES)
def test_what_leads_elsewhere_is_none(name: str) -> None:
    assert why_no_name(name) is not None
    if name:
        why = why_not(name, "http://127.0.0.1:1/v1", {"GEMINI_API_KEY": "k"})
        assert why is not None and "no name of a model" in why
    for setting in ("judge_model", "embedding_model"):
        with pytest.raises(ValidationError, match="no name of a model"):
            Settings.model_validate({setting: name})


@dataclass
class Vendors:
    """A server that writes down which paths it was asked for, and says no to all but a cloud's question for a token."""

    port: int = 0
    paths: list[str] = field(default_factory=list)

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                length = next((h.split(":")[1] for h in head if h.lower().startswith("content-length:")), "0")
                await reader.readexactly(int(length))
                path = head[0].split(" ")[1]
                self.paths.append(path)
                token = b'{"access_token": "t", "expires_in": 3600, "token_type": "Bearer"}'
                status, body = (b"200 OK", token) if path == "/token" else (b"404 No", b'{"error": {"message": "no"}}')
                head_out = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
                writer.write(head_out % (status, len(body)) + body)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def environ(self) -> dict[str, str]:
        server = f"http://127.0.0.1:{self.port}"
        of_openai = ("OPENAI_BASE_URL", "MISTRAL_API_BASE", "GROQ_API_BASE")
        made = {p.variables[0]: "k" * 20 for p in PROVIDERS} | dict.fromkeys(of_openai, f"{server}/v1")
        made |= dict.fromkeys(("ANTHROPIC_API_BASE", "GEMINI_API_BASE", "VERTEXAI_API_BASE"), server)
        made |= {"VERTEXAI_PROJECT": "p", "VERTEXAI_LOCATION": "eu", "VERTEXAI_CREDENTIALS": _account(server)}
        return made


def _account(server: str) -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    said = {"type": "service_account", "project_id": "p", "private_key_id": "1", "client_id": "1"}
    said |= {"private_key": key.private_bytes(*form).decode(), "client_email": "judge@cloud-1.example"}
    return json.dumps(said | {"token_uri": f"{server}/token"})


@pytest.fixture
async def vendors() -> AsyncIterator[Vendors]:
    vendors = Vendors()
    server = await asyncio.start_server(vendors.connected, "127.0.0.1", 0)
    vendors.port = server.sockets[0].getsockname()[1]
    yield vendors
    server.close()


def paths_of(name: str) -> tuple[str, ...]:
    """Where a vendor has this model; what the name says stands nowhere else."""
    provider, model = name.split("/", 1)
    publishers = "/v1/projects/p/locations/eu/publishers"
    return {
        "anthropic": ("/v1/messages",),
        "gemini": (f"/models/{model}:generateContent",),
        "vertex_ai": (
            "/token", f"{publishers}/google/models/{model}:generateContent", f"{publishers}/anthropic/models/{model}:rawPredict",
            "/v1/projects/p/locations/eu/endpoints/openapi/chat/completions",
            f"/v1/projects/p/locations/eu/endpoints/{model}:generateContent",
        ),
    }.get(provider, ("/v1/chat/completions",))  # fmt: skip


async def test_a_vendor_is_asked_at_its_models_addresses_and_nowhere_else(vendors: Vendors) -> None:
    gateway = Gateway(Settings(judge_call_seconds=20), vendors.environ())
    prefixes = tuple(f"{p.key}/" for p in PROVIDERS)
    for name in [n for n in NAMES if n.startswith(prefixes)]:
        vendors.paths.clear()
        assert "refuses the request" in (await judged(gateway, name)).reason
        assert vendors.paths and set(vendors.paths) <= set(paths_of(name)), name
    await gateway.stop()


async def test_a_name_that_got_into_the_ledger_is_asked_nowhere(vendors: Vendors) -> None:
    """Of a run that is older than the check, or written by hand."""
    gateway = Gateway(Settings(judge_call_seconds=20), vendors.environ())
    for name in NO_NAMES:
        said = await judged(gateway, name)
        assert isinstance(said, NotScored) and "no name of a model" in said.reason, name
        with pytest.raises(Unanswered, match="no name of a model"):
            await gateway.embed(name, ["a"], Usage())
    assert vendors.paths == []
    await gateway.stop()
