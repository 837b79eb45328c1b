"""Two ends of a connection over real sockets, with and without TLS."""

from __future__ import annotations

import threading
from functools import partial

import certificates

from splitpoint.transports import connect
from splitpoint.transports.tcp import TcpConnection, TcpListener
from splitpoint.transports.tls import TlsConnection, server_context
from splitpoint.wire import Limits

QUICK = Limits(stall_s=0.2, handshake_s=0.2)


def tcp_pair(limits: Limits = QUICK) -> tuple[TcpConnection, TcpConnection]:
    listener = TcpListener("127.0.0.1", 0, limits)
    try:
        near = connect(listener.address, limits)
        far = listener.accept()
        assert isinstance(near, TcpConnection)
        assert far is not None
        return near, far
    finally:
        listener.close()


def tls_pair(limits: Limits = QUICK) -> tuple[TlsConnection, TlsConnection]:
    context = server_context(certificates.server())
    listener = TcpListener("127.0.0.1", 0, limits, partial(TlsConnection, context=context))
    accepted: list[TlsConnection] = []

    def accept() -> None:
        far = listener.accept()
        assert isinstance(far, TlsConnection)
        far.handshake(5)
        accepted.append(far)

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        near = connect(listener.address, limits, security=certificates.client())
        assert isinstance(near, TlsConnection)
    finally:
        thread.join()
        listener.close()
    return near, accepted[0]
