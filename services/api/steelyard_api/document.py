"""What the API says about itself: at /openapi.json, where FastAPI alone would say too much or too little, and at /docs,
with a page whose parts come with the API: a cluster without a way out shows it too."""

from importlib.resources import files
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

WITH_A_BODY = ("408", "413", "415")
# Who asks, and for which project: one of each.
BOTH: list[dict[str, list[str]]] = [
    {who: [], where: []} for who in ("ApiKey", "HTTPBearer") for where in ("ProjectName", "ProjectID")
]
Documents = list[dict[str, Any]]  # none yet, or the one


def install(app: FastAPI, written: Documents) -> None:
    made = app.openapi

    def openapi() -> dict[str, Any]:
        if not written:
            written.append(_told(made()))
        return written[0]

    app.openapi = openapi  # type: ignore[method-assign]
    parts = str(files("fastapi_offline") / "static")
    app.mount("/docs/parts", StaticFiles(directory=parts), name="docs")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="Steelyard",
            swagger_js_url="/docs/parts/swagger-ui-bundle.js",
            swagger_css_url="/docs/parts/swagger-ui.css",
            swagger_favicon_url="data:,",
        )


def _told(document: dict[str, Any]) -> dict[str, Any]:
    """A status is listed where it can happen: what has no body is never too large. FastAPI says of credentials that one
    of them is enough, which is not so."""
    for methods in document["paths"].values():
        for operation in methods.values():
            if "requestBody" not in operation:
                for status in WITH_A_BODY:
                    operation["responses"].pop(status, None)
            if any("ProjectName" in way for way in operation.get("security", ())):
                operation["security"] = BOTH
            operation["responses"] = dict(sorted(operation["responses"].items()))
    return document
