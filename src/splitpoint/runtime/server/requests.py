"""INFER on one connection: looked at before its body is received, given to its tail, and answered."""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter, sleep

import msgspec

from splitpoint import wire
from splitpoint.errors import BusyError, InputError, ProtocolError, ServerError, SplitpointError
from splitpoint.runtime.server import RunMarks
from splitpoint.runtime.server.accounts import DROPPED, Account
from splitpoint.runtime.server.fair_queue import RecentWait
from splitpoint.runtime.server.opened_tail import CheckedInfer, OpenedTail
from splitpoint.runtime.server.replies import Replies
from splitpoint.runtime.server.services import Services
from splitpoint.tensors import Array
from splitpoint.transports import Connection
from splitpoint.wire import Frame

#: The longest that a connection is not read from because it was told BUSY; pings wait as long.
REFUSED_S = 0.25
#: When to ask again while answers to earlier requests wait to be read.
_UNREAD_S = 0.1
#: When to ask again a server that is ending: its BYE is on the way, and the next one comes after it.
_ENDING_S = 0.1


class _LateError(ServerError):
    """The deadline passed before its turn."""


class Requests:
    """Those of one connection. `opened` are its tails by number, `batch` whether answers say which ran as one."""

    def __init__(
        self,
        services: Services,
        account: Account,
        connection: Connection,
        replies: Replies,
        opened: Mapping[int, OpenedTail],
        *,
        batch: bool,
    ) -> None:
        self.services, self.account, self.connection, self.replies, self.batch = (
            services, account, connection, replies, batch,
        )  # fmt: skip
        self.in_flight: set[int] = set()
        #: How long its requests wait lately.
        self.waits = RecentWait()
        self._opened = opened
        self._receiving: Frame | None = None

    def admit(self, frame: Frame, header: wire.Infer) -> SplitpointError | None:
        """Why a request's body is not worth receiving. ProtocolError if the peer has lost track of its ids."""
        if not frame.id:
            raise ProtocolError("a request cannot have the id 0, which stands for the connection")
        if frame.id in self.in_flight:
            raise ProtocolError(f"request {frame.id} is in flight already: ids must differ")
        services, account = self.services, self.account
        opened = self._opened.get(header.segment)
        try:
            if opened is None:
                raise InputError(f"segment {header.segment} is not open on this connection")
            held = frame.nbytes + opened.check(header)
        except InputError as exc:
            # Without its traceback: that knows this frame, which will know the exception, and since the garbage
            # collector does not see frames (`gc=False`), neither would ever leave memory.
            return exc.with_traceback(None)
        if services.ledger.draining:
            # BUSY, not an error of the request: whoever waits for the server waits for the one that comes after it.
            return BusyError("the server is ending: it takes no more requests", _ENDING_S)
        if len(self.in_flight) >= services.limits.in_flight:
            text = f"{services.limits.in_flight} requests of this connection are in flight already"
            return BusyError(text, services.runner.retry_after_s(account))
        if not services.runner.room(account) or not account.reserve(held):
            return account.no_room(services.runner.retry_after_s(account))
        frame.held = held
        self.in_flight.add(frame.id)
        self._receiving = frame
        return None

    def infer(self, frame: Frame) -> None:
        """Has a request that was admitted computed. It may be answered when this returns, or later."""
        self._receiving = None
        opened = self._opened[frame.header.segment]  # type: ignore[union-attr]  # its kind says what it is
        checked, alone = opened.checked, not frame.flags & wire.PIPELINED
        request = InferRequest(self.account, checked.kind, frame.received, alone, self, frame, opened, checked)
        pause_s = opened.tail.run(request)
        if pause_s:  # read no faster than it is computed: else its threads are before everybody else's all the time
            sleep(min(pause_s, REFUSED_S))

    def leave(self) -> None:
        """The connection has ended; what waits is dropped, and so is what was being received."""
        if self._receiving is not None:
            self.in_flight.discard(self._receiving.id)
            self.account.over(self._receiving.held, DROPPED)
        self.services.runner.drop(self.account)


class InferRequest(msgspec.Struct):
    """An INFER whose body is here, until it is answered: what a runner computes (`server.TailRequest`)."""

    account: Account
    kind: object
    received_s: float
    alone: bool
    _requests: Requests
    _frame: Frame
    _opened: OpenedTail
    _checked: CheckedInfer

    def refusal(self, now_s: float) -> SplitpointError | None:
        """Why it is not to be computed any more."""
        deadline_s = self._checked.header.deadline_s
        if deadline_s and (late_s := now_s - self.received_s - deadline_s) > 0:
            return _LateError(f"the deadline passed {late_s:.3f} s before its turn")
        if self._requests.connection.behind:
            return BusyError("answers are not read: read them first", _UNREAD_S)
        return None

    def feed(self) -> Mapping[str, Array]:
        """The inputs, decoded. InputError for bytes that are not what they should be."""
        return self._opened.feed(self._checked, self._frame.tensors)

    def answer(self, outputs: Mapping[str, Array], marks: RunMarks) -> None:
        """Sends what was computed."""
        requests, frame = self._requests, self._frame
        received, started, waited_s, ready = self.received_s, marks.started, marks.waited_s, marks.ready
        decoded, computed, run = marks.decoded, marks.computed, marks.batch
        before_s = started - received - waited_s
        decode_s = (before_s if before_s > 0 else 0.0) + decoded - ready
        queue_s, compute_s = ready - started + waited_s, computed - decoded
        waits = requests.waits
        if waited_s or waits.queue_s:
            waits.add(started, waited_s)
        try:
            arrays = [outputs[name] for name in self._opened.outputs]
            encode_s, busy = perf_counter() - computed, requests.services.runner.utilisation
            times = (
                received, received - frame.started, decode_s, queue_s, compute_s, encode_s, waits.queue_s, busy,
                *(run if requests.batch else ()),
            )  # fmt: skip
            packet = self._opened.packer.pack(frame.id, arrays, (), times)
            # The peer may use the id again as soon as it has the answer; all else can wait until that is on its way.
            requests.in_flight.discard(frame.id)
            requests.replies.send(packet)
        except Exception as exc:
            self.refuse(exc)
        else:
            self.account.answered(frame.held, run.size, (decode_s, queue_s, compute_s, encode_s))

    def refuse(self, exc: Exception) -> None:
        """Sends why it is not answered."""
        requests, frame = self._requests, self._frame
        outcome = "internal"
        try:
            if not isinstance(exc, SplitpointError):  # engines are foreign code
                exc = requests.replies.hide(
                    f"request {frame.id} of {self.account.name} failed", exc, "the engine failed"
                )
            outcome = outcome_of(exc)
            requests.in_flight.discard(frame.id)
            if isinstance(exc, BusyError):
                requests.replies.busy(frame.id, exc)
            else:
                requests.replies.refuse(frame.id, exc)
        except Exception as worse:
            requests.replies.give_up(frame.id, worse)
        finally:
            self.account.over(frame.held, outcome)

    def drop(self) -> None:
        """Its client has gone."""
        self._requests.in_flight.discard(self._frame.id)
        self.account.over(self._frame.held, DROPPED)


def outcome_of(exc: SplitpointError) -> str:
    """What a request that got `exc` is counted as."""
    return "late" if isinstance(exc, _LateError) else wire.error_of(exc).code
