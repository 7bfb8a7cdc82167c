"""Who is asking, and for which project: every route depends on this."""

import math
from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

from fastapi import Depends, FastAPI, Request
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from steelyard.settings import Settings
from steelyard.store import access
from steelyard.store.access import Caller
from steelyard.store.database import Database
from steelyard.store.usage import Limit
from steelyard_api.bearer import STRANGE, Bearer, Tokens, unauthorized
from steelyard_api.door import Admission
from steelyard_api.errors import Refused, not_found

LONGEST_NAME = 255
ASK = 'ApiKey realm="steelyard", header="X-API-Key"'
_key = APIKeyHeader(
    name="X-API-Key",
    scheme_name="ApiKey",
    auto_error=False,
    description="An API key of your organisation. It decides when a bearer token is sent too.",
)
_bearer = HTTPBearer(
    scheme_name="HTTPBearer",
    bearerFormat="JWT",
    auto_error=False,
    description="A token of the identity provider that this deployment trusts; one of its claims names the organisation.",
)
_project_name = APIKeyHeader(
    name="X-Project-Name",
    scheme_name="ProjectName",
    auto_error=False,
    description="A project of the organisation by its name, made on first use. In UTF-8, at most 255 characters.",
)
_project_id = APIKeyHeader(
    name="X-Project-ID",
    scheme_name="ProjectID",
    auto_error=False,
    description="A project of the organisation by its id. It decides when a name is sent too.",
)
Said = str | None
VISIT = "steelyard.visit"  # in a request's scope


@dataclass(frozen=True)
class Visit:
    """A request that may act, on one project."""

    database: Database
    project: UUID
    request_id: str
    author: str | None = None  # a person's id, where one signed in
    caller: str = ""  # the key or the token's subject: whoever a limit counts


def install(app: FastAPI, settings: Settings, database: Database) -> None:
    """What outlives a request: the provider's keys, and the slices of each caller's minute."""
    app.state.tokens = Tokens.of(settings)
    app.state.limit = Limit(database, settings.requests_per_minute)


async def enter(request: Request) -> None:
    """Who, how often and where, in this order: a stranger learns nothing about projects, and none of the body is read
    before all of it is clear. A known project costs one statement."""
    database: Database = request.app.state.database
    key = await _key(request)
    token = None if key else await _token(request, await _bearer(request))
    wanted = _wanted(await _project_name(request), await _project_id(request))
    found = await _caller(request, key, token, None if isinstance(wanted, Refused) else wanted)
    said = f"bearer:{found.org_id}:{token.subject}" if token else f"key:{found.key_id}"
    await _within_limit(request, said)
    project = await _project(database, found, wanted)
    subject = token.subject if token else None
    request.scope[VISIT] = Visit(database, project, request.scope["request_id"], subject, said)


async def visit(
    request: Request,
    _key: Annotated[Said, Depends(_key)],
    _bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    _name: Annotated[Said, Depends(_project_name)],
    _id: Annotated[Said, Depends(_project_id)],
) -> Visit:
    """What `enter` has found out, before the body where the route is a StrictRoute; the headers stand here for the API's
    description."""
    if VISIT not in request.scope:
        await enter(request)
    found: Visit = request.scope[VISIT]
    return found


async def _token(request: Request, bearer: HTTPAuthorizationCredentials | None) -> Bearer:
    tokens: Tokens | None = request.app.state.tokens
    if bearer is None or not bearer.credentials:
        if request.headers.get("Authorization"):
            raise unauthorized("The Authorization header is not of the form: Bearer, a space, a token")
        said = "Who is asking? The X-API-Key header is missing, and so is an Authorization header with a bearer token"
        raise Refused(401, said, headers={"WWW-Authenticate": f'{ASK}, Bearer realm="steelyard"'})
    if tokens is None:
        raise unauthorized("Bearer tokens are not configured here: send an API key in the X-API-Key header")
    return await tokens.read(bearer.credentials)


async def _caller(request: Request, key: Said, token: Bearer | None, wanted: str | UUID | None) -> Caller:
    """A place for the organisation comes first where the credential was seen before; a stranger gets one once it is clear
    for whom."""
    admission: Admission = request.app.state.admission
    credential = access.digest(f"bearer {token.organization}" if token else key or "")
    if (organization := await admission.known.organization(credential)) is not None:
        admission.enter(request.scope, organization)
        return await _looked_up(request, key, token, wanted)
    async with admission.known.stranger(credential):
        found = await _looked_up(request, key, token, wanted)
        admission.known.remember(credential, found.org_id)
    admission.enter(request.scope, found.org_id)
    return found


async def _looked_up(request: Request, key: Said, token: Bearer | None, wanted: str | UUID | None) -> Caller:
    database: Database = request.app.state.database
    async with database.single() as tx:
        if token is not None:
            found = await access.caller_of_claim(tx, token.organization, wanted)
        else:
            found = await access.caller_of_key(tx, key or "", wanted)
    if token is not None and found is None:
        raise unauthorized(STRANGE)
    if found is None or found.ended:
        raise Refused(401, f"The API key is {found.ended if found else 'unknown'}", headers={"WWW-Authenticate": ASK})
    return found


async def _within_limit(request: Request, caller: str) -> None:
    limit: Limit = request.app.state.limit
    if (wait := await limit.wait(caller)) is None:
        return
    seconds = max(1, math.ceil(wait))
    said = f"At most {limit.most} requests a minute: try again in {seconds} s"
    raise Refused(429, said, headers={"Retry-After": str(seconds)})


async def _project(database: Database, caller: Caller, wanted: str | UUID | Refused) -> UUID:
    if isinstance(wanted, Refused):
        raise wanted
    if caller.project is not None:
        return caller.project
    if isinstance(wanted, UUID):
        raise not_found("Project")
    async with database.single() as tx:
        return await access.project_of(tx, caller.org_id, wanted)


def _wanted(name: Said, project_id: Said) -> str | UUID | Refused:
    """A name, an id, or what to say about them once it is clear who is asking."""
    if project_id and project_id.strip():
        return _id(project_id.strip())
    if not (said := _in_utf8(name or "").strip()):
        missing = (("X-Project-Name", "is missing"), ("X-Project-ID", "is missing"))
        return Refused(400, "Which project? Send its name in X-Project-Name or its id in X-Project-ID", *missing)
    if len(said) > LONGEST_NAME or "\x00" in said:
        return Refused(422, "Validation error", ("X-Project-Name", f"has at most {LONGEST_NAME} characters"))
    return said


def _id(said: str) -> UUID | Refused:
    try:
        return UUID(said)
    except ValueError:
        return not_found("Project")


def _in_utf8(header: str) -> str:
    """Headers arrive as Latin-1. Clients send names in UTF-8, and a project has one name however it was made."""
    try:
        return header.encode("latin-1").decode()
    except UnicodeError:
        return header


Visitor = Annotated[Visit, Depends(visit)]
