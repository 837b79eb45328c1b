"""What the server's clients hold of it and have used: counted under one lock, an account a connection.

An account is its connection's own; what it takes is counted to its *origin* as well (`quotas`), which it shares with
the other connections of its address.
"""

from __future__ import annotations

import threading
from collections import Counter
from time import monotonic

from splitpoint.errors import BusyError
from splitpoint.runtime.histogram import Tally
from splitpoint.runtime.server.fair_queue import within
from splitpoint.runtime.server.quotas import OWN_TALK_S, OWN_TALK_SHARE, Origin, Origins
from splitpoint.runtime.server.stats import STAGES, ServerStats
from splitpoint.transports.budget import Budget
from splitpoint.wire import Limits

#: What became of a request that was not answered because its client had gone.
DROPPED = "dropped"
#: Errors that say that a request was not computed; all others say that computing it failed.
REFUSALS = frozenset({"busy", "input", "late", "refused"})
#: Profiles that one address may wait for at once.
MOST_PROFILES = 8


class Ledger:
    """All accounts together. `lock` is held for an `Origin`."""

    def __init__(self, limits: Limits) -> None:
        self.limits, self.lock = limits, threading.Lock()
        self.origins = Origins(limits.client_connections, limits.client_compiles)
        self.draining = False
        #: Memory of requests that are announced and not answered.
        self.held_nbytes = 0
        self._idle = threading.Condition(self.lock)
        self._unanswered = 0  # requests and profiles
        self._received = self._in_flight = 0
        self._outcomes: Counter[str] = Counter()
        self._answers: Counter[int] = Counter()  # by how many were computed as one
        self._tallies = tuple(Tally() for _ in STAGES)

    def answered(self) -> int:
        """Requests that have been computed and answered."""
        with self.lock:
            return sum(self._answers.values())

    def drain(self, draining: bool) -> None:
        """Whether no requests are taken any more."""
        with self.lock:
            self.draining = draining

    def wait(self, seconds: float) -> None:
        """Waits until every request is answered, at most so long."""
        with self.lock:
            self._idle.wait_for(lambda: not self._unanswered, max(0.0, seconds))

    def stats(self) -> ServerStats:
        """What it knows of the server's numbers."""
        with self.lock:
            outcomes = dict(self._outcomes)
            dropped = outcomes.pop(DROPPED, 0)
            refused = {why: count for why, count in outcomes.items() if why in REFUSALS}
            return ServerStats(
                received=self._received,
                answered=sum(self._answers.values()),
                refused=refused,
                failed=sum(outcomes.values()) - sum(refused.values()),
                dropped=dropped,
                in_flight=self._in_flight,
                batches={size: count // size for size, count in sorted(self._answers.items())},
                stages={name: tally.histogram() for name, tally in zip(STAGES, self._tallies, strict=True)},
                request_bytes=self.held_nbytes,
            )

    # --- for accounts; the lock is held -------------------------------------------------------------------------

    def take(self, nbytes: int, own_nbytes: int, origin_nbytes: int) -> bool:
        """Takes room for a request, if it is there; the account and the origin that it is for hold so much already.

        An origin that has some already may have as much as is left: none gets all of it, or leaves nothing to others.
        """
        held = self.held_nbytes
        if held:
            left = self.limits.memory_bytes - held
            if nbytes > left or (origin_nbytes and not within(origin_nbytes + nbytes - 1, left, not own_nbytes)):
                return False
        self.held_nbytes = held + nbytes
        self._received += 1
        self._in_flight += 1
        self._unanswered += 1
        return True

    def give_back(self, nbytes: int) -> None:
        """It is done with."""
        self.held_nbytes -= nbytes
        self._in_flight -= 1
        self.settle(-1)

    def settle(self, by: int) -> None:
        """So many more wait for an answer; fewer, if it is negative."""
        self._unanswered += by
        if self.draining:
            self._idle.notify_all()

    def count(self, outcome: str, *, unseen: bool = False) -> None:
        """A request has come to this; `unseen`: it was refused before it was taken."""
        self._outcomes[outcome] += 1
        self._received += unseen

    def count_answer(self, size: int, stages: tuple[float, ...]) -> None:
        """A request was answered, computed as one of `size`; `stages` are those of `STAGES`, seconds."""
        self._answers[size] += 1
        for tally, seconds in zip(self._tallies, stages, strict=True):
            tally.add(seconds)


class Account:
    """What one connection, which `name` is the address of, holds of the server and has used."""

    def __init__(self, ledger: Ledger, origin: Origin, name: str) -> None:
        self._ledger, self.name = ledger, name
        #: Where its connection is counted, and who it shares what it may have with.
        self.home = self.origin = origin
        #: Its place among those that wait for a worker, and among those that wait for a tail to be compiled.
        self.client, self.builds = origin.requests, origin.builds
        self.unanswered = self.answers = self.held_nbytes = 0
        self.gone = False
        self._own = Budget(OWN_TALK_S, OWN_TALK_SHARE)

    def identify(self, identity: str) -> None:
        """It has shown the certificate `identity`, and what it takes is counted to that one's origin from now on."""
        with self._ledger.lock:
            self.origin = origin = self._ledger.origins.identify(self.home, identity)
            self.client, self.builds = origin.requests, origin.builds

    def end(self) -> None:
        """Its client has gone: what is still made for it is for nobody."""
        self.gone = True

    def leave(self) -> None:
        """Nothing is left of its connection."""
        with self._ledger.lock:
            self._ledger.origins.leave(self.home)
            if self.origin is not self.home:
                self._ledger.origins.leave(self.origin)

    # --- requests -----------------------------------------------------------------------------------------------

    def reserve(self, nbytes: int) -> bool:
        """Takes `nbytes` of the room for requests, if they are there: one comes."""
        ledger, origin = self._ledger, self.origin
        with ledger.lock:
            if not ledger.take(nbytes, self.held_nbytes, origin.held_nbytes):
                return False
            self.held_nbytes += nbytes
            self.unanswered += 1
            origin.hold(nbytes)
            return True

    def answered(self, nbytes: int, size: int, stages: tuple[float, ...]) -> None:
        """The answer to one is on its way; `nbytes` are free again. See `Ledger.count_answer` for the rest."""
        with self._ledger.lock:
            self._free(nbytes)
            self._ledger.count_answer(size, stages)

    def over(self, nbytes: int, outcome: str) -> None:
        """One was refused, has failed, or was dropped; `nbytes` are free again."""
        with self._ledger.lock:
            self._free(nbytes)
            self._ledger.count(outcome)

    def no_room(self, retry_s: float) -> BusyError:
        """What one is told for which there is no place."""
        own = self.client.waiting[self]
        return BusyError(f"the server has no room for more requests{f', {own} of yours wait' if own else ''}", retry_s)

    def refused(self, outcome: str) -> None:
        """One was refused before it was taken."""
        with self._ledger.lock:
            self._ledger.count(outcome, unseen=True)

    def _free(self, nbytes: int) -> None:
        self._ledger.give_back(nbytes)
        self.held_nbytes -= nbytes
        self.unanswered -= 1
        self.answers += 1
        self.origin.hold(-nbytes)

    # --- profiles -----------------------------------------------------------------------------------------------

    def ask_profile(self) -> bool:
        """Notes that it waits for a profile; False if its address waits for as many as it may."""
        with self._ledger.lock:
            if self.origin.profiles >= MOST_PROFILES:
                return False
            self._profiles(1)
            return True

    def end_profiles(self, count: int = 1) -> None:
        """It waits for so many no more."""
        with self._ledger.lock:
            self._profiles(-count)
            self.answers += count

    def _profiles(self, by: int) -> None:
        self.origin.ask_profiles(by)
        self.unanswered += by
        self._ledger.settle(by)

    # --- what it has open ---------------------------------------------------------------------------------------

    def open(self, tail: object, graph_nbytes: int) -> None:
        """Counts one more segment of `tail`, whose graph takes so much. BusyError if its address has too much open."""
        with self._ledger.lock:
            room = self.origin.opens(tail, graph_nbytes)
        if not room:
            raise BusyError("too many segments are open for this address: close some", 0.1)

    def close(self, tail: object, graph_nbytes: int) -> None:
        """A segment that was counted is open no longer, and nothing is held for it."""
        with self._ledger.lock:
            self.origin.closes(tail, graph_nbytes)

    # --- budgets ------------------------------------------------------------------------------------------------

    def check_compile(self) -> None:
        """Counts a tail that is to be compiled for it. BusyError if that is one too many for its address."""
        with self._ledger.lock:
            wait_s = self.origin.compiles.take(1.0, monotonic())
        if wait_s:
            most = self._ledger.limits.client_compiles
            raise BusyError(f"{most} tails a minute are compiled for one address: wait, or keep them open", wait_s)

    def check_build(self) -> None:
        """BusyError if the time for planning and compiling tails of its address is used up."""
        with self._ledger.lock:
            wait_s = self.origin.building.take(0.0, monotonic())
        if wait_s:
            raise BusyError("too much time went into tails for this address: wait, or keep them open", wait_s)

    def may_probe(self, nbytes: int) -> float:
        """0.0, if it may be sent so much to measure its link (it is counted); else in how many seconds."""
        with self._ledger.lock:
            return self.origin.probes.take(nbytes, monotonic())

    def charge_build(self, seconds: float) -> None:
        """So much time was spent on making a tail for it."""
        with self._ledger.lock:
            self.origin.building.spend(seconds)

    def charge(self, seconds: float) -> float:
        """So much was spent on what is no request of it. Returns for how many seconds it is not to be read from: if its
        address has overdrawn its account, unless only the others of that have."""
        with self._ledger.lock:
            self.origin.talking.spend(seconds)
            pause_s = self.origin.talking.take(0.0, monotonic())
        self._own.spend(seconds)
        return pause_s if pause_s and self._own.take(0.0, monotonic()) else 0.0
