"""The life of one request, the same one whatever the fallback and whoever watches:

     begin           send             finish
    head here ──► handed over ──► waited for ──────────────────────────────► answered ──► told
        │              │              │                                          ▲
        │ all is here  │ gone         ├─ late: told; `error` and `wait` go on    │ the first of both
        ▼              ▼              │   waiting, `local` ──► finished here ────┤
    answered ──► told  └──────► busy, gone, wrong ─┬─ `error`: raised            │
                                                   ├─ `local`: finished here ────┘
                                                   └─ `wait`, or `local` while the weights are not all here:
                                                      again, when the breaker and the pause allow it

The thread that asks does all of that. Only when the server is late, and the request is finished here, another thread
computes, and the first of the two answers is taken. Watchers are told of each step, and change none; what comes after a
request was answered is told to them alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from math import inf
from queue import Empty, SimpleQueue
from time import perf_counter
from typing import Any, Final, Literal, get_args

import msgspec

from splitpoint.errors import BusyError, OverBudgetError, ProtocolError, ServerError, SplitpointError, UsageError
from splitpoint.runtime.circuit_breaker import UP
from splitpoint.runtime.client import Remote, RemoteCall, TailAnswer
from splitpoint.runtime.client.channel import CLOSED
from splitpoint.runtime.client.local_tail import LocalTails
from splitpoint.runtime.client.ready_cuts import Placement, Route
from splitpoint.runtime.client.reconnect import REFUSALS, Line, gone
from splitpoint.runtime.codec_choice import UNBOUNDED, FrameBudget, FrameRoom
from splitpoint.runtime.result import Marks, Request, Result, Watcher, tell
from splitpoint.tensors import Array

Fallback = Literal["error", "wait", "local"]
"""What becomes of a request that the server lets down."""
ERROR: Final = "error"
WAIT: Final = "wait"
LOCAL: Final = "local"
FALLBACKS: Final[tuple[Fallback, ...]] = get_args(Fallback)
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


def check_fallback(fallback: str) -> Fallback:
    """`fallback`; UsageError if there is no such way."""
    if fallback not in FALLBACKS:
        raise UsageError(f"a fallback is one of {', '.join(FALLBACKS)}, not {fallback}")
    return fallback


class Ticket(msgspec.Struct, eq=False):
    """A request under way. `known` are its inputs and what the head made of them; `more`: others follow at once."""

    requests: RequestRunner
    route: Route
    request: Request
    known: Mapping[str, Array]
    started: float
    headed: float
    deadline_s: float
    more: bool
    call: RemoteCall | None = None
    """What is at the server now."""
    left: bool = False
    """That is not waited for directly: what comes of it is put into `outcomes`, as what is finished here is."""
    outcomes: SimpleQueue[tuple[RemoteCall | None, Any]] | None = None
    remote: Remote | None = None
    """Where it was asked last."""
    attempts: int = 0
    refusals: int = 0
    resumed: float = 0.0
    """When the last attempt began, if it is not the first."""
    late: bool = False
    """The call is."""
    here: bool = False
    """It is being finished here too."""
    here_failed: Exception | None = None
    why: str = ""
    not_before: float = 0.0
    """A busy server is not asked again until then."""
    done: bool = False
    shadow: bool = False
    """Nobody waits for it."""

    def left_s(self) -> float:
        """Seconds until the deadline."""
        return self.deadline_s - (perf_counter() - self.started) if self.deadline_s else inf


class RequestRunner:
    """The requests of one binding: over `line`, or without it. `local` finishes here; `reopen` opens a placement's tail
    at the remote of the moment; `refused` says why, if it is of no use to wait for the server. Answers are waited for
    `answer_s`; a busy server is asked again after `longest_s` at most. What goes to the server keeps to `budget`, and
    to what `fits` says goes up in so many seconds."""

    def __init__(
        self, line: Line, local: LocalTails, fallback: Fallback, watchers: Sequence[Watcher],
        reopen: Callable[[Placement], None], refused: Callable[[], SplitpointError | None],
        *, answer_s: float, longest_s: float, budget: FrameBudget = UNBOUNDED,
        fits: Callable[[float], float] = lambda left_s: inf,
    ) -> None:  # fmt: skip
        self._most, self._coarser = budget.max_bytes or inf, budget.max_drop is not None
        self._fits, self._roomy = fits, budget == UNBOUNDED
        self._line, self._local, self._fallback = line, local, fallback
        self._watchers, self._reopen, self._refused = watchers, reopen, refused
        self._then: list[Callable[[], object]] = []
        self.begun = 0
        """How many requests were begun so far."""
        self.replaced = False
        """Whether another model has taken the place of the one that these ask."""
        self._answer_s, self._longest_s = answer_s, longest_s
        self._survives = fallback != ERROR
        self._closed = threading.Event()
        self._tickets: set[Ticket] = set()
        self._shadow: Ticket | None = None

    def then(self, once: Callable[[], object]) -> None:
        """Calls `once` when a request has ended: not before the first answer, as that is waited for."""
        self._then.append(once)

    def replace(self) -> None:
        """Another model takes their place."""
        self.replaced = True

    def close(self) -> None:
        """Whoever still waits is told that there will be no answer."""
        self._closed.set()

    @property
    def under_way(self) -> int:
        """How many requests there are now."""
        return len(self._tickets)

    # --- begin, send, finish ------------------------------------------------------------------------------------

    def begin(self, route: Route, request: Request, deadline_s: float, more: bool) -> Ticket:
        """Runs the head, and readies what goes to the server, if that is well. The placement must be held, and is
        released when the ticket is finished or abandoned."""
        placement = route.placement
        self.begun += 1
        try:
            started = perf_counter()
            known = placement.check(request.inputs)
            if placement.head is not None:
                known = placement.compute(known)
            ticket = Ticket(self, route, request, known, started, perf_counter(), deadline_s, more)
        except BaseException:
            placement.release()
            raise
        self._tickets.add(ticket)
        if self._watchers and placement.head is not None:
            tell(self._watchers, lambda w: w.computed(placement.cut, (ticket.headed - started) * 1e3))
        if placement.remote:
            try:
                self._prepare(ticket)
            except BaseException:
                self.abandon(ticket)
                raise
        return ticket

    def send(self, ticket: Ticket) -> Ticket:
        """Hands the request over, if it is to go to the server. Waits for the link with the fallback ``error`` only."""
        call = ticket.call
        if call is not None:
            try:
                try:
                    call.send()
                except ServerError as exc:
                    ticket.call = None
                    self._failed(ticket, exc)
            except BaseException:
                self.abandon(ticket)
                raise
        return ticket

    def finish(self, ticket: Ticket) -> Result:
        """The answer, whoever gives it first."""
        try:
            while True:
                call = ticket.call
                if call is None or ticket.left:
                    result = self._without(ticket)
                    if result is not None:
                        return result
                    continue
                wait_s = ticket.route.placement.times.patient_s()
                if ticket.late or ticket.deadline_s or not 0.0 < wait_s < self._answer_s:
                    wait_s = self._wait_s(ticket, call)
                try:
                    answer = call.answer(wait_s, self._survives or not ticket.late)
                    if answer is not None:
                        result = self._answered(ticket, call, answer)
                        ticket.call = None
                        return result
                except SplitpointError as exc:
                    ticket.call = None
                    self._failed(ticket, exc)
                    continue
                self._overdue(ticket, call)
        finally:
            self.abandon(ticket)
            while self._then:
                try:
                    then = self._then.pop()
                except IndexError:  # another thread's request has ended at the same moment
                    break
                then()

    def abandon(self, ticket: Ticket) -> None:
        """Nobody waits for the answer any more: what still comes of it is told to the watchers alone."""
        if ticket.done:
            return
        ticket.done = True
        self._tickets.discard(ticket)
        ticket.route.placement.release()
        if ticket.call is not None:
            self._leave(ticket)
            if not ticket.shadow:
                self._line.dropped()
        if ticket.left:
            ticket.known = {}  # what is late may come much later
            self._sweep(ticket)

    # --- at the server ------------------------------------------------------------------------------------------

    def _prepare(self, ticket: Ticket) -> bool:
        """Readies the request for the server, if that may be asked now; `why` says why not. With the fallback ``error``
        it always may: what is wrong is then the answer."""
        placement, line = ticket.route.placement, self._line
        tail = placement.remote_tail
        calm = not self._survives or (line.calm and tail is not None and tail.remote is line.remote)
        if tail is None or not (calm or placement.is_open_at(line.remote)):
            ticket.why = line.why or "the server has not opened this cut again yet"
        elif not (calm or line.allows()):
            ticket.why = line.why or "the server is being tried"
        else:
            deadline_s = ticket.deadline_s
            if ticket.attempts or ticket.why:
                ticket.left = ticket.late = False
                ticket.resumed = perf_counter()
                deadline_s = max(ticket.left_s(), 0.0) if deadline_s else 0.0
            ticket.remote = tail.remote
            try:
                most_nbytes, room = placement.most_nbytes(ticket.known), None if self._roomy else self._room(ticket)
                encoding = ticket.route.encoding
                ticket.call = tail.begin(ticket.known, encoding, most_nbytes, deadline_s, ticket.more, room)
            except ServerError as exc:
                self._failed(ticket, exc)
                return False
            except OverBudgetError as exc:
                line.dropped()
                ticket.why = str(exc)
                if not self._can_finish(ticket):
                    raise
                return False
            except BaseException:  # it cannot travel, or Ctrl-C
                line.dropped()
                raise
            ticket.attempts += 1
            return True
        if not self._survives:
            raise ServerError(f"no answer: {ticket.why}")
        return False

    def _room(self, ticket: Ticket) -> FrameRoom:
        """How much may be sent, and how much of it is in time: before it must be finished here, where that is done."""
        aim = inf
        if self._coarser and ticket.deadline_s and ticket.route.encoding.stepped:
            here_s = ticket.route.placement.times.here_s if self._can_finish(ticket) else 0.0
            aim = self._fits(ticket.left_s() - here_s)
        return FrameRoom(self._most, aim)

    def _leave(self, ticket: Ticket) -> None:
        """What comes of the call is put into the queue, from whatever thread it comes in."""
        call = ticket.call
        if ticket.left or call is None:
            return
        outcomes: SimpleQueue[tuple[RemoteCall | None, Any]] = SimpleQueue()
        ticket.left, ticket.outcomes = True, outcomes

        def come(outcome: TailAnswer | SplitpointError) -> None:
            outcomes.put((call, outcome))
            if ticket.done:
                self._sweep(ticket)

        call.leave(come)

    # --- the first answer ---------------------------------------------------------------------------------------

    def _without(self, ticket: Ticket) -> Result | None:
        """The answer while no call is waited for directly; None if one is to be, or to come here again."""
        placement = ticket.route.placement
        if not placement.remote:
            outputs, request = placement.outputs_of(ticket.known), ticket.request
            marks = Marks(ticket.started, *(perf_counter(),) * 3)
            return Result(outputs, placement.cut.name, marks, request.spans, request.tag, deadline_s=ticket.deadline_s)
        if self._closed.is_set():
            raise self._refused() or ServerError(CLOSED)
        if ticket.call is None and not ticket.here:
            if self._can_finish(ticket):
                began = perf_counter()
                outputs = self._local.finish(placement, ticket.known)
                return self._finished(ticket, outputs, began)
            self._ask_again(ticket)
            return None
        assert ticket.outcomes is not None
        try:
            source, outcome = ticket.outcomes.get(timeout=None if ticket.here else _LOOK_S)
        except Empty:
            self._check_time(ticket)
            return None
        if source is None:
            ticket.here = False
            if not isinstance(outcome, Exception):
                return self._finished(ticket, *outcome)
            ticket.here_failed = outcome
            return None
        ticket.call = None
        try:
            if not isinstance(outcome, SplitpointError):
                return self._answered(ticket, source, outcome)
        except SplitpointError as exc:  # it is none
            outcome = exc
        self._failed(ticket, outcome)
        return None

    def _wait_s(self, ticket: Ticket, call: RemoteCall) -> float:
        """How long to wait for the answer before something is to be done."""
        times = ticket.route.placement.times
        spent_s = perf_counter() - call.packed
        if ticket.late:
            return max(0.0, min(_LOOK_S, ticket.left_s()) if self._survives else self._answer_s - spent_s)
        here_s = times.here_s if self._can_finish(ticket) else 0.0
        late_s = times.late_s(ticket.left_s() + spent_s, here_s, call.packed - ticket.started)
        return max(0.0, (late_s if self._survives else min(late_s, self._answer_s)) - spent_s)

    def _overdue(self, ticket: Ticket, call: RemoteCall) -> None:
        """Nothing has come for so long that something is done about it."""
        age_s = perf_counter() - call.packed
        first, ticket.late = not ticket.late, True
        if first:
            tell(self._watchers, lambda w: w.overdue(call.nbytes, age_s * 1e3))
        if self._can_finish(ticket):
            ticket.here, ticket.why = True, _LATE
            self._leave(ticket)
            assert ticket.outcomes is not None
            beside = partial(self._finish_beside, ticket, ticket.known, ticket.outcomes)
            self._local.submit(beside)
        elif not self._survives:
            if age_s >= self._answer_s:
                raise ServerError(f"{self._line.remote.peer} did not answer in time")
        else:
            self._line.doubt(4 * ticket.route.placement.times.predicted_s)
            ticket.why = _LATE
            self._check_time(ticket)

    def _answered(self, ticket: Ticket, call: RemoteCall, answer: TailAnswer) -> Result:
        placement = ticket.route.placement
        outputs = placement.answer(answer, ticket.known)
        placement.times.add(answer.received - call.packed)
        if not self._line.calm:
            self._line.succeeded()
        result = self._result(ticket, call, answer, outputs)
        if self._watchers:
            self._tell_answer(result, call, answer)
        return result

    def _result(self, ticket: Ticket, call: RemoteCall, answer: TailAnswer, outputs: dict[str, Array]) -> Result:
        request = ticket.request
        return Result(
            outputs,
            ticket.route.placement.cut.name,
            Marks(ticket.started, ticket.headed, call.packed, perf_counter()),
            request.spans,
            request.tag,
            call.nbytes,
            answer.nbytes,
            answer.times,
            answer.offset,
            call.codecs,
            "",
            ticket.attempts,
            ticket.resumed,
            ticket.deadline_s,
        )

    def _tell_answer(self, result: Result, call: RemoteCall, answer: TailAnswer) -> None:
        # As it came, not as it was taken: in a stream it may have waited for its turn.
        told = msgspec.structs.replace(result, marks=msgspec.structs.replace(result.marks, ended=answer.received))
        tell(self._watchers, lambda w: w.answered(told, (answer.received - call.packed) * 1e3))

    def _sweep(self, ticket: Ticket) -> None:
        """What came of a ticket after it was done: news for the watchers, and nobody else."""
        while ticket.outcomes is not None:
            try:
                call, outcome = ticket.outcomes.get_nowait()
            except Empty:
                return
            if call is None:
                continue
            if self._shadow is ticket:
                self._shadow = None
                if isinstance(outcome, SplitpointError):
                    self._blame(ticket, outcome)
                    tell(self._watchers, lambda w: w.failed(ticket.why))
                else:
                    ticket.route.placement.times.add(outcome.received - call.packed)
                    self._line.succeeded()
            if isinstance(outcome, TailAnswer):
                self._tell_answer(self._result(ticket, call, outcome, {}), call, outcome)

    # --- when there is none -------------------------------------------------------------------------------------

    def _failed(self, ticket: Ticket, exc: SplitpointError) -> None:
        """Tells the line and the watchers why an attempt failed; raises `exc` if that is the answer."""
        self._blame(ticket, exc)
        tell(self._watchers, lambda w: w.failed(ticket.why))
        tail = ticket.route.placement.remote_tail
        if not self._survives:
            raise exc
        if ticket.here or self._can_finish(ticket):
            return
        if ticket.attempts and tail is not None and not tail.repeatable:
            raise exc
        if (ticket.remote is not None and ticket.remote.ended) or isinstance(exc, BusyError):
            return
        ticket.refusals += 1
        ticket.not_before = perf_counter() + _REFUSED_S
        if ticket.refusals >= _REFUSALS or isinstance(exc, REFUSALS):
            raise exc

    def _blame(self, ticket: Ticket, exc: SplitpointError) -> None:
        line, remote = self._line, ticket.remote or self._line.remote
        if isinstance(exc, BusyError):
            ticket.why = "the server was busy"
            ticket.not_before = perf_counter() + min(exc.retry_after_s, self._longest_s)
            line.failed(ticket.why, exc.retry_after_s)
        elif isinstance(exc, ProtocolError):
            ticket.why = f"the server was wrong: {exc}"
            remote.abort("answered wrongly")  # whatever else comes on it cannot be trusted
            line.lost(remote, ticket.why)
        elif remote.ended:
            ticket.why = gone(exc)
            line.lost(remote, ticket.why)
        else:  # what it refuses because the deadline has passed is no failure of its own
            ticket.why = f"{_LATE if ticket.left_s() <= 0 else 'the server failed'}: {exc}"
            line.failed(ticket.why, refusal=exc if isinstance(exc, REFUSALS) else None)

    def _ask_again(self, ticket: Ticket) -> None:
        """Waits until the server may be asked, and asks it; or until it can be done here."""
        if ticket.here_failed is not None and self._fallback == LOCAL:
            raise ticket.here_failed
        placement = ticket.route.placement
        while not self._can_finish(ticket):
            self._check_time(ticket)
            if (refusal := self._refused()) is not None:
                raise refusal
            pause_s = ticket.not_before - perf_counter()
            if pause_s > 0:
                self._closed.wait(min(pause_s, _LOOK_S, max(ticket.left_s(), 0.0)))
            elif self._prepare(ticket):
                self.send(ticket)
                return
            else:
                if self._line.state == UP and not placement.is_open_at(self._line.remote):
                    with suppress(ServerError):  # it was forgotten, or nobody has come to it yet
                        self._reopen(placement)
                        continue
                self._line.wait(min(_LOOK_S, ticket.left_s()))

    def _check_time(self, ticket: Ticket) -> None:
        """ServerError if it is too late to wait for the server any longer."""
        if self._closed.is_set():
            raise ServerError(CLOSED)
        if ticket.left_s() <= 0:
            not_yet = "; there is no local fallback yet" if self._fallback == LOCAL else ""
            raise ServerError(f"no answer within {ticket.deadline_s * 1e3:.4g} ms: {ticket.why}{not_yet}")

    # --- finishing here -----------------------------------------------------------------------------------------

    def _can_finish(self, ticket: Ticket) -> bool:
        return self._fallback == LOCAL and ticket.here_failed is None and self._local.possible()

    def _finish_beside(self, ticket: Ticket, known: Mapping[str, Array], outcomes: SimpleQueue[Any]) -> None:
        """In the other thread: the answer, unless the server has given it meanwhile."""
        placement = ticket.route.placement
        if not placement.hold():
            return
        try:
            if ticket.done:
                return
            began = perf_counter()
            outcomes.put((None, (self._local.finish(placement, known), began)))
        except Exception as exc:  # engines are foreign code, and someone waits for this
            outcomes.put((None, exc))
        finally:
            placement.release()

    def _finished(self, ticket: Ticket, outputs: dict[str, Array], began: float) -> Result:
        if ticket.call is not None:  # it lost against us: whatever it still brings is for the watchers
            ticket.call = None
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

    # --- shadows ------------------------------------------------------------------------------------------------

    def shadow(self, route: Route, request: Request) -> bool:
        """One request whose answer only the watchers hear of; not while another one is under way. Whether one is."""
        before = self._shadow
        if before is not None:
            self._look_at(before)
            route.placement.release()
            return True
        sent = False
        with suppress(ServerError):
            ticket = self.begin(route, request, 0.0, more=False)
            ticket.shadow = True
            try:
                if sent := self.send(ticket).call is not None:
                    self._shadow = ticket
            finally:
                self.abandon(ticket)
        return sent

    def _look_at(self, shadow: Ticket) -> None:
        """An unanswered one may be late: then it counts as a failure, and nobody waits for it any longer."""
        call = shadow.call
        assert call is not None
        age_s = perf_counter() - call.packed
        if age_s > shadow.route.placement.times.late_s():
            self._shadow = None
            tell(self._watchers, lambda w: w.overdue(call.nbytes, age_s * 1e3))
            self._line.failed(_LATE)
