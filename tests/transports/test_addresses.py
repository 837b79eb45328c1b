"""Addresses as people write them and as sockets have them."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import certificates
import numpy as np
import pytest
from host_names import Named
from serving import affine, evaluate

from splitpoint.cli import main
from splitpoint.engines import open_engine
from splitpoint.errors import ServerError, UsageError
from splitpoint.models.model import Model
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.timeouts import Patience
from splitpoint.runtime.server.server import Server
from splitpoint.transports import addresses, connect
from splitpoint.transports.addresses import Target, format_address, is_loopback, parse_address, parse_host

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("host", ("host", 3277)),
        ("host:1", ("host", 1)),
        (":4000", ("127.0.0.1", 4000)),
        ("[::1]", ("::1", 3277)),
        ("[fe80::1]:80", ("fe80::1", 80)),
        ("::1", ("::1", 3277)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["host:0", "host:65536", "host:x", "[::1", "[::1]x", "host:-1"])
def test_what_is_no_address_is_said(text: str) -> None:
    with pytest.raises(UsageError):
        parse_address(text)


@pytest.mark.parametrize("host", ["127.0.0.1:5003", "[::1]:5002", "localhost:1", "", "  ", "[::1"])
def test_a_host_with_a_port_is_said(host: str) -> None:
    with pytest.raises(UsageError, match=r"has a port in it|is empty"):
        parse_host(host)


@pytest.mark.parametrize(
    ("host", "here"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("::ffff:127.0.0.2", True), ("::1%lo", True),
     ("::ffff:10.0.0.1", False), ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("fe80::1%lo", False)],
)  # fmt: skip
def test_what_is_this_machine_itself(host: str, here: bool) -> None:
    assert is_loopback(host) == here


def test_a_link_local_address_has_its_interface() -> None:
    index, name = socket.if_nameindex()[0]
    assert format_address(("fe80::1", 80, 0, index)) == f"[fe80::1%{name}]:80"
    assert format_address(("fe80::1", 80, 0, 0)) == "[fe80::1]:80"


#: Long enough that waiting for a silent address would be seen, whatever else this machine does.
LONG_S = 60.0


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return affine(tmp_path)


@contextmanager
def silent(port: int) -> Iterator[str]:
    """An address of this machine that answers nothing at `port`: its queue of connections is full."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.9", port))
        listener.listen(0)
        crowd = []
        try:
            for _ in range(4):  # of which the kernel takes one or two
                sock = socket.socket()
                crowd.append(sock)
                sock.setblocking(False)
                sock.connect_ex(listener.getsockname())
            yield "127.0.0.9"
        finally:
            for sock in crowd:
                sock.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


# --- connecting -----------------------------------------------------------------------------------------------------


def test_a_silent_first_address_costs_a_moment(model: Model, named: Named) -> None:
    x = np.ones((1, 1024), np.float32)
    with Server([model], engine=open_engine(threads=1), port=0) as server:
        port = int(server.address.rpartition(":")[2])
        with silent(port) as dead:
            named("two.test", dead, "127.0.0.1")
            began = monotonic()
            with Edge(f"two.test:{port}", model, at="input", patience=Patience(connect_s=LONG_S)) as edge:
                assert monotonic() - began < LONG_S / 2
                np.testing.assert_allclose(edge.infer(x).outputs["y3"], evaluate(model, x), rtol=1e-5)


def test_with_tls_too_and_the_name_is_still_looked_at(model: Model, named: Named) -> None:
    keys = certificates.keys("two", hosts=("two.test",))
    security = certificates.server(of=keys)
    x = np.ones((1, 1024), np.float32)
    with Server([model], engine=open_engine(threads=1), port=0, security=security) as server:
        port = int(server.address.rpartition(":")[2])
        with silent(port) as dead:
            named("two.test", dead, "127.0.0.1")
            began = monotonic()
            with Edge(
                f"two.test:{port}",
                model,
                at="input",
                security=certificates.client(of=keys),
                patience=Patience(connect_s=LONG_S),
            ) as edge:
                assert monotonic() - began < LONG_S / 2
                np.testing.assert_allclose(edge.infer(x).outputs["y3"], evaluate(model, x), rtol=1e-5)


def test_a_refused_address_is_followed_by_the_next_at_once(model: Model, named: Named) -> None:
    with Server([model], engine=open_engine(threads=1), port=0) as server:
        port = int(server.address.rpartition(":")[2])
        named("many.test", *(f"127.0.0.{k}" for k in range(10, 30)), "127.0.0.1")
        connect(f"many.test:{port}", timeout_s=LONG_S).close()


def test_each_address_that_failed_is_told_and_the_time_holds(named: Named) -> None:
    port = free_port()
    with silent(port) as dead:
        named("bad.test", dead, "127.0.0.8")
        with pytest.raises(ServerError) as caught:
            connect(f"bad.test:{port}", timeout_s=0.6)
        text = str(caught.value)
        assert f"cannot reach bad.test:{port} at any of its addresses" in text
        assert f"{dead}: no answer in 0.6 s" in text
        assert "127.0.0.8: nothing listens there" in text
        named("dead.test", dead)
        with pytest.raises(ServerError, match=rf"no answer from dead\.test:{port} in 0\.3 s"):
            connect(f"dead.test:{port}", timeout_s=0.3)
    named("none.test", "127.0.0.7", "127.0.0.8")
    with pytest.raises(
        ServerError, match=rf"nothing listens at none\.test:{port} \(127\.0\.0\.7, 127\.0\.0\.8\): start"
    ):
        connect(f"none.test:{port}")


def test_a_handshake_that_is_never_answered_ends_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute, pytest.raises(ServerError, match="TLS handshake in 0"):
        connect(f"127.0.0.1:{mute.getsockname()[1]}", timeout_s=0.5, security=certificates.client())


def test_a_name_server_that_does_not_answer_is_waited_for_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    def stuck(host: str, port: int, flags: int = 0) -> list[Target]:
        if flags:
            raise socket.gaierror(socket.EAI_NONAME, "a name")
        over.wait(LONG_S)
        return []

    monkeypatch.setattr(addresses, "_look_up_now", stuck)
    try:
        with pytest.raises(ServerError, match=r"slow\.test was not looked up in 0\.1 s"):
            connect("slow.test", timeout_s=0.1)
    finally:
        over.set()


@pytest.mark.parametrize(
    ("exc", "words"),
    [
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure"), "cannot be looked up now"),
        (socket.gaierror(socket.EAI_NONAME, "unknown"), "no machine is known by the name"),
        (OSError(errno.EMFILE, "Too many open files"), "cannot be looked up: Too many"),
    ],
)
def test_names_that_are_not_found(monkeypatch: pytest.MonkeyPatch, exc: OSError, words: str) -> None:
    def fail(host: str, port: int, flags: int = 0) -> list[Target]:
        raise socket.gaierror(socket.EAI_NONAME, "a name") if flags else exc

    monkeypatch.setattr(addresses, "_look_up_now", fail)
    with pytest.raises(ServerError, match=words):
        connect("some.test")


@pytest.mark.parametrize("name", ["a" * 300, "a..b", "nul\0", "fe80::1%no-such-interface"])
def test_what_is_no_name_is_said(name: str) -> None:
    with pytest.raises(ServerError, match=r"no machine is known|is no address here"):
        connect(f"[{name}]:80")


def test_families_take_turns_as_the_system_has_sorted_them() -> None:
    six, four = [Target(socket.AF_INET6, (f"::{k}", 1)) for k in range(3)], [Target(socket.AF_INET, ("1.1.1.1", 1))]
    assert addresses._in_turns([*six, *four]) == [six[0], four[0], six[1], six[2]]
    assert addresses._in_turns([*four, *six]) == [four[0], *six]


# --- listening ------------------------------------------------------------------------------------------------------


def test_serve_says_so_before_it_listens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    affine(tmp_path)
    assert main(["serve", str(tmp_path / "affine.onnx"), "--host", "127.0.0.1:5003"]) == 2
    assert "--host 127.0.0.1 --port 5003" in capsys.readouterr().err


# --- where nobody is -------------------------------------------------------------------------------------------------


def test_nothing_there_says_how_to_start_something() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(ServerError, match="splitpoint serve"):
        connect(f"127.0.0.1:{port}")


def test_an_unknown_name_and_an_unknown_transport_are_said() -> None:
    with pytest.raises(ServerError, match=r"no\.such\.host\.invalid"):
        connect("no.such.host.invalid")
    with pytest.raises(UsageError, match="carrier-pigeon"):
        connect("carrier-pigeon://roof")
