"""Plain sockets, to see what a relay does with bytes."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

LONG_S = 30.0


@contextmanager
def target(answer: object = None) -> Iterator[tuple[str, list[bytes]]]:
    """A server that echoes, or (`answer` bytes) reads to the end and says them: its address, what connections said."""
    listener = socket.create_server(("127.0.0.1", 0))
    heard: list[bytes] = []
    threads = []

    def one(peer: socket.socket, index: int) -> None:
        with peer, suppress(OSError):
            while data := peer.recv(65536):
                heard[index] += data
                if answer is None:
                    peer.sendall(data)
            if isinstance(answer, bytes):
                peer.sendall(answer)

    def accept() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            if stopping:
                peer.close()
                return
            heard.append(b"")
            thread = threading.Thread(target=one, args=(peer, len(heard) - 1), daemon=True)
            threads.append(thread)
            thread.start()

    stopping: list[bool] = []
    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    host, port = listener.getsockname()
    try:
        yield f"{host}:{port}", heard
    finally:
        stopping.append(True)
        socket.create_connection((host, port)).close()
        accepting.join()
        listener.close()
        for thread in threads:
            thread.join()


def connect(address: str) -> socket.socket:
    host, port = address.split(":")
    sock = socket.create_connection((host, int(port)), timeout=LONG_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def read(sock: socket.socket, nbytes: int) -> bytes:
    made = b""
    while len(made) < nbytes and (data := sock.recv(65536)):
        made += data
    return made


def until(condition: object) -> None:
    """Returns when the condition holds; fails if it never does."""
    assert callable(condition)
    end = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)
