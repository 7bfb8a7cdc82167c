"""What a provider's error means, by the few signs that vendors agree on."""

import contextlib
import re
from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime

from steelyard.clock import utc_now

# A provider may quote the whole request: no more of its words is looked at, or a pattern takes half a minute.
MOST_SAID = 2000
_NO_MONEY = re.compile(
    r"insufficient_quota|exceeded your current quota|billing_(?:not_active|hard_limit)|billing hard limit"
    r"|check your billing|credit balance is too low",
    re.IGNORECASE,
)
_RETRY_DELAY = re.compile(r'"retryDelay": *"(\d+(?:\.\d+)?)s"')
# How vendors and servers say that they do not take a schema, or this one.
_FORMAT = re.compile(
    r"response_?(?:format|schema|json_?schema|mime_?type)|json[_ ]?(?:schema|mode|object|validate)|output_(?:format|config)"
    r"|structured[_ ]?output|guided_|grammar|tool_choice|tool_use_failed|\bschema\b",
    re.IGNORECASE,
)


def of_the_format(e: Exception, status: int) -> bool:
    return status in (400, 422) and _FORMAT.search(str(e)[:MOST_SAID]) is not None


def outcome_of(e: Exception) -> str:
    """For the record: how a call that brought nothing ended, in one word."""
    status = getattr(e, "status_code", None)
    if status == 429:
        return "rate_limited"
    return "refused" if isinstance(status, int) and 400 <= status < 500 else "failed"


def exhausted(e: Exception, status: int | None) -> bool:
    """The money is gone, and waiting brings none. Not where "billing" merely occurs: a quoted trace may be about it,
    and Gemini says it of every limit by the minute, as RESOURCE_EXHAUSTED."""
    body = getattr(e, "body", None)
    code = body.get("code") if isinstance(body, dict) else None
    said = f"{code} {str(e)[:MOST_SAID]}"
    limited = "RESOURCE_EXHAUSTED" in said
    return status == 402 or (status in (400, 403, 429) and not limited and _NO_MONEY.search(said) is not None)


def retry_after(e: Exception) -> float:
    """litellm keeps the headers here and not in the response; seconds or a date, and never more than an hour."""
    headers = {str(k).lower(): v for k, v in (getattr(e, "litellm_response_headers", None) or {}).items()}
    said = headers.get("retry-after") or headers.get("llm_provider-retry-after")
    if said is None and (found := _RETRY_DELAY.search(str(e)[:MOST_SAID])):
        said = found.group(1)  # Gemini has it in the body
    wait = 5.0
    with contextlib.suppress(TypeError, ValueError):
        wait = float(str(said))
        return min(3600.0, max(0.5, wait))
    with contextlib.suppress(TypeError, ValueError):
        wait = (parsedate_to_datetime(str(said)) - _answered_at(headers)).total_seconds()
    return min(3600.0, max(0.5, wait))


def _answered_at(headers: Mapping[str, str]) -> datetime:
    """By the clock that the date in Retry-After is of, where the answer says what time it was there."""
    with contextlib.suppress(TypeError, ValueError):
        return parsedate_to_datetime(str(headers.get("date") or headers.get("llm_provider-date")))
    return utc_now()
