"""The link, the device and the server as a queue of requests shows them to be; and, on an idle link, small probes.

What requests say comes through `Uplink`; the rates are `link.estimator`'s. A thread looks once a second: it notes the
bandwidth, and if no request was on the link, sends at most 1 % of what it carries (`runtime.adapt.probe_schedule`).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from statistics import median
from time import perf_counter
from typing import NamedTuple

from splitpoint.errors import SplitpointError
from splitpoint.link import Link
from splitpoint.link.estimator import LinkEstimator
from splitpoint.planning.plans import Option
from splitpoint.runtime.adapt.probe_schedule import Lookout
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.events import ignore
from splitpoint.runtime.result import Result
from splitpoint.runtime.threads import persist
from splitpoint.tasks.choices import Pace
from splitpoint.tasks.uplink_estimate import Uplink
from splitpoint.trace import stage_ms

#: How often it looks, and how long it waits for a probe's answer.
EVERY_S, _WAIT_S = 1.0, 1.0
#: Ratios of measured to predicted compute that count, and how many there must be. Shorter runs are mostly overhead.
_RATIOS, _ENOUGH, _LEAST_MS = 8, 3, 2.0


class Spent(NamedTuple):
    """Where the time of one request went, ms: the device, the network (without waiting for it), the server; and the
    moments (s) when its head began, its bytes began to flow and had arrived, and the server and all was done."""

    edge: float
    transfer: float
    server: float
    started: float
    flowing: float
    arrived: float
    served: float
    ended: float


class _Ratios:
    """How many times as long as predicted runs took lately. Those that the server ran as one, whose times are the same
    to the last bit, say nothing of one that runs alone."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float | None]] = deque(maxlen=_RATIOS)

    def add(self, run: float, ratio: float) -> None:
        """`run` is the same for those that ran as one."""
        for place, (known, _) in enumerate(self._seen):
            if known == run:
                self._seen[place] = run, None
                return
        self._seen.append((run, ratio))

    @property
    def middle(self) -> float:
        """Their median; 1 while there are too few."""
        known = [ratio for _, ratio in self._seen if ratio is not None]
        return median(known) if len(known) >= _ENOUGH else 1.0


class Monitor:
    """Follows requests, from any thread. `clock` is the one that results are stamped with."""

    def __init__(self, link: Link, *, clock: Callable[[], float] = perf_counter) -> None:
        self._estimator = LinkEstimator(link, measured=True)
        self._uplink = Uplink()
        self._lookout = Lookout(EVERY_S, 0)
        self._now = clock
        self._lock = threading.Lock()
        self._device, self._server = _Ratios(), _Ratios()
        self._load_ms = 0.0
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._on_link = 0
        self.seen: list[tuple[float, float]] = []
        """(when, Mbit/s up), once a second."""

    # --- what is believed ---------------------------------------------------------------------------------------

    @property
    def pace(self) -> Pace:
        """The link, and how slow device and server are, as of now."""
        with self._lock:
            return Pace(self._estimator.link, self._device.middle, self._server.middle, self._load_ms)

    def loaded(self, load_ms: float) -> None:
        """A request waits so long for those of others at the server."""
        self._load_ms = load_ms

    @property
    def link_busy_s(self) -> float:
        """For how long something was on its way up."""
        return self._uplink.busy_s

    # --- what requests say --------------------------------------------------------------------------------------

    def began(self, id: int, edge: Edge, option: Option) -> None:
        """A request is about to be run."""
        if option.kind != "device":
            with self._lock:
                self._on_link += 1
                self._uplink.sent(id, edge, self._now())

    def failed(self, id: int, option: Option) -> None:
        """It has no answer."""
        if option.kind != "device":
            with self._lock:
                self._on_link -= 1
                self._uplink.dropped(id)

    def answered(self, id: int, option: Option, result: Result, held_s: float = 0.0) -> Spent:
        """Its answer: where its time went. It waited `held_s` behind its head, as the engine saw it."""
        trace = result.trace
        at, stages = {span.name: span for span in trace.spans}, stage_ms(trace)
        started, ended = result.marks.started, result.marks.ended
        edge = max(0.0, stages["edge"] + stages["encode"] - held_s * 1e3)
        if result.offset is None or not result.up_nbytes or "up" not in at:
            if option.kind != "device":
                self.failed(id, option)
            self._paced(self._device, edge, option.stages["edge"].ms + option.stages["encode"].ms, result, ended)
            return Spent(edge, 0.0, 0.0, started, ended, ended, ended, ended)
        packed, arrived = at["up"].start, at["up"].end
        served = at["down"].start
        with self._lock:
            self._on_link -= 1
            self._lookout.used(ended)
            if result.offset.pinged:
                self._estimator.ping(ended, 2e3 * result.offset.error_s)
            half_s = self._estimator.link.rtt_ms / 2e3
            ready = min(packed + half_s, arrived)
            flowing, carried = self._uplink.answered(id, ready, arrived, result.up_nbytes)
            for seen in carried:
                self._estimator.observe(seen.at, seen.nbytes, (seen.seconds + half_s) * 1e3, 0, 0)
            self._estimator.observe(ended, 0, 0, result.down_nbytes, at["down"].ms)
        self._paced(self._device, edge, option.stages["edge"].ms + option.stages["encode"].ms, result, ended)
        self._paced(self._server, stages["server"], option.stages["server"].ms, result, result.times.compute_s)
        transfer = (arrived - flowing + ready - packed) * 1e3 + at["down"].ms
        return Spent(edge, transfer, stages["server"], started, flowing, arrived, served, ended)

    def _paced(self, ratios: _Ratios, took: float, predicted: float, result: Result, run: float) -> None:
        if predicted >= _LEAST_MS and not result.fallback:
            with self._lock:
                ratios.add(run, took / predicted)

    # --- the thread that looks ----------------------------------------------------------------------------------

    def start(self, edge: Edge) -> None:
        """Begins to look once a second, through the connection of `edge`."""
        work = (partial(self._run, edge), "looking at the link", ignore, self._closed.wait)
        self._thread = threading.Thread(target=persist, args=work, name="bandwidth", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends that."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self, edge: Edge) -> bool:
        if self._closed.wait(EVERY_S):
            return False
        with suppress(SplitpointError):  # whether the server is gone is for requests to find out
            self.look(edge)
        return True

    def look(self, edge: Edge) -> None:
        """Notes the bandwidth; probes an idle link for it."""
        now = self._now()
        with self._lock:
            mbps = self._estimator.link.up_mbps
            self.seen.append((now, mbps))
            nbytes = 0 if self._on_link else self._lookout.probe_nbytes(now, mbps)
        if not nbytes:
            return
        seen = edge.glimpse(nbytes, _WAIT_S)
        with self._lock:
            self._lookout.sent_probe(now, nbytes)
            if seen is not None and not self._on_link:
                self._estimator.ping(self._now(), seen.rtt_ms)
                self._estimator.observe(self._now(), seen.up_nbytes, seen.up_ms, seen.down_nbytes, seen.down_ms)
