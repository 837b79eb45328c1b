"""The only stopwatch in the project, and the only table of what its spans and stages mean: `SPANS`.

A request is recorded as spans. Tables add spans up to stages (`stage_ms`); docs/stages.md prints both.

>>> clock = iter([0.0, 0.010, 0.010, 0.025]).__next__
>>> recorder = Recorder(clock=clock)
>>> with recorder.span("head"):
...     pass
>>> with recorder.span("up"):
...     pass
>>> recorder.trace().ms("head")
10.0
>>> print(recorder.trace())
head 10.00 ms · up 15.00 ms
>>> round(stage_ms(recorder.trace())["net"])
15
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from splitpoint.units import ms

Clock = Callable[[], float]


class Meaning(NamedTuple):
    """The stage that a span is part of, and what is done in it."""

    stage: str
    text: str


#: Span → what it means, in the order of a request. They follow each other without a gap: their sum is the whole time.
SPANS: Mapping[str, Meaning] = {
    "prepare": Meaning("decode", "the edge reads the input: an image is decoded and resized"),
    "held": Meaning("queue", "the input waits on the edge for those before it (streams)"),
    "head": Meaning("edge", "the edge computes the head"),
    "wait": Meaning(
        "queue",
        "the edge waits for a server that is late or has failed: earlier attempts, and all from sending to the end "
        "of waiting where the answer is finished here",
    ),
    "local": Meaning("edge", "the edge computes what the server did not answer"),
    "encode": Meaning("encode", "the edge's codecs encode what crosses, and the frame is made"),
    "up": Meaning(
        "net",
        "from the finished frame until the server has its last byte: one way of the round trip, and the wait behind "
        "earlier frames on the uplink (streams), included",
    ),
    "decode": Meaning("server", "the server's codecs decode what crossed"),
    "queue": Meaning("queue", "the request waits for a worker of the server, and for the batch that it joins"),
    "tail": Meaning("server", "the server computes the tail; of a batch, all of the batch"),
    "reply": Meaning("server", "the server encodes and frames the answer"),
    "down": Meaning("net", "from then until the answer is read here, the other way of the round trip included"),
}

#: Stages in the order of the tables' columns. Each span is part of one, so stages sum to the whole time, too.
STAGES: tuple[str, ...] = ("decode", "edge", "encode", "net", "queue", "server")
#: Those that the device is busy with: one column of tables that have little room.
DEVICE: tuple[str, ...] = ("edge", "encode")
#: What every table says of a request (`Result.numbers`), and how it is shown: the stages, their sum, and others.
NUMBERS: Mapping[str, Callable[[float], str]] = {**dict.fromkeys((*STAGES, "total"), ms)}
#: Numbers that tables have which sum the stages up in a way of their own, or leave some out.
OTHERS: tuple[str, ...] = tuple(name for name in NUMBERS if name not in (*STAGES, "total"))


@dataclass(frozen=True, slots=True)
class Span:
    """One stage of one request: seconds on the device's clock, from `start` to `end`."""

    name: str
    start: float
    end: float

    @property
    def ms(self) -> float:
        """How long it took, in milliseconds."""
        return (self.end - self.start) * 1e3


@dataclass(frozen=True, slots=True)
class Trace:
    """The stages of one request, in order of their start."""

    spans: tuple[Span, ...] = ()

    def ms(self, name: str) -> float:
        """Milliseconds spent in all spans of this name; 0 if there is none."""
        return sum(s.ms for s in self.spans if s.name == name)

    def stages(self) -> dict[str, float]:
        """Name → milliseconds, in order."""
        return {name: self.ms(name) for name in dict.fromkeys(s.name for s in self.spans)}

    def __str__(self) -> str:
        return " · ".join(f"{name} {ms:.2f} ms" for name, ms in self.stages().items())


def stage_ms(trace: Trace) -> dict[str, float]:
    """Milliseconds by stage, and their sum as ``total``."""
    return by_stage(trace.stages())


def by_stage(spans_ms: Mapping[str, float]) -> dict[str, float]:
    """`stage_ms` of milliseconds by span, as rows in files have them.

    A span that `SPANS` does not name was brought along by the caller, who did something before the head: ``decode``.
    """
    spent = dict.fromkeys(STAGES, 0.0)
    for name, spent_ms in spans_ms.items():
        spent[SPANS.get(name, SPANS["prepare"]).stage] += spent_ms
    return spent | {"total": sum(spent.values())}


@dataclass(slots=True)
class Recorder:
    """Collects spans. The clock is an argument, so that tests run in virtual time."""

    clock: Clock = time.perf_counter
    spans: list[Span] = field(default_factory=list)

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Record what runs inside `with` as a span, also if it raises."""
        start = self.clock()
        try:
            yield
        finally:
            self.spans.append(Span(name, start, self.clock()))

    def add(self, name: str, start: float, end: float) -> None:
        """Record a span that was timed elsewhere, in seconds on the same clock."""
        self.spans.append(Span(name, start, end))

    def trace(self) -> Trace:
        """What was recorded so far, in order of start."""
        return Trace(tuple(sorted(self.spans, key=lambda s: s.start)))
