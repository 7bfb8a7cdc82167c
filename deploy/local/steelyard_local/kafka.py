"""A real Kafka broker, one KRaft node, as a child process on two free ports."""

import shutil
import subprocess
from pathlib import Path

from steelyard_local.processes import LOCAL, Home, LaunchFailed, listening, wait_for

JARS = LOCAL / "kafka-4.1.1"
CLUSTER_ID = "c3RlZWx5YXJkLWxvY2FsMQ"
HEAP = ["-Xmx256m", "-Xms128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]


def start_kafka(home: Home, prompt_commits: bool = False, path: str | None = None, cluster_id: str = CLUSTER_ID) -> str:
    """The bootstrap address of a broker that has answered. `prompt_commits` spares tests the 5 ms commit linger; `path` is
    where Java is looked for, PATH when left out."""
    java = shutil.which("java", path=path)
    if java is None:
        raise LaunchFailed(
            "java is missing: install a Java runtime, version 17 or newer (Debian: openjdk-17-jre-headless)."
        )
    if not any(JARS.glob("kafka_2.13-*.jar")):
        raise LaunchFailed("Kafka's jars are missing: run `make install`.")
    port, controller = home.port("kafka"), home.port("kafka-controller")
    settings = home.path / "kafka.properties"
    settings.write_text(_settings(home.path / "kafka", port, controller, prompt_commits))
    base = [java, *HEAP, "-cp", f"{JARS}/*"]
    if not (home.path / "kafka" / "meta.properties").exists():
        _format([*base, "kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", str(settings)])
    child = home.start("kafka", [*base, "kafka.Kafka", str(settings)])
    wait_for(lambda: listening(port), "Kafka to listen", child)
    return f"127.0.0.1:{port}"


def _format(argv: list[str]) -> None:
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode:
        raise LaunchFailed(f"formatting Kafka's storage failed:\n{done.stdout}{done.stderr}")


def _settings(data: Path, port: int, controller: int, prompt_commits: bool) -> str:
    lines = {
        "process.roles": "broker,controller",
        "node.id": 1,
        "controller.quorum.voters": f"1@127.0.0.1:{controller}",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "controller.listener.names": "CONTROLLER",
        "log.dirs": data,
        "offsets.topic.replication.factor": 1,
        "offsets.topic.num.partitions": 4,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "transaction.state.log.num.partitions": 4,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        "group.initial.rebalance.delay.ms": 0,
        # A topic that nobody declared is a mistake, not a topic with one partition.
        "auto.create.topics.enable": "false",
        "log.cleaner.dedupe.buffer.size": 2097152,
    }
    if prompt_commits:
        lines["group.coordinator.append.linger.ms"] = 0
    return "".join(f"{name}={value}\n" for name, value in lines.items())
