"""An answer and where its milliseconds went, and whoever wants to know how requests fare: a planner that adapts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from splitpoint import wire
from splitpoint.callbacks import guard
from splitpoint.graph import Cut
from splitpoint.runtime.circuit_breaker import LinkState
from splitpoint.runtime.probe.server_clock import Offset
from splitpoint.tensors import Array
from splitpoint.trace import Span, Trace, stage_ms


class Marks(msgspec.Struct, frozen=True, gc=False):
    """Moments of one request on the device's clock, seconds. Without a server the last three are one."""

    started: float
    headed: float
    packed: float
    ended: float


class Request(msgspec.Struct, frozen=True):
    """An input for `Edge.infer` or `Edge.stream` that brings something along: `spans`, what was done before
    (``prepare``: decoding and resizing), become part of the trace; `tag` is anything, and comes back in the result."""

    inputs: Mapping[str, Array] | Array
    spans: tuple[Span, ...] = ()
    tag: Any = None


class Result(msgspec.Struct, frozen=True):
    """What `Edge.infer` returns. `outputs` are the model's, by name.

    `up_nbytes` and `down_nbytes` are whole frames; 0 if no server took part. `codecs` are those that tensors travelled
    with, by tensor name; what travelled raw is not in it.
    """

    outputs: dict[str, Array]
    cut: str
    marks: Marks
    spans: tuple[Span, ...] = ()
    tag: Any = None
    up_nbytes: int = 0
    down_nbytes: int = 0
    raw_times: bytes | wire.Times = b""
    offset: Offset | None = None
    codecs: Mapping[str, str] = {}
    fallback: str = ""
    attempts: int = 1
    resumed: float = 0.0
    deadline_s: float = 0.0

    @property
    def missed_ms(self) -> float:
        """By how much the answer came after its deadline, which counts from the call; 0 if it did not, or had none."""
        if not self.deadline_s:
            return 0.0
        return max(0.0, self.marks.ended - self.marks.started - self.deadline_s) * 1e3

    @property
    def clock_error_ms(self) -> float | None:
        """The most by which ``up`` may be too long and ``down`` too short, or the other way round, while their sum is
        exact: half of the shortest round trip of a ping. None without a server."""
        return self.offset.error_at(self.marks.ended) * 1e3 if self.offset is not None else None

    @property
    def times(self) -> wire.Times:
        """The server's own account; all 0 without one, and where its numbers cannot be."""
        raw = self.raw_times
        if isinstance(raw, wire.Times):
            return raw
        return (wire.parse_times(raw) if raw else None) or wire.Times()

    @property
    def batch(self) -> wire.BatchRun | None:
        """Which run computed it on the server, and how many requests that were; None where the server does not say."""
        return wire.parse_run(self.raw_times) if isinstance(self.raw_times, bytes) else None

    @property
    def trace(self) -> Trace:
        """The stages, without a gap: they sum to what the device measured from the input to the outputs.

        ``head`` computing on the device, ``encode`` its tensors and the frame, ``up`` until the server had its last
        byte, ``decode``, ``queue``, ``tail`` and ``reply`` on the server, ``down`` until the outputs are here. Where
        ``up`` ends is known through the clocks' offset; it is kept between what came before and what must fit after.

        What was finished here has ``head``, ``wait`` (for a server that was late or failed, with encoding and sending;
        not there if nothing was sent) and ``local``. ``wait`` is also what earlier attempts took of an answer that came
        at last, and all from the sending to the answer where the server's account cannot be (a NaN).
        """
        started, headed, packed, ended = msgspec.structs.astuple(self.marks)
        spans = [*self.spans, Span("head", started, headed)]
        if self.resumed:
            spans.append(Span("wait", headed, self.resumed))
            headed = self.resumed
        if self.fallback:
            return Trace((*spans, Span("local", headed, ended)))
        if self.offset is None:
            if self.up_nbytes:
                spans += [Span("encode", headed, packed), Span("wait", packed, ended)]
            return Trace(tuple(spans))
        t = self.times
        at_server = (("decode", t.decode_s), ("queue", t.queue_s), ("tail", t.compute_s), ("reply", t.encode_s))
        spent = sum(seconds for _, seconds in at_server)
        # A server that claims more time than passed is not believed: its stages are scaled to what there was.
        scale = min(1.0, (ended - packed) / spent) if spent > 0 else 1.0
        arrived = min(max(t.received_s - self.offset.offset_s, packed), ended - spent * scale)
        spans += [Span("encode", headed, packed), Span("up", packed, arrived)]
        now = arrived
        for name, seconds in at_server:
            spans.append(Span(name, now, now + seconds * scale))
            now += seconds * scale
        spans.append(Span("down", now, max(now, ended)))
        return Trace(tuple(spans))

    @property
    def numbers(self) -> dict[str, float]:
        """What tables say of it, by the names of `splitpoint.trace.NUMBERS`."""
        return stage_ms(self.trace)

    @property
    def total_ms(self) -> float:
        """From the input to the outputs on the device's clock, preparation included."""
        return (self.marks.ended - self.marks.started) * 1e3 + sum(s.ms for s in self.spans)


class Watcher(Protocol):
    """Told by an `Edge`, from whatever thread something happens in: must be quick. What it raises is ignored."""

    def answered(self, result: Result, remote_ms: float) -> None:
        """The server answered, `remote_ms` after the request was handed over: also a shadow, or too late for its
        request (`result` has no outputs then)."""

    def delivered(self, request: Request, result: Result) -> None:
        """A request was answered to whoever asked, here or at the server."""

    def computed(self, cut: Cut, head_ms: float) -> None:
        """A head was run on the device; where nothing crosses, the whole model."""

    def overdue(self, up_nbytes: int, age_ms: float) -> None:
        """A request is late: nothing has come `age_ms` after its `up_nbytes` were handed over."""

    def failed(self, why: str) -> None:
        """The server's part of a request failed: it was busy, gone, or wrong."""

    def state(self, state: LinkState) -> None:
        """`Edge.link_state` is `state` from now on."""


def tell(watchers: Sequence[Watcher], what: Callable[[Watcher], None]) -> None:
    """Says `what` to each of `watchers`, of which there may be fewer or more meanwhile."""
    for watcher in tuple(watchers):
        with guard(type(watcher).__qualname__):
            what(watcher)
