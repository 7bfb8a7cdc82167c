"""Tokens of an identity provider: whose signature is trusted, and what a trusted token says about its bearer."""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.request import Request, urlopen

import jwt
import orjson
from jwt.exceptions import InvalidSubjectError

from steelyard.settings import Settings
from steelyard.traces import storable
from steelyard_api.errors import Refused

log = logging.getLogger(__name__)
HMAC = ("HS256", "HS384", "HS512")
RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
CURVES = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512", "Ed25519": "EdDSA", "Ed448": "EdDSA"}
PUBLIC = (*RSA, *dict.fromkeys(CURVES.values()))
PRIVATE_PARTS = {"d", "p", "q", "dp", "dq", "qi", "oth"}
REQUIRED = ["exp", "iss", "aud", "sub"]
LEEWAY = 30.0
LONGEST = 16_384
FRESH, AGAIN, PAUSE, PATIENCE = 300.0, 30.0, 5.0, 5.0
MOST_BYTES = 1_000_000
STRANGE = "The token names an organisation that is unknown here"


def unauthorized(detail: str) -> Refused:
    """Says why in the body and, as RFC 6750 has it, in the header; never what the token was."""
    quoted = detail.replace("\\", "").replace('"', "'").encode("ascii", "replace").decode()
    challenge = f'Bearer realm="steelyard", error="invalid_token", error_description="{quoted}"'
    return Refused(401, detail, headers={"WWW-Authenticate": challenge})


@dataclass(frozen=True)
class Bearer:
    """Who a verified token speaks for: an organisation in the provider's words, and a person or a program in it."""

    organization: str
    subject: str


@dataclass(frozen=True)
class PublicKey:
    """A key decides by itself which algorithms it is good for: what a token says about itself is no reason."""

    kid: str | None
    algorithms: tuple[str, ...]
    key: Any


Keys = tuple[PublicKey, ...]
Fetch = Callable[[], Awaitable[Keys]]


class Tokens:
    """Shared secret and published keys are kept apart: a public key is never tried as a secret, nor the reverse."""

    def __init__(self, settings: Settings, published: "KeySet | None") -> None:
        self._secret = settings.jwt_secret.get_secret_value().encode() if settings.jwt_secret else None
        self._published = published
        self._issuer, self._audience, self._claim = settings.jwt_issuer, settings.jwt_audience, settings.jwt_org_claim

    @classmethod
    def of(cls, settings: Settings) -> "Tokens | None":
        """None where no key is configured: then no token lets anyone in."""
        if not (settings.jwt_secret or settings.jwt_jwks or settings.jwt_jwks_url):
            return None
        tokens = cls(settings, _published(settings))
        if tokens._secret is not None:
            # PyJWT refuses a certificate or a public key as a secret; better now than with each request.
            jwt.get_algorithm_by_name("HS256").prepare_key(tokens._secret)
        return tokens

    async def read(self, token: str) -> Bearer:
        if len(token) > LONGEST:
            raise unauthorized("The token is too long")
        header = _header(token)
        algorithm, kid = header.get("alg"), header.get("kid")
        claims = self._verified(token, str(algorithm), await self._keys(algorithm, kid))
        organization = claims.get(self._claim)
        if not isinstance(organization, str) or not organization:
            raise unauthorized(f"The token names no organisation: its claim {self._claim} is missing or no text")
        if storable(organization) != organization:
            raise unauthorized(STRANGE)
        return Bearer(organization, _subject(claims["sub"]))

    async def _keys(self, algorithm: Any, kid: Any) -> Sequence[Any]:
        if algorithm in HMAC and self._secret is not None:
            return [self._secret]
        if algorithm not in PUBLIC or self._published is None:
            raise unauthorized("The token is signed by an algorithm that is not accepted here")
        found = await self._published.find(algorithm, kid)
        if not found:
            raise unauthorized("The token is signed with a key that the identity provider does not publish")
        return found

    def _verified(self, token: str, algorithm: str, keys: Sequence[Any]) -> dict[str, Any]:
        for key in keys:
            try:
                return jwt.decode(
                    token,
                    key,
                    algorithms=[algorithm],
                    audience=self._audience,
                    issuer=self._issuer,
                    leeway=LEEWAY,
                    options={"require": REQUIRED},
                )
            except jwt.InvalidSignatureError:
                continue
            except (jwt.PyJWTError, TypeError, ValueError, RecursionError) as e:
                raise unauthorized(_why(e)) from None
        raise unauthorized("The token's signature is wrong")


class KeySet:
    """The provider's public keys, kept for minutes. What does not come from the provider lets nobody in: while it is away
    and the keys are old, the answer is a 503."""

    def __init__(self, fetch: Fetch, clock: Callable[[], float] = time.monotonic) -> None:
        self._fetch, self._clock = fetch, clock
        self._keys: Keys = ()
        self._fetched = self._failed = -math.inf
        self._one = asyncio.Lock()  # many requests that lack a key are one question to the provider

    async def find(self, algorithm: str, kid: Any) -> list[Any]:
        """An unknown `kid` may be a key that is newer than ours; whoever makes kids up costs a fetch in 30 s."""
        if self._age() > FRESH:
            await self._renew(FRESH, PAUSE)
        found = self._fitting(algorithm, kid)
        if not found and self._age() > AGAIN:
            await self._renew(AGAIN, AGAIN)
            found = self._fitting(algorithm, kid)
        return found

    async def _renew(self, oldest: float, pause: float) -> None:
        async with self._one:
            if self._age() <= oldest:
                return
            if (waited := self._clock() - self._failed) < pause:
                raise _away(pause - waited)
            try:
                self._keys = await self._fetch()
            except (OSError, ValueError, HTTPException) as e:
                self._failed = self._clock()
                log.warning("the identity provider's keys cannot be fetched: %s", e)
                raise _away(pause) from None
            self._fetched = self._clock()

    def _age(self) -> float:
        return self._clock() - self._fetched

    def _fitting(self, algorithm: str, kid: Any) -> list[Any]:
        """A token may leave its key's id out; then each key of the right kind is tried."""
        return [k.key for k in self._keys if algorithm in k.algorithms and kid in (None, k.kid)]


def public_keys(document: bytes | str) -> Keys:
    """Those of a JWKS that verify signatures; shared secrets and keys for encryption are passed over."""
    said = orjson.loads(document)
    if not isinstance(said, dict) or not isinstance(said.get("keys"), list):
        raise ValueError("this is no JWKS: an object with a list `keys`")
    return tuple(key for jwk in said["keys"] if isinstance(jwk, dict) and (key := _public_key(jwk)) is not None)


def _public_key(jwk: dict[str, Any]) -> PublicKey | None:
    algorithms = _algorithms(jwk)
    if not algorithms:
        return None
    shown = {name: value for name, value in jwk.items() if name not in PRIVATE_PARTS}
    try:
        key = jwt.PyJWK(shown, algorithm=algorithms[0]).key
    except (jwt.PyJWTError, ValueError, TypeError):
        log.warning("a key of the JWKS is unusable and passed over: kid %r", jwk.get("kid"))
        return None
    kid = jwk.get("kid")
    return PublicKey(kid if isinstance(kid, str) else None, algorithms, key)


def _algorithms(jwk: dict[str, Any]) -> tuple[str, ...]:
    operations = jwk.get("key_ops")
    if jwk.get("use", "sig") != "sig" or (isinstance(operations, list) and "verify" not in operations):
        return ()
    curve = CURVES.get(str(jwk.get("crv"))) if jwk.get("kty") in ("EC", "OKP") else None
    able = RSA if jwk.get("kty") == "RSA" else (curve,) if curve else ()
    return tuple(a for a in able if jwk.get("alg") in (None, a))


def _published(settings: Settings) -> KeySet | None:
    if settings.jwt_jwks_url:
        return KeySet(published_at(settings.jwt_jwks_url))
    if not settings.jwt_jwks:
        return None
    given = public_keys(settings.jwt_jwks)
    if not given:
        raise ValueError("JWT_JWKS holds no public key that verifies signatures")

    async def always() -> Keys:
        return given

    return KeySet(always)


def published_at(url: str) -> Fetch:
    """In a thread, because the loop has other requests to answer; with a deadline, because they wait for this one."""

    async def fetch() -> Keys:
        async with asyncio.timeout(PATIENCE):
            return public_keys(await asyncio.to_thread(_get, url))

    return fetch


def _get(url: str) -> bytes:
    """Piece by piece against the clock: a provider that dribbles must not keep the thread."""
    deadline, body = time.monotonic() + PATIENCE, b""
    with urlopen(Request(url, headers={"Accept": "application/json"}), timeout=PATIENCE) as answer:
        while piece := answer.read1(65_536):
            body += piece
            if len(body) > MOST_BYTES or time.monotonic() > deadline:
                raise ValueError("the JWKS is too long or comes too slowly")
    return body


def _away(seconds: float) -> Refused:
    said = "The identity provider's keys cannot be fetched right now; nothing was changed"
    return Refused(503, said, headers={"Retry-After": str(max(1, math.ceil(seconds)))})


def _header(token: str) -> dict[str, Any]:
    try:
        return jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError, RecursionError):
        raise unauthorized("The token is malformed") from None


def _subject(sub: str) -> str:
    if not (kept := str(storable(sub)).strip()[:255]):
        raise unauthorized("The token names nobody: its claim sub is empty")
    return kept


def _why(e: Exception) -> str:
    if isinstance(e, jwt.MissingRequiredClaimError):
        return f"The token lacks the claim {e.claim}"
    return next((said for kind, said in REASONS.items() if isinstance(e, kind)), "The token is malformed")


REASONS: dict[type[Exception], str] = {
    jwt.ExpiredSignatureError: "The token has expired",
    jwt.ImmatureSignatureError: "The token is not valid yet",
    jwt.InvalidAudienceError: "The token is meant for another audience",
    jwt.InvalidIssuerError: "The token comes from another issuer",
    InvalidSubjectError: "The token's claim sub is no text",
}
