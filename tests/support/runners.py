"""A `TailRunner` that is not our pool: it computes in the thread that receives, and keeps no queue."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

from splitpoint.engines import Engine, Session
from splitpoint.models.model import Segment
from splitpoint.runtime.events import Event, OnEvent
from splitpoint.runtime.server import RunMarks, TailRequest
from splitpoint.runtime.server.accounts import Account
from splitpoint.runtime.server.stats import RunnerStats
from splitpoint.wire import BatchRun

#: A request that was computed by itself.
ALONE = BatchRun()


class Here:
    """Says of each request that it was computed as `run`. `took_s` is how long it says that decoding, waiting and
    computing took."""

    utilisation = 0.25

    def __init__(
        self, engine: Engine, tell: OnEvent, *, run: BatchRun = ALONE, took_s: tuple[float, ...] = (0.0, 0.0, 0.0)
    ) -> None:
        self.engine, self.tell, self.batch, self.took_s = engine, tell, run, took_s
        self.has_room = True
        self.fails: Exception | None = None
        self.opened: list[HereTail] = []
        self.closed: list[str] = []

    def open(self, segment: Segment, account: Account) -> HereTail:
        self.tell(Event("notice", f"{account.name} opens {segment.key}", {"peer": account.name}))
        self.opened.append(HereTail(self, segment, self.engine.compile(segment)))
        return self.opened[-1]

    def room(self, account: Account) -> bool:
        return self.has_room

    def retry_after_s(self, account: Account) -> float:
        return 0.01

    def drop(self, account: Account) -> None:
        pass

    def stats(self) -> RunnerStats:
        return RunnerStats(workers=1, utilisation=self.utilisation, tails=len(self.opened), compiled=len(self.opened))

    def end(self) -> None:
        self.closed.append("end")

    def close(self, within_s: float) -> bool:
        self.closed.append("close")
        return True


class HereTail:
    """A segment of `Here`."""

    nbytes, compile_s = 0, 0.0

    def __init__(self, runner: Here, segment: Segment, session: Session) -> None:
        self.runner, self.segment, self.session = runner, segment, session
        self.closed = False

    def kind_of(self, dtypes: Sequence[str], shapes: Sequence[Sequence[int]], *, vectors: bool) -> object:
        return None

    def run(self, request: TailRequest) -> float:
        started = perf_counter()
        try:
            if self.runner.fails is not None:
                raise self.runner.fails
            outputs = self.session.run(request.feed())
        except Exception as exc:
            request.refuse(exc)
            return 0.0
        decode_s, wait_s, compute_s = self.runner.took_s
        decoded = started + decode_s
        request.answer(outputs, RunMarks(started, wait_s, started, decoded, decoded + compute_s, self.runner.batch))
        return 0.0

    def close(self, *, drop: bool = False) -> None:
        self.closed = True
        self.session.close()
