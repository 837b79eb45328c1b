"""The server's side: holds models, hands out graphs and weights, compiles tails on demand and runs them.

`server.Server` is what users hold. A connection's way, and a request's:

    listener ─ admission ─ connection ─┬─ requests ─┬─ INFER: where its tail computes (a `TailRunner`) ─ reply
    accepts    who it is   receives    │            └─ OPEN: worker_pool ─ a tail is compiled
                                       └─ graphs, weights, profiles, probes

| module | |
|---|---|
| server | life: listeners, threads, who is connected |
| admission | who has connected and is not let in yet |
| connection | one client's receive loop: which frame goes where; graphs, weights, probes |
| requests | OPEN, CLOSE, and INFER: checked, admitted, decoded, answered |
| profile_jobs | profiles of this machine |
| services | what the two above share |
| accounts | what clients hold and have used, and what an address may |
| tail_pool | our `TailRunner`: workers of this process, batches, with |
| worker_pool, fair_queue | … whose turn it is, |
| compiled_tails, run_limits | … what is in memory, how long a run may take, |
| batching | … and when to run several as one |
| catalogue | the models by fingerprint, and which weights may leave |
| stats | `Server.stats` |

Where tails compute is a seam: a `TailRunner` opens segments and computes requests for them. Another one (another
machine, another serving framework) is given to `Server(…, runner=…)`:

>>> from functools import partial
>>> from time import perf_counter
>>> class Here:  # computes in the thread that receives, without a queue
...     utilisation = 0.0
...     def __init__(self, engine, tell):
...         self.engine = engine
...     def open(self, segment, account):
...         return HereTail(segment, self.engine.compile(segment))
...     def room(self, account):
...         return True
...     def retry_after_s(self, account):
...         return 0.1
...     def drop(self, account):
...         pass  # nothing ever waits
...     def stats(self):
...         return RunnerStats(workers=1)
...     def end(self):
...         pass
...     def close(self, within_s):
...         return True
>>> class HereTail:
...     compile_s = 0.0
...     def __init__(self, segment, session):
...         self.segment, self.session, self.nbytes = segment, session, session.nbytes
...     def kind_of(self, dtypes, shapes, *, vectors):
...         return None
...     def run(self, request):
...         started = perf_counter()
...         try:
...             inputs = request.feed()
...             decoded = perf_counter()
...             outputs = self.session.run(inputs)
...         except Exception as exc:
...             request.refuse(exc)
...         else:
...             request.answer(outputs, RunMarks(started, 0.0, started, decoded, perf_counter()))
...         return 0.0
...     def close(self, *, drop=False):
...         self.session.close()
>>> engine = open_engine(threads=1)
>>> with Server([load("zoo:lenet5")], engine=engine, port=0, runner=partial(Here, engine)) as server:
...     with Edge(server.address, at="pool1") as edge:
...         list(edge.infer(digit).outputs)
['logits']
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from splitpoint.errors import SplitpointError
from splitpoint.models.model import Segment
from splitpoint.runtime.events import OnEvent
from splitpoint.runtime.server.accounts import Account
from splitpoint.runtime.server.stats import RunnerStats
from splitpoint.tensors import Array
from splitpoint.wire import BatchRun


class RunMarks(msgspec.Struct, frozen=True, gc=False):
    """Moments of a request that was computed, `time.perf_counter`: its turn came, after `waited_s` in a queue; its tail
    was there; its tensors were decoded; it was computed. `batch` is which run that was."""

    started: float
    waited_s: float
    ready: float
    decoded: float
    computed: float
    batch: BatchRun = BatchRun()


class TailRequest(Protocol):
    """A request as a runner sees it. One of `answer`, `refuse` and `drop` must be called, once, from any thread."""

    account: Account
    """Whose it is: what a fair runner goes by."""
    kind: Any
    """What `OpenTail.kind_of` said of its inputs."""
    received_s: float
    """When its last byte was here."""
    alone: bool
    """Whether its sender waits for the answer before it sends more: the thread that calls `run` may compute it."""

    @property
    def latest_s(self) -> float:
        """When `refusal` begins to say that it is too late; infinite without a deadline."""

    def refusal(self, now_s: float) -> SplitpointError | None:
        """Why it is not to be computed any more: its deadline has passed, or answers before it are not read."""

    def decode_with(self, others: Iterable[TailRequest]) -> None:
        """Decodes what it and `others` of its kind have brought in one go, where their codec can; may do nothing."""

    def feed(self) -> Mapping[str, Array]:
        """The inputs, decoded. InputError for bytes that are not what they should be."""

    def answer(self, outputs: Mapping[str, Array], marks: RunMarks) -> None:
        """Sends what was computed."""

    def refuse(self, exc: Exception) -> None:
        """Sends why it is not answered. Only a SplitpointError's own words leave the server."""

    def drop(self) -> None:
        """Its client has gone."""


class OpenTail(Protocol):
    """A segment that one connection has opened, where it computes."""

    segment: Segment
    nbytes: int
    """Memory that it takes, compiled."""
    compile_s: float
    """How long compiling it took, however long ago."""

    def kind_of(self, dtypes: Sequence[str], shapes: Sequence[Sequence[int]], *, vectors: bool) -> object:
        """What requests with inputs of these types and shapes have in common, for the runner's own use; `vectors`: some
        are shape vectors. InputError if computing one would take too much memory."""

    def run(self, request: TailRequest) -> float:
        """Computes `request`, here or elsewhere, now or later. Returns for how many seconds the client had better not
        be read from, because it has so much waiting; 0.0 else."""

    def close(self, *, drop: bool = False) -> None:
        """The connection is done with it. With `drop` it may leave memory."""


class TailRunner(Protocol):
    """Where opened tails compute."""

    @property
    def utilisation(self) -> float:
        """The recent busy share of the workers (0…1)."""

    def open(self, segment: Segment, account: Account) -> OpenTail:
        """`segment`, ready to compute; as slow as compiling is. EngineError if it cannot be, BusyError if it may not be
        for this account now."""

    def room(self, account: Account) -> bool:
        """Whether a request of this account would be taken now. Asked before its body is received."""

    def retry_after_s(self, account: Account) -> float:
        """When there is likely to be room again."""

    def drop(self, account: Account) -> None:
        """The client has gone: its requests that have not begun are dropped."""

    def stats(self) -> RunnerStats:
        """Its numbers, for `Server.stats`."""

    def end(self) -> None:
        """From now on nothing is computed, and what is under way is given up."""

    def close(self, within_s: float) -> bool:
        """Frees everything. Whether all that ran has ended within `within_s`."""


#: Makes a runner when a server starts; what it tells of goes to the server's `on_event`.
MakeRunner = Callable[[OnEvent], TailRunner]
