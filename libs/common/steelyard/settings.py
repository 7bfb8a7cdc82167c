"""Every environment variable, typed, with a default that works on a laptop."""

import sys
from functools import cache
from typing import Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from steelyard.providers import why_no_name


class Settings(BaseSettings):
    """Read once, in each service's `__main__`; everything below takes what it needs as an argument."""

    # A wrong value may be a secret: an error names the variable and leaves the value out.
    model_config = SettingsConfigDict(env_ignore_empty=True, frozen=True, extra="ignore", hide_input_in_errors=True)

    database_url: SecretStr = Field(
        SecretStr("postgresql://steelyard:steelyard@127.0.0.1:5432/steelyard"),
        description="the owner of the tables; used by `make migrate` alone",
    )
    api_database_url: SecretStr = Field(
        SecretStr("postgresql://steelyard_api:steelyard@127.0.0.1:5432/steelyard"),
        description="the API's role: owns nothing, and row-level security shows it one project at a time",
    )
    worker_database_url: SecretStr = Field(
        SecretStr("postgresql://steelyard_worker:steelyard@127.0.0.1:5432/steelyard"),
        description="the workers' role: owns nothing, sees every project",
    )
    database_pool: int = Field(10, ge=2, description="connections a process may hold")

    kafka_bootstrap: str = Field("127.0.0.1:9092", description="brokers, separated by commas")
    kafka_replication: int = Field(1, ge=1, description="copies of each topic that is created")
    kafka_session_seconds: float = Field(
        10.0, ge=6, le=120, description="after how long without a heartbeat a process counts as dead; its work moves"
    )
    topic_prefix: str = Field("", description="put before every topic and consumer group, to share a cluster")

    http_host: str = Field(
        "127.0.0.1", description="where a service listens: the API, or a worker's health and metrics"
    )
    http_port: int = Field(8000, ge=0, le=65535, description="0 takes a free port")
    keep_alive_seconds: int = Field(
        75,
        ge=1,
        description="how long the API keeps an idle connection: longer than the ingress or pool in front of it",
    )
    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR")
    log_format: str = Field("text", description="text for people, json for collectors")
    otel_exporter_otlp_endpoint: str | None = Field(None, description="where spans go; none are made without it")

    set_aside_unknown: bool = Field(
        False,
        description="messages of an unknown kind or a newer version go to the dead letters instead of waiting for an upgrade",
    )

    drain_seconds: float = Field(25.0, gt=0, description="how long a stopping process lets work in flight finish")
    rebalance_drain_seconds: float = Field(
        0.5,
        ge=0,
        description="how long jobs in flight may finish before partitions move; what takes longer ends where it began",
    )

    judge_model: str | None = Field(
        None, description="e.g. openai/gpt-5.4-mini; unset: the first provider with a key, else heuristic/rules-v1"
    )
    judge_base_url: str | None = Field(None, description="an OpenAI-compatible address (vLLM, Ollama, llama.cpp)")
    judge_api_key: SecretStr | None = Field(None, description="the key for judge_base_url")
    judge_slots: int = Field(64, ge=1, le=2000, description="conversations with a model at once, per judge process")
    judge_call_seconds: float = Field(60.0, gt=0, description="deadline of one model call")
    judge_job_seconds: float = Field(
        300.0, gt=0, description="deadline of one trace+metric pair, all its calls together; then it is tried again"
    )
    judge_load_mb: int = Field(
        256,
        ge=32,
        description="memory a judge process gives to the traces it has loaded; one needs 32 at most, others wait their turn",
    )
    quota_probe_seconds: float = Field(
        900.0, gt=0, le=3600, description="after how long a provider whose quota is exhausted is tried with one pair"
    )
    judge_attempts: int = Field(5, ge=1, le=20, description="tries of one trace+metric pair before it is FAILED")
    judge_max_tokens: int = Field(2000, ge=100, description="most tokens of one reply")
    judge_temperature: float | None = Field(None, ge=0, le=2, description="sent only when set: some models refuse it")
    judge_grouped: bool = Field(
        False,
        description="ask about several metrics in one call: cheaper, and another measurement; a run may say otherwise",
    )
    embedding_model: str | None = Field(None, description="e.g. openai/text-embedding-3-small; unset: a local embedder")
    deployment_secret: SecretStr = Field(
        SecretStr("steelyard-on-a-laptop"), description="fences judged text with marks that its author cannot guess"
    )

    redispatch_seconds: float = Field(
        15.0, gt=0, description="how long a consumed job may be without its outcome before it is sent again"
    )
    max_body_mb: float = Field(20.0, gt=0, description="largest request body the API reads; a larger one is a 413")
    bodies_mb: float = Field(
        50.0, gt=0, description="room for request bodies that a process holds at once, half of it for one organisation"
    )
    requests_at_once: int = Field(
        1000, ge=2, description="requests that a process works on at once, half of them of one organisation"
    )
    ingest_group: int = Field(
        200, ge=1, le=1000, description="most traces written in one transaction; 1: each request its own"
    )
    requests_per_minute: int = Field(
        60_000, ge=0, le=10_000_000, description="requests of one API key or token's subject a minute; 0: no limit"
    )
    runs_per_minute: int = Field(50, ge=0, description="runs a project may create a minute, by endpoint; 0: no limit")
    ledger_days: int = Field(30, ge=1, description="how long a finished run keeps the rows of its successful pairs")

    jwt_secret: SecretStr | None = Field(
        None, description="bearer tokens signed with HS256, HS384 or HS512: the shared secret, at least 32 bytes"
    )
    jwt_jwks_url: str | None = Field(
        None,
        description="bearer tokens signed with RS, PS, ES or EdDSA: where the identity provider publishes its keys",
    )
    jwt_jwks: str | None = Field(None, description="the same keys as JSON, instead of an address")
    jwt_issuer: str | None = Field(None, description="`iss` of a bearer token; needed once one of the three is set")
    jwt_audience: str | None = Field(None, description="`aud` of a bearer token; needed once one of the three is set")
    jwt_org_claim: str = Field(
        "org_id", min_length=1, description="the claim that names the organisation, by its id or its external_id"
    )
    admin_token: SecretStr | None = Field(
        None, description="turns /admin on and is its bearer token; at least 16 characters"
    )

    @field_validator("judge_model", "embedding_model")
    @classmethod
    def _name_of_a_model(cls, model: str | None) -> str | None:
        if model is not None and (why := why_no_name(model)):
            raise ValueError(why)
        return model

    @field_validator("jwt_secret")
    @classmethod
    def _long_enough(cls, secret: SecretStr | None) -> SecretStr | None:
        """A secret shorter than its hash can be guessed by whoever holds one token (RFC 7518, 3.2)."""
        if secret is not None and (length := len(secret.get_secret_value().encode())) < 32:
            raise ValueError(f"has {length} bytes, and at least 32 are needed")
        return secret

    @field_validator("admin_token")
    @classmethod
    def _no_word(cls, token: SecretStr | None) -> SecretStr | None:
        if token is not None and len(token.get_secret_value()) < 16:
            raise ValueError("has less than 16 characters")
        return token

    @field_validator("jwt_jwks_url")
    @classmethod
    def _address(cls, url: str | None) -> str | None:
        if url is not None and not url.startswith(("https://", "http://")):
            raise ValueError("is no http:// or https:// address")
        return url

    @model_validator(mode="after")
    def _bearer_is_whole(self) -> Self:
        """A token is for one issuer and one audience: without them a token for somebody else's service would do."""
        if self.jwt_jwks and self.jwt_jwks_url:
            raise ValueError("JWT_JWKS and JWT_JWKS_URL are both set: one of them is meant")
        if not (self.jwt_secret or self.jwt_jwks or self.jwt_jwks_url):
            return self
        if not (self.jwt_issuer and self.jwt_audience):
            raise ValueError("bearer tokens are on, so JWT_ISSUER and JWT_AUDIENCE are needed: both are checked")
        return self


@cache
def from_environment() -> Settings:
    """A wrong setting is a sentence and the end: this is read before anything else happens."""
    try:
        return Settings()
    except ValidationError as e:
        sys.exit("\n".join(f"settings: {_sentence(x['loc'], x['msg'])}" for x in e.errors()))


def _sentence(place: tuple[int | str, ...], said: str) -> str:
    return " ".join([*(str(p).upper() for p in place[:1]), said.removeprefix("Value error, ")])
