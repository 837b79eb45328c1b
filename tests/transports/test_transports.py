"""`connect` and `listen` by scheme; and what every listener promises."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import certificates
import pytest
from serving import nothing_leaks

from splitpoint import transports, wire
from splitpoint.errors import ServerError, UnreachableError, UsageError
from splitpoint.security import OPEN, Security, ServerSecurity
from splitpoint.transports import Ended, Listener, connect, listen
from splitpoint.wire import Kind, Limits


@pytest.fixture(params=["tcp", "tls", "memory"])
def ends(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Listener, Security]]:
    """A listener of each transport, and what a client needs to be let in."""
    if request.param == "tls":
        listener, security = listen("127.0.0.1", 0, security=certificates.server()), certificates.client()
    else:
        host = "127.0.0.1" if request.param == "tcp" else f"memory://{tmp_path.name}"
        listener, security = listen(host, 0), OPEN
    with nothing_leaks():
        yield listener, security
        listener.close()


def test_frames_go_both_ways_over_what_a_listener_accepts(ends: tuple[Listener, Security]) -> None:
    listener, security = ends
    served: list[wire.Frame] = []

    def serve() -> None:
        far = listener.accept()
        assert far is not None
        far.handshake(5.0)
        served.append(far.receive(timeout_s=5.0))
        far.send(wire.encode(Kind.PONG, 1, wire.Pong(2.5)))
        with pytest.raises(Ended):
            far.receive(timeout_s=5.0)
        served.append(served[0])
        far.close()

    thread = threading.Thread(target=serve)
    thread.start()
    near = connect(listener.address, security=security)
    packet = wire.encode(Kind.PING, 1, wire.Ping(2.5))
    near.send(packet)
    assert near.receive(timeout_s=5.0).header == wire.Pong(2.5)
    assert near.sent_nbytes == packet.nbytes
    assert near.private
    assert not near.behind
    near.close()
    thread.join(10)
    assert len(served) == 2
    assert served[0].header == wire.Ping(2.5)


def test_a_listener_that_is_woken_or_closed_accepts_nobody(ends: tuple[Listener, Security]) -> None:
    listener, _ = ends
    listener.wake()
    assert listener.accept() is None
    assert listener.accept() is None
    listener.close()
    assert listener.accept() is None


def test_what_is_held_to_smaller_limits_refuses_larger_frames(ends: tuple[Listener, Security]) -> None:
    listener, security = ends
    accepted: list[object] = []

    def serve() -> None:
        far = listener.accept()
        assert far is not None
        far.handshake(5.0)
        far.hold_to(Limits(header_bytes=8))
        try:
            far.receive(timeout_s=5.0)
        except Exception as exc:
            accepted.append(exc)
        far.close()

    thread = threading.Thread(target=serve)
    thread.start()
    near = connect(listener.address, security=security)
    near.send(wire.encode(Kind.HELLO, 0, wire.Hello(software="x" * 100)))
    thread.join(10)
    near.close()
    assert "over the limit, 8" in str(accepted[0])


def test_what_strangers_can_do_with_a_listener_is_known() -> None:
    for listener, exposed, private, identifies in (
        (listen("127.0.0.1", 0), False, False, False),
        (listen("0.0.0.0", 0), True, False, False),
        (listen("0.0.0.0", 0, security=certificates.server()), True, True, False),
        (listen("0.0.0.0", 0, security=certificates.server(mutual=True)), True, True, True),
        (listen("memory://here"), False, True, False),
    ):
        assert (listener.exposed, listener.private, listener.identifies) == (exposed, private, identifies)
        listener.close()


def test_schemes_that_do_not_fit_are_refused_with_what_to_write() -> None:
    with pytest.raises(UsageError, match=r"no transport quic:// \(in quic://x\): known are tcp, tls, memory"):
        connect("quic://x")
    with pytest.raises(UsageError, match="no transport quic://"):
        listen("quic://x")
    with pytest.raises(UsageError, match="write tls://x"):
        connect("tcp://x", security=certificates.client())
    with pytest.raises(UsageError, match=r"write tls://127\.0\.0\.1"):
        listen("tcp://127.0.0.1", 0, security=certificates.server())
    with pytest.raises(UsageError, match="needs a certificate"):
        listen("tls://127.0.0.1", 0)
    with pytest.raises(UsageError, match="address is empty"):
        connect("tcp://")


def test_another_transport_is_a_module_and_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, object]] = []

    class Module:
        @staticmethod
        def connect(address: str, limits: Limits, timeout_s: float, security: Security) -> object:
            asked.append((address, security))
            raise UnreachableError("nobody is there")

        @staticmethod
        def listen(host: str, port: int, limits: Limits, security: ServerSecurity) -> object:
            asked.append((host, port))
            raise ServerError("not here")

    monkeypatch.setitem(transports.TRANSPORTS, "pigeon", "pigeons")
    monkeypatch.setattr(transports, "import_module", {"pigeons": Module}.__getitem__)
    with pytest.raises(UnreachableError):
        connect("pigeon://loft:7")
    with pytest.raises(ServerError):
        listen("pigeon://loft", 7)
    assert asked == [("loft:7", OPEN), ("loft", 7)]
