"""What may be tried before one is let in. The fixture checks after each that an honest device still is."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import certificates
import numpy as np
import pytest
from attacking import LIMITS, Attacker
from serving import Gate, affine, nothing_leaks, until

from splitpoint.models.model import Model
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.events import Event
from splitpoint.runtime.server import admission as greeting
from splitpoint.runtime.server.server import Server
from splitpoint.wire import Kind

TOKEN = certificates.TOKEN


class Stranger(Attacker):
    """One that speaks TLS by hand; `context` is how."""

    def __init__(self, address: str, context: ssl.SSLContext | None = None) -> None:
        super().__init__(address, hello=False)
        if context is None:
            context = ssl.create_default_context(cafile=str(certificates.keys().ca))
        with ExitStack() as stack:
            stack.callback(self.sock.close)
            self.sock = context.wrap_socket(self.sock, server_hostname="127.0.0.1")
            stack.pop_all()

    def says(self, **hello: Any) -> tuple[int, int, Any, bytes]:
        """The answer to HELLO."""
        self.send(2, 0, {"version": [1, 0], **hello})
        return self.receive()


@dataclass
class Guarded:
    """A server with TLS and a token, under attack."""

    server: Server
    model: Model
    cache: Path
    told: list[Event]
    attackers: list[Attacker] = field(default_factory=list)

    def raw(self) -> Attacker:
        return self.keep(Attacker(self.server.address, hello=False))

    def stranger(self, context: ssl.SSLContext | None = None) -> Stranger:
        made = Stranger(self.server.address, context)
        self.keep(made)
        return made

    def keep(self, attacker: Attacker) -> Attacker:
        self.attackers.append(attacker)
        return attacker

    def serves(self) -> None:
        """An honest client gets its answer."""
        security = certificates.client(token=TOKEN)
        with Edge(self.server.address, self.model, at="input", security=security) as edge:
            x = np.random.default_rng(0).normal(size=(1, 1024)).astype(np.float32)
            np.testing.assert_array_equal(edge.infer(x).outputs["y3"], x)

    def tells(self, words: str) -> bool:
        return until(lambda: any(words in e.sentence for e in self.told))


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guarded]:
    model = affine(tmp_path)
    monkeypatch.setattr(greeting, "GUESS_S", 0.01)
    with nothing_leaks():
        told: list[Event] = []
        security = certificates.server(token=TOKEN)
        with Server([model], engine=Gate(), port=0, limits=LIMITS, on_event=told.append, security=security) as server:
            made = Guarded(server, model, tmp_path / "cache", told)
            yield made
            made.serves()
            for attacker in made.attackers:
                attacker.close()
        texts = "\n".join(e.sentence for e in told)
        assert "internal" not in texts
        assert TOKEN not in texts


def client_hello() -> bytes:
    """How an honest client begins."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context(cafile=str(certificates.keys().ca))
    side = context.wrap_bio(down, up, server_hostname="127.0.0.1")
    with pytest.raises(ssl.SSLWantReadError):
        side.do_handshake()
    return up.read()


def ended(sock: socket.socket) -> bytes:
    """All that the server still says."""
    said = b""
    try:
        while part := sock.recv(4096):
            said += part
    except (ConnectionResetError, BrokenPipeError):
        pass
    return said


def test_silence_instead_of_a_handshake(target: Guarded) -> None:
    silent = [target.raw() for _ in range(5)]
    target.serves()  # while they are silent: nobody waits for them
    for attacker in silent:
        assert ended(attacker.sock) == b""
    assert target.tells("did not finish the TLS handshake")
    assert until(lambda: not target.server._peers)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.99])
def test_half_a_handshake_and_silence(target: Guarded, share: float) -> None:
    hello = client_hello()
    attacker = target.raw()
    attacker.raw(hello[: max(1, int(len(hello) * share))])
    target.serves()
    ended(attacker.sock)
    assert target.tells("did not finish the TLS handshake")


def test_a_handshake_in_drips_is_ended_in_time(target: Guarded) -> None:
    attacker, began = target.raw(), time.monotonic()
    try:
        for byte in client_hello():
            attacker.raw(bytes([byte]))
            time.sleep(0.02)  # the attack itself
    except OSError:
        pass
    ended(attacker.sock)
    assert time.monotonic() - began < 5
    assert target.tells("did not finish the TLS handshake")


def test_a_handshake_and_then_silence(target: Guarded) -> None:
    assert "said nothing" in target.stranger().refusal()


def test_a_client_hello_with_rubbish_after_it(target: Guarded) -> None:
    attacker = target.raw()
    attacker.raw(client_hello() + bytes(1000))
    ended(attacker.sock)
    assert until(lambda: any(e.kind == "refused" for e in target.told))


def test_a_version_that_is_no_longer_safe(target: Guarded) -> None:
    body = b"\x03\x01" + bytes(32) + b"\x00" + b"\x00\x02\x00\x2f" + b"\x01\x00"  # TLS 1.0, AES128-SHA
    message = b"\x01" + len(body).to_bytes(3, "big") + body
    attacker = target.raw()
    attacker.raw(b"\x16\x03\x01" + len(message).to_bytes(2, "big") + message)
    assert ended(attacker.sock)[:1] == b"\x15", "an alert"
    assert target.tells("no longer safe")


def test_frames_without_tls_get_one_refusal(target: Guarded) -> None:
    attacker = target.raw()
    attacker.send(2, 0, {"version": [1, 0], "token": TOKEN})
    kind, _, header, _ = attacker.receive()
    assert (kind, header["code"]) == (Kind.ERROR, "unauthorized")
    assert "speaks TLS" in header["message"]
    attacker.hung_up()


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n\r\n", b"\xf5", b"\x00" * 100, b"SSH-2.0-x\r\n", b"\x80\x2e\x01\x03\x00"]
)
def test_other_bytes_without_tls(target: Guarded, data: bytes) -> None:
    attacker = target.raw()
    attacker.raw(data)
    said = ended(attacker.sock)
    assert target.model.name.encode() not in said
    assert (b"HTTP/1.1 400" in said) == data.startswith(b"GET")


def test_many_records_of_nothing(target: Guarded) -> None:
    attacker = target.raw()
    try:
        for _ in range(2000):
            attacker.raw(b"\x16\x03\x01\x00\x00" * 10)
    except OSError:
        pass
    ended(attacker.sock)
    assert until(lambda: any(e.kind == "refused" for e in target.told))


def test_a_record_that_is_no_ones(target: Guarded) -> None:
    attacker = target.stranger()
    assert attacker.says(token=TOKEN)[0] == Kind.WELCOME
    raw = attacker.sock.detach()  # type: ignore[attr-defined]
    with socket.socket(fileno=raw) as sock:
        sock.sendall(b"\x17\x03\x03\x00\x40" + bytes(64))
        sock.settimeout(5)
        ended(sock)
    assert target.tells("changed on its way")


WRONG = {
    "none": "",
    "one letter": "x",
    "more": TOKEN + "x",
    "less": TOKEN[:-1],
    "upper case": TOKEN.upper(),
    "as long as may be": "x" * 1024,
    "longer": "x" * 60_000,
    "escapes": "\x1b]0;title\x07",
    "not ASCII": "ü" * 100,
}


@pytest.mark.parametrize("token", WRONG.values(), ids=WRONG)
def test_a_wrong_token_is_one_short_refusal(target: Guarded, token: str) -> None:
    attacker = target.stranger()
    kind, id, header, body = attacker.says(token=token)
    assert (kind, id, header["code"], body) == (Kind.ERROR, 0, "unauthorized", b"")
    assert target.model.name not in str(header)
    assert target.model.fingerprint not in str(header)
    assert len(str(header)) < 300
    attacker.hung_up()
    attacker.close()
    assert target.tells("token")
    if len(token) > 1:
        assert token not in "".join(e.sentence for e in target.told)


def test_guessing_takes_its_time_and_keeps_nobody_waiting(target: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greeting, "GUESS_S", 0.5)
    attacker, began = target.stranger(), time.monotonic()
    attacker.send(2, 0, {"version": [1, 0], "token": "x" * 20})
    target.serves()
    assert attacker.receive()[2]["code"] == "unauthorized"
    assert time.monotonic() - began >= 0.5


@pytest.mark.parametrize("token", [None, 5, b"bytes", ["list"], {"a": 1}])
def test_a_token_that_is_no_text(target: Guarded, token: object) -> None:
    kind, _, header, _ = target.stranger().says(token=token)
    assert kind == Kind.ERROR
    assert target.model.name not in str(header)


def test_a_token_beyond_every_limit(target: Guarded) -> None:
    kind, _, header, _ = target.stranger().says(token="x" * 100_000)
    assert kind == Kind.ERROR
    assert "over the limit" in header["message"]


@pytest.mark.parametrize("kind", [5, 6, 7, 16, 18, 20, 22, 32, 200])
def test_nothing_is_answered_before_the_token(target: Guarded, kind: int) -> None:
    attacker = target.stranger()
    attacker.send(kind, 1, [] if kind in (5, 6, 7) else {"fingerprint": target.model.fingerprint})
    said = attacker.receive()
    assert said[0] == Kind.ERROR
    assert target.model.name not in str(said[2])
    attacker.hung_up()


def test_what_follows_a_wrong_hello_is_not_read(target: Guarded) -> None:
    attacker = target.stranger()
    attacker.raw(
        attacker.frame(2, 0, {"version": [1, 0], "token": "x" * 20})
        + attacker.frame(16, 1, {"fingerprint": target.model.fingerprint})
        + attacker.frame(2, 0, {"version": [1, 0], "token": TOKEN})
    )
    assert attacker.receive()[2]["code"] == "unauthorized"
    attacker.hung_up()


def test_many_guesses_at_once(target: Guarded) -> None:
    """More than there are connections: an honest device waits for room, and gets in."""
    stop = threading.Event()
    guesses = []

    def guess(k: int) -> None:
        while not stop.is_set():
            try:
                stranger = Stranger(target.server.address)
                with closing(stranger.sock):
                    guesses.append(stranger.says(token=f"guess-{k}-{len(guesses)}-----")[2].get("code"))
            except (OSError, EOFError):
                time.sleep(0.01)  # turned away: the attack goes on

    with ThreadPoolExecutor(12) as pool:
        for k in range(12):
            pool.submit(guess, k)
        try:
            assert until(lambda: len(guesses) > 20, 10)
        finally:
            stop.set()
    assert {"unauthorized"} == {g for g in guesses if g not in ("busy", None)}
    assert until(lambda: not target.server._peers)


def test_a_certificate_is_no_token(target: Guarded) -> None:
    of = certificates.keys()
    context = ssl.create_default_context(cafile=str(of.ca))
    context.load_cert_chain(of.client, of.client_key)
    assert target.stranger(context).says()[2]["code"] == "unauthorized"


@pytest.fixture
def mutual(tmp_path: Path) -> Iterator[Server]:
    with nothing_leaks():
        security = certificates.server(mutual=True)
        with Server([affine(tmp_path)], engine=Gate(), port=0, limits=LIMITS, security=security) as server:
            yield server
            with Edge(server.address, affine(tmp_path), at="input", security=certificates.client(mutual=True)):
                pass


@pytest.mark.parametrize("whose", ["nobody's", "another authority's", "the server's own"])
def test_without_the_right_certificate_nothing_is_heard(mutual: Server, whose: str) -> None:
    context = ssl.create_default_context(cafile=str(certificates.keys().ca))
    if whose == "another authority's":
        other = certificates.keys("other")
        context.load_cert_chain(other.client, other.client_key)
    elif whose == "the server's own":
        context.load_cert_chain(certificates.keys().server, certificates.keys().server_key)
    try:
        stranger = Stranger(mutual.address, context)
    except ssl.SSLError:
        return
    try:
        with pytest.raises((OSError, EOFError)):
            stranger.says()
    finally:
        stranger.close()
