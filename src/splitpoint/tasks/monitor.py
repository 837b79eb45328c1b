"""What a queue that runs shows of the link, the device and the server, and where the time of each request went.

What follows from it is `runtime.adapt.conditions`' belief, the same as that of an edge that adapts. A thread looks once
a second: where no request is on the link, it probes (`runtime.adapt.probe_schedule`); where an answer should have come,
it has the connection tried, so that nobody waits for a server that has fallen silent.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from math import inf
from time import perf_counter
from typing import NamedTuple

import msgspec

from splitpoint.errors import SplitpointError
from splitpoint.link import Link
from splitpoint.planning.plans import Option
from splitpoint.runtime.adapt.conditions import Conditions, Observer, Ran
from splitpoint.runtime.adapt.link_belief import FrameTime
from splitpoint.runtime.adapt.probe_schedule import ProbeSchedule
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.events import ignore
from splitpoint.runtime.result import Result
from splitpoint.runtime.threads import persist
from splitpoint.trace import DEVICE

#: How often it looks, and how long it waits for a probe's answer.
EVERY_S, _WAIT_S = 1.0, 1.0


class Spent(NamedTuple):
    """Where the time of one request went, ms: the device, the network (without waiting for it), the server; the moments
    (s) when its head began, its bytes had arrived, and the server and all was done; and what device and server should
    have computed by the plan, ms."""

    edge: float
    transfer: float
    server: float
    started: float
    arrived: float
    served: float
    ended: float
    planned: float


class QueueMonitor:
    """Follows the requests of a queue, from any thread. `clock` is the one that results are stamped with."""

    def __init__(self, link: Link, *, clock: Callable[[], float] = perf_counter) -> None:
        self._observer = Observer(link, measured=True, hasty=False)
        self._schedule = ProbeSchedule(EVERY_S, 0)
        self._now = clock
        self._lock = threading.Lock()
        self._load_ms = 0.0
        self._due: dict[int, tuple[float, Edge]] = {}
        self._closed = threading.Event()

    # --- what is believed ---------------------------------------------------------------------------------------

    @property
    def conditions(self) -> Conditions:
        """The link, and how slow device and server are, as of now; `queue_ms` is what others cost at the server."""
        with self._lock:
            return msgspec.structs.replace(self._observer.conditions(self._now()), queue_ms=self._load_ms)

    def loaded(self, load_ms: float) -> None:
        """A request waits up to so long for those of others at the server: told before the queue begins."""
        self._load_ms = max(self._load_ms, load_ms)

    @property
    def link_busy_s(self) -> float:
        """For how long something was on its way up."""
        return self._observer.uplink.busy_s

    # --- what requests say --------------------------------------------------------------------------------------

    def began(self, id: int, edge: Edge, option: Option, due_s: float = inf) -> None:
        """Its answer is planned for the moment `due_s`."""
        if option.kind != "device":
            with self._lock:
                self._observer.uplink.sent(id, edge, self._now())
                self._due[id] = due_s, edge

    def failed(self, id: int) -> None:
        """It has no answer of the server."""
        with self._lock:
            self._observer.uplink.dropped(id)
            self._due.pop(id, None)

    def answered(
        self, id: int, option: Option, whole_ms: tuple[float, float], result: Result, held_s: float = 0.0
    ) -> Spent:
        """Its answer: where its time went. Its whole model takes `whole_ms` on the device and on the server, by their
        profiles. It waited `held_s` behind its head, as the engine saw it."""
        at, stages = {span.name: span for span in result.trace.spans}, result.numbers
        started, ended = result.marks.started, result.marks.ended
        edge = max(0.0, sum(stages[name] for name in DEVICE) - held_s * 1e3)
        planned_ms = option.stages["edge"].ms + option.stages["encode"].ms
        if not result.fallback:
            with self._lock:
                self._observer.computed(ended, Ran(edge, planned_ms, whole_ms[0]))
        if result.offset is None or not result.up_nbytes or "up" not in at:
            self.failed(id)
            return Spent(edge, 0.0, 0.0, started, ended, ended, ended, planned_ms)
        packed, arrived, served = at["up"].start, at["up"].end, at["down"].start
        server, up_ms, down_ms = stages["server"], at["up"].ms, at["down"].ms
        alone = result.batch is not None and result.batch.size == 1
        tail = Ran(server, option.stages["server"].ms, whole_ms[1], alone)
        with self._lock:
            self._due.pop(id, None)
            self._schedule.used(ended)
            waited_ms = self._observer.answered(
                ended, FrameTime(result.up_nbytes, up_ms), FrameTime(result.down_nbytes, down_ms), tail,
                queue_ms=0.0, rtt_ms=2e3 * result.offset.error_s if result.offset.pinged else 0.0,
                remote_ms=(ended - packed) * 1e3, request=id,
            )  # fmt: skip
        transfer = max(0.0, up_ms - waited_ms) + down_ms
        return Spent(edge, transfer, server, started, arrived, served, ended, planned_ms + tail.profiled_ms)

    # --- the thread that looks ----------------------------------------------------------------------------------

    @contextmanager
    def looking(self, edge: Edge) -> Iterator[None]:
        """Looks once a second, through the connection of `edge`."""
        work = (partial(self._run, edge), "looking at the link", ignore, self._closed.wait)
        thread = threading.Thread(target=persist, args=work, name="bandwidth", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._closed.set()
            thread.join()

    def _run(self, edge: Edge) -> bool:
        if self._closed.wait(EVERY_S):
            return False
        with suppress(SplitpointError):  # a request finds out whether the server is gone
            self.look(edge)
        return True

    def look(self, edge: Edge) -> None:
        """Has the connections of answers that are late tried; probes the link if it is idle, and it is time to."""
        now = self._now()
        with self._lock:
            late = {of for due_s, of in self._due.values() if due_s < now}
            mbps = self._observer.conditions(now).link.up_mbps
            nbytes = 0 if self._observer.uplink.in_use else self._schedule.probe_nbytes(now, mbps)
        for one in late:
            one.doubt()
        if not nbytes:
            return
        seen = edge.glimpse(nbytes, _WAIT_S)
        with self._lock:
            self._schedule.sent_probe(now, nbytes)
            if seen is not None and not self._observer.uplink.in_use:
                self._observer.probed(self._now(), seen)
