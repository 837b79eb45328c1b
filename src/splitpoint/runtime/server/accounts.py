"""What the server's clients hold of it and have used, counted under one lock, so that connecting again forgets nothing.

A connection has an account of its own; what it takes is counted to its *origin* as well, which all connections of its
address share.
"""

from __future__ import annotations

import ipaddress
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic, thread_time

from splitpoint.errors import BusyError
from splitpoint.runtime.histogram import Tally
from splitpoint.runtime.server.fair_queue import Client, within
from splitpoint.runtime.server.stats import STAGES, ServerStats
from splitpoint.transports.budget import Backlog, Budget
from splitpoint.wire import Limits

#: What became of a request that was not answered because its client had gone.
DROPPED = "dropped"
#: Errors that say that a request was not computed; all others say that computing it failed.
REFUSALS = frozenset({"busy", "input", "late", "refused"})
#: Profiles that one address may wait for at once.
MOST_PROFILES = 8
#: Addresses that have left and are still remembered, so that whoever comes back has not been forgiven.
_REMEMBERED = 4096
_MINUTE_S = 60.0
#: Bytes a minute that are sent to measure a link. One measurement takes up to 55 MB, where the link is fast.
_PROBES = 1 << 30
#: NAT64 (RFC 6052): an IPv4 address is in the last 32 bits.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
#: Seconds of planning and compiling tails that an address may have at once, and of every second after that. More than
#: an honest device needs to open all its tails, and little enough that the others' requests are computed meanwhile.
_BUILD_S, _BUILD_SHARE = 30.0, 0.25
#: Seconds that an address may have measured at once, and of every second after that: one profile as long as a server
#: makes them, one more that overdraws it, and then a quarter of the time.
_MEASURE_S, _MEASURE_SHARE = 60.0, 0.25
#: The same of the processor for all that is no request (pings, refusals, graphs, weights): as much as it takes to hand
#: out a model of a few hundred megabytes, and then a tenth of a core.
_TALK_S, _TALK_SHARE = 1.0, 0.1
#: Bytes of open segments that an address may have: their graphs, each once, which stay when compiled tails leave
#: memory, and what is remembered of each segment on a connection.
_OPEN_BYTES, _SEGMENT_BYTES = 256 << 20, 32 << 10
#: What a connection may have of this even if its address has used up all: some pings a second.
_OWN_TALK_S, _OWN_TALK_SHARE = 0.01, 0.001


class Origin:
    """Everyone at one address: one account, however many connections there are. The server's lock is held for it.

    `requests` and `builds` are its places among those who wait for a worker, and for a tail to be compiled.
    """

    def __init__(self, name: str, compiles: int) -> None:
        self.name = name
        self.connections = 0
        self.requests, self.builds = Client(), Client()
        self.compiles = Budget(compiles, compiles / _MINUTE_S)
        self.building = Budget(_BUILD_S, _BUILD_SHARE)
        self.probes = Budget(_PROBES, _PROBES / _MINUTE_S)
        self.talking = Budget(_TALK_S, _TALK_SHARE)
        #: Bytes of requests that have been announced and not answered, and of answers that have not been read.
        self.held_nbytes = 0
        self.backlog = Backlog()
        #: How often each tail is open, and the bytes of that.
        self._open: Counter[object] = Counter()
        self.open_nbytes = 0
        #: Profiles that it waits for, and seconds of measuring that it had. (The next two are the profiler's.)
        self.profiles = 0
        self.measured_s = 0.0
        self.measuring = Budget(_MEASURE_S, _MEASURE_SHARE)
        #: Weights that it is fetching, piece by piece, so that they are not read and hashed anew for each. One at a
        #: time is read: reading the same one for many connections at once would make as many copies.
        self.giving: dict[str, memoryview] = {}
        self.reading = threading.Lock()
        #: Held by the connection whose frame is being looked at.
        self.turn = threading.Lock()

    def had_measured(self, seconds: float) -> None:
        self.measured_s += seconds

    def opens(self, tail: object, graph_nbytes: int) -> bool:
        """Counts one more segment of `tail`, whose graph takes so much, if there is room; the only one always has."""
        nbytes = _SEGMENT_BYTES + (0 if tail in self._open else graph_nbytes)
        if self.open_nbytes and self.open_nbytes + nbytes > _OPEN_BYTES:
            return False
        self._open[tail] += 1
        self.open_nbytes += nbytes
        return True

    def closes(self, tail: object, graph_nbytes: int) -> None:
        """One segment of `tail` that was counted is held no longer."""
        self._open[tail] -= 1
        self.open_nbytes -= _SEGMENT_BYTES
        if not self._open[tail]:
            del self._open[tail]
            self.open_nbytes -= graph_nbytes


class Origins:
    """Who is connected. At most `connections` are one origin's; the caller holds a lock.

    >>> origins = Origins(connections=1, compiles=10)
    >>> origins.enter("10.0.0.1:4000") is None, origins.enter("10.0.0.1:4001") is None
    (False, True)
    """

    def __init__(self, connections: int, compiles: int) -> None:
        self._connections, self._compiles = connections, compiles
        self._known: OrderedDict[str, Origin] = OrderedDict()

    def enter(self, peer: str) -> Origin | None:
        """The origin that ``HOST:PORT`` belongs to, with this connection counted; None if that would be too many."""
        origin = self._find(name_of(peer))
        if origin.connections >= self._connections:
            return None
        origin.connections += 1
        return origin

    def identify(self, origin: Origin, identity: str) -> Origin:
        """The account of a connection from `origin` that has shown the certificate `identity`: `origin` goes on
        counting its connections, and both are left at the end.

        A certificate at an address: neighbours with others do not share with it, and one that many devices have does
        not make them one client.
        """
        own = self._find(f"{origin.name} {identity}")
        own.connections += 1
        return own

    def _find(self, name: str) -> Origin:
        if name not in self._known:
            self._known[name] = Origin(name, self._compiles)
            for _ in range(len(self._known) - _REMEMBERED):
                oldest, origin = self._known.popitem(last=False)
                if origin.connections:  # it is still here, and counts as the latest
                    self._known[oldest] = origin
        self._known.move_to_end(name)
        return self._known[name]

    def full(self, name: str) -> bool:
        """Whether the origin of that name has all the connections that it may have."""
        return name in self._known and self._known[name].connections >= self._connections

    def leave(self, origin: Origin) -> None:
        origin.connections -= 1
        if not origin.connections:
            origin.giving.clear()


def name_of(peer: str) -> str:
    """What stands for the origin at ``HOST:PORT``: its address; of an IPv6 one its network, since a host has all of it.

    >>> name_of("10.0.0.1:4000"), name_of("[2001:db8::7]:4000"), name_of("[::ffff:10.0.0.1]:4000")
    ('10.0.0.1', '2001:db8::/64', '10.0.0.1')

    On one link all have the same network, and there the address stands for itself. An IPv4 address that was translated
    (NAT64, 6to4) is meant by what it was made into: else all of them would be one, or one of them 65,536.

    >>> name_of("[fe80::7%eth0]:4000"), name_of("[64:ff9b::10.0.0.1]:4000"), name_of("[2002:a00:1:5::7]:4000")
    ('fe80::7%eth0', '10.0.0.1', '10.0.0.1')
    """
    whole = peer.rpartition(":")[0].strip("[]")
    host = whole.partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return host
    if address.is_link_local:
        return whole
    if address in _NAT64:
        return str(ipaddress.IPv4Address(address.packed[-4:]))
    if (inner := address.ipv4_mapped or address.sixtofour) is not None:
        return str(inner)
    return str(ipaddress.ip_network((address, 64), strict=False))


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
        Of what is left an origin that has some may have that much: none gets all, or leaves nothing to others."""
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
        self._own = Budget(_OWN_TALK_S, _OWN_TALK_SHARE)

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
            origin.held_nbytes += nbytes
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
        with self._ledger.lock:
            self._ledger.count(outcome, unseen=True)

    def _free(self, nbytes: int) -> None:
        self._ledger.give_back(nbytes)
        self.held_nbytes -= nbytes
        self.unanswered -= 1
        self.answers += 1
        self.origin.held_nbytes -= nbytes

    # --- profiles -----------------------------------------------------------------------------------------------

    def ask_profile(self) -> bool:
        """Notes that it waits for a profile; False if its address waits for as many as it may."""
        with self._ledger.lock:
            if self.origin.profiles >= MOST_PROFILES:
                return False
            self._profiles(1)
            return True

    def end_profiles(self, count: int = 1) -> None:
        with self._ledger.lock:
            self._profiles(-count)
            self.answers += count

    def _profiles(self, by: int) -> None:
        self.origin.profiles += by
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

    @contextmanager
    def building(self) -> Iterator[None]:
        """What is computed inside is planning and compiling tails for it. BusyError if its address has no more time for
        that."""
        with self._ledger.lock:
            wait_s = self.origin.building.take(0.0, monotonic())
        if wait_s:
            raise BusyError("too much time went into tails for this address: wait, or keep them open", wait_s)
        began_s = thread_time()
        try:
            yield
        finally:
            with self._ledger.lock:
                self.origin.building.spend(thread_time() - began_s)

    def may_probe(self, nbytes: int) -> float:
        """0.0, if it may be sent so much to measure its link (it is counted); else in how many seconds."""
        with self._ledger.lock:
            return self.origin.probes.take(nbytes, monotonic())

    def charge(self, seconds: float) -> float:
        """So much was spent on what is no request of it. Returns for how many seconds it is not to be read from: if its
        address has overdrawn its account, unless only the others of that have."""
        with self._ledger.lock:
            self.origin.talking.spend(seconds)
            pause_s = self.origin.talking.take(0.0, monotonic())
        self._own.spend(seconds)
        return pause_s if pause_s and self._own.take(0.0, monotonic()) else 0.0
