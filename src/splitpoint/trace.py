"""The only stopwatch in the project. Tables, CSV, logs and `--json` all read the spans it records.

>>> clock = iter([0.0, 0.010, 0.010, 0.025]).__next__
>>> recorder = Recorder(clock=clock)
>>> with recorder.span("head"):
...     pass
>>> with recorder.span("send"):
...     pass
>>> recorder.trace().ms("head")
10.0
>>> print(recorder.trace())
head 10.00 ms · send 15.00 ms
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

Clock = Callable[[], float]


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
