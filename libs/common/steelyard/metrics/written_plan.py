"""A plan that an agent wrote down: a list given to a planning tool, or one under a heading that calls it a plan."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from steelyard.metrics.extraction import PlanStep
from steelyard.metrics.plain import plain_text
from steelyard.metrics.tools import Call, parsed
from steelyard.traces import SpanKind, Trace

_PLANNING = re.compile(r"plan|to_?do", re.IGNORECASE)
_HEADING = re.compile(r"^\W*(?:[\w' ]{0,40}\bplan\b[^\n]{0,40}:|(?:(?:my|our|the) )?plan)\W*$", re.IGNORECASE)
_ITEM = re.compile(r"^\s*(?:\d{1,2}[.)]|[-*•]|step \d{1,2}[:.])\s+(?:\[[ x]\]\s*)?(\S.*)$", re.IGNORECASE)
_SAID = ("content", "step", "title", "task", "description", "text", "name")
MOST_TEXT, LONGEST_STEP = 20_000, 300


def written_plan(trace: Trace, calls: tuple[Call, ...]) -> list[PlanStep]:
    """The first one: what came after it may be its execution."""
    found = [*_given_to_tools(calls), *_told(trace)]
    return min(found, key=lambda steps: steps[0].span, default=[])


def is_planning(name: str) -> bool:
    return _PLANNING.search(name) is not None


def _given_to_tools(calls: tuple[Call, ...]) -> Iterator[list[PlanStep]]:
    for call in calls:
        if is_planning(call.name) and (steps := _listed(call.parameters)):
            yield _steps(steps, call.span)


def _told(trace: Trace) -> Iterator[list[PlanStep]]:
    """The answer itself is no plan of the agent's: a user may have asked for one."""
    answer = plain_text(trace.output, last=True).strip()
    for n, span in enumerate(trace.spans, 1):
        if span.kind not in (SpanKind.LLM, SpanKind.AGENT, SpanKind.CHAIN):
            continue
        text = plain_text(span.output, last=True)[:MOST_TEXT].strip()
        shape = parsed(text)
        steps = _listed(shape) if isinstance(shape, Mapping) and "plan" in shape else _under_heading(text)
        if steps and text != answer[:MOST_TEXT].strip():
            yield _steps(steps, n)


def _listed(value: Any) -> list[str]:
    lists = value.values() if isinstance(value, Mapping) else [value]
    for items in map(parsed, lists):
        if isinstance(items, list):
            said = [s for s in map(_words, items) if s]
            if len(said) >= 2:
                return said
    return []


def _words(item: Any) -> str:
    if isinstance(item, Mapping):
        item = next((item[k] for k in _SAID if isinstance(item.get(k), str)), None)
    return item.strip() if isinstance(item, str) else ""


def _under_heading(text: str) -> list[str]:
    lines = [line for line in text.splitlines() if line.strip()]
    for n, line in enumerate(lines):
        if _HEADING.match(line[:200]):
            steps = list[str]()
            for item in lines[n + 1 :]:
                if not (found := _ITEM.match(item)):
                    break
                steps.append(found.group(1).strip())
            if len(steps) >= 2:
                return steps
    return []


def _steps(said: list[str], span: int) -> list[PlanStep]:
    return [PlanStep(step=s[:LONGEST_STEP], span=span) for s in said]
