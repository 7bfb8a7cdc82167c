"""Bearer tokens: which let in, which do not and why, and what happens while the identity provider is away."""

import asyncio
import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import UUID, uuid4

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from pydantic import SecretStr, ValidationError

from addresses import Urls
from contract_helpers import new_trace
from steelyard.settings import Settings
from steelyard.store import access
from steelyard.store.database import Database
from steelyard_api.access import Visitor
from steelyard_api.app import api
from steelyard_api.bearer import AGAIN, FRESH, Keys, KeySet, Tokens, public_keys, published_at
from steelyard_api.errors import Refused

SECRET = "a secret of this test that is long enough even for the longest hash, 0123456789"
ISSUER, AUDIENCE = "https://id.example", "steelyard"
RSA_KEY, OTHER_RSA_KEY = (rsa.generate_private_key(65537, 2048) for _ in range(2))
EC_KEY, ED_KEY = ec.generate_private_key(ec.SECP256R1()), ed25519.Ed25519PrivateKey.generate()
Serve = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.fixture
def serving(urls: Urls) -> Serve:
    """An API with these settings; bearer's issuer and audience are there unless they are said."""

    @asynccontextmanager
    async def serve(**settings: Any) -> AsyncIterator[httpx.AsyncClient]:
        database = Database(urls.api)
        app = api(Settings(**{"jwt_issuer": ISSUER, "jwt_audience": AUDIENCE, **settings}), database)
        app.get("/whoami")(_whoami)
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://steelyard") as client:
            client.headers["X-Project-Name"] = "p"
            yield client
        await database.stop()

    return serve


async def _whoami(visitor: Visitor) -> dict[str, str | None]:
    return {"author": visitor.author, "caller": visitor.caller, "project": str(visitor.project)}


@pytest.fixture
async def org(api_database: Database) -> UUID:
    return await new_organization(api_database, "acme", "org_acme")


async def new_organization(database: Database, name: str, external_id: str) -> UUID:
    async with database.begin() as tx:
        made = await access.make_organization(tx, name, external_id)
    assert made is not None
    return UUID(str(made["id"]))


def claims(**said: Any) -> dict[str, Any]:
    """Good ones, changed as said; what is said to be ... is left out."""
    good = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "exp": time.time() + 600, "org_id": "org_acme"}
    return {name: value for name, value in (good | said).items() if value is not ...}


def token(key: Any = SECRET, algorithm: str = "HS256", kid: str | None = None, **said: Any) -> str:
    return jwt.encode(claims(**said), key, algorithm, headers={"kid": kid} if kid else None)


def jwk(key: Any, kid: str | None, **more: Any) -> dict[str, Any]:
    kinds = {rsa.RSAPublicKey: RSAAlgorithm, ec.EllipticCurvePublicKey: ECAlgorithm}
    public = key.public_key()
    kind: Any = next((a for k, a in kinds.items() if isinstance(public, k)), OKPAlgorithm)
    return {**kind.to_jwk(public, as_dict=True), **({"kid": kid} if kid else {}), **more}


def jwks(*keys: dict[str, Any]) -> str:
    return json.dumps({"keys": list(keys)})


def bearer(said: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {said}"}


def unsigned(header: dict[str, Any], payload: dict[str, Any]) -> str:
    parts = (base64.urlsafe_b64encode(json.dumps(p).encode()).rstrip(b"=").decode() for p in (header, payload))
    return ".".join(parts) + "."


def by_hand(header: dict[str, Any], secret: bytes) -> str:
    """A signature that PyJWT declines to make."""
    said = unsigned(header, claims())[:-1]
    made = hmac.digest(secret, said.encode(), hashlib.sha256)
    return f"{said}.{base64.urlsafe_b64encode(made).rstrip(b'=').decode()}"


async def test_a_token_lets_in_and_names_its_subject(serving: Serve, org: UUID) -> None:
    async with serving(jwt_secret=SECRET) as client:
        said = (await client.get("/whoami", headers=bearer(token(sub="ada\x00lovelace" + "x" * 300)))).json()
        assert said["author"] == ("ada\ufffdlovelace" + "x" * 300)[:255]
        assert said["caller"] == f"bearer:{org}:{said['author']}"
        by_id = await client.get("/whoami", headers=bearer(token(org_id=str(org))))
        assert by_id.json()["project"] == said["project"]
        with_id = await client.get("/whoami", headers=bearer(token()) | {"X-Project-ID": said["project"]})
        assert with_id.json()["project"] == said["project"]


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
async def test_each_length_of_hash_is_taken_with_the_secret(serving: Serve, org: UUID, algorithm: str) -> None:
    async with serving(jwt_secret=SECRET) as client:
        assert (await client.get("/traces", headers=bearer(token(algorithm=algorithm)))).status_code == 200


REFUSED: dict[str, tuple[Callable[[], str], str]] = {
    "expired": (lambda: token(exp=time.time() - 31), "has expired"),
    "without an end": (lambda: token(exp=...), "lacks the claim exp"),
    "not yet": (lambda: token(nbf=time.time() + 40), "not valid yet"),
    "another audience": (lambda: token(aud="billing"), "another audience"),
    "without an audience": (lambda: token(aud=...), "lacks the claim aud"),
    "another issuer": (lambda: token(iss="https://evil.example"), "another issuer"),
    "without an issuer": (lambda: token(iss=...), "lacks the claim iss"),
    "without a subject": (lambda: token(sub=...), "lacks the claim sub"),
    "a subject that is a number": (lambda: token(sub=7), "sub is no text"),
    "an empty subject": (lambda: token(sub=" "), "names nobody"),
    "another secret": (lambda: token("another secret that is also long enough, 012345"), "signature is wrong"),
    "no organisation": (lambda: token(org_id=...), "names no organisation"),
    "a list of organisations": (lambda: token(org_id=["org_acme"]), "names no organisation"),
    "an unknown organisation": (lambda: token(org_id="org_other"), "unknown here"),
    "an organisation that cannot be stored": (lambda: token(org_id="org\x00acme"), "unknown here"),
    "half an organisation": (lambda: token(org_id="org\ud800"), "unknown here"),
    "an unsigned one": (lambda: unsigned({"alg": "none", "typ": "JWT"}, claims()), "algorithm that is not accepted"),
    "an unsigned one in capitals": (lambda: unsigned({"alg": "NONE"}, claims()), "algorithm that is not accepted"),
    "no algorithm": (lambda: unsigned({"typ": "JWT"}, claims()), "algorithm that is not accepted"),
    "an algorithm that is a list": (lambda: unsigned({"alg": ["HS256"]}, claims()), "algorithm that is not accepted"),
    "a public key's algorithm": (lambda: token(RSA_KEY, "RS256"), "algorithm that is not accepted"),
    "a critical extension": (lambda: by_hand({"alg": "HS256", "crit": ["x"], "x": 1}, SECRET.encode()), "malformed"),
    "a signature cut off": (lambda: token().rpartition(".")[0], "malformed"),
    "noise": (lambda: "no.token.at-all", "malformed"),
    "one word": (lambda: "sk_sy_key", "malformed"),
    "a deep header": (lambda: base64.urlsafe_b64encode(b"[" * 9000).decode() + ".e30.x", "malformed"),
    "a very long one": (lambda: token(sub="x" * 20_000), "too long"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_refusal_says_why_and_does_not_repeat_the_token(serving: Serve, org: UUID, name: str) -> None:
    make, why = REFUSED[name]
    sent = make()
    async with serving(jwt_secret=SECRET) as client:
        answer = await client.get("/traces", headers=bearer(sent))
    assert answer.status_code == 401 and why in answer.json()["detail"], answer.text
    assert answer.headers["WWW-Authenticate"].startswith("Bearer") and why in answer.headers["WWW-Authenticate"]
    assert not any(part in answer.text for part in sent.split(".") if len(part) > 10)


async def test_clocks_may_differ_by_half_a_minute(serving: Serve, org: UUID) -> None:
    async with serving(jwt_secret=SECRET) as client:
        now = time.time()
        for name, made in {"exp": token(exp=now - 20), "nbf": token(nbf=now + 20), "iat": token(iat=now + 20)}.items():
            assert (await client.get("/traces", headers=bearer(made))).status_code == 200, name


async def test_a_header_that_is_no_bearer_token_is_a_401_that_says_so(serving: Serve) -> None:
    async with serving(jwt_secret=SECRET) as client:
        for said in ("Basic YTpi", "Bearer", "Bearer ", token()):
            answer = await client.get("/traces", headers={"Authorization": said})
            assert answer.status_code == 401 and "is not of the form" in answer.json()["detail"], said
        nobody = await client.get("/traces")
        assert nobody.status_code == 401 and "ApiKey" in nobody.headers["WWW-Authenticate"]


async def test_a_token_where_none_is_configured_is_a_401_that_says_so(http: httpx.AsyncClient) -> None:
    answer = await http.get("/traces", headers=bearer(token()) | {"X-Project-Name": "p"})
    assert answer.status_code == 401 and "not configured" in answer.json()["detail"]
    assert "WWW-Authenticate" in answer.headers


async def test_a_key_decides_where_a_token_is_sent_too(serving: Serve, key: str) -> None:
    async with serving(jwt_secret=SECRET) as client:
        both = bearer("nonsense") | {"X-API-Key": key}
        assert (await client.get("/whoami", headers=both)).json()["author"] is None
        assert (await client.get("/whoami", headers=bearer(token()) | {"X-API-Key": "wrong"})).status_code == 401


async def test_organisations_are_kept_apart(serving: Serve, org: UUID, api_database: Database) -> None:
    await new_organization(api_database, "globex", "org_globex")
    async with serving(jwt_secret=SECRET) as client:
        client.headers.update(bearer(token()))
        trace = await new_trace(client)
        project = (await client.get("/whoami")).json()["project"]
        client.headers.update(bearer(token(org_id="org_globex")))
        assert (await client.get(f"/traces/{trace}")).status_code == 404
        assert (await client.get("/traces")).json()["total"] == 0
        assert (await client.get("/whoami")).json()["project"] != project
        del client.headers["X-Project-Name"]
        foreign = await client.get("/traces", headers={"X-Project-ID": project})
        unknown = await client.get("/traces", headers={"X-Project-ID": str(uuid4())})
        assert (foreign.status_code, foreign.json()) == (404, unknown.json())


async def test_an_external_id_cannot_be_another_organisations_id(org: UUID, api_database: Database) -> None:
    async with api_database.begin() as tx:
        assert await access.make_organization(tx, "evil", str(org)) is None
        assert await access.taken(tx, "evil", str(org)) == ["external_id"]


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [(RSA_KEY, "RS256"), (RSA_KEY, "RS512"), (RSA_KEY, "PS256"), (EC_KEY, "ES256"), (ED_KEY, "EdDSA")],
)
async def test_published_keys_of_every_kind_are_taken(serving: Serve, org: UUID, key: Any, algorithm: str) -> None:
    async with serving(jwt_jwks=jwks(jwk(key, "k1"), jwk(OTHER_RSA_KEY, "k2"))) as client:
        for kid in ("k1", None):
            assert (await client.get("/traces", headers=bearer(token(key, algorithm, kid)))).status_code == 200, kid
        forged = await client.get("/traces", headers=bearer(token(OTHER_RSA_KEY, "RS256", "k1")))
        assert forged.status_code == 401


async def test_a_public_key_is_no_secret(serving: Serve, org: UUID) -> None:
    pem = RSA_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    given = jwks(jwk(RSA_KEY, "k1"))
    for settings in ({"jwt_jwks": given}, {"jwt_jwks": given, "jwt_secret": SECRET}):
        async with serving(**settings) as client:
            for secret in (pem, pem.strip(), given.encode()):
                answer = await client.get("/traces", headers=bearer(by_hand({"alg": "HS256", "kid": "k1"}, secret)))
                assert answer.status_code == 401
            none = await client.get("/traces", headers=bearer(unsigned({"alg": "none", "kid": "k1"}, claims())))
            assert none.status_code == 401


async def test_a_key_is_good_for_its_own_algorithm_alone(serving: Serve, org: UUID) -> None:
    async with serving(jwt_jwks=jwks(jwk(RSA_KEY, "k1", alg="RS256", use="sig"))) as client:
        assert (await client.get("/traces", headers=bearer(token(RSA_KEY, "RS256", "k1")))).status_code == 200
        assert (await client.get("/traces", headers=bearer(token(RSA_KEY, "PS256", "k1")))).status_code == 401


def test_shared_secrets_and_encryption_keys_of_a_jwks_are_passed_over() -> None:
    oct_key = {"kty": "oct", "k": base64.urlsafe_b64encode(SECRET.encode()).decode(), "kid": "s"}
    useless = [oct_key, jwk(RSA_KEY, "e", use="enc"), jwk(RSA_KEY, "o", key_ops=["encrypt"]), {"kty": "RSA"}, {}]
    kept = public_keys(json.dumps({"keys": [*useless, "noise", jwk(RSA_KEY, "k1")]}))
    assert [k.kid for k in kept] == ["k1"]
    for document in ("[]", "{}", '{"keys": 1}', "<html>"):
        with pytest.raises(ValueError):
            public_keys(document)


class Provider:
    """An identity provider's key page, on loopback."""

    def __init__(self, said: str) -> None:
        self.said, self.asked = said, 0
        provider = self

        class Page(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.asked += 1
                self.send_response(200)
                self.end_headers()
                self.wfile.write(provider.said.encode())

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Page)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/jwks.json"


@pytest.fixture
def provider() -> Iterator[Provider]:
    made = Provider(jwks(jwk(RSA_KEY, "k1")))
    thread = threading.Thread(target=made.server.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


async def test_keys_are_fetched_once_for_many_tokens(serving: Serve, org: UUID, provider: Provider) -> None:
    async with serving(jwt_jwks_url=provider.url) as client:
        headers = bearer(token(RSA_KEY, "RS256", "k1"))
        answers = await asyncio.gather(*(client.get("/traces", headers=headers) for _ in range(8)))
        assert {a.status_code for a in answers} == {200} and provider.asked == 1
        for kid in ("made-up", "another"):
            stranger = await client.get("/traces", headers=bearer(token(OTHER_RSA_KEY, "RS256", kid)))
            assert stranger.status_code == 401 and "does not publish" in stranger.json()["detail"]
        assert provider.asked == 1


async def test_a_rotated_key_is_found_and_the_old_one_is_gone(provider: Provider) -> None:
    now = [1000.0]
    tokens = trusting(published_at(provider.url), lambda: now[0])
    old, new = token(RSA_KEY, "RS256", "k1"), token(OTHER_RSA_KEY, "RS256", "k2")
    assert (await tokens.read(old)).organization == "org_acme"
    provider.said = jwks(jwk(OTHER_RSA_KEY, "k2"))
    now[0] += AGAIN + 1
    assert (await tokens.read(old)).subject == "ada"
    assert (await tokens.read(new)).subject == "ada"
    assert await status(tokens.read(old)) == 401 and provider.asked == 2


async def test_an_unreachable_provider_is_a_503_and_lets_nobody_in(
    serving: Serve, org: UUID, provider: Provider
) -> None:
    provider.said = "<html>down for maintenance</html>"
    async with serving(jwt_jwks_url=provider.url) as client:
        for said in (token(RSA_KEY, "RS256", "k1"), token(OTHER_RSA_KEY, "RS256", "k1")):
            answer = await client.get("/traces", headers=bearer(said))
            assert answer.status_code == 503 and int(answer.headers["Retry-After"]) >= 1
        assert provider.asked == 1


async def test_known_keys_work_for_minutes_while_the_provider_is_away() -> None:
    now, away = [1000.0], [False]

    async def fetch() -> Keys:
        if away[0]:
            raise ConnectionRefusedError
        return public_keys(jwks(jwk(RSA_KEY, "k1")))

    tokens, good = trusting(fetch, lambda: now[0]), token(RSA_KEY, "RS256", "k1")
    await tokens.read(good)
    away[0] = True
    now[0] += FRESH - 1
    await tokens.read(good)
    assert await status(tokens.read(token(RSA_KEY, "RS256", "newer"))) == 503
    await tokens.read(good)
    now[0] += 2
    assert await status(tokens.read(good)) == 503
    away[0] = False
    now[0] += AGAIN
    await tokens.read(good)


async def status(reading: Awaitable[Any]) -> int:
    try:
        await reading
    except Refused as e:
        return e.status
    return 200


def trusting(fetch: Callable[[], Awaitable[Keys]], clock: Callable[[], float]) -> Tokens:
    settings = Settings(jwt_jwks_url="https://id.example/keys", jwt_issuer=ISSUER, jwt_audience=AUDIENCE)
    return Tokens(settings, KeySet(fetch, clock))


WRONG: dict[str, dict[str, Any]] = {
    "has 5 bytes, and at least 32": {"jwt_secret": "short", "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE},
    "JWT_ISSUER and JWT_AUDIENCE are needed": {"jwt_secret": SECRET, "jwt_issuer": ISSUER},
    "both set": {"jwt_jwks": "{}", "jwt_jwks_url": "https://x", "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE},
    "no http": {"jwt_jwks_url": "file:///etc/keys", "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE},
    "less than 16": {"admin_token": "a word"},
}


@pytest.mark.parametrize("why", WRONG)
def test_settings_that_would_let_in_the_wrong_ones_are_refused_at_start(why: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Settings(**WRONG[why])
    assert why in str(refused.value)
    assert "short" not in str(refused.value) and "a word" not in str(refused.value)


def test_keys_that_cannot_verify_are_refused_at_start() -> None:
    pem = RSA_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    for keys in ({"jwt_jwks": '{"keys": []}'}, {"jwt_jwks": "no JSON"}, {"jwt_secret": SecretStr(pem)}):
        with pytest.raises((ValueError, jwt.InvalidKeyError)):
            Tokens.of(Settings(jwt_issuer=ISSUER, jwt_audience=AUDIENCE, **keys))


async def test_both_ways_in_and_both_project_headers_are_described(http: httpx.AsyncClient) -> None:
    page = (await http.get("/openapi.json")).json()
    schemes = page["components"]["securitySchemes"]
    assert {(s["type"], s.get("name") or s["scheme"]) for s in schemes.values()} == {
        ("apiKey", "X-API-Key"),
        ("apiKey", "X-Project-Name"),
        ("apiKey", "X-Project-ID"),
        ("http", "bearer"),
    }
    unprotected = [
        f"{method} {path}"
        for path, item in page["paths"].items()
        for method, route in item.items()
        if {name for way in route.get("security", []) for name in way} != set(schemes)
    ]
    assert unprotected == []
