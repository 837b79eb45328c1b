"""A slower device that is a machine of its own, emulated: what it computes was computed before, and takes its time.

`lab.slow_device.Stretched` computes first and then waits. Where device and server are hyper-threads of one core,
as here, that computing slows the server down, which a device that is a machine of its own does not do. An `Apart` runs
each head a few times to know how long it takes, and computes it once for each input, at full speed. From then on a run
with the same input waits as long as the slower device would compute, and answers with what was computed before. Link,
wire and server stay real, and so do all numbers that cross.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from statistics import median
from time import perf_counter

from splitpoint.engines import Engine, Session
from splitpoint.engines.stretch import sleep_until
from splitpoint.models.model import Segment
from splitpoint.tensors import Array

#: How often a head is run to know how long it takes.
_RUNS = 5


class Apart:
    """An engine (splitpoint.engines) `factor` times slower than `engine`, that computes what it has not seen yet."""

    def __init__(self, engine: Engine, factor: float) -> None:
        self.engine, self.factor = engine, factor
        self.name, self.device, self.threads = engine.name, engine.device, engine.threads
        self.computed = 0
        """How many heads it computed so far; the other runs only took their time."""

    @property
    def note(self) -> str:
        """What a measurement with it must say."""
        slower = f"{self.factor:g}x slower " if self.factor > 1 else ""
        return f"emulated: {slower}by waiting, for outputs that were computed before"

    def compile(self, segment: Segment) -> _ApartSession:
        """A session that remembers."""
        return _ApartSession(self.engine.compile(segment), self)


class _ApartSession:
    def __init__(self, session: Session, engine: Apart) -> None:
        self.inputs, self.outputs, self.nbytes = session.inputs, session.outputs, session.nbytes
        self._session, self._engine = session, engine
        # By the arrays' identities; they are kept, so that no other array can have them.
        self._known: dict[tuple[int, ...], tuple[Mapping[str, Array], dict[str, Array]]] = {}
        self._usual_s = 0.0
        self._lock = threading.Lock()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        began = perf_counter()
        if not self._usual_s:
            self._usual_s = self._measure_s(inputs)
        key = tuple(id(inputs[spec.name]) for spec in self.inputs)
        with self._lock:
            known = self._known.get(key)
        if known is None:
            made = self._session.run(inputs)
            with self._lock:
                self._engine.computed += 1
                self._known[key] = dict(inputs), made
        else:
            made = known[1]
        sleep_until(began + self._engine.factor * self._usual_s)
        return dict(made)

    def _measure_s(self, inputs: Mapping[str, Array]) -> float:
        """How long a run takes, one after the other: the first one allocates."""
        taken = []
        for _ in range(_RUNS + 1):
            began = perf_counter()
            self._session.run(inputs)
            taken.append(perf_counter() - began)
        return median(taken[1:])

    def close(self) -> None:
        self._known.clear()
        self._session.close()
