"""What one client may take of the server, told by its address, so that connecting again forgets nothing. Pure."""

from __future__ import annotations

import ipaddress
import threading
from collections import Counter, OrderedDict

from splitpoint.runtime.server.fair_queue import Client
from splitpoint.transports.budget import Backlog, Budget

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
OWN_TALK_S, OWN_TALK_SHARE = 0.01, 0.001


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

    def hold(self, nbytes: int) -> None:
        """Its requests take so much more memory; less, if it is negative."""
        self.held_nbytes += nbytes

    def ask_profiles(self, count: int) -> None:
        """It waits for so many profiles more; fewer, if it is negative."""
        self.profiles += count

    def had_measured(self, seconds: float) -> None:
        """A model was measured for it, which took so long."""
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
        origin = self._known.get(name)
        if origin is None:
            origin = self._known[name] = Origin(name, self._compiles)
            self._forget()
        self._known.move_to_end(name)
        return origin

    def full(self, name: str) -> bool:
        """Whether the origin of that name has all the connections that it may have."""
        origin = self._known.get(name)
        return origin is not None and origin.connections >= self._connections

    def leave(self, origin: Origin) -> None:
        """A connection of `origin` has ended."""
        origin.connections -= 1
        if not origin.connections:
            origin.giving.clear()

    def _forget(self) -> None:
        for _ in range(len(self._known) - _REMEMBERED):
            name, origin = self._known.popitem(last=False)
            if origin.connections:  # it is still here, and counts as the latest
                self._known[name] = origin


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
