"""`python -m steelyard_api`."""

import gc
from typing import Any

import uvicorn

from steelyard import telemetry
from steelyard.settings import Settings, from_environment
from steelyard.store.database import Database
from steelyard.topics import cluster_of_settings
from steelyard_api.app import api
from steelyard_api.heads import Heads
from steelyard_api.service import relaying


def main() -> None:
    settings, cluster = from_environment(), cluster_of_settings()
    telemetry.start_logging(settings.log_level, settings.log_format)
    telemetry.start_tracing("api", settings.otel_exporter_otlp_endpoint)
    database = Database(settings.api_database_url.get_secret_value(), settings.database_pool)
    app = api(settings, database, lambda: relaying(cluster, database))
    gc.freeze()  # what is loaded by now stays; looked through again and again, it made reading a large body six times slower
    uvicorn.run(app, **serving(settings))


def serving(settings: Settings) -> dict[str, Any]:
    """An idle connection outlives the ingress's wish for it: uvicorn's 5 s close it while a pooled client writes to it."""
    return {
        "host": settings.http_host,
        "port": settings.http_port,
        "http": Heads,
        "log_config": None,
        "access_log": False,
        "timeout_keep_alive": settings.keep_alive_seconds,
        "timeout_graceful_shutdown": int(settings.drain_seconds),
    }


if __name__ == "__main__":
    main()
