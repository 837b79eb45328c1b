"""Addresses as people write them and as sockets have them."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence

from splitpoint.errors import UsageError
from splitpoint.wire import DEFAULT_PORT


def parse_address(address: str) -> tuple[str, int]:
    """(host, port) of ``HOST[:PORT]``, ``[IPV6]:PORT`` too; the port is 3277 if absent. UsageError otherwise.

    >>> parse_address("server.local")
    ('server.local', 3277)
    >>> parse_address("[::1]:4000")
    ('::1', 4000)
    """
    host, port = address, ""
    if address.startswith("["):
        host, bracket, rest = address[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise UsageError(f"{address} is not an address: write HOST, HOST:PORT or [IPV6]:PORT")
        port = rest[1:]
    elif address.count(":") == 1:
        host, _, port = address.partition(":")
    if port and (not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536):
        raise UsageError(f"{port} is not a port number (1 to 65535) in {address}")
    return host or "127.0.0.1", int(port) if port else DEFAULT_PORT


def parse_host(host: str) -> str:
    """The host to listen at, without the brackets of an IPv6 address. UsageError for one with a port, and for none.

    >>> parse_host("[::1]"), parse_host("fe80::1%eth0"), parse_host("0.0.0.0")
    ('::1', 'fe80::1%eth0', '0.0.0.0')
    """
    bare = host.strip()
    if bare.startswith("[") and bare.endswith("]"):
        bare = bare[1:-1]
    elif bare.startswith("[") or bare.count(":") == 1:
        name, _, port = bare.rpartition(":")
        raise UsageError(f"{host} has a port in it: give the two apart, --host {name.strip('[]')} --port {port}")
    if (mapped := _ipv4_in(bare)) is not None:  # no system binds to it as it is
        return mapped
    if not bare:
        raise UsageError("the host to listen at is empty: use 127.0.0.1, or 0.0.0.0 for every interface")
    return bare


def format_address(sockaddr: Sequence[object]) -> str:
    """``host:port`` of what a socket gives, with brackets around an IPv6 host. An IPv4 one that came through an IPv6
    socket is written as it is; a link-local one has its interface.

    >>> format_address(("::1", 80)), format_address(("::ffff:10.0.0.1", 80, 0, 0))
    ('[::1]:80', '10.0.0.1:80')
    """
    host, port = str(sockaddr[0]), sockaddr[1]
    if (mapped := _ipv4_in(host)) is not None:
        return f"{mapped}:{port}"
    if len(sockaddr) == 4 and isinstance(scope := sockaddr[3], int) and scope and "%" not in host:
        try:
            host = f"{host}%{socket.if_indextoname(scope)}"
        except OSError:  # it has gone meanwhile
            host = f"{host}%{scope}"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether `host`, a numeric address, is this machine itself.

    >>> [is_loopback(a) for a in ("127.0.0.2", "::1", "::ffff:127.0.0.1", "0.0.0.0", "10.0.0.1")]
    [True, True, True, False, False]
    """
    try:
        address = ipaddress.ip_address(_ipv4_in(host) or host.partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback


def is_wildcard(host: str) -> bool:
    """Whether `host`, a numeric address, stands for every interface."""
    try:
        return ipaddress.ip_address(_ipv4_in(host) or host).is_unspecified
    except ValueError:
        return False


def is_link_local(host: str) -> bool:
    """Whether `host` is an IPv6 address that means something on one link only, and does not say on which."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.version == 6 and address.is_link_local


def own_address(family: int) -> str:
    """The address of this machine that others are most likely to reach it by; loopback's if it is on no network.

    Asks the routing table: a datagram socket that is connected sends nothing.
    """
    for kind, away in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        if kind == socket.AF_INET or family == socket.AF_INET6:
            try:
                with socket.socket(kind, socket.SOCK_DGRAM) as sock:
                    sock.connect((away, 9))
                    return str(sock.getsockname()[0])
            except OSError:
                continue
    return "127.0.0.1"


def _ipv4_in(host: str) -> str | None:
    """The IPv4 address in ``::ffff:1.2.3.4``."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return None if mapped is None else str(mapped)
