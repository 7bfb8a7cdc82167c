"""The product's HTTP interface as the launcher uses it: JSON there, JSON back, and errors that say what was asked."""

import json
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from steelyard_local.processes import LaunchFailed


@dataclass(frozen=True)
class Client:
    base_url: str
    key: str = ""
    project: str = ""

    def get(self, path: str) -> Any:
        return self._ask(Request(self.base_url + path, headers=self.headers()))

    def post(self, path: str, body: Any) -> Any:
        headers = self.headers() | {"Content-Type": "application/json"}
        return self._ask(Request(self.base_url + path, json.dumps(body).encode(), headers, method="POST"))

    def headers(self) -> dict[str, str]:
        return {"X-API-Key": self.key, "X-Project-Name": self.project} if self.key else {}

    def _ask(self, request: Request) -> Any:
        said = f"{request.get_method()} {request.selector}"
        try:
            with urlopen(request, timeout=30) as answer:
                return json.load(answer)
        except HTTPError as e:
            raise LaunchFailed(f"{said} was answered {e.code}: {e.read().decode(errors='replace')[:500]}") from e
        except (URLError, OSError, ValueError) as e:
            raise LaunchFailed(f"{said} was not answered: {e}") from e


def ready(base_url: str) -> str | None:
    """None when /readyz says 200, else why not."""
    try:
        with urlopen(base_url + "/readyz", timeout=5):
            return None
    except HTTPError as e:
        body = e.read().decode(errors="replace")
        try:
            return str(json.loads(body).get("why") or body)
        except (ValueError, AttributeError):
            return f"/readyz answered {e.code}"
    except (URLError, OSError) as e:
        return f"/readyz was not answered ({getattr(e, 'reason', e)})"
