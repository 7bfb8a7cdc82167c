"""What schemathesis cannot read out of a description, for test_schemathesis; the process it runs in loads this file."""

from typing import Any
from uuid import uuid4

import schemathesis


@schemathesis.hook
def before_call(context: Any, case: Any, **_: Any) -> None:
    """A key belongs to one request: the same key with another body is refused, as it should be."""
    headers = case.headers or {}
    for name in headers:
        if name.lower() == "idempotency-key" and headers[name]:
            headers[name] = str(uuid4())
