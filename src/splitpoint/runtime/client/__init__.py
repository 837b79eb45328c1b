"""The device's side: an `Edge` runs heads here, and what asks whoever computes the rest.

`edge.Edge` is what users hold, a `model_binding.Binding` what it has of a model; the life of a request is in `request`.
Whoever computes tails is reached through protocols, and nothing but their implementation knows how:

    RemoteProvider ─connect─► Remote ─open(cut)─► RemoteTail ─begin(tensors)─► RemoteCall ─answer─► TailAnswer
      a place                 a connection        a segment, open there        one request          tensors and times

`wire_remote` is the one for our own server. Another one is four small classes, given to `Edge` in place of an address;
requests, reconnecting, time limits, the planner and what is finished on the device stay as they are:

    class Nearby:                                    # computes tails in this process
        address = "nearby"

        def connect(self, timeout_s, greeting=None):
            return NearbyRemote(self.model, open_engine())

    with Edge(Nearby(model), model, at="pool1", fallback="local") as edge:
        edge.infer(digit)

`tests/support/nearby.py` has it in full. What only our own server can do (hand out weights, profile itself, be probed)
goes through `Remote.channel`, which any other refuses: an `Edge` needs the `Model` itself then.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import msgspec

if TYPE_CHECKING:  # reading a cache's size needs no NumPy
    from splitpoint.codecs import Codec
    from splitpoint.errors import SplitpointError
    from splitpoint.graph import Cut
    from splitpoint.runtime.client.channel import Channel
    from splitpoint.runtime.codec_choice import FrameRoom
    from splitpoint.runtime.probe.server_clock import Offset, ServerClock
    from splitpoint.tensors import Array
    from splitpoint.wire import ModelInfo, Times


class Offer(NamedTuple):
    """What a remote says of itself: its models, the codecs that it decodes (names without parameters), how much of a
    model it `share`s (``model``, ``head`` or ``none``; `heads`: by fingerprint, up to which cut), and how many requests
    it takes at once (0: any number)."""

    models: Sequence[ModelInfo] = ()
    codecs: Collection[str] = ()
    share: str = "none"
    heads: Mapping[str, str] = {}
    in_flight: int = 0


class Encoding(NamedTuple):
    """How tensors travel: codecs by name, the others raw. What its codec does not take after all (a batch of several)
    travels raw too, or is an InputError if `strict`. With `spare` a request travels whose values `codecs` cannot
    express, because they are nothing like what was calibrated."""

    codecs: Mapping[str, Codec]
    strict: bool
    spare: Encoding | None = None

    @property
    def stepped(self) -> bool:
        """Whether some tensor can be encoded coarser."""
        return any(codec.stepped for codec in self.codecs.values())


class TailAnswer(msgspec.Struct, gc=False):
    """What came back for a request: `tensors` in the order of its outputs, `nbytes` in all, the last at `received`
    (`time.perf_counter`).

    `layout` is the same object as long as dtypes and shapes are the same (None: not known): they are checked once.
    `times` is the remote's account of the request, or its bytes (`wire.parse_times`), to be read with the clocks'
    `offset`; None where it gives none.
    """

    tensors: Sequence[Array]
    received: float
    layout: object = None
    nbytes: int = 0
    times: bytes | Times = b""
    offset: Offset | None = None


class RemoteCall(Protocol):
    """One request at a tail. One thread at a time."""

    @property
    def packed(self) -> float:
        """When it was ready to be sent (`time.perf_counter`)."""

    @property
    def nbytes(self) -> int:
        """What is sent, bytes."""

    @property
    def codecs(self) -> Mapping[str, str]:
        """By tensor name, what the tensors travel with; what travels raw is not in it."""

    def send(self) -> None:
        """Hands the request over. ServerError if the remote is gone."""

    def answer(self, within_s: float, whole: bool = True) -> TailAnswer | None:
        """The answer; None if it is not here `within_s`: it can be waited for again. Without `whole` one that has begun
        by then is received to its end. BusyError for a remote that has no room, ProtocolError for what is no answer,
        ServerError and its kin for what else goes wrong."""

    def leave(self, tell: Callable[[TailAnswer | SplitpointError], None]) -> None:
        """Nobody waits any more: `tell` is called once, from any thread, with what comes of it, if anything does."""


class RemoteTail(Protocol):
    """A segment that is open at a remote: takes tensors, gives tensors and times."""

    @property
    def remote(self) -> Remote:
        """Where it is open."""

    @property
    def fingerprint(self) -> str:
        """Of the model that it is a part of."""

    @property
    def repeatable(self) -> bool:
        """Whether a request that had no answer may be sent again: it changes nothing there."""

    def ready(self, within_s: float, alive_s: float = 0.0) -> None:
        """Returns when it is open. ServerError if it is not `within_s`, or, with `alive_s`, if the remote does not even
        answer a ping within that; ProtocolError if it is another one than was asked for."""

    def begin(
        self, known: Mapping[str, Array], encoding: Encoding, most_nbytes: int, deadline_s: float = 0.0,
        more: bool = False, room: FrameRoom | None = None,
    ) -> RemoteCall:  # fmt: skip
        """A request for the outputs out of what is `known` (what the tail takes, maybe more), ready to be sent.

        For an answer of more than `most_nbytes` no memory should be taken. A remote that cannot begin within
        `deadline_s` (0: none) should refuse. `more`: others follow before the answer. `room` is how much may be sent:
        OverBudgetError for what does not fit.
        """

    def close(self) -> None:
        """It is not needed any more. Never waits, never raises."""


class Remote(Protocol):
    """A connection to whoever computes tails; any number of threads use it."""

    @property
    def peer(self) -> str:
        """Its address, for messages."""

    @property
    def offer(self) -> Offer:
        """What it says of itself."""

    @property
    def clock(self) -> ServerClock:
        """The remote's clock, as far as it is known."""

    @property
    def ended(self) -> bool:
        """Whether it is of no more use."""

    @property
    def moved_nbytes(self) -> int:
        """Bytes that it has carried so far, both ways; 0 where that is not known."""

    def open(self, fingerprint: str, cut: Cut, outputs: Sequence[str]) -> RemoteTail:
        """Asks for a tail: what follows `cut` in that model, as far as `outputs` need it. Returns at once:
        `RemoteTail.ready` waits for it. ServerError if the remote is gone."""

    def keep_reading(self, on_end: Callable[[SplitpointError], None]) -> None:
        """From now on it notices by itself when it ends, and tells `on_end` why; no call waits for the link to send."""

    def ping(self, timeout_s: float) -> float | None:
        """The seconds of a round trip; None if none was made in time, or it has ended."""

    def channel(self) -> Channel:
        """The conversation with a server of our own, which also hands out weights, profiles itself and can be probed.
        RefusedError for any other."""

    def abort(self, why: str) -> None:
        """Ends it at once, because of `why`."""

    def close(self, why: str = "the connection is closed") -> None:
        """Ends it; whoever waits for an answer is told `why`."""


class Abortable(Protocol):
    """What is on its way to becoming a `Remote`."""

    def abort(self) -> None: ...


@runtime_checkable
class RemoteProvider(Protocol):
    """A place where tails are computed."""

    @property
    def address(self) -> str:
        """What it is called in messages."""

    def connect(self, timeout_s: float, greeting: Callable[[Abortable], None] = lambda _: None) -> Remote:
        """A new connection, within `timeout_s`; `greeting` is told what to abort if it is not wanted any more.
        ServerError and its kin: UnreachableError if nothing is there, BusyError if it has no room."""
