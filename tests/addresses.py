"""Where a test finds its Kafka and its database."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Infra:
    bootstrap: str
    owner_url: str  # of a database that exists


@dataclass(frozen=True)
class Urls:
    owner: str
    api: str
    worker: str

    def environment(self) -> dict[str, str]:
        return {"DATABASE_URL": self.owner, "API_DATABASE_URL": self.api, "WORKER_DATABASE_URL": self.worker}
