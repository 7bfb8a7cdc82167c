"""Gemini models by a Google Cloud project: litellm for real, with a service account whose tokens the stub gives out."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from steelyard.errors import Later
from steelyard.metrics import CATALOGUE
from steelyard.metrics.judging import Score
from steelyard.providers import default_model, why_not
from steelyard.settings import Settings
from steelyard.traces import Trace
from steelyard_judge.dialogue import Model, case_of, converse
from steelyard_judge.embeddings import ApiEmbedder
from steelyard_judge.model import Gateway
from stub_model import Stub, stub_model

MODEL = "vertex_ai/gemini-3-flash-preview"
TRACE = Trace(
    trace_id=UUID(int=1),
    project_id=UUID(int=2),
    name="sum",
    input="What is two plus two?",
    output="Two plus two is four.",
    started_at=datetime(2026, 3, 1, tzinfo=UTC),
)


@pytest.fixture
async def stub() -> AsyncIterator[Stub]:
    async with stub_model() as stub:
        yield stub


def account(server: str) -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return json.dumps(
        {
            "type": "service_account", "project_id": "of-the-file", "private_key_id": "1",
            "private_key": key.private_bytes(*form).decode(), "client_email": "judge@cloud-1.example",
            "client_id": "1", "token_uri": f"{server}/token",
        }
    )  # fmt: skip


@pytest.mark.parametrize("variable", ["VERTEXAI_CREDENTIALS", "GOOGLE_APPLICATION_CREDENTIALS"])
async def test_a_model_of_a_cloud_project_is_asked_with_a_token_of_its_service_account(
    stub: Stub, tmp_path: Path, variable: str
) -> None:
    server, given = stub.base_url.removesuffix("/v1"), tmp_path / "account.json"
    given.write_text(account(server))
    environ = {"VERTEXAI_PROJECT": "cloud-1", "VERTEXAI_LOCATION": "europe-west1", "VERTEXAI_API_BASE": server}
    environ[variable] = str(given) if variable.startswith("GOOGLE") else given.read_text()
    assert why_not(MODEL, None, environ) is None and default_model(None, None, environ) == MODEL
    gateway = Gateway(Settings(judge_call_seconds=10), environ)
    talk = Model(gateway, MODEL)
    score = await converse(CATALOGUE["confidence"], case_of(TRACE, "s"), talk, ApiEmbedder(gateway, "openai/e"))
    assert isinstance(score, Score), score
    assert "/projects/cloud-1/locations/europe-west1/" in stub.heads[-1] and "gemini-3-flash-preview" in stub.heads[-1]
    assert "authorization: bearer stub-token" in stub.heads[-1].lower()
    assert score.metadata["judge"]["cost"] > 0
    stub.tell(status=429, retry_after=9)
    with pytest.raises(Later, match="rate limited") as limited:
        await converse(CATALOGUE["confidence"], case_of(TRACE, "s"), talk, ApiEmbedder(gateway, "openai/e"))
    assert limited.value.after is not None and limited.value.after > 8.5
    await gateway.stop()


def test_what_a_cloud_project_lacks_is_said() -> None:
    assert why_not(MODEL, None, {}) == (
        f"provider 'vertex_ai' of model '{MODEL}' is not configured: set VERTEXAI_PROJECT and VERTEXAI_LOCATION and "
        "VERTEXAI_CREDENTIALS or GOOGLE_APPLICATION_CREDENTIALS"
    )
    said = why_not(MODEL, None, {"VERTEXAI_PROJECT": "p", "GOOGLE_APPLICATION_CREDENTIALS": "/file"})
    assert said is not None and said.endswith("set VERTEXAI_LOCATION")
