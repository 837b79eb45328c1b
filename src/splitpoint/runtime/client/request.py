"""One request, one answer, whatever becomes of the server: late, gone, busy or wrong.

    begin: the head here ─► send: to the server, if the breaker lets it ─► finish: the first answer wins
                                                                              │ late, busy, gone, wrong
                                                    local: from the tensors ◄─┤
                                                    that are here             └─► wait: ask again when it is back

Every attempt, and the finish here, puts what comes of it into the request's own queue, and whoever waits for the answer
takes the first that is one. What comes after that is told to the watchers and given to nobody.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from math import inf
from queue import Empty, SimpleQueue
from time import perf_counter
from typing import Any

import msgspec

from splitpoint import wire
from splitpoint.errors import BusyError, ProtocolError, ServerError, SplitpointError, UsageError
from splitpoint.runtime.circuit_breaker import UP
from splitpoint.runtime.client.channel import CLOSED
from splitpoint.runtime.client.local_tail import Here
from splitpoint.runtime.client.opened_cut import Far, Placement, Route
from splitpoint.runtime.client.reconnect import REFUSALS, Line, gone
from splitpoint.runtime.result import Marks, Request, Result
from splitpoint.runtime.watcher import Watcher, tell
from splitpoint.tensors import Array
from splitpoint.wire import Frame

ERROR, WAIT, LOCAL = "error", "wait", "local"
FALLBACKS = (ERROR, WAIT, LOCAL)
#: How often whoever waits for a server looks whether there is another way by now.
_LOOK_S = 0.2
#: A server that answers a request with an error so often will do it again: `wait` ends there.
_REFUSALS = 3
#: Between them: a server may be about to end.
_REFUSED_S = 0.05
_LATE = "the server was late"


def check_deadline(deadline_s: float) -> float:
    """`deadline_s`, 0 for none; UsageError if it is no time."""
    if not 0 <= deadline_s < inf:
        raise UsageError(f"a deadline is a number of seconds above 0 (0: none), not {deadline_s:g}")
    return deadline_s


def check_fallback(fallback: str) -> str:
    """`fallback`; UsageError if there is no such way."""
    if fallback not in FALLBACKS:
        raise UsageError(f"a fallback is one of {', '.join(FALLBACKS)}, not {fallback}")
    return fallback


class Moved(ServerError):
    """The edge has gone over to another model: the request begins again with that one."""


class Ticket:
    """A request under way. `known` are its inputs and what the head made of them."""

    def __init__(
        self, route: Route, request: Request, known: Mapping[str, Array], marks: tuple[float, float], deadline_s: float,
        flags: int,
    ) -> None:  # fmt: skip
        self.route, self.request, self.known = route, request, known
        self.started, self.headed = marks
        self.deadline_s, self.flags = deadline_s, flags
        self.outcomes: SimpleQueue[tuple[Attempt | None, Any]] = SimpleQueue()
        self.attempt: Attempt | None = None  # the one at the server now
        self.attempts = self.refusals = 0
        self.late = False  # that attempt is
        self.here = False  # it is being finished here too
        self.here_failed: Exception | None = None
        self.why = ""
        self.not_before = 0.0  # a busy server is not asked again until then
        self.done = False
        self.beside = False  # a shadow: nobody waits for it

    def left_s(self) -> float:
        """Seconds until the deadline."""
        return self.deadline_s - (perf_counter() - self.started) if self.deadline_s else inf


class Attempt:
    """A request at the server once. Called, from the thread that reads, with what came of it."""

    __slots__ = ("_survivor", "codecs", "far", "nbytes", "packed", "resumed", "ticket")

    def __init__(self, survivor: Survivor, ticket: Ticket, far: Far) -> None:
        self._survivor, self.ticket, self.far = survivor, ticket, far
        self.resumed = perf_counter() if ticket.why else 0.0
        self.packed = 0.0
        self.nbytes = 0
        self.codecs: Sequence[str] = ()

    def __call__(self, outcome: Frame | SplitpointError) -> None:
        self.ticket.outcomes.put((self, outcome))
        if self.ticket.done:
            self._survivor.sweep(self.ticket)


class Survivor:
    """Answers requests over `line`, and without it. `mode` is the fallback; `here` finishes locally.

    `reopen` opens a placement's tail on the connection of the moment; `refused` says why waiting for the server is of
    no use, if it is not. A server that is busy is asked again after `longest_s` at most, whatever it says.
    """

    def __init__(
        self, line: Line, here: Here, mode: str, timeout_s: float, watchers: Sequence[Watcher],
        reopen: Callable[[Placement], None], refused: Callable[[], SplitpointError | None], longest_s: float,
    ) -> None:  # fmt: skip
        self._line, self._here, self._mode = line, here, mode
        self._timeout_s, self._watchers, self._reopen = timeout_s, watchers, reopen
        self._refused, self._longest_s = refused, longest_s
        self._closed = threading.Event()
        self._tickets: set[Ticket] = set()
        self._shadow: Attempt | None = None

    def close(self) -> None:
        """Whoever still waits is told that there will be no answer."""
        self._closed.set()

    @property
    def busy(self) -> bool:
        """Whether a request is under way."""
        return bool(self._tickets)

    # --- begin, send, finish ------------------------------------------------------------------------------------

    def begin(self, route: Route, request: Request, deadline_s: float, flags: int) -> Ticket:
        """Runs the head. The placement must be held, and is released when the ticket is finished or abandoned."""
        placement = route.placement
        try:
            started = perf_counter()
            known = placement.compute(placement.check(request.inputs))
            headed = perf_counter()
        except BaseException:
            placement.release()
            raise
        if self._watchers and placement.head is not None:
            tell(self._watchers, lambda w: w.computed(placement.cut, (headed - started) * 1e3))
        ticket = Ticket(route, request, known, (started, headed), deadline_s, flags)
        self._tickets.add(ticket)
        return ticket

    def send(self, ticket: Ticket) -> Ticket:
        """Hands the request over, if it needs the server and that is well. Never waits for the link."""
        if ticket.route.placement.remote:
            try:
                self._send(ticket)
            except BaseException:
                self.abandon(ticket)
                raise
        return ticket

    def finish(self, ticket: Ticket) -> Result:
        """The answer, whoever gives it first."""
        try:
            if not ticket.route.placement.remote:
                return self._all_here(ticket)
            return self._first(ticket)
        finally:
            self.abandon(ticket)

    def abandon(self, ticket: Ticket) -> None:
        """Nobody waits for the answer any more: what still comes of it is told to the watchers alone."""
        if not ticket.done:
            ticket.done = True
            self._tickets.discard(ticket)
            ticket.route.placement.release()
            if ticket.attempt is not None:
                self._line.dropped()
            ticket.known = {}
        self.sweep(ticket)

    # --- at the server ------------------------------------------------------------------------------------------

    def _send(self, ticket: Ticket) -> bool:
        """Whether the request is on its way to the server; `why` says why not."""
        route, line = ticket.route, self._line
        far = route.placement.far
        if far is None or not self._is_open(route.placement):
            ticket.why = line.why or "the server has not opened this cut again yet"
        elif not line.allows():
            ticket.why = line.why or "the server is being tried"
        else:
            return self._hand_over(ticket, far)
        if self._mode == ERROR:
            raise ServerError(f"no answer: {ticket.why}")
        return False

    def _hand_over(self, ticket: Ticket, far: Far) -> bool:
        channel = far.channel
        attempt = Attempt(self, ticket, far)
        flags = ticket.flags | (wire.PIPELINED if channel.in_flight else 0)
        left_s = 0.0 if not ticket.deadline_s else ticket.left_s() if ticket.attempts else ticket.deadline_s
        id = 0
        try:
            id = channel.reserve(attempt, most=ticket.route.placement.most_nbytes(ticket.known))
            packet = ticket.route.pack(id, far.segment, ticket.known, max(left_s, 0.0), flags)
            attempt.packed, attempt.nbytes, attempt.codecs = perf_counter(), packet.nbytes, packet.codecs
            ticket.attempt, ticket.late, ticket.attempts = attempt, False, ticket.attempts + 1
            channel.send(id, packet)
        except ServerError as exc:
            ticket.attempt = None
            self._failed(ticket, attempt, exc)
            return False
        except BaseException:  # it cannot travel, or Ctrl-C
            ticket.attempt = None
            channel.abandon(id)
            self._line.dropped()
            raise
        return True

    # --- the first answer ---------------------------------------------------------------------------------------

    def _first(self, ticket: Ticket) -> Result:
        while True:
            if self._closed.is_set():
                raise self._refused() or ServerError(CLOSED)
            if ticket.attempt is None and not ticket.here:
                if self._can_finish(ticket):
                    return self._finish_now(ticket)
                self._ask_again(ticket)
                continue
            try:
                attempt, outcome = ticket.outcomes.get(timeout=self._patience_s(ticket))
            except Empty:
                self._overdue(ticket)
                continue
            if attempt is None:
                if not isinstance(outcome, Exception):
                    return self._finished(ticket, *outcome)
                ticket.here, ticket.here_failed = False, outcome
            elif attempt is ticket.attempt:
                ticket.attempt = None
                try:
                    return self._answered(ticket, attempt, outcome)
                except SplitpointError as exc:
                    self._failed(ticket, attempt, exc)

    def _patience_s(self, ticket: Ticket) -> float | None:
        """How long to wait for what comes next before something is to be done."""
        attempt = ticket.attempt
        if attempt is None or (ticket.late and ticket.here):
            return None  # the finish here ends, and says so
        now = perf_counter()
        if ticket.late:
            return _LOOK_S if self._mode == ERROR else max(0.0, min(_LOOK_S, ticket.left_s()))
        waits = ticket.route.placement.waits
        here_s = waits.here_s if self._can_finish(ticket) else 0.0
        left_s = ticket.left_s() + now - attempt.packed
        return max(0.0, waits.late_s(left_s, here_s, attempt.packed - ticket.started) - (now - attempt.packed))

    def _overdue(self, ticket: Ticket) -> None:
        """Nothing has come for so long that something is done about it."""
        attempt = ticket.attempt
        assert attempt is not None
        age_s = perf_counter() - attempt.packed
        first, ticket.late = not ticket.late, True
        if first:
            tell(self._watchers, lambda w: w.overdue(attempt.nbytes, age_s * 1e3))
        if self._can_finish(ticket):
            ticket.here, ticket.why = True, _LATE
            known = ticket.known
            self._here.submit(lambda: self._finish_beside(ticket, known))
        elif self._mode == ERROR:
            if age_s > self._timeout_s:
                raise ServerError(f"{attempt.far.channel.peer} did not answer in time")
        else:
            self._line.doubt(4 * ticket.route.placement.waits.predicted_s)
            ticket.why = _LATE
            self._check_time(ticket)

    def _answered(self, ticket: Ticket, attempt: Attempt, outcome: Frame | SplitpointError) -> Result:
        if isinstance(outcome, SplitpointError):
            raise outcome
        channel, placement = attempt.far.channel, ticket.route.placement
        outputs = placement.answer(channel.judge(outcome), ticket.known)
        placement.waits.add(outcome.received - attempt.packed)
        self._line.succeeded()
        self._line.expect(placement.waits.predicted_s)
        result = self._result(ticket, attempt, outcome, outputs)
        if self._watchers:
            self._tell_answer(result, attempt, outcome)
        return result

    def _result(self, ticket: Ticket, attempt: Attempt, frame: Frame, outputs: dict[str, Array]) -> Result:
        request, route = ticket.request, ticket.route
        return Result(
            outputs,
            route.placement.cut.name,
            Marks(ticket.started, ticket.headed, attempt.packed, perf_counter()),
            request.spans,
            request.tag,
            attempt.nbytes,
            frame.nbytes,
            frame.times,
            attempt.far.channel.offset_at(attempt.packed, frame),
            route.codecs_of(attempt.codecs),
            "",
            ticket.attempts,
            attempt.resumed,
            ticket.deadline_s,
        )

    def _tell_answer(self, result: Result, attempt: Attempt, frame: Frame) -> None:
        # As it came, not as it was taken: in a stream it may have waited for its turn.
        told = msgspec.structs.replace(result, marks=result.marks._replace(ended=frame.received))
        tell(self._watchers, lambda w: w.answered(told, (frame.received - attempt.packed) * 1e3))

    def sweep(self, ticket: Ticket) -> None:
        """What came of a ticket after it was done: news for the watchers, and nobody else."""
        while True:
            try:
                attempt, outcome = ticket.outcomes.get_nowait()
            except Empty:
                return
            if attempt is None:
                continue
            if ticket.beside:
                self._shadow_came(attempt, outcome)
            if isinstance(outcome, Frame) and outcome.kind == wire.Kind.RESULT:
                result = self._result(ticket, attempt, outcome, {})
                self._tell_answer(result, attempt, outcome)

    # --- when there is none -------------------------------------------------------------------------------------

    def _failed(self, ticket: Ticket, attempt: Attempt, exc: SplitpointError) -> None:
        """Tells the line and the watchers why an attempt failed; raises `exc` if that is the answer."""
        self._blame(ticket, attempt, exc)
        tell(self._watchers, lambda w: w.failed(ticket.why))
        if self._mode == ERROR:
            raise exc
        if attempt.far.channel.ended or isinstance(exc, BusyError) or ticket.here or self._can_finish(ticket):
            return
        ticket.refusals += 1
        ticket.not_before = perf_counter() + _REFUSED_S
        if ticket.refusals >= _REFUSALS or isinstance(exc, REFUSALS):
            raise exc

    def _blame(self, ticket: Ticket, attempt: Attempt, exc: SplitpointError) -> None:
        channel, line = attempt.far.channel, self._line
        if isinstance(exc, BusyError):
            ticket.why = "the server was busy"
            ticket.not_before = perf_counter() + min(exc.retry_after_s, self._longest_s)
            line.failed(ticket.why, exc.retry_after_s)
        elif isinstance(exc, ProtocolError):
            ticket.why = f"the server was wrong: {exc}"
            channel.abort("answered wrongly")  # whatever else comes on it cannot be trusted
            line.lost(channel, ticket.why)
        elif channel.ended:
            ticket.why = gone(exc)
            line.lost(channel, ticket.why)
        else:  # what it refuses because the deadline has passed is no failure of its own
            ticket.why = f"{_LATE if ticket.left_s() <= 0 else 'the server failed'}: {exc}"
            line.failed(ticket.why, refusal=exc if isinstance(exc, REFUSALS) else None)

    def _ask_again(self, ticket: Ticket) -> None:
        """Waits until the server may be asked, and asks it; or until it can be done here."""
        if ticket.here_failed is not None and self._mode == LOCAL:
            raise ticket.here_failed
        while not self._can_finish(ticket):
            self._check_time(ticket)
            if (refusal := self._refused()) is not None:
                raise refusal
            pause_s = ticket.not_before - perf_counter()
            if pause_s > 0:
                self._closed.wait(min(pause_s, _LOOK_S, max(ticket.left_s(), 0.0)))
            elif self._send(ticket):
                return
            elif self._line.state == UP and not self._is_open(ticket.route.placement):
                try:  # it was forgotten, or nobody has come to it yet
                    self._reopen(ticket.route.placement)
                except ServerError:
                    self._line.wait(min(_LOOK_S, ticket.left_s()))
            else:
                self._line.wait(min(_LOOK_S, ticket.left_s()))

    def _is_open(self, placement: Placement) -> bool:
        far = placement.far
        return far is not None and far.channel is self._line.channel and not far.channel.ended

    def _check_time(self, ticket: Ticket) -> None:
        """ServerError if it is too late to wait for the server any longer."""
        if self._closed.is_set():
            raise ServerError(CLOSED)
        if ticket.left_s() <= 0:
            not_yet = "; there is no local fallback yet" if self._mode == LOCAL else ""
            raise ServerError(f"no answer within {ticket.deadline_s * 1e3:.4g} ms: {ticket.why}{not_yet}")

    # --- finishing here -----------------------------------------------------------------------------------------

    def _can_finish(self, ticket: Ticket) -> bool:
        return self._mode == LOCAL and ticket.here_failed is None and self._here.possible()

    def _finish_now(self, ticket: Ticket) -> Result:
        began = perf_counter()
        return self._finished(ticket, self._here.finish(ticket.route.placement, ticket.known), began)

    def _finish_beside(self, ticket: Ticket, known: Mapping[str, Array]) -> None:
        """In the other thread: the answer, unless the server has given it meanwhile."""
        placement = ticket.route.placement
        if not placement.hold():
            return
        try:
            if ticket.done:
                return
            began = perf_counter()
            ticket.outcomes.put((None, (self._here.finish(placement, known), began)))
        except Exception as exc:  # engines are foreign code, and someone waits for this
            ticket.outcomes.put((None, exc))
        finally:
            placement.release()

    def _finished(self, ticket: Ticket, outputs: dict[str, Array], began: float) -> Result:
        if ticket.attempt is not None:  # it lost against us: whatever it still brings is for the watchers
            ticket.attempt = None
            self._line.failed(_LATE)
        waited = ticket.attempts > 0 or began - ticket.headed > 1e-3
        return Result(
            outputs,
            ticket.route.placement.cut.name,
            Marks(ticket.started, ticket.headed, began, perf_counter()),
            ticket.request.spans,
            ticket.request.tag,
            fallback=ticket.why,
            attempts=ticket.attempts,
            resumed=began if waited else 0.0,
            deadline_s=ticket.deadline_s,
        )

    def _all_here(self, ticket: Ticket) -> Result:
        outputs = ticket.route.placement.outputs_of(ticket.known)
        marks = Marks(ticket.started, *(perf_counter(),) * 3)
        request = ticket.request
        return Result(
            outputs, ticket.route.placement.cut.name, marks, request.spans, request.tag, deadline_s=ticket.deadline_s
        )

    # --- shadows ------------------------------------------------------------------------------------------------

    def shadow(self, route: Route, request: Request) -> bool:
        """One request whose answer only the watchers hear of; not while another one is under way. Whether one is."""
        before = self._shadow
        if before is not None:
            self._look_at(before)
            route.placement.release()
            return True
        ticket, sent = self.begin(route, request, 0.0, 0), False
        ticket.beside = True
        try:
            with suppress(ServerError):
                if sent := self._send(ticket):
                    self._shadow, ticket.attempt = ticket.attempt, None
        finally:
            self.abandon(ticket)
        return sent

    def _look_at(self, shadow: Attempt) -> None:
        """An unanswered one may be late: then it counts as a failure, and nobody waits for it any longer."""
        waits, age_s = shadow.ticket.route.placement.waits, perf_counter() - shadow.packed
        if age_s > waits.late_s():
            self._shadow = None
            tell(self._watchers, lambda w: w.overdue(shadow.nbytes, age_s * 1e3))
            self._line.failed(_LATE)

    def _shadow_came(self, attempt: Attempt, outcome: Frame | SplitpointError) -> None:
        if self._shadow is not attempt:
            return
        self._shadow = None
        try:
            if isinstance(outcome, SplitpointError):
                raise outcome
            attempt.far.channel.judge(outcome)
        except SplitpointError as exc:
            self._blame(attempt.ticket, attempt, exc)
            tell(self._watchers, lambda w: w.failed(attempt.ticket.why))
        else:
            attempt.ticket.route.placement.waits.add(outcome.received - attempt.packed)
            self._line.succeeded()
