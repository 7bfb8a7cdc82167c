"""`python -m steelyard.topics` makes the topics: once per deployment, never as a side effect of a message."""

import asyncio
import sys

from steelyard.errors import Later
from steelyard.kafka import Cluster, make_topics
from steelyard.settings import from_environment


def cluster_of_settings() -> Cluster:
    s = from_environment()
    return Cluster(s.kafka_bootstrap, s.topic_prefix, s.kafka_replication)


def main() -> None:
    try:
        made = asyncio.run(make_topics(cluster_of_settings()))
    except (Later, OSError) as e:
        sys.exit(f"topics: {e}")
    sys.stdout.write(f"topics: {len(made)} made\n" if made else "topics: all there\n")


if __name__ == "__main__":
    main()
