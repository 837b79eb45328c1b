"""What requests took in service → heads that were measured, to correct a prediction with."""

from __future__ import annotations

from pathlib import Path

import msgspec

from splitpoint.errors import CutError, InputError
from splitpoint.files import read_file
from splitpoint.graph import Graph
from splitpoint.parsing import MalformedError, parse_json
from splitpoint.profile.measure import stat_of
from splitpoint.profile.profiles import SegmentCost
from splitpoint.units import counted

#: A day of a request a second has 50 MB.
_MOST_BYTES = 256 << 20
#: Fewer requests with one cut than this say nothing: the first ones are slow.
_LEAST = 3
#: A day.
_MOST_MS = 86_400_000.0


class _Line(msgspec.Struct):
    """One request: a line of ``splitpoint run --json``, or of an experiment's requests.jsonl."""

    cut: str
    spans_ms: dict[str, float]
    ran: str = ""
    error: str = ""
    fallback: str = ""


def read_traces(path: Path, graph: Graph) -> tuple[list[SegmentCost], list[str]]:
    """The head of every cut of `graph` that requests ran with often enough, and a sentence for what was left out.

    `path` has a request a line, as ``splitpoint run --json`` prints them. InputError for a file that is something else.
    """
    data = read_file(path, _MOST_BYTES, "a file of traces", "splitpoint run --json")
    taken: dict[str, list[float]] = {}
    for number, text in enumerate(data.splitlines(), 1):
        if not text.strip():
            continue
        try:
            line = parse_json(text, _Line)
        except MalformedError as exc:
            raise InputError(
                f"{path} line {number} is no request's trace ({exc}): splitpoint run --json prints them"
            ) from exc
        ms = line.spans_ms.get("head", 0.0)
        if not line.error and not line.fallback and 0 < ms <= _MOST_MS:
            taken.setdefault(line.ran or line.cut, []).append(ms)
    by_place: dict[int, list[list[float]]] = {}
    said = []
    for name, times in taken.items():
        place = _place(graph, name)
        if place is not None and len(times) >= _LEAST:
            by_place.setdefault(place, []).append(times)
        else:
            why = "which is no prefix here" if place is None else f"fewer than {_LEAST}"
            said.append(f"{path.name}: {counted(len(times), 'request')} cut at {name[:80]}, {why}")
    return [SegmentCost(place, head=stat_of(runs)) for place, runs in sorted(by_place.items())], said


def _place(graph: Graph, name: str) -> int | None:
    """Which prefix a cut of that name is; None if it is none."""
    try:
        nodes = graph.cut(name).nodes
    except CutError:
        return None
    return next((k for k, c in enumerate(graph.prefixes()) if c.nodes == nodes), None)
