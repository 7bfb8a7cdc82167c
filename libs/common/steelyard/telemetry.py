"""What a process tells about itself: logs, Prometheus metrics, and the trace context that messages carry."""

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import orjson
from opentelemetry import propagate, trace
from prometheus_client import Counter, Gauge, Histogram

from steelyard.events import Event
from steelyard.reasons import reason, stack

log = logging.getLogger(__name__)

HANDLED = Counter("steelyard_messages_total", "Messages handled", ["service", "event", "outcome"])
PUBLISHED = Counter("steelyard_published_total", "Messages published", ["event"])
DEAD_LETTERS = Counter("steelyard_dead_letters_total", "Messages moved to the dead letters", ["service", "topic"])
WAITED = Counter("steelyard_later_total", "Times a message had to wait for a dependency", ["service", "event"])
TURNS_FAILED = Counter(
    "steelyard_turns_failed_total",
    "Turns of a run, a model or a chore that an error ended while the others went on",
    ["service", "turn", "error"],
)
PUT_OFF = Gauge(
    "steelyard_not_understood", "Messages that wait for another version of the service", ["service", "topic"]
)
HELD_UP = Gauge(
    "steelyard_held_up",
    "Messages of runs whose rows somebody else holds up: they are tried again while others go on",
    ["service", "topic"],
)
SECONDS = Histogram(
    "steelyard_handle_seconds",
    "Time a handler took",
    ["service", "event"],
    buckets=(0.001, 0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 120),
)
IN_FLIGHT = Gauge("steelyard_window_in_flight", "Jobs in flight in the window consumer", ["service"])
SPAN = Gauge("steelyard_window_span", "Offsets between the oldest unfinished job and the newest taken", ["service"])
OLDEST = Gauge("steelyard_window_oldest_seconds", "Age of the oldest job in flight", ["service"])
RELAYED = Counter("steelyard_outbox_relayed_total", "Outbox rows published")
INGEST_GROUP = Histogram(
    "steelyard_ingest_group_traces",
    "Traces that were written in one transaction",
    buckets=(1, 2, 5, 10, 20, 50, 100, 200),
)


def headers() -> list[tuple[str, bytes]]:
    """The current trace context as message headers."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return [(name, value.encode()) for name, value in carrier.items()]


@contextmanager
def continued(
    name: str, received: Sequence[tuple[str, bytes]], kind: trace.SpanKind = trace.SpanKind.CONSUMER
) -> Iterator[trace.Span]:
    """A span whose parent is the one that published the message, or that sent the request."""
    carrier = {k: v.decode("ascii", "ignore") for k, v in received if k in ("traceparent", "tracestate", "baggage")}
    context = propagate.extract(carrier) if carrier else None
    # An exception's text would go to the collector: users' words may be in it.
    with trace.get_tracer("steelyard").start_as_current_span(
        name, context, kind=kind, record_exception=False, set_status_on_exception=False
    ) as span:
        try:
            yield span
        except Exception as e:
            span.set_status(trace.Status(trace.StatusCode.ERROR, reason(e)))
            raise


@contextmanager
def handling(service: str, event: str) -> Iterator[None]:
    began = time.perf_counter()
    try:
        yield
    finally:
        SECONDS.labels(service=service, event=event).observe(time.perf_counter() - began)


def published(event: Event) -> None:
    PUBLISHED.labels(event=type(event).__name__).inc()


def start_logging(level: str, form: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if form == "json" else _Text("%(asctime)s %(levelname)-7s %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    sys.excepthook = _log_the_end
    # aiokafka calls it an error that a new broker has no coordinator for a moment.
    logging.getLogger("aiokafka.consumer.group_coordinator").setLevel(logging.CRITICAL)
    for noisy in ("aiokafka", "faststream", "uvicorn.access", "uvicorn.error", "LiteLLM", "httpx", "alembic"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLogger().level))


def start_tracing(service: str, endpoint: str | None) -> None:
    """Without an endpoint spans cost nothing; the context is carried on all the same."""
    if not endpoint:
        return
    # Imported here: the exporter is only loaded where spans are wanted.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": f"steelyard-{service}"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")))
    trace.set_tracer_provider(provider)


def log_loop_error(_: Any, context: dict[str, Any]) -> None:
    """asyncio's own handler prints the task with its exception, and so the exception's text."""
    log.error("event loop: %s", context.get("message"), exc_info=context.get("exception"))


def _log_the_end(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    else:
        log.critical("the process ends", exc_info=error)


class _Text(logging.Formatter):
    """Every logger's, of libraries too: a traceback without the texts of its exceptions (`reasons.py`)."""

    def formatException(self, ei: Any) -> str:
        return stack(ei[1])


class _Json(_Text):
    def format(self, record: logging.LogRecord) -> str:
        said = {"time": self.formatTime(record), "level": record.levelname, "logger": record.name}
        said["message"] = record.getMessage()
        if record.exc_info:
            said["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(said).decode()
