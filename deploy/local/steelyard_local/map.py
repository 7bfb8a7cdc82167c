"""`make map`: the flow, drawn from the handlers' own signatures, kept in the README; `--check` holds it there."""

import sys
from collections.abc import Iterator, Sequence

from steelyard.events import KINDS, Event
from steelyard.kafka import Cluster
from steelyard.service import Flow, Service
from steelyard.settings import Settings
from steelyard.store.database import Database
from steelyard_aggregator.handlers import aggregator
from steelyard_api.service import service as api
from steelyard_judge.handlers import judge
from steelyard_local.processes import ROOT
from steelyard_resolver.handlers import resolver
from steelyard_scheduler.handlers import scheduler

BEGIN, END = "<!-- the map: drawn by `make map` -->", "<!-- end of the map -->"
README = ROOT / "README.md"


def services() -> list[Service]:
    """Built with what they need and never started: reading signatures connects to nothing."""
    settings = Settings()
    database = Database(settings.worker_database_url.get_secret_value())

    async def nobody(*_: object) -> object:
        raise NotImplementedError

    return [
        api(),
        resolver(settings, Cluster(settings.kafka_bootstrap), database),
        judge(settings.judge_slots, database, nobody),  # type: ignore[arg-type]
        aggregator(settings, database),
        scheduler(settings, database),
    ]


def picture(flows: Sequence[Flow], names: Sequence[str]) -> str:
    lines = ["```mermaid", "flowchart LR", *(f"    {name}([{name}])" for name in names)]
    lines += [f'    {_node(t)}[["{t}"]]' for t in dict.fromkeys(k.topic for k in KINDS.values())]
    lines += dict.fromkeys(_arrows(flows))
    lines += ["```", "", "| event | topic | key | partitions | from | to |", "| --- | --- | --- | --- | --- | --- |"]
    return "\n".join(lines + [_row(kind, flows) for kind in KINDS.values()])


def _arrows(flows: Sequence[Flow]) -> Iterator[str]:
    for f in flows:
        for kind in f.outbox:
            yield f"    {f.service} -. outbox .-> {_node(kind.topic)}"
        for kind in f.gives:
            yield f"    {f.service} --> {_node(kind.topic)}"
        for kind in f.takes:
            yield f"    {_node(kind.topic)} {'-- to each -->' if f.each else '-->'} {f.service}"


def _row(kind: type[Event], flows: Sequence[Flow]) -> str:
    """Events that nobody takes are for whoever listens from outside."""
    makers = dict.fromkeys(f.service for f in flows if kind in (*f.gives, *f.outbox))
    takers = dict.fromkeys(f.service for f in flows if kind in f.takes)
    cells = (kind.__name__, f"`{kind.topic}`", kind.keyed_by, kind.partitions, ", ".join(makers), ", ".join(takers))
    return "| " + " | ".join(str(c) or "–" for c in cells) + " |"


def _node(topic: str) -> str:
    return topic.replace(".", "_")


def drawn() -> str:
    all_services = services()
    return picture([f for s in all_services for f in s.flows], [s.name for s in all_services])


def main() -> None:
    text = README.read_text()
    if BEGIN not in text or END not in text:
        sys.exit(f"README.md has no place for the map: {BEGIN} … {END}")
    before, rest = text.split(BEGIN, 1)
    now = f"{before}{BEGIN}\n{drawn()}\n{END}{rest.split(END, 1)[1]}"
    if "--check" in sys.argv[1:]:
        if now != text:
            sys.exit("README.md's map is not what the handlers' signatures say: run `make map`")
        print("the README's map is what the handlers say")
    else:
        README.write_text(now)
        print(drawn())


if __name__ == "__main__":
    main()
