"""What one client may take of the server, told by its address, so that connecting again forgets nothing. Pure."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict

from splitpoint.transports.budget import Budget

#: Addresses that have left and are still remembered, so that whoever comes back has not been forgiven.
_REMEMBERED = 4096
_MINUTE_S = 60.0
#: Bytes a minute that are sent to measure a link. One measurement takes up to 55 MB, where the link is fast.
_PROBES = 1 << 30
#: NAT64 (RFC 6052): an IPv4 address is in the last 32 bits.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class Origin:
    """Everyone at one address: how many connections there are, and how many more tails may be compiled for them."""

    def __init__(self, name: str, compiles: int, now_s: float) -> None:
        self.name = name
        self.connections = 0
        self._most, self._left, self._then_s = compiles, float(compiles), now_s
        self.probes = Budget(_PROBES, _PROBES / _MINUTE_S)

    def wait_s(self, now_s: float) -> float:
        """0.0 if one more tail may be compiled now, which is counted; else when that will be so, in seconds.

        As many as are allowed in a minute may be at once; then one at a time, as the minute passes.
        """
        rate = self._most / _MINUTE_S
        self._left = min(float(self._most), self._left + max(0.0, now_s - self._then_s) * rate)
        self._then_s = now_s
        if self._left >= 1.0:
            self._left -= 1.0
            return 0.0
        return (1.0 - self._left) / rate if rate else _MINUTE_S


class Origins:
    """Who is connected. At most `connections` and `compiles` a minute are one origin's; the caller holds a lock.

    >>> origins = Origins(connections=1, compiles=10)
    >>> origins.enter("10.0.0.1:4000", 0.0) is None, origins.enter("10.0.0.1:4001", 0.0) is None
    (False, True)
    """

    def __init__(self, connections: int, compiles: int) -> None:
        self._connections, self._compiles = connections, compiles
        self._known: OrderedDict[str, Origin] = OrderedDict()

    def enter(self, peer: str, now_s: float) -> Origin | None:
        """The origin that ``HOST:PORT`` belongs to, with this connection counted; None if that would be too many."""
        name = name_of(peer)
        origin = self._known.get(name)
        if origin is None:
            origin = self._known[name] = Origin(name, self._compiles, now_s)
            self._forget()
        if origin.connections >= self._connections:
            return None
        origin.connections += 1
        self._known.move_to_end(name)
        return origin

    def full(self, name: str) -> bool:
        """Whether the origin of that name has all the connections that it may have."""
        origin = self._known.get(name)
        return origin is not None and origin.connections >= self._connections

    def leave(self, origin: Origin) -> None:
        """A connection of `origin` has ended."""
        origin.connections -= 1

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
