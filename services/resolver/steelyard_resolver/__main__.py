"""`python -m steelyard_resolver`."""

from steelyard.service import main
from steelyard.settings import from_environment
from steelyard.store.database import Database
from steelyard.store.outbox import Relay
from steelyard.topics import cluster_of_settings
from steelyard_resolver.handlers import resolver


async def run() -> None:
    settings, cluster = from_environment(), cluster_of_settings()
    database = Database(settings.worker_database_url.get_secret_value(), settings.database_pool)
    await resolver(settings, cluster, database).run(settings, cluster, Relay(database))


if __name__ == "__main__":
    main("resolver", from_environment(), run)
