"""`python -m steelyard_api`."""

import uvicorn

from steelyard import telemetry
from steelyard.settings import from_environment
from steelyard.store.database import Database
from steelyard.topics import cluster_of_settings
from steelyard_api.app import api
from steelyard_api.service import relaying


def main() -> None:
    settings, cluster = from_environment(), cluster_of_settings()
    telemetry.start_logging(settings.log_level, settings.log_format)
    telemetry.start_tracing("api", settings.otel_exporter_otlp_endpoint)
    database = Database(settings.api_database_url.get_secret_value(), settings.database_pool)
    app = api(settings, database, lambda: relaying(cluster, database))
    uvicorn.run(
        app,
        host=settings.http_host,
        port=settings.http_port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=int(settings.drain_seconds),
    )


if __name__ == "__main__":
    main()
