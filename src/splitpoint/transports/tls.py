"""Frames over TLS 1.2 or 1.3: `tcp`'s connection, with the standard library's encryption between frames and socket.

The engine of OpenSSL works on memory (`ssl.MemoryBIO`), never on the socket. An SSL object must not be used by two
threads at once, so each use holds a lock, but no use of it ever waits for the network: readers and writers sleep in the
kernel without it, and each direction goes on as soon as its own way is free. Many records come with one system call.

Whatever a writer encrypts must be sent, and next: a record carries its number in its encryption. `_send_sealed`
therefore counts bytes as sent once the kernel has the whole of their records, and keeps the rest.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

from splitpoint.errors import AccessError, ServerError, UnreachableError, UsageError
from splitpoint.security import OPEN, Security, ServerSecurity, check_own, read_file
from splitpoint.tensors import Array
from splitpoint.transports.addresses import connected, parse_address
from splitpoint.transports.budget import Throttle
from splitpoint.transports.tcp import SPIN_S, TcpConnection, TcpListener, views
from splitpoint.wire import MAGIC, Buffer, ForeignError, Limits, flat

_DONTWAIT = socket.MSG_DONTWAIT
#: The most plain bytes of a record (RFC 8446).
_RECORD = 16 << 10
#: What is encrypted before it is handed to the kernel: the peer decrypts it while the next is encrypted. More is worse
#: for that, and less costs more wake-ups (16 to 256 KB measured on loopback with 600 KB: 64 and 128 are the best).
_TURN = 8 * _RECORD
#: How much is received at once; and before the first byte of a frame has come.
_CIPHER, _FIRST_CIPHER = 128 << 10, 16 << 10
#: Records must bring something: their bytes, less so many for each byte that was in them, are never more than this (a
#: few records). Key updates, alerts and records of a byte or none cost us far more than their sender.
_BARREN, _WORTH = 64 << 10, 4
#: What handshakes may take of a processor: so many seconds at once (a fleet comes back), and a share in the long run.
_HANDSHAKES_S, _HANDSHAKES_SHARE = 0.25, 0.25
#: The share of the time for connecting in which something must answer: the rest at least is left for the handshake.
_DIAL_SHARE = 0.6
#: The first byte of a client that speaks TLS.
_HANDSHAKE = 0x16
#: "internal error", fatal: all that can be told to a client before its handshake, and that needs no keys.
_ALERT = bytes.fromhex("15 03 03 00 02 02 50")

# X509_V_ERR_…: verify_code of ssl.SSLCertVerificationError.
_NOT_YET, _EXPIRED, _WRONG_PURPOSE = 9, 10, 26
_UNKNOWN_ISSUER = frozenset({2, 18, 19, 20, 21})
_OTHER_HOST = frozenset({62, 63, 64})

#: What OpenSSL says → what that means, of the peer. The first that is part of its reason is it.
_MEANINGS = (
    ("CERTIFICATE_REQUIRED", "wants a client certificate: --tls-cert FILE --tls-key FILE"),
    ("DID_NOT_RETURN_A_CERTIFICATE", "has no client certificate"),
    ("ALERT_UNKNOWN_CA", "does not trust the certificate of this side: another authority has signed it"),
    ("ALERT_CERTIFICATE_EXPIRED", "says that the certificate of this side has expired, or its clock is wrong"),
    ("ALERT_BAD_CERTIFICATE", "does not take the certificate of this side"),
    ("ALERT_CERTIFICATE_UNKNOWN", "does not take the certificate of this side"),
    ("UNSUPPORTED_CERTIFICATE", "does not take the certificate of this side: it is for another purpose"),
    ("ALERT_INTERNAL_ERROR", "ended the TLS handshake: it has no room, or something is wrong there; try again later"),
    ("ALERT_HANDSHAKE_FAILURE", "ended the TLS handshake: it wants a client certificate, or shares no cipher"),
    ("PROTOCOL_VERSION", "speaks only versions of TLS that are no longer safe"),
    ("UNSUPPORTED_PROTOCOL", "speaks only versions of TLS that are no longer safe"),
    ("NO_SHARED_CIPHER", "shares no cipher with this side"),
    ("WRONG_VERSION_NUMBER", "does not speak TLS"),
    ("UNEXPECTED_MESSAGE", "broke the rules of TLS"),
    ("BAD_RECORD_MAC", "was not understood: what it sent was changed on its way"),
    ("DECRYPTION_FAILED", "was not understood: what it sent was changed on its way"),
)


# --- keys and whom they convince ------------------------------------------------------------------------------------


def server_context(security: ServerSecurity) -> ssl.SSLContext:
    """What a server's connections are encrypted with. UsageError says which file is of no use, and why."""
    assert security.certificate is not None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _harden(context)
    context.num_tickets = 0  # a connection lasts: nobody comes back with a ticket
    _load_pair(context, security.certificate, security.key)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    _trust(client, security.certificate, "certificate")
    _rehearse(context, client, security.certificate)
    if security.client_ca is not None:
        _trust(context, security.client_ca, "authority for client certificates")
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(security: Security) -> ssl.SSLContext:
    """What a device's connection is encrypted with. UsageError says which file is of no use, and why."""
    if security.ca is None:
        context = ssl.create_default_context()
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        _trust(context, security.ca, "authority")
    _harden(context)
    if security.certificate is not None:
        _load_pair(context, security.certificate, security.key)
        # Tried out against a server that takes it for its own too, and looks at nothing but this one.
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        _load_pair(server, security.certificate, security.key)
        _trust(server, security.certificate, "certificate")
        server.verify_mode = ssl.CERT_REQUIRED
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname = False
        client.verify_mode = ssl.CERT_NONE
        _load_pair(client, security.certificate, security.key)
        _rehearse(server, client, security.certificate)
    return context


def _harden(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET


def _load_pair(context: ssl.SSLContext, certificate: Path, key: Path | None) -> None:
    text, _ = read_file(certificate, "certificate")
    if b"-----BEGIN CERTIFICATE-----" not in text:
        raise UsageError(f"{certificate} holds no certificate: it should have a line -----BEGIN CERTIFICATE-----")
    secret, mode = read_file(key or certificate, "private key")
    if b"PRIVATE KEY-----" not in secret:
        hint = "" if key is not None else ": --tls-key FILE"
        raise UsageError(f"{key or certificate} holds no private key{hint}")
    check_own(key or certificate, "private key", mode, group=True)
    if b"ENCRYPTED" in secret:
        raise UsageError(
            f"the private key {key or certificate} has a passphrase, which nobody could type here: "
            "openssl pkey writes one without"
        )
    try:
        context.load_cert_chain(certificate, key, password=lambda: "")
    except ssl.SSLError as exc:
        reason = exc.reason or ""
        if "MISMATCH" in reason:
            raise UsageError(f"{key or certificate} is not the private key of the certificate {certificate}") from exc
        if "TOO_SMALL" in reason or "TOO_WEAK" in reason:
            raise UsageError(f"the certificate {certificate} is too weak for TLS: make one anew") from exc
        raise UsageError(f"{certificate} and {key or certificate} cannot be read: they are damaged") from exc
    except OSError as exc:
        raise UsageError(f"cannot read {certificate} or {key}: {exc.strerror or exc}") from exc


def _trust(context: ssl.SSLContext, path: Path, what: str) -> None:
    text, _ = read_file(path, what)
    if b"-----BEGIN CERTIFICATE-----" not in text:
        raise UsageError(f"{path} holds no certificate: it should have a line -----BEGIN CERTIFICATE-----")
    try:
        context.load_verify_locations(cafile=path)
    except ssl.SSLError as exc:
        raise UsageError(f"the {what} {path} cannot be read: it is damaged") from exc
    # A certificate that is given is trusted as it is, whoever signed it.
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN


def _rehearse(server: ssl.SSLContext, client: ssl.SSLContext, certificate: Path) -> None:
    """A handshake in memory: UsageError for a certificate that nobody would accept now, or not for this purpose."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [client.wrap_bio(down, up, server_hostname="rehearsal"), server.wrap_bio(up, down, server_side=True)]
    for _ in range(10):
        for side in list(sides):
            try:
                side.do_handshake()
                sides.remove(side)
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLCertVerificationError as exc:
                if (why := _whats_wrong(exc)) is not None:
                    raise UsageError(f"the certificate {certificate} {why}") from exc
                return  # what else may be wrong is for those to say who are to trust it
            except ssl.SSLError as exc:
                raise UsageError(f"the certificate {certificate} is of no use for TLS: {_reason(exc)}") from exc
        if not sides:
            return


def _whats_wrong(exc: ssl.SSLCertVerificationError) -> str | None:
    """What is wrong with a certificate by itself, whoever looks at it."""
    if exc.verify_code == _EXPIRED:
        return f"has expired (today is {datetime.now(timezone.utc):%Y-%m-%d})"
    if exc.verify_code == _NOT_YET:
        return f"is not valid yet (today is {datetime.now(timezone.utc):%Y-%m-%d}: is the clock right?)"
    if exc.verify_code == _WRONG_PURPOSE:
        return "is for another purpose: servers and edges need different ones"
    return None


def _reason(exc: ssl.SSLError) -> str:
    return (exc.reason or str(exc)).replace("_", " ").lower()


# --- a connection ---------------------------------------------------------------------------------------------------


class TlsConnection(TcpConnection):
    """A connected socket that is encrypted, once `handshake` has been called."""

    def __init__(
        self,
        sock: socket.socket,
        peer: str,
        limits: Limits,
        context: ssl.SSLContext,
        security: Security | None = None,
        throttle: AbstractContextManager[None] | None = None,
        *,
        spin_s: float = 0.0,
    ) -> None:
        """`security`: as which client, and to whom; None on the server's side. Handshakes compute within `throttle`."""
        super().__init__(sock, peer, limits, spin_s=spin_s)
        self._security, self._throttle = security, throttle or nullcontext()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(
            self._incoming,
            self._outgoing,
            server_side=security is None,
            server_hostname=security.server_name if security is not None else None,
        )
        self._crypt = threading.Lock()  # held whenever _object is used; nothing that waits happens under it
        self._cipher = memoryview(bytearray(_FIRST_CIPHER))
        self._barren = 0  # encrypted bytes that have come, less `_WORTH` for each plain one
        self._patience_s = limits.stall_s
        self._agreed = False
        self._unread = False  # whether something that has been received may be decrypted
        self._peer_ended = False
        self._abrupt = False
        self._sealed = memoryview(b"")  # records that the kernel had no room for,
        self._held = 0  # and how many plain bytes they stand for
        self._recv_into = self._receive
        self._recvmsg_into = self._receive_some
        self._sendmsg = self._send_nothing_yet

    @property
    def private(self) -> bool:
        return True

    @property
    def identity(self) -> str:
        with self._crypt:
            certificate = self._object.getpeercert() or {}  # empty, too, if nothing has verified it
        pairs: Any = certificate.get("subject", ())
        return next((str(value) for group in pairs for name, value in group if name == "commonName"), "")

    # --- the handshake -----------------------------------------------------------------------------------------

    def handshake(self, timeout_s: float) -> None:
        """Agrees on keys, within `timeout_s` altogether.

        ServerError if it fails; on the server's side AccessError or ForeignError for who does not speak TLS, and then
        what is sent goes out openly.
        """
        end = monotonic() + timeout_s
        try:
            self._agree(end, timeout_s)
        except (ForeignError, AccessError):
            raise
        except ServerError as exc:
            with self._lock:
                self._broken = self._broken or str(exc)
            raise
        self._sendmsg = self._send_sealed
        self._agreed = True
        self._barren = 0

    def _agree(self, end: float, timeout_s: float) -> None:
        started = False
        while True:
            try:
                with self._throttle, self._crypt:
                    self._object.do_handshake()
                self._flush()
                return
            except ssl.SSLWantReadError:
                self._flush()
            except ssl.SSLError as exc:
                with suppress(ServerError):
                    self._flush()  # the alert that says why
                # A server that cannot be trusted is there: trying again is of no use.
                distrusted = self._security is not None and isinstance(exc, ssl.SSLCertVerificationError)
                raise (AccessError if distrusted else ServerError)(self._why(exc)) from exc
            # What hangs up without a word may be a proxy before no server yet.
            ended = ServerError if started else UnreachableError
            try:
                self._be_patient(max(end - monotonic(), 1e-3))
                got = self._fetch() if monotonic() < end else -1
            except BlockingIOError:
                got = -1
            except OSError as exc:
                raise ended(f"{self._why(exc)} in the TLS handshake: does it speak TLS?") from exc
            if got < 0:
                raise ServerError(
                    f"{self.peer} did not finish the TLS handshake in {timeout_s:g} s: does it speak TLS?"
                )
            if got == 0:
                raise ended(f"{self.peer} closed the connection in the TLS handshake: does it speak TLS?")
            if not started and self._security is None:
                self._check_first(bytes(self._cipher[:got]))
            started = True

    def _check_first(self, data: bytes) -> None:
        """AccessError or ForeignError for a client that does not speak TLS: it is answered as openly as it spoke."""
        if data[0] == _HANDSHAKE:
            return
        self._sendmsg = self._sock.sendmsg
        if MAGIC.startswith(data[: len(MAGIC)]):
            raise AccessError("this server speaks TLS only: connect with --tls, or with --ca FILE if it is your own")
        raise ForeignError(data[:100])

    def _flush(self) -> None:
        """Sends what the handshake has to say: far less than a socket has room for."""
        with self._crypt:
            data = self._outgoing.read()
        try:
            if data:
                self._sock.sendall(data)
        except OSError as exc:
            raise ServerError(self._why(exc)) from exc

    def _send_nothing_yet(self, buffers: Sequence[Buffer], ancillary: object = (), flags: int = 0) -> int:
        """A frame before the handshake can only be a refusal, and what can be understood of it is an alert."""
        self._sock.send(_ALERT, flags)
        return sum(flat(part).nbytes for part in buffers)

    def _why(self, exc: OSError) -> str:
        if not isinstance(exc, ssl.SSLError) or self._closed:
            return super()._why(exc)
        if isinstance(exc, ssl.SSLCertVerificationError):
            return self._distrust(exc)
        reason = exc.reason or ""
        meaning = next((meaning for part, meaning in _MEANINGS if part in reason), None)
        return f"{self.peer} {meaning}" if meaning else f"TLS with {self.peer} failed: {_reason(exc)}"

    def _distrust(self, exc: ssl.SSLCertVerificationError) -> str:
        """Why the peer's certificate is not accepted, and what to do."""
        whose = f"the certificate of {self.peer}"
        if (why := _whats_wrong(exc)) is not None:
            return f"{whose} {why}"
        security = self._security
        if security is not None and exc.verify_code in _OTHER_HOST:
            name = security.server_name
            return (
                f"{whose} is for another host than {name}: connect by the name that is in it, say that with "
                f"--server-name, or make one that has this name too (splitpoint keys DIR --host {name})"
            )
        if security is not None and exc.verify_code in _UNKNOWN_ISSUER:
            if security.ca is None:
                return f"{whose} is signed by no authority that this system knows: give its own with --ca FILE"
            return f"{whose} is not signed by {security.ca}: is that the right authority, and this the right server?"
        return f"{whose} is not accepted: {exc.verify_message}"

    # --- receiving ---------------------------------------------------------------------------------------------

    def _be_patient(self, seconds: float) -> None:
        self._patience_s = seconds
        super()._be_patient(seconds)

    def _fetch(self, flags: int = 0) -> int:
        """Receives encrypted bytes, as many as came; 0 if the peer ended. BlockingIOError like the socket's."""
        if self._barren > _BARREN:  # all that came before has been decrypted
            raise ServerError(f"{self.peer} sends records of TLS with nothing in them")
        got = self._sock.recv_into(self._cipher, 0, flags)
        self._barren += got
        if got:
            with self._crypt:
                self._incoming.write(self._cipher[:got])
                self._unread = True
        return got

    def _receive(self, buffer: Buffer, nbytes: int, flags: int = 0) -> int:
        """Like a socket's ``recv_into`` with MSG_WAITALL, and like that within one wait altogether."""
        view, done, end = flat(buffer), 0, 0.0
        while True:
            if self._unread:
                done += self._decrypt((view[done:nbytes],))
            if done == nbytes or self._peer_ended:
                return done
            self._hurry()
            now = monotonic()
            end = end or now + self._patience_s
            try:
                if now >= end:
                    raise BlockingIOError
                if not self._fetch():
                    return done
            except BlockingIOError:
                if done:
                    return done
                raise

    def _receive_some(self, places: Sequence[memoryview | Array], ancillary: int = 0, flags: int = 0) -> tuple[int]:
        """Like a socket's ``recvmsg_into``: as much as is there, at least one byte; 0 if the peer ended."""
        end = 0.0
        while True:
            if self._unread:
                got = self._decrypt(places)
                if got or self._peer_ended:
                    return (got,)
                self._hurry()
                now = monotonic()
                end = end or now + self._patience_s
                if now >= end:  # bytes come, but never a whole record
                    raise BlockingIOError
            if self._peer_ended or not self._fetch(flags):
                return (0,)

    def _decrypt(self, places: Sequence[memoryview | Array]) -> int:
        """Fills `places`, one after the other, with what is here already: how many bytes that is. ServerError."""
        total = 0
        read: Callable[[int, memoryview | Array], int] = self._object.read  # type: ignore[assignment]  # so with a buffer
        with self._crypt:
            try:
                for place in places:
                    done, size = 0, place.nbytes
                    while done < size and self._unread:
                        got = read(size - done, flat(place)[done:] if done else place)
                        done += got
                        total += got
                        self._peer_ended = not got
                        self._unread = got > 0 and (self._incoming.pending > 0 or self._object.pending() > 0)
                    if done < size:
                        break
            except ssl.SSLWantReadError:
                self._unread = False  # the rest of a record is on its way
            except ssl.SSLZeroReturnError:
                self._peer_ended, self._unread = True, False
            except ssl.SSLError as exc:
                raise ServerError(self._why(exc)) from exc
        if total:
            self._barren = max(0, self._barren - _WORTH * total)
            if len(self._cipher) < _CIPHER:
                self._cipher = memoryview(bytearray(_CIPHER))
        return total

    # --- sending -----------------------------------------------------------------------------------------------

    def _send_sealed(self, buffers: Sequence[Buffer], ancillary: object = (), flags: int = 0) -> int:
        """Like a socket's ``sendmsg``: how many bytes of `buffers` are on their way. One thread at a time.

        What it did not count must be sent next: it may be encrypted already. BlockingIOError.
        """
        sent = 0
        try:
            if self._sealed:
                self._push(flags)
                sent, self._held = self._held, 0
            for pieces, nbytes in _turns(buffers, sent):
                with self._crypt:
                    for piece in pieces:
                        self._encrypt(piece)
                    self._sealed = memoryview(self._outgoing.read())
                self._held = nbytes
                self._push(flags)
                sent += nbytes
                self._held = 0
        except BlockingIOError:
            if not sent:
                raise
        return sent

    def _encrypt(self, piece: memoryview | bytes) -> None:
        """Makes records of `piece`; the lock is held."""
        write, size = self._object.write, len(piece)
        done = write(piece)  # one record a call
        while done < size:
            done += write(piece[done : done + _RECORD])

    def _push(self, flags: int) -> None:
        """Hands what is encrypted to the kernel. BlockingIOError if it has no room for all of it."""
        while self._sealed:
            sent = self._sock.send(self._sealed, flags)
            self._sealed = self._sealed[sent:]
            if not flags:
                super()._keep_up(sent)

    def _keep_up(self, sent: int) -> None:
        """Every record has been noted: a frame may be many."""

    # --- the end -----------------------------------------------------------------------------------------------

    def abort(self) -> None:
        self._abrupt = True
        super().abort()

    def _say_end(self) -> None:
        """Tells the peer that this is the end and no cut line, if that can be said at once."""
        with self._lock:
            if not self._agreed or self._abrupt or self._broken or self._writing or self._sealed:
                return
            with self._crypt, suppress(ssl.SSLError):
                self._object.unwrap()
            with suppress(OSError):
                self._sock.send(self._outgoing.read(), _DONTWAIT)


def _turns(buffers: Sequence[Buffer], skip: int) -> Iterator[tuple[list[memoryview | bytes], int]]:
    """`buffers` without the first `skip` bytes, in turns of (pieces that become records, their bytes).

    Small buffers are joined with what follows them, so that a frame's header takes no record of its own.
    """
    left = views(buffers, skip)
    pieces: list[memoryview | bytes] = []
    turn = at = 0
    while at < len(left):
        view = left[at]
        if len(view) >= _RECORD or at + 1 == len(left):
            piece: memoryview | bytes = view[: _TURN - turn]
            left[at] = view[len(piece) :]
            at += not len(left[at])
        else:
            parts, room = [], _RECORD
            while at < len(left) and room:
                parts.append(left[at][:room])
                left[at] = left[at][room:]
                room -= len(parts[-1])
                at += not len(left[at])
            piece = b"".join(parts)
        pieces.append(piece)
        turn += len(piece)
        if turn >= _TURN - _RECORD:
            yield pieces, turn
            pieces, turn = [], 0
    if pieces:
        yield pieces, turn


class TlsListener(TcpListener):
    """A listening socket whose connections are encrypted with the certificate of `security`."""

    private = True

    def __init__(self, host: str, port: int, limits: Limits, security: ServerSecurity) -> None:
        context, throttle = server_context(security), Throttle(_HANDSHAKES_S, _HANDSHAKES_SHARE)
        super().__init__(host, port, limits, partial(TlsConnection, context=context, throttle=throttle))
        self.identifies = security.client_ca is not None


def listen(host: str, port: int, limits: Limits, security: ServerSecurity) -> TlsListener:
    """Listens at `host`. UsageError if `security` has no certificate."""
    if security.certificate is None:
        raise UsageError(
            f"tls://{host} needs a certificate: --tls-cert FILE --tls-key FILE (splitpoint keys makes them)"
        )
    return TlsListener(host, port, limits, security)


def connect(address: str, limits: Limits, timeout_s: float, security: Security = OPEN) -> TlsConnection:
    """An encrypted connection to ``HOST[:PORT]``. ServerError says what is wrong there and what to do."""
    end = monotonic() + timeout_s
    host, _ = parse_address(address)
    context = client_context(security)
    named = replace(security, server_name=security.server_name or host.partition("%")[0])
    make = partial(TlsConnection, limits=limits, context=context, security=named, spin_s=SPIN_S)
    try:
        connection = connected(make, address, _DIAL_SHARE * timeout_s)
    except ValueError as exc:
        raise UsageError(f"{named.server_name} is no name that a certificate could have") from exc
    try:
        connection.handshake(end - monotonic())
    except BaseException:
        connection.close()
        raise
    return connection
