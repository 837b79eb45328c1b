"""A server and its devices over TLS: who gets in, and what is refused."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import certificates
import numpy as np
import pytest
from msgspec import structs
from relays import ThreadRelay
from serving import Gate, affine, evaluate, until

from splitpoint.cli import main
from splitpoint.engines import open_engine
from splitpoint.errors import AccessError, ServerError, UsageError
from splitpoint.link import Link
from splitpoint.models.model import Model
from splitpoint.runtime.client.channel import Channel
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.timeouts import Patience
from splitpoint.runtime.events import Event
from splitpoint.runtime.server.server import Server
from splitpoint.security import Security, ServerSecurity
from splitpoint.transports import connect, memory
from splitpoint.wire import Limits

pytestmark = pytest.mark.usefixtures("no_leaks", "_no_environment")

TOKEN = certificates.TOKEN


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return affine(tmp_path)


def guarded(model: Model, *, token: str = TOKEN, mutual: bool = False, told: list[Event] | None = None) -> Server:
    return Server(
        [model],
        engine=open_engine(threads=1),
        port=0,
        security=certificates.server(token=token, mutual=mutual),
        on_event=(told if told is not None else []).append,
    )


def test_the_halves_give_the_whole_models_answer_through_tls(tmp_path: Path) -> None:
    """Tensors of 4 MB, both ways, from four threads at once; every answer is its request's."""
    model = affine(tmp_path, size=1 << 20, layers=2)
    rng = np.random.default_rng(0)
    xs = [rng.normal(size=(1, 1 << 20)).astype(np.float32) for _ in range(4)]
    wants = [evaluate(model, x) for x in xs]
    told: list[Event] = []
    with (
        guarded(model, told=told) as server,
        Edge(
            server.address, model, at="add0", engine=open_engine(threads=1), security=certificates.client(token=TOKEN)
        ) as edge,
    ):
        wrong: list[int] = []

        def ask(k: int) -> None:
            for _ in range(3):
                if not np.allclose(edge.infer(xs[k]).outputs["y1"], wants[k], rtol=1e-5, atol=1e-5):
                    wrong.append(k)

        threads = [threading.Thread(target=ask, args=(k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert wrong == []
        streamed = [r.outputs["y1"] for r in edge.stream(xs, window=4)]
        for got, want in zip(streamed, wants, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    assert not [e for e in told if TOKEN in e.sentence]


def test_graph_and_weights_come_through_tls_too(model: Model, tmp_path: Path) -> None:
    x = np.random.default_rng(1).normal(size=(1, 1024)).astype(np.float32)
    told: list[Event] = []
    with guarded(model, mutual=True, told=told) as server:
        security = certificates.client(token=TOKEN, mutual=True)
        with Edge(f"tls://{server.address}", at="add1", cache=tmp_path / "cache", security=security) as edge:
            np.testing.assert_allclose(edge.infer(x).outputs["y3"], evaluate(model, x), rtol=1e-5)
    assert any("with the certificate of splitpoint device" in e.sentence for e in told if e.kind == "connected")


@pytest.mark.parametrize(
    ("said", "words"),
    [("", "wants a token"), ("wrong-" + TOKEN, "not the token"), (TOKEN[:-1], "not the token")],
    ids=["missing", "wrong", "part of it"],
)
def test_without_the_token_nobody_gets_in(model: Model, said: str, words: str) -> None:
    told: list[Event] = []
    with guarded(model, told=told) as server:
        with pytest.raises(AccessError, match=words) as caught:
            Edge(server.address, model, security=certificates.client(token=said))
        assert caught.value.exit_code == 6
        assert until(lambda: any(e.kind == "refused" for e in told))
    assert not [e for e in told if e.kind == "connected"]
    text = str(caught.value) + "".join(e.sentence for e in told)
    assert not said or said not in text
    assert TOKEN not in text


def test_a_token_is_not_sent_where_others_could_read_it(model: Model) -> None:
    near, far = memory.pair()
    near.private = False  # type: ignore[misc]
    with pytest.raises(UsageError, match="TLS"):
        Channel(near, software="test", timeout_s=1, token=TOKEN)
    with pytest.raises(TimeoutError):
        far.receive(timeout_s=0.0)
    near.close()
    far.close()


def test_an_address_without_tls_does_not_undo_what_was_asked_for() -> None:
    with pytest.raises(UsageError, match="write tls://127"):
        connect("tcp://127.0.0.1:1", security=certificates.client())


def test_a_token_without_tls_is_fine_on_loopback(model: Model) -> None:
    x = np.ones((1, 1024), np.float32)
    with Server([model], engine=Gate(), port=0, security=ServerSecurity(token=TOKEN)) as server:
        with Edge(server.address, model, at="input", security=Security(token=TOKEN)) as edge:
            np.testing.assert_array_equal(edge.infer(x).outputs["y3"], x)
        with pytest.raises(AccessError, match="wants a token"):
            Edge(server.address, model)


def test_who_speaks_openly_to_a_tls_server_is_told_and_no_more(model: Model) -> None:
    with guarded(model) as server, pytest.raises(AccessError, match="speaks TLS only: connect with --tls"):
        Edge(server.address, model, security=Security(token=TOKEN))


def test_who_speaks_tls_to_an_open_server_is_told(model: Model) -> None:
    told: list[Event] = []
    with Server([model], engine=Gate(), port=0, on_event=told.append) as server:
        with pytest.raises(ServerError, match="in the TLS handshake: does it speak TLS"):
            Edge(server.address, model, security=certificates.client())
        assert until(lambda: any("speaks TLS" in e.sentence for e in told))


def test_a_silent_port_is_given_up_in_time(model: Model) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(ServerError, match="did not finish the TLS"):
        connect(f"127.0.0.1:{silent.getsockname()[1]}", Limits(), 0.2, certificates.client())


def test_a_lost_connection_is_made_again_as_safely(model: Model) -> None:
    x = np.random.default_rng(1).normal(size=(1, 1024)).astype(np.float32)
    want = evaluate(model, x)
    patience = Patience(pause_s=0.01, longest_pause_s=0.1)
    with guarded(model, mutual=True) as server, ThreadRelay(server.address, Link(1000, 1000, 0)) as relay:
        security = certificates.client(token=TOKEN, mutual=True)
        with Edge(
            relay.address,
            model,
            at="add1",
            engine=open_engine(threads=1),
            fallback="wait",
            security=security,
            patience=structs.replace(patience, seed=1),
        ) as edge:
            for _ in range(3):
                np.testing.assert_allclose(edge.infer(x).outputs["y3"], want, rtol=1e-5)
                relay.cut()


def test_turned_away_for_want_of_room_is_heard_at_once(model: Model) -> None:
    limits = Limits(connections=1)
    security = certificates.client()
    with (
        Server([model], engine=Gate(), port=0, limits=limits, security=certificates.server()) as server,
        Edge(server.address, model, at="input", security=security),
        pytest.raises(ServerError, match=r"no room.*try again later"),
    ):
        Edge(server.address, model, at="input", security=security)


@pytest.mark.parametrize("kind", ["nothing", "tls", "token"])
def test_off_loopback_a_server_without_both_does_not_start(model: Model, kind: str) -> None:
    of = certificates.keys()
    made = {
        "nothing": ServerSecurity(),
        "tls": ServerSecurity(of.server, of.server_key),
        "token": ServerSecurity(token=TOKEN),
    }[kind]
    server = Server([model], engine=Gate(), host="0.0.0.0", port=0, security=made)
    with pytest.raises(UsageError, match="--insecure"):
        server.start()


@pytest.mark.parametrize("kind", ["tls and token", "tls and client certificates", "on purpose"])
def test_off_loopback_a_guarded_server_starts(model: Model, kind: str) -> None:
    made = {
        "tls and token": certificates.server(token=TOKEN),
        "tls and client certificates": certificates.server(mutual=True),
        "on purpose": ServerSecurity(insecure=True),
    }[kind]
    told: list[Event] = []
    with Server([model], engine=Gate(), host="0.0.0.0", port=0, security=made, on_event=told.append):
        assert [e.kind for e in told] == ["listening", "warning"][: 1 + made.insecure]


@pytest.fixture
def _signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_signals")
def test_serve_refuses_what_is_not_safe(token_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of = certificates.keys()
    pair = ["--tls-cert", str(of.server), "--tls-key", str(of.server_key)]
    cases = [
        (["--host", "0.0.0.0"], "--insecure"),
        (["--host", "0.0.0.0", *pair], "--token-file"),
        (["--client-ca", str(of.ca)], "need TLS"),
        (["--tls-key", str(of.server_key)], "--tls-cert"),
        (["--tls-cert", str(of.server)], "holds no private key"),
    ]
    for options, words in cases:
        assert main(["serve", "zoo:lenet5", "--port", "0", *options]) == 2, options
        assert words in capsys.readouterr().err, options
    token_file.chmod(0o644)
    assert main(["serve", "zoo:lenet5", "--port", "0", "--token-file", str(token_file)]) == 2
    assert f"chmod 600 {token_file}" in capsys.readouterr().err


def test_the_verbs_that_speak_to_a_server_speak_tls(
    token_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from splitpoint.models import load

    with guarded(load("zoo:lenet5")) as server:
        known = ["--cloud", server.address, "--ca", str(certificates.keys().ca), "--token-file", str(token_file)]
        cache = ["--cache", str(tmp_path / "cache")]
        assert main(["pull", *known, *cache]) == 0
        assert main(["link", *known, "--json"]) == 0
        assert main(["doctor", *known]) == 0
        capsys.readouterr()
        assert main(["pull", *known[:4], *cache]) == 6
        assert "wants a token" in capsys.readouterr().err
