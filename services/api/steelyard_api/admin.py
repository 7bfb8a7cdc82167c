"""/admin: organisations, their projects and their keys, for whoever holds the deployment's ADMIN_TOKEN."""

import hashlib
import hmac
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, TypeVar
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import AfterValidator, Field, StringConstraints, model_validator

from steelyard.store import access
from steelyard.store.access import Row
from steelyard.store.database import Database
from steelyard.traces import storable
from steelyard_api.bearer import unauthorized
from steelyard_api.creating import Conflict
from steelyard_api.errors import Refused, not_found
from steelyard_api.shapes import Page, Shape, When
from steelyard_api.traces import Limit, Offset
from steelyard_api.wire import StrictRoute

T = TypeVar("T", bound=Shape)
DEVELOPMENT_DAYS = 90
_bearer = HTTPBearer(scheme_name="Admin", auto_error=False, description="the deployment's ADMIN_TOKEN")


async def enter(request: Request) -> None:
    """Hashes are compared, and in constant time: neither the token's bytes nor its length can be measured."""
    right, sent = request.app.state.settings.admin_token, await _bearer(request)
    said = sent.credentials if sent else ""
    if right is None or not hmac.compare_digest(_digest(said), _digest(right.get_secret_value())):
        raise unauthorized("Send the ADMIN_TOKEN of this deployment as a bearer token" if not said else "A wrong token")
    request.app.state.admission.enter(request.scope, "the administrator")


async def admin(request: Request, _sent: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> Database:
    """Who gets here was let in by `enter`; the header stands here for the API's description."""
    database: Database = request.app.state.database
    return database


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


class AdminRoute(StrictRoute):
    enter = staticmethod(enter)


router = APIRouter(prefix="/admin", tags=["Administration"], route_class=AdminRoute)
Admin = Annotated[Database, Depends(admin)]
OrgId = Annotated[UUID, Path(description="the organisation's id, as Steelyard gave it")]
KeyId = Annotated[UUID, Path(description="the key's id; not the key")]
Title = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=255), AfterValidator(storable)]
Words = Annotated[str, StringConstraints(max_length=2000), AfterValidator(storable)]
TAKEN: dict[int | str, dict[str, Any]] = {
    409: {"description": "the name, or the external id, is taken; the answer names the field"}
}


class Expiration(StrEnum):
    never = "never"
    days = "90d"


class OrganizationIn(Shape):
    name: Title = Field(description="unique in the deployment; spaces around it are dropped")
    external_id: Title | None = Field(
        None, description="the identity provider's word for it, as the tokens' claim has it; unique in the deployment"
    )


class OrganizationOut(Shape):
    id: UUID
    name: str
    external_id: str | None = Field(description="what bearer tokens may call it, beside its id")
    created_at: datetime


class ProjectIn(Shape):
    name: Title = Field(description="unique in the organisation; what X-Project-Name says")
    description: Words = Field("", description="what it is for")


class ProjectOut(Shape):
    id: UUID = Field(description="what X-Project-ID says")
    org_id: UUID
    name: str
    description: str
    created_at: datetime


class KeyIn(Shape):
    """When it ends is said in one of three ways, or not at all: then it does not end."""

    name: Title = Field(description="what the key is for")
    expires_at: When | None = Field(None, description="the moment it ends; in the future")
    expires_in_days: float | None = Field(None, gt=0, le=36_500, description="days from now until it ends")
    expiration: Expiration | None = Field(None, description="never (for production), or 90d (for development)")

    @model_validator(mode="after")
    def _once(self) -> "KeyIn":
        said = [self.expires_at, self.expires_in_days, self.expiration]
        if sum(s is not None for s in said) > 1:
            raise ValueError("expires_at, expires_in_days and expiration say the same thing: send one of them")
        return self

    def end(self, now: datetime) -> datetime | None:
        days = DEVELOPMENT_DAYS if self.expiration is Expiration.days else self.expires_in_days
        return now + timedelta(days=days) if days else self.expires_at


class KeyPatch(Shape):
    """Only the fields that are in the body are touched."""

    name: Title | None = Field(None, description="null changes nothing: a key has a name")
    expires_at: When | None = Field(None, description="the moment it ends, a past one too; null: it does not end")


class KeyOut(Shape):
    """A key as its owner recognises it: by its first characters."""

    id: UUID
    org_id: UUID
    key_prefix: str = Field(description="its first twelve characters")
    name: str
    is_active: bool = Field(description="false when it is revoked or has expired")
    created_at: datetime
    expires_at: datetime | None = Field(description="null: it does not end")
    revoked_at: datetime | None = Field(description="null: it was not revoked")


class KeyMade(KeyOut):
    raw_key: str = Field(description="the key itself. It is shown here and never again: only a hash of it is kept")


@router.post("/organizations", status_code=201, summary="Make an organisation", responses=TAKEN)
async def make_organization(asked: OrganizationIn, database: Admin) -> OrganizationOut:
    """Projects and keys belong to an organisation, and no organisation sees another's.

    Its `external_id` is what the claim of a bearer token says when the identity provider has names of its own."""
    async with database.begin() as tx:
        made = await access.make_organization(tx, asked.name, asked.external_id)
        fields = [] if made else await access.taken(tx, asked.name, asked.external_id)
    if made is None:
        raise _taken(fields)
    return OrganizationOut(**made)


@router.get("/organizations", summary="List organisations")
async def list_organizations(database: Admin, limit: Limit = 50, offset: Offset = 0) -> Page[OrganizationOut]:
    """Every organisation of the deployment, newest first."""
    async with database.begin() as tx:
        rows, total = await access.organizations(tx, limit, offset)
    return _page(OrganizationOut, rows, total, limit, offset)


@router.get("/organizations/{org_id}", summary="Read an organisation")
async def read_organization(org_id: OrgId, database: Admin) -> OrganizationOut:
    return OrganizationOut(**await _organization(database, org_id))


@router.post("/organizations/{org_id}/projects", status_code=201, summary="Make a project", responses=TAKEN)
async def make_project(org_id: OrgId, asked: ProjectIn, database: Admin) -> ProjectOut:
    """Not needed: a project is made when its name is used first. Here it gets a description."""
    await _organization(database, org_id)
    async with database.begin() as tx:
        made = await access.make_project(tx, org_id, asked.name, asked.description)
    if made is None:
        raise _taken(["name"])
    return ProjectOut(**made)


@router.get("/organizations/{org_id}/projects", summary="List an organisation's projects")
async def list_projects(org_id: OrgId, database: Admin, limit: Limit = 50, offset: Offset = 0) -> Page[ProjectOut]:
    """Newest first; those that were made by the first use of their name are among them."""
    await _organization(database, org_id)
    async with database.begin() as tx:
        rows, total = await access.projects(tx, org_id, limit, offset)
    return _page(ProjectOut, rows, total, limit, offset)


@router.post("/organizations/{org_id}/keys", status_code=201, summary="Make an API key")
async def make_key(org_id: OrgId, asked: KeyIn, database: Admin) -> KeyMade:
    """The only answer that shows the key. It opens every project of the organisation until it ends or is revoked."""
    now = datetime.now(UTC)
    if asked.expires_at is not None and asked.expires_at <= now:
        raise Refused(422, "Validation error", ("expires_at", "is in the past"))
    await _organization(database, org_id)
    async with database.begin() as tx:
        key, row = await access.new_key(tx, org_id, asked.name, asked.end(now))
    return KeyMade(**row, raw_key=key)


@router.get("/organizations/{org_id}/keys", summary="List an organisation's API keys")
async def list_keys(org_id: OrgId, database: Admin, limit: Limit = 50, offset: Offset = 0) -> Page[KeyOut]:
    """Newest first, those that have ended too."""
    await _organization(database, org_id)
    async with database.begin() as tx:
        rows, total = await access.keys_of(tx, org_id, limit, offset)
    return _page(KeyOut, rows, total, limit, offset)


@router.post("/keys/{key_id}/revoke", summary="Revoke an API key")
async def revoke_key(key_id: KeyId, database: Admin) -> KeyOut:
    """From the next request on the key is a 401. Revoking it again changes nothing, and nothing brings it back."""
    async with database.begin() as tx:
        row = await access.revoke(tx, key_id)
    if row is None:
        raise not_found("Key")
    return KeyOut(**row)


@router.patch(
    "/keys/{key_id}", summary="Change an API key", responses={409: {"description": "the key is revoked, for good"}}
)
async def change_key(key_id: KeyId, asked: KeyPatch, database: Admin) -> KeyOut:
    """Its name, and when it ends. It counts from the next request on; an expired key may be given more time."""
    async with database.begin() as tx:
        row = await access.change_key(tx, key_id, asked.model_dump(exclude_unset=True))
        there = row or await access.key(tx, key_id)
    if row is None:
        raise Conflict("The key is revoked, and stays revoked") if there else not_found("Key")
    return KeyOut(**row)


async def _organization(database: Database, org_id: UUID) -> Row:
    async with database.single() as tx:
        found = await access.organization(tx, org_id)
    if found is None:
        raise not_found("Organization")
    return found


def _taken(fields: Sequence[str]) -> Conflict:
    return Conflict("That is taken already", *((field, "is taken already") for field in fields))


def _page(shape: type[T], rows: Sequence[Row], total: int, limit: int, offset: int) -> Page[T]:
    return Page(items=[shape(**row) for row in rows], total=total, limit=limit, offset=offset)
