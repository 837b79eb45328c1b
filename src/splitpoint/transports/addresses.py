"""Addresses as people write them and as sockets have them; and from one to a connected socket: all addresses of a name,
side by side, within one time limit.

A name often has several addresses, and one that is silent (mostly a dead IPv6 path) must cost little. So each is begun
a quarter of a second after the one before, or as soon as that has failed, families in turns; the first that answers is
taken and the others are closed: *happy eyeballs*, RFC 8305.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import selectors
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from time import monotonic
from typing import NamedTuple, TypeVar

from splitpoint.errors import ServerError, UnreachableError, UsageError
from splitpoint.wire import DEFAULT_PORT

#: How long an address is waited for before the next is tried beside it (RFC 8305, 5).
STAGGER_S = 0.25
#: More addresses of one name than that are not tried, and more than that not told.
_MOST, _MOST_TOLD = 32, 6
#: Waits for a handful of sockets, and needs no descriptor itself. `select.select` ends at number 1023.
Selector = getattr(selectors, "PollSelector", selectors.DefaultSelector)


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
    if isinstance(address := _numeric(bare), ipaddress.IPv4Address):
        return str(address)  # no system binds to one in IPv6 as it is
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
    if isinstance(address := _numeric(host), ipaddress.IPv4Address):
        return f"{address}:{port}"
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
    address = _numeric(host)
    return address is not None and address.is_loopback


def is_wildcard(host: str) -> bool:
    """Whether `host`, a numeric address, stands for every interface."""
    address = _numeric(host)
    return address is not None and address.is_unspecified


def is_link_local(host: str) -> bool:
    """Whether `host` is an IPv6 address that means something on one link only, and does not say on which."""
    return isinstance(address := _numeric(host), ipaddress.IPv6Address) and address.is_link_local and "%" not in host


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


def _numeric(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that `host` is, the IPv4 one of ``::ffff:1.2.3.4``; None if it is a name."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


C = TypeVar("C")


class Target(NamedTuple):
    """Where to connect to, as sockets have it."""

    family: int
    sockaddr: tuple[object, ...]

    def __str__(self) -> str:
        return format_address(self.sockaddr).rpartition(":")[0].strip("[]")


def connected(make: Callable[[socket.socket, str], C], address: str, timeout_s: float) -> C:
    """What `make` makes of a socket that is connected to ``HOST[:PORT]``, and of its address. Errors: `dial`."""
    sock, where = dial(address, timeout_s)
    try:
        return make(sock, where)
    except BaseException as exc:
        sock.close()
        if isinstance(exc, OSError):
            raise ServerError(f"cannot reach {where}: {exc.strerror or exc}") from exc
        raise


def dial(address: str, timeout_s: float) -> tuple[socket.socket, str]:
    """(a socket connected to ``HOST[:PORT]``, its address), within `timeout_s` altogether.

    UnreachableError says what is wrong there and what to do; where a name has several addresses, of each of them.
    """
    end = monotonic() + timeout_s
    host, port = parse_address(address)
    where = format_address((host, port))
    targets = resolve(host, port, timeout_s)
    sock, failed = _race(targets, end)
    if sock is not None:
        return sock, where
    raise _unreachable(where, port, timeout_s, [(t, failed.get(t)) for t in targets])


def resolve(host: str, port: int, timeout_s: float) -> list[Target]:
    """The addresses of `host` in the order they should be tried.

    UnreachableError if it has none, or nobody says in time; ServerError if it can have none.
    """
    unknown = f"no machine is known by the name {host}: check the spelling, or use its number"
    try:
        targets = _look_up_numeric(host, port) or _look_up(host, port, timeout_s)
    except socket.gaierror as exc:
        if exc.errno in (socket.EAI_AGAIN, getattr(socket, "EAI_SYSTEM", None)):
            raise UnreachableError(
                f"the name {host} cannot be looked up now ({exc.strerror}): is the network up? Or use its number"
            ) from exc
        if "%" in host:
            raise UnreachableError(
                f"{host} is no address here: is there an interface {host.partition('%')[2]} (ip link)?"
            ) from exc
        raise UnreachableError(unknown) from exc
    except (UnicodeError, ValueError) as exc:  # too long, a null byte
        raise ServerError(unknown) from exc
    except OSError as exc:
        raise UnreachableError(f"the name {host} cannot be looked up: {exc.strerror or exc}") from exc
    return _in_turns(targets)[:_MOST]


def _look_up_numeric(host: str, port: int) -> list[Target]:
    """The address that `host` is; nothing if it is a name."""
    try:
        return _look_up_now(host, port, socket.AI_NUMERICHOST)
    except socket.gaierror:
        return []


def _look_up_now(host: str, port: int, flags: int = 0) -> list[Target]:
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=flags)
    return list(dict.fromkeys(Target(family, sockaddr) for family, _, _, _, sockaddr in infos))


def _look_up(host: str, port: int, timeout_s: float) -> list[Target]:
    """In a thread of its own: the system may take half a minute over a name, and nothing ends that sooner."""
    answer: SimpleQueue[list[Target] | Exception] = SimpleQueue()

    def work() -> None:
        try:
            answer.put(_look_up_now(host, port))
        except Exception as exc:
            answer.put(exc)

    try:
        threading.Thread(target=work, name=f"look up {host}", daemon=True).start()
        outcome = answer.get(timeout=max(0.0, timeout_s))
    except RuntimeError as exc:
        raise ServerError(f"the name {host} cannot be looked up: this process may start no more threads") from exc
    except Empty:
        raise UnreachableError(
            f"the name {host} was not looked up in {timeout_s:g} s: no name server answers; is the network up? "
            "Or use its number"
        ) from None
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _in_turns(targets: Sequence[Target]) -> list[Target]:
    """`targets`, as the system has sorted them, but so that families take turns (RFC 8305, 4)."""
    families = [deque(t for t in targets if t.family == f) for f in dict.fromkeys(t.family for t in targets)]
    ordered: list[Target] = []
    while any(families):
        ordered += [family.popleft() for family in families if family]
    return ordered


def _race(targets: Sequence[Target], end: float) -> tuple[socket.socket | None, dict[Target, OSError]]:
    """The first socket that is connected, if one is before `end`, and why others were not. They are closed."""
    waiting, failed = deque(targets), dict[Target, OSError]()
    running: dict[socket.socket, Target] = {}
    winner = None
    try:
        with Selector() as selector:
            next_at = monotonic()
            while winner is None and (waiting or running) and (now := monotonic()) < end:
                if waiting and (now >= next_at or not running):
                    target = waiting.popleft()
                    try:
                        sock = _begin(target)
                    except OSError as exc:
                        failed[target] = exc
                        continue
                    running[sock] = target
                    selector.register(sock, selectors.EVENT_WRITE)
                    next_at = now + STAGGER_S
                until = min(end, next_at) if waiting else end
                for key, _ in selector.select(max(0.0, until - monotonic())):
                    sock = key.fileobj  # type: ignore[assignment]  # what was registered
                    if not (error := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
                        winner = sock
                        break
                    selector.unregister(sock)
                    failed[running.pop(sock)] = OSError(error, os.strerror(error))
                    sock.close()
                    next_at = 0.0  # the next one at once
        if winner is not None:
            del running[winner]
        return winner, failed
    finally:
        for sock in running:
            sock.close()


def _begin(target: Target) -> socket.socket:
    """A socket that is being connected to `target`. OSError if that fails at once."""
    sock = socket.socket(target.family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        error = sock.connect_ex(target.sockaddr)
        if error not in (0, errno.EINPROGRESS, errno.EAGAIN):
            raise OSError(error, os.strerror(error))
    except BaseException:
        sock.close()
        raise
    return sock


def _unreachable(
    where: str, port: int, timeout_s: float, reasons: Sequence[tuple[Target, OSError | None]]
) -> UnreachableError:
    """Why none of the addresses is connected; None stands for no answer in time."""
    errors = {None if exc is None or exc.errno == errno.ETIMEDOUT else exc.errno for _, exc in reasons}
    several = f" ({_listed([str(t) for t, _ in reasons])})" if len(reasons) > 1 else ""
    if errors == {errno.ECONNREFUSED}:
        start = f"splitpoint serve MODEL --port {port}"
        if not all(is_loopback(str(target.sockaddr[0])) for target, _ in reasons):
            start = f"`{start}` there"  # whose splitpoint may be called otherwise than the one here
        return UnreachableError(f"nothing listens at {where}{several}: start {start}, or check the port")
    if errors == {None}:
        return UnreachableError(
            f"no answer from {where}{several} in {timeout_s:g} s: the machine is off, "
            "or a firewall drops the connection"
        )
    if len(reasons) == 1:
        return UnreachableError(f"cannot reach {where}: {_why(*reasons[0], timeout_s)}")
    told = _listed([f"{target}: {_why(target, exc, timeout_s)}" for target, exc in reasons], "; ")
    return UnreachableError(f"cannot reach {where} at any of its addresses ({told})")


def _why(target: Target, exc: OSError | None, timeout_s: float) -> str:
    if exc is None:
        return f"no answer in {timeout_s:g} s"
    if exc.errno == errno.EINVAL and is_link_local(str(target)):
        return f"it is an address of every link: say which, as in {target}%eth0"
    return "nothing listens there" if exc.errno == errno.ECONNREFUSED else exc.strerror or str(exc)


def _listed(words: Sequence[str], between: str = ", ") -> str:
    more = len(words) - _MOST_TOLD
    return between.join(words[:_MOST_TOLD]) + (f"{between}and {more} more" if more > 0 else "")
