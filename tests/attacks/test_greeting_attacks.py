"""Those who are not let in yet, from many sides: they neither keep others out, nor cost more than a little each."""

from __future__ import annotations

import ctypes
import ctypes.util
import dataclasses
import hmac
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import certificates
import pytest
from attacking import LIMITS, Attacker
from serving import Gate, affine, nothing_leaks, until

from splitpoint.errors import BusyError
from splitpoint.models.model import Model
from splitpoint.runtime.events import Event
from splitpoint.runtime.server import accounts as origins
from splitpoint.runtime.server import admission as greeting
from splitpoint.runtime.server.accounts import name_of
from splitpoint.runtime.server.admission import Guesses, Refusals, Room
from splitpoint.runtime.server.server import Server
from splitpoint.security import ServerSecurity
from splitpoint.transports import budget
from splitpoint.wire import Kind, Limits

TOKEN = certificates.TOKEN
#: Nobody's time is over here, but whose test is about that.
PATIENT = dataclasses.replace(LIMITS, handshake_s=60.0, stall_s=60.0, arrivals=4)
NEAR, FAR, OTHER = "127.0.0.1", "127.0.0.2", "127.0.0.3"


class Target:
    """A server, with TLS and a token or without both, and who comes to it."""

    def __init__(self, server: Server, model: Model, told: list[Event], tls: bool) -> None:
        self.server, self.model, self.told, self.tls = server, model, told, tls
        self.came: list[Attacker] = []

    def connect(self, source: str = NEAR) -> Attacker:
        """One that has only connected."""
        made = Attacker(self.server.address, hello=False, source=source)
        self.came.append(made)
        return made

    def shake(self, who: Attacker) -> Attacker:
        """The same, after its TLS handshake."""
        if self.tls:
            context = ssl.create_default_context(cafile=str(certificates.keys().ca))
            who.sock = context.wrap_socket(who.sock, server_hostname="127.0.0.1")
        return who

    def greet(self, who: Attacker, **more: Any) -> tuple[int, Any]:
        """(kind, header) of what HELLO is answered with."""
        who.send(2, 0, {"version": [1, 0], "token": TOKEN, **more})
        kind, _, header, _ = who.receive()
        return kind, header

    def honest(self, source: str = NEAR) -> Attacker:
        """One that is let in."""
        who = self.shake(self.connect(source))
        kind, header = self.greet(who)
        assert kind == Kind.WELCOME, header
        return who

    def pings(self, who: Attacker) -> None:
        who.send(5, 9, [1.5])
        assert who.receive()[:2] == (Kind.PONG, 9)

    def tells(self, words: str) -> bool:
        return until(lambda: any(words in e.sentence for e in self.told))


@contextmanager
def serving(folder: Path, *, tls: bool, limits: Limits = PATIENT) -> Iterator[Target]:
    """A server that lets an honest client in at the end, and of which nothing is left."""
    model, told = affine(folder), list[Event]()
    security = certificates.server(token=TOKEN) if tls else ServerSecurity()
    with nothing_leaks():
        with Server([model], engine=Gate(), port=0, limits=limits, security=security, on_event=told.append) as server:
            target = Target(server, model, told, tls)
            yield target
            for who in target.came:
                who.close()
            assert until(lambda: not server._peers)
            target.honest().close()
        assert "internal" not in "".join(e.sentence for e in told)


@pytest.fixture(params=[False, True], ids=["plain", "TLS"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Target]:
    with serving(tmp_path, tls=request.param) as made:
        yield made


# --- places ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sources", [[NEAR], [NEAR, FAR], [NEAR, FAR, OTHER, "127.0.0.4", "127.0.0.5"]], ids=len)
def test_the_silent_lock_nobody_out(target: Target, sources: list[str]) -> None:
    """More than there are places of any kind: whoever comes now is let in, from their addresses and any other."""
    for k in range(40):
        target.connect(sources[k % len(sources)])
    for source in (*sources, "127.0.0.9"):
        target.pings(target.honest(source))
        assert len(target.server.admission.room) <= PATIENT.arrivals
    assert until(lambda: len(target.server.admission.arrivals) <= PATIENT.arrivals), (
        "the threads of those who lost their places"
    )


def test_those_who_are_in_are_not_counted_with_those_who_are_not(target: Target) -> None:
    inside = [target.honest() for _ in range(LIMITS.connections - 1)]
    for _ in range(20):
        target.connect(FAR)
    inside.append(target.honest(OTHER))
    for who in inside:
        target.pings(who)


def test_who_comes_from_a_quiet_address_keeps_its_place(target: Target) -> None:
    slow = target.connect(FAR)
    assert until(lambda: len(target.server.admission.room) == 1)
    crowd = [target.connect(NEAR) for _ in range(30)]
    if not target.tls:
        assert crowd[0].receive()[2]["code"] == "busy", "a word, and that is all"
        crowd[0].hung_up()
    assert target.greet(target.shake(slow))[0] == Kind.WELCOME


def test_half_a_greeting_keeps_no_place(target: Target) -> None:
    """After TLS, and within HELLO: however far one has come."""
    for k in range(12):
        who = target.shake(target.connect())
        who.raw(who.frame(2, 0, {"software": "x" * 3000})[: 1 + 250 * k])
    target.pings(target.honest())


def test_places_are_counted_when_one_is_let_in(tmp_path: Path) -> None:
    with serving(tmp_path, tls=False, limits=dataclasses.replace(PATIENT, connections=2)) as target:
        came = [target.connect() for _ in range(4)]
        assert until(lambda: len(target.server.admission.room) == 4)
        said = [target.greet(who) for who in came]
        assert [kind for kind, _ in said] == [Kind.WELCOME, Kind.WELCOME, Kind.ERROR, Kind.ERROR]
        assert {header["code"] for kind, header in said if kind == Kind.ERROR} == {"busy"}
        target.pings(came[0])


def test_an_addresss_share_is_counted_when_one_is_let_in(tmp_path: Path) -> None:
    with serving(tmp_path, tls=False, limits=dataclasses.replace(PATIENT, client_connections=1)) as target:
        came = [target.connect(), target.connect(), target.connect(FAR)]
        assert until(lambda: len(target.server.admission.room) == 3)
        assert [target.greet(who)[0] for who in came] == [Kind.WELCOME, Kind.ERROR, Kind.WELCOME]


def test_the_server_ends_while_they_are_silent(tmp_path: Path) -> None:
    with nothing_leaks():
        with Server([affine(tmp_path)], engine=Gate(), port=0, limits=PATIENT) as server:
            came = [Attacker(server.address, hello=False) for _ in range(3)]
            assert until(lambda: len(server.admission.room) == 3)
        for who in came:
            assert "is ending" in who.receive()[2]["message"]
            who.close()


def test_who_has_most_loses_its_oldest() -> None:
    room = Room[str](4)
    assert [room.enter(who[0], who) for who in ("a1", "b1", "b2", "c1")] == [None] * 4
    assert room.enter("a", "a2") == "a1", "the first of those who have as many"
    assert room.enter("d", "d1") == "b1"
    assert sorted(room) == ["a2", "b2", "c1", "d1"]
    assert room.enter("e", "e1") == "a2", "one each: the first address that came"
    assert [room.leave("b", "b2"), room.leave("b", "b2"), room.leave("x", "y")] == [True, False, False]
    assert len(room) == 3


# --- times ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_a_hello_that_drips_fast_enough_is_ended_all_the_same(tmp_path: Path, tls: bool) -> None:
    """6 kB/s, so that no rate of a frame ends it: TLS and HELLO have their time altogether."""
    with serving(tmp_path, tls=tls, limits=dataclasses.replace(PATIENT, handshake_s=0.5)) as target:
        who = target.shake(target.connect())
        data = who.frame(2, 0, {"version": [1, 0], "token": TOKEN, "software": "x" * 30_000})
        sent = 0
        try:
            while sent < len(data):
                who.raw(data[sent : sent + 300])
                sent += 300
                time.sleep(0.05)  # the attack itself
        except OSError:
            pass
        assert sent < len(data)
        assert target.tells("not said in time who it is")


# --- tokens ---------------------------------------------------------------------------------------------------------


def test_guesses_of_one_address_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many connections it has; those that are too many are not even compared, and others are."""
    monkeypatch.setattr(greeting, "GUESS_S", 30.0)
    asked, compared = list[str](), list[str]()
    fits, admits = Guesses.fits, ServerSecurity.admits

    def ask(self: Guesses, address: str, token: str) -> bool:
        asked.append(token)
        return fits(self, address, token)

    def compare(self: ServerSecurity, token: str) -> bool:
        compared.append(token)
        return admits(self, token)

    monkeypatch.setattr(Guesses, "fits", ask)
    monkeypatch.setattr(ServerSecurity, "admits", compare)
    with serving(tmp_path, tls=True, limits=dataclasses.replace(PATIENT, arrivals=16)) as target:
        for k in range(2 * greeting._GUESSES):
            target.shake(target.connect()).send(2, 0, {"version": [1, 0], "token": f"guess {k}"})
            assert until(lambda: len(asked) > k)  # noqa: B023 - called at once
        assert compared == asked[: greeting._GUESSES]
        target.pings(target.honest(FAR))
        for arrival in list(target.server.admission.arrivals):
            arrival.send_away("")  # or it would think for 30 s
        assert until(lambda: not target.server.admission.guesses._wrong)


def test_wrong_tokens_that_are_thought_about_hold_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greeting, "GUESS_S", 60.0)
    with serving(tmp_path, tls=True) as target:
        for _ in range(12):
            who = target.shake(target.connect())
            who.send(2, 0, {"version": [1, 0], "token": "x" * 20})
        target.pings(target.honest(FAR))
        assert until(lambda: len(target.server.admission.arrivals) <= PATIENT.arrivals)
        for arrival in list(target.server.admission.arrivals):
            arrival.send_away("")
        assert until(lambda: not target.server.admission.guesses._wrong)


@pytest.mark.parametrize("said", ["", "x", TOKEN[:-1], TOKEN + "x", "ü" * 28, "\ud800", "\0" * 28, "x" * 60_000])
def test_a_token_is_compared_as_a_whole_and_in_the_same_way(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever comes: one comparison of two digests, which says nothing of lengths, and takes no text."""
    compared = list[tuple[bytes, bytes]]()
    real = hmac.compare_digest

    def compare(one: bytes, two: bytes) -> bool:
        compared.append((one, two))
        return real(one, two)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    security = ServerSecurity(token=TOKEN)
    assert not security.admits(said)
    assert security.admits(TOKEN)
    assert [[len(part) for part in pair] for pair in compared] == [[32, 32], [32, 32]]


def test_a_missing_token_is_a_guess_too() -> None:
    guesses = Guesses(ServerSecurity(token=TOKEN))
    for _ in range(greeting._GUESSES):
        assert not guesses.fits("a", "")
    with pytest.raises(BusyError):
        guesses.fits("a", TOKEN)
    assert guesses.fits("b", TOKEN)
    guesses.forget("a")
    assert guesses.fits("a", TOKEN)
    assert guesses._wrong == {"a": greeting._GUESSES - 1}


# --- what one client is ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.0.0.1:1", "[::ffff:10.0.0.1]:2", True),
        ("10.0.0.1:1", "[64:ff9b::a00:1]:2", True),
        ("[64:ff9b::a00:1]:1", "[64:ff9b::a00:2]:1", False),
        ("[2002:a00:1::1]:1", "[2002:a00:1:ffff::1]:1", True),
        ("[2002:a00:1::1]:1", "[2002:a00:2::1]:1", False),
        ("[2001:db8::1]:1", "[2001:db8::ffff:1]:1", True),
        ("[2001:db8::1]:1", "[2001:db8:0:1::1]:1", False),
        ("[fd00::1]:1", "[fd00::2]:1", True),
        ("[fe80::1%eth0]:1", "[fe80::1%eth0]:2", True),
        ("[fe80::1%eth0]:1", "[fe80::2%eth0]:1", False),
        ("[fe80::1%eth0]:1", "[fe80::1%eth1]:1", False),
    ],
)
def test_what_one_client_is(one: str, other: str, same: bool) -> None:
    assert (name_of(one) == name_of(other)) == same


# --- TLS ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("let_in", [False, True], ids=["before HELLO", "let in"])
def test_records_of_a_byte_are_ended(tmp_path: Path, let_in: bool) -> None:
    """22 bytes and a decryption for each byte."""
    with serving(tmp_path, tls=True) as target:
        who = target.honest() if let_in else target.shake(target.connect())
        body = bytes(20_000)
        data = who.frame(200, 1, b"\xc0", body) if let_in else who.frame(2, 0, {"software": "x" * 20_000})
        with suppress(OSError):
            for byte in data:
                who.raw(bytes([byte]))
        assert target.tells("with nothing in them")


def key_updates(fileno: int) -> Callable[[], bool]:
    """What sends one more key update, which asks for one too, over that socket; False once it is closed."""
    name = ctypes.util.find_library("ssl")
    if name is None:
        pytest.skip("no OpenSSL that ctypes finds")
    lib = ctypes.CDLL(name)
    for function in ("TLS_client_method", "SSL_CTX_new", "SSL_new"):
        getattr(lib, function).restype = ctypes.c_void_p
    context = ctypes.c_void_p(lib.SSL_CTX_new(ctypes.c_void_p(lib.TLS_client_method())))
    side = ctypes.c_void_p(lib.SSL_new(context))
    lib.SSL_CTX_free(context)
    assert lib.SSL_set_fd(side, fileno)
    assert lib.SSL_connect(side) == 1
    return lambda: lib.SSL_key_update(side, 1) == 1 and lib.SSL_do_handshake(side) == 1


def test_key_updates_without_end_are_ended(tmp_path: Path) -> None:
    with serving(tmp_path, tls=True) as target:
        who = target.connect()
        who.sock.settimeout(None)
        update = key_updates(who.sock.fileno())
        sent = 0
        while sent < 50_000 and update():
            sent += 1
        assert sent < 50_000
        assert target.tells("with nothing in them")


def test_handshakes_get_a_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """In virtual time: a thousand of 2 ms each, one after the other."""
    now_s = computed_s = 0.0

    def wait(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds

    monkeypatch.setattr(budget, "monotonic", lambda: now_s)
    monkeypatch.setattr(budget, "sleep", wait)
    monkeypatch.setattr(budget, "thread_time", lambda: computed_s)
    pace = budget.Throttle(most_s=0.25, share=0.25)
    waited = list[float]()
    for _ in range(1000):
        before = now_s
        with pace:
            waited.append(now_s - before)
            computed_s += 2e-3
            now_s += 2e-3
    assert sum(waited[:100]) == 0, "a fleet that comes back does not wait"
    assert max(waited) <= 8e-3
    assert computed_s <= 0.25 + 0.25 * now_s + 2e-3


# --- what is said ---------------------------------------------------------------------------------------------------


def test_strangers_do_not_fill_the_log(tmp_path: Path) -> None:
    with serving(tmp_path, tls=False) as target:
        for _ in range(300):
            with target.connect().sock as sock:
                sock.sendall(b"rubbish")
                while sock.recv(100):
                    pass
        refused = [e for e in target.told if e.kind == "refused"]
        assert greeting._LINES - 10 <= len(refused) < 150


def test_those_of_whom_nothing_was_said_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    monkeypatch.setattr(greeting, "monotonic", lambda: now_s)
    told = list[Event]()
    refusals = Refusals(told.append)
    for k in range(greeting._LINES + 7):
        refusals(f"number {k}", "", "")
    assert len(told) == greeting._LINES
    now_s = 1.0
    refusals("the last", "", "")
    assert told[-1].sentence == "the last (and 7 others before, of whom nothing was said)"


# --- PROBE ----------------------------------------------------------------------------------------------------------


def test_probes_of_one_address_are_bounded(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """35 bytes that ask for a megabyte, from several connections of one address."""
    most = 3 << 20
    monkeypatch.setattr(origins, "_PROBES", most)
    received, refused = 0, list[float]()
    for _ in range(4):
        who = target.honest()
        for id in range(1, 5):
            who.send(7, id, [1 << 20])
        for _ in range(4):
            kind, _, header, body = who.receive()
            received += len(body)
            if kind == Kind.ERROR:
                assert header["code"] == "busy"
                refused.append(header["retry_after_s"])
    assert received <= most
    assert len(refused) == 16 - received // (1 << 20)
    assert all(0 < wait_s <= 60 for wait_s in refused)
    elsewhere = target.honest(FAR)
    elsewhere.send(7, 1, [1 << 20])
    assert len(elsewhere.receive()[3]) == 1 << 20
