"""Sockets: peers that do not read, listeners, and what is said where none can listen."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import affine, evaluate, until
from socket_pairs import tcp_pair, tls_pair

from splitpoint import wire
from splitpoint.engines import open_engine
from splitpoint.errors import ServerError, UsageError
from splitpoint.models.model import Model
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.server.accounts import name_of
from splitpoint.runtime.server.server import Server
from splitpoint.security import ServerSecurity
from splitpoint.transports import addresses, connect
from splitpoint.transports.addresses import is_loopback
from splitpoint.transports.tcp import TcpConnection, TcpListener
from splitpoint.wire import Kind, Limits, Packer, Packet

pytestmark = pytest.mark.usefixtures("no_leaks")


def test_a_writer_that_fails_ends_its_connection() -> None:
    near, far = socket.socketpair()
    connection = TcpConnection.__new__(TcpConnection)
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    accepted, _ = listener.accept()
    connection = TcpConnection(accepted, "peer", Limits())
    real, calls = connection._sendmsg, []

    def fails_later(*arguments: Any) -> int:
        calls.append(arguments)
        if len(calls) > 1:
            raise MemoryError
        return real(*arguments)

    connection._sendmsg = fails_later
    big = np.zeros(64 << 20, np.uint8)
    try:
        connection.send(wire.Packet((big.data,), big.nbytes), wait=False)
        assert until(lambda: bool(connection._broken), 30)
        with pytest.raises(ServerError, match="sending to peer failed: MemoryError"):
            connection.send(wire.Packet((b"x",), 1))
    finally:
        connection.close()
        for sock in (client, listener, near, far):
            sock.close()


SocketsPair = Callable[..., tuple[TcpConnection, TcpConnection]]


sockets = pytest.mark.parametrize("sockets_pair", [tcp_pair, tls_pair], ids=["tcp", "tls"])


@sockets
def test_sending_without_wait_never_blocks_and_loses_nothing(sockets_pair: SocketsPair) -> None:
    near, far = sockets_pair(Limits(stall_s=20))
    packer = Packer(Kind.RESULT, wire.ResultData)
    times = wire.Times()
    done = threading.Event()

    def send_all() -> None:
        for k in range(40):
            near.send(packer.pack(k, [np.full(1 << 20, k, np.uint8)], (), times), wait=False)
        done.set()

    thread = threading.Thread(target=send_all)
    thread.start()
    assert done.wait(10), "a sender waited for a peer that does not read"
    thread.join()
    assert near._queued > 0
    for k in range(40):
        frame = far.receive(timeout_s=10)
        assert frame.id == k
        assert (frame.tensors[0] == k).all()
    near.close()
    far.close()


@sockets
def test_a_peer_that_never_reads_is_given_up(sockets_pair: SocketsPair) -> None:
    near, far = sockets_pair(Limits(stall_s=0.2, backlog_bytes=1 << 20))
    packet = Packer(Kind.RESULT, wire.ResultData).pack(1, [np.zeros(64 << 20, np.uint8)], (), wire.Times())
    near.send(packet, wait=False)
    with pytest.raises(ServerError):  # receiving waits for the backlog first, and hears of its end
        near.receive(timeout_s=5)
    with pytest.raises(ServerError, match="does not read"):
        near.send(wire.encode(Kind.PING, 1, wire.Ping()))
    near.close()
    far.close()


@sockets
def test_lingering_delivers_the_last_words_though_the_peer_still_talks(sockets_pair: SocketsPair) -> None:
    near, far = sockets_pair()
    far.send(Packet((b"x" * 10_000,), 10_000))  # unread when near closes: a plain close would reset the connection
    near.send(wire.encode(Kind.ERROR, 0, wire.Error("protocol", "goodbye")))
    closer = threading.Thread(target=near.close, args=(2.0,))
    closer.start()
    assert far.receive(timeout_s=5).header == wire.Error("protocol", "goodbye")
    far.close()
    closer.join()


@sockets
def test_close_wakes_a_receiver(sockets_pair: SocketsPair) -> None:
    near, far = sockets_pair(Limits())
    woken: list[Exception] = []

    def receive() -> None:
        try:
            far.receive()
        except ServerError as exc:
            woken.append(exc)

    thread = threading.Thread(target=receive)
    thread.start()
    far.close()
    thread.join(5)
    assert not thread.is_alive()
    assert woken
    near.close()


def test_a_port_in_use_names_one_that_is_free() -> None:
    first = TcpListener("127.0.0.1", 0, Limits())
    port = first.sockaddr[1]
    with pytest.raises(ServerError, match=rf"port {port} .* in use.*such as \d+$") as caught:
        TcpListener("127.0.0.1", port, Limits())
    other = int(str(caught.value).rpartition(" ")[2])
    TcpListener("127.0.0.1", other, Limits()).close()
    assert other != port
    first.close()


def test_a_listener_that_is_closed_accepts_nobody() -> None:
    """Whichever comes first: it was waited at, or it was closed."""
    listener = TcpListener("127.0.0.1", 0, Limits())
    listener.close()
    assert listener.accept() is None


def test_an_address_that_is_not_ours_is_said() -> None:
    with pytest.raises(UsageError, match="no address of this machine"):
        TcpListener("192.0.2.1", 0, Limits())


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return affine(tmp_path)


def has_ipv6() -> bool:
    with suppress(OSError):
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        return True
    return False


ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this system has no IPv6")


@ipv6
def test_every_address_of_ipv6_is_every_one_of_ipv4_too(model: Model) -> None:
    x = np.ones((1, 1024), np.float32)
    told = []
    security = ServerSecurity(insecure=True)
    with Server(
        [model], engine=open_engine(threads=1), host="[::]", port=0, security=security, on_event=told.append
    ) as server:
        port = server.address.rpartition(":")[2]
        for address in (f"[::1]:{port}", f"127.0.0.1:{port}", f"localhost:{port}", server.address):
            with Edge(address, model, at="input") as edge:
                np.testing.assert_allclose(edge.infer(x).outputs["y3"], evaluate(model, x), rtol=1e-5)
        assert server.everywhere
    peers = [e.sentence.split()[0] for e in told if e.kind == "connected"]
    assert peers[0].startswith("[::1]:")
    assert peers[1].startswith("127.0.0.1:"), "not as ::ffff:127.0.0.1"
    assert name_of(peers[1]) == "127.0.0.1"


@ipv6
def test_one_address_of_ipv6_is_that_one(model: Model) -> None:
    with Server([model], engine=open_engine(threads=1), host="[::1]", port=0) as server:
        port = server.address.rpartition(":")[2]
        assert server.address == f"[::1]:{port}"
        connect(server.address).close()
        with pytest.raises(ServerError, match="nothing listens"):
            connect(f"127.0.0.1:{port}")


@ipv6
def test_a_mapped_address_reaches_and_is_loopback() -> None:
    listener = TcpListener("::ffff:127.0.0.1", 0, Limits())
    try:
        assert is_loopback(listener.sockaddr[0])
        connect(f"[::ffff:127.0.0.1]:{listener.sockaddr[1]}").close()
    finally:
        listener.close()


def test_without_ipv6_every_interface_is_ipv4s(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.socket

    class Without(real):  # type: ignore[misc, valid-type]
        def __init__(self, family: int = -1, *more: int, **named: object) -> None:
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
            super().__init__(family, *more, **named)

    monkeypatch.setattr(socket, "socket", Without)
    listener = TcpListener("::", 0, Limits())
    try:
        assert listener.everywhere
        assert listener.sockaddr[0] == "0.0.0.0"
        connect(f"127.0.0.1:{listener.sockaddr[1]}").close()
        with pytest.raises(ServerError, match="cannot reach"):
            connect(f"[::1]:{listener.sockaddr[1]}")
    finally:
        listener.close()


@ipv6
def test_a_link_local_address_without_its_interface_is_said() -> None:
    with pytest.raises(UsageError, match="fe80::1%eth0"):
        TcpListener("fe80::1", 0, Limits())
    with pytest.raises(ServerError, match="fe80::1%eth0"):
        connect("[fe80::1]:80")


def test_the_printed_address_of_every_interface_can_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    listener = TcpListener("0.0.0.0", 0, Limits())
    try:
        connect(listener.address).close()
        assert not listener.address.startswith("0.0.0.0")
    finally:
        listener.close()
    monkeypatch.setattr(addresses.socket, "socket", _no_network)
    assert addresses.own_address(socket.AF_INET6) == "127.0.0.1"


def _no_network(*_: object) -> None:
    raise OSError(errno.ENETUNREACH, "Network is unreachable")
