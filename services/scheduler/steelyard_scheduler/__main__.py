"""`python -m steelyard_scheduler`."""

from steelyard.service import main
from steelyard.settings import from_environment
from steelyard.store.database import Database
from steelyard.store.outbox import Relay
from steelyard.topics import cluster_of_settings
from steelyard_scheduler.handlers import scheduler


async def run() -> None:
    settings, cluster = from_environment(), cluster_of_settings()
    database = Database(settings.worker_database_url.get_secret_value(), settings.database_pool)
    await scheduler(settings, database).run(settings, cluster, Relay(database))


if __name__ == "__main__":
    main("scheduler", from_environment(), run)
