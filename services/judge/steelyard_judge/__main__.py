"""`python -m steelyard_judge`."""

import os

from steelyard.metrics import CATALOGUE
from steelyard.service import main
from steelyard.settings import from_environment
from steelyard.store.database import Database
from steelyard.topics import cluster_of_settings
from steelyard_judge.dialogue import scoring
from steelyard_judge.embeddings import ApiEmbedder, Embedder, LocalEmbedder
from steelyard_judge.gates import Gates
from steelyard_judge.handlers import judge
from steelyard_judge.model import Gateway
from steelyard_judge.paying import Ledger
from steelyard_judge.signals import StoredSignals
from steelyard_judge.vectors import Remembering


async def run() -> None:
    settings, cluster = from_environment(), cluster_of_settings()
    database = Database(settings.worker_database_url.get_secret_value(), settings.database_pool)
    gates = Gates(settings.quota_probe_seconds)
    gateway = Gateway(settings, os.environ, gates)
    model = settings.embedding_model
    local = model is None or model.startswith("local/")
    embedder: Embedder = Remembering(LocalEmbedder(model) if local else ApiEmbedder(gateway, str(model)))
    book = Ledger(database)
    score = scoring(gateway, embedder, CATALOGUE, settings, book, settings.judge_grouped, StoredSignals(database))
    load_bytes = int(settings.judge_load_mb * 2**20)
    service = judge(settings.judge_slots, database, score, gates, settings.judge_job_seconds, load_bytes=load_bytes)
    service.parts += [gateway, embedder, book]
    await service.run(settings, cluster)


if __name__ == "__main__":
    main("judge", from_environment(), run)
