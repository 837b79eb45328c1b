"""TLS, certificates and tokens: who gets in does so whole and in order, who does not hears why, and nothing else."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

import certificates
import numpy as np
import pytest
from serving import affine, until

from splitpoint import wire
from splitpoint.errors import ServerError, UsageError
from splitpoint.models.model import Model
from splitpoint.security import Security, ServerSecurity
from splitpoint.transports import connect
from splitpoint.transports.tcp import TcpConnection, TcpListener
from splitpoint.transports.tls import TlsConnection, client_context, server_context
from splitpoint.wire import Kind, Limits, Packer

pytestmark = pytest.mark.usefixtures("no_leaks", "_no_environment")

TOKEN = certificates.TOKEN


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return affine(tmp_path)


def test_half_a_pair_is_no_pair() -> None:
    with pytest.raises(UsageError, match="--tls-cert"):
        Security(key=Path("k"))
    with pytest.raises(UsageError, match="need TLS"):
        ServerSecurity(client_ca=Path("ca"))


# --- files that are of no use ---------------------------------------------------------------------------------------


def copied(path: Path, folder: Path, change: Callable[[bytes], bytes] = bytes) -> Path:
    there = folder / path.name
    there.write_bytes(change(path.read_bytes()))
    there.chmod(0o600)
    return there


def encrypted(data: bytes) -> bytes:
    from cryptography.hazmat.primitives import serialization as s

    key = s.load_pem_private_key(data, None)
    return key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.BestAvailableEncryption(b"secret"))


def damaged(data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    return b"".join([*lines[:2], b"AAAA" + lines[2][4:], *lines[3:]])


def test_files_that_are_of_no_use_are_named(tmp_path: Path) -> None:
    good, other = certificates.keys(), certificates.keys("other")
    absent = tmp_path / "absent"
    text = tmp_path / "text"
    text.write_text("hello")
    cases = [
        (absent, good.server_key, f"cannot read the certificate {absent}"),
        (good.server, absent, f"cannot read the private key {absent}"),
        (text, good.server_key, "holds no certificate"),
        (good.server, text, "holds no private key"),
        (good.server, None, "holds no private key: --tls-key"),
        (good.server, other.server_key, "is not the private key of"),
        (good.client, good.client_key, "is for another purpose"),
        (copied(good.server, tmp_path, damaged), good.server_key, "cannot be read|damaged|is not the private key"),
        (good.server, copied(good.server_key, tmp_path, encrypted), "has a passphrase"),
    ]
    for certificate, key, words in cases:
        with pytest.raises(UsageError, match=words):
            server_context(ServerSecurity(certificate, key))
    readable = copied(good.server_key, tmp_path)
    readable.chmod(0o644)
    with pytest.raises(UsageError, match=f"chmod 600 {readable}"):
        server_context(ServerSecurity(good.server, readable))
    with pytest.raises(UsageError, match="authority for client certificates"):
        server_context(ServerSecurity(good.server, good.server_key, absent))
    with pytest.raises(UsageError, match=f"cannot read the authority {absent}"):
        client_context(Security(ca=absent))
    with pytest.raises(UsageError, match="is for another purpose"):
        client_context(Security(ca=good.ca, certificate=good.server, key=good.server_key))


@pytest.mark.parametrize(("since_days", "words"), [(400, "has expired"), (-30, "is not valid yet")])
def test_certificates_out_of_their_time_are_refused_before_they_are_used(since_days: float, words: str) -> None:
    made = certificates.keys(f"since {since_days}", since_days=since_days)
    with pytest.raises(UsageError, match=words):
        server_context(certificates.server(of=made))
    with pytest.raises(UsageError, match=words):
        client_context(certificates.client(of=made, mutual=True))


def test_one_file_may_hold_certificate_and_key(tmp_path: Path) -> None:
    good = certificates.keys()
    both = copied(good.server, tmp_path, lambda data: data + good.server_key.read_bytes())
    with Pair(server=ServerSecurity(both)) as pair:
        pair.talk()


# --- connections ----------------------------------------------------------------------------------------------------


class Pair:
    """Both ends of a connection on loopback; the handshake of the server's is made by a thread, as there."""

    def __init__(
        self,
        server: ServerSecurity | ssl.SSLContext | None = None,
        client: Security | None = None,
        *,
        host: str = "127.0.0.1",
        limits: Limits | None = None,
    ) -> None:
        self.limits = limits or Limits(stall_s=5, handshake_s=5)
        server = certificates.server() if server is None else server
        context = server_context(server) if isinstance(server, ServerSecurity) else server
        self._listener = TcpListener("127.0.0.1", 0, self.limits, lambda *of: TlsConnection(*of, context))
        self._thread = threading.Thread(target=self._accept)
        self._client, self._host = client or certificates.client(), host
        self.far: TcpConnection | None = None
        self.refused: Exception | None = None
        self.near: TlsConnection | None = None

    def __enter__(self) -> Pair:
        self._thread.start()
        port = self._listener.sockaddr[1]
        try:
            made = connect(f"{self._host}:{port}", self.limits, 5, self._client)
            assert isinstance(made, TlsConnection)
            self.near = made
        except BaseException:
            self.__exit__()
            raise
        self._thread.join()
        return self

    def _accept(self) -> None:
        self.far = self._listener.accept()
        assert self.far is not None
        try:
            self.far.handshake(self.limits.handshake_s)
        except ServerError as exc:
            self.refused = exc

    def talk(self) -> None:
        """A word each way."""
        assert self.near is not None
        assert self.far is not None
        for sender, receiver in ((self.near, self.far), (self.far, self.near)):
            sender.send(wire.encode(Kind.PING, 7, wire.Ping(1.5)))
            assert receiver.receive(timeout_s=5).header == wire.Ping(1.5)

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        for end in (self.near, self.far):
            if end is not None:
                end.close()
        self._listener.close()


def ends(pair: Pair) -> tuple[TlsConnection, TlsConnection]:
    assert isinstance(pair.near, TlsConnection)
    assert isinstance(pair.far, TlsConnection)
    return pair.near, pair.far


def test_the_newest_version_is_spoken_and_nothing_is_readable_on_the_way() -> None:
    with Pair() as pair:
        near, far = ends(pair)
        assert near._object.version() == far._object.version() == "TLSv1.3"
        assert near.private
        seen = bytearray()
        send = near._push

        def push(flags: int) -> None:
            seen.extend(near._sealed)
            send(flags)

        near._push = push  # type: ignore[method-assign]
        text = b"a secret that is said several times " * 2000
        packet = Packer(Kind.INFER, lambda tensors: wire.Infer(1, tensors)).pack(1, [np.frombuffer(text, np.uint8)])
        near.send(packet)
        assert far.receive(timeout_s=5).tensors[0].tobytes() == text
        assert len(seen) > len(text)
        assert b"secret" not in seen


def test_tls_1_2_is_enough_and_anything_older_is_not() -> None:
    context = server_context(certificates.server())
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with Pair(context) as pair:
        assert ends(pair)[0]._object.version() == "TLSv1.2"
        pair.talk()
    assert server_context(certificates.server()).minimum_version == ssl.TLSVersion.TLSv1_2
    assert client_context(certificates.client()).minimum_version == ssl.TLSVersion.TLSv1_2


def test_both_ways_at_once_with_full_buffers() -> None:
    """Two threads an end, 48 MB each way, through the smallest buffers: nobody waits for the other's way."""
    with Pair(limits=Limits(stall_s=20)) as pair:
        near, far = ends(pair)
        for end in (near, far):
            end._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        packer = Packer(Kind.RESULT, wire.ResultData)
        count, size = 12, 4 << 20
        wrong: list[object] = []

        def send(end: TlsConnection, first: int, wait: bool) -> None:
            for k in range(count):
                end.send(packer.pack(k, [np.full(size, first + k, np.uint8)], (), wire.Times()), wait=wait)

        def receive(end: TlsConnection, first: int) -> None:
            for k in range(count):
                frame = end.receive(timeout_s=20)
                if frame.id != k or not (frame.tensors[0] == first + k).all():
                    wrong.append((frame.id, k))

        threads = [
            threading.Thread(target=send, args=(near, 0, True)),
            threading.Thread(target=send, args=(far, 100, False)),
            threading.Thread(target=receive, args=(far, 0)),
            threading.Thread(target=receive, args=(near, 100)),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
        assert wrong == []


def test_a_record_that_comes_in_drips_is_not_waited_on_for_ever() -> None:
    with Pair(limits=Limits(stall_s=0.3)) as pair:
        near, far = ends(pair)
        packet = Packer(Kind.INFER, lambda tensors: wire.Infer(1, tensors)).pack(1, [np.zeros(60_000, np.uint8)])
        with near._crypt:
            for part in packet.buffers:
                near._encrypt(wire.flat(part))
            records = near._outgoing.read()
        near._sock.sendall(records[:20_000])
        stop = threading.Event()

        def drip() -> None:
            for byte in records[20_000:30_000]:
                if stop.wait(0.02):  # the attack itself
                    return
                try:
                    near._sock.send(bytes([byte]))
                except OSError:
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            with pytest.raises(ServerError, match=r"silent|too slowly"):
                far.receive(timeout_s=5)
        finally:
            stop.set()
            thread.join()


def test_what_was_changed_on_its_way_is_an_error_and_no_answer() -> None:
    with Pair() as pair:
        near, far = ends(pair)
        with near._crypt:
            near._encrypt(memoryview(bytes(100)))
            record = bytearray(near._outgoing.read())
        record[-1] ^= 1
        near._sock.sendall(record)
        with pytest.raises(ServerError, match="changed on its way"):
            far.receive(timeout_s=5)


def test_the_kernels_count_covers_the_encryption_and_ours_the_frames() -> None:
    with Pair() as pair:
        near, far = ends(pair)
        before, sent = near.moved_nbytes(), near.sent_nbytes
        packet = Packer(Kind.INFER, lambda tensors: wire.Infer(1, tensors)).pack(1, [np.zeros(100_000, np.uint8)])
        near.send(packet)
        far.receive(timeout_s=5)
        assert near.sent_nbytes - sent == packet.nbytes
        assert until(lambda: near.moved_nbytes() - before >= packet.nbytes + 20)


def test_abort_wakes_both_ends() -> None:
    with Pair() as pair:
        near, far = ends(pair)
        woken: list[Exception] = []

        def wait(end: TlsConnection) -> None:
            try:
                end.receive()
            except ServerError as exc:
                woken.append(exc)

        threads = [threading.Thread(target=wait, args=(end,)) for end in (near, far)]
        for thread in threads:
            thread.start()
        near.abort()
        for thread in threads:
            thread.join(5)
        assert len(woken) == 2
        with pytest.raises(ServerError):
            near.send(wire.encode(Kind.PING, 1, wire.Ping()))


# --- whom to trust --------------------------------------------------------------------------------------------------


def untimely(since_days: float) -> ssl.SSLContext:
    """A server that uses its certificate all the same."""
    of = certificates.keys(f"since {since_days}", since_days=since_days)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(of.server, of.server_key)
    return context


@pytest.mark.parametrize(("since_days", "words"), [(400, "has expired"), (-30, "is not valid yet")])
def test_a_servers_certificate_out_of_its_time(since_days: float, words: str) -> None:
    trusting = certificates.client(of=certificates.keys(f"since {since_days}", since_days=since_days))
    with (
        pytest.raises(ServerError, match=f"the certificate of 127.0.0.1:.* {words}"),
        Pair(untimely(since_days), trusting),
    ):
        pass


def test_a_server_of_another_name() -> None:
    of = certificates.keys("elsewhere", hosts=("elsewhere.lab",))
    with pytest.raises(ServerError, match=r"for another host than 127\.0\.0\.1.*--server-name"):
        Pair(certificates.server(of=of), certificates.client(of=of)).__enter__()
    named = Security(ca=of.ca, server_name="elsewhere.lab")
    with Pair(certificates.server(of=of), named) as pair:
        pair.talk()
    with Pair(host="localhost") as pair:
        pair.talk()


def test_a_server_of_another_authority() -> None:
    other = certificates.keys("other")
    pair = Pair(client=certificates.client(of=other))
    with pytest.raises(ServerError, match=f"is not signed by {other.ca}"), pair:
        pass
    assert "another authority has signed it" in str(pair.refused), "and the server's log says so too"
    with (
        pytest.raises(ServerError, match=r"no authority that this system knows: .*--ca FILE"),
        Pair(client=Security(tls=True)),
    ):
        pass


def test_a_certificate_may_be_trusted_by_itself() -> None:
    with Pair(client=Security(ca=certificates.keys().server)) as pair:
        pair.talk()


def test_a_device_must_show_its_certificate_where_one_is_wanted() -> None:
    mutual = certificates.server(mutual=True)
    with Pair(mutual, certificates.client(mutual=True)) as pair:
        pair.talk()
        assert ends(pair)[1].identity == "splitpoint device"
    with Pair(mutual, certificates.client()) as pair:
        assert "has no client certificate" in str(pair.refused)
        with pytest.raises(ServerError, match="wants a client certificate: --tls-cert"):
            ends(pair)[0].receive(timeout_s=5)
    other = certificates.keys("other")
    strange = Security(ca=certificates.keys().ca, certificate=other.client, key=other.client_key)
    with Pair(mutual, strange) as pair:
        assert "is not accepted" in str(pair.refused)
        with pytest.raises(ServerError, match="does not trust the certificate of this side"):
            ends(pair)[0].receive(timeout_s=5)


# --- a server and its devices ---------------------------------------------------------------------------------------


def test_loopback_is_private_and_anything_else_is_not() -> None:
    listener = TcpListener("0.0.0.0", 0, Limits())
    try:
        own = next((a for a in addresses() if not a.startswith("127.")), None)
        for host, private in (("127.0.0.1", True), (own, False)):
            if host is None:
                continue  # a machine without a network
            near = connect(f"{host}:{listener.sockaddr[1]}")
            far = listener.accept()
            assert near.private is private
            near.close()
            assert far is not None
            far.close()
    finally:
        listener.close()


def addresses() -> list[str]:
    try:
        return [str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)]
    except OSError:
        return []
