"""One conversation: whoever waits reads, and nobody waits for ever."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from places import SUPPORT
from serving import Gate, affine

from splitpoint import wire
from splitpoint.engines import open_engine
from splitpoint.errors import (
    ModelError,
    ProtocolError,
    ServerError,
)
from splitpoint.models.model import Model
from splitpoint.runtime.client.channel import Channel
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.timeouts import Patience
from splitpoint.runtime.server.catalogue import Catalogue
from splitpoint.runtime.server.server import Server
from splitpoint.tensors import Array
from splitpoint.transports import connect
from splitpoint.wire import Kind

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return affine(tmp_path)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def inputs(count: int = 1, size: int = 1024, seed: int = 0) -> list[Array]:
    return list(np.random.default_rng(seed).normal(size=(count, 1, size)).astype(np.float32))


def ort() -> object:
    return open_engine(threads=1)


def test_an_answer_that_does_not_come_is_given_up_and_its_late_arrival_ignored(model: Model, cache: Path) -> None:
    gate = Gate(is_open=False)
    with (
        Server([model], engine=gate, port=0) as server,
        Edge(server.address, at="input", cache=cache, patience=Patience(answer_s=0.1)) as edge,
    ):
        with pytest.raises(ServerError, match="did not answer in time"):
            edge.infer(inputs()[0])
        gate.open.set()
        x = inputs(seed=3)[0]
        for _ in range(3):
            np.testing.assert_array_equal(edge.infer(x).outputs["y3"], x)


def test_a_killed_server_is_noticed_at_once(tmp_path: Path, cache: Path) -> None:
    script = tmp_path / "serve.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(SUPPORT)!r})\n"
        "from pathlib import Path\n"
        "from serving import Gate, affine\n"
        "from splitpoint.runtime.server.server import Server\n"
        f"with Server([affine(Path({str(tmp_path)!r}))], engine=Gate(is_open=False), port=0) as server:\n"
        "    print(server.address, flush=True)\n"
        "    server.serve_forever()\n"
    )
    child = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        edge = Edge(child.stdout.readline().strip(), cache=cache, at="input")
        threading.Timer(0.2, child.kill).start()
        with pytest.raises(ServerError, match=r"127\.0\.0\.1"):
            edge.infer(inputs()[0])
        edge.close()
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def test_ctrl_c_while_sending_ends_the_connection_at_once(
    model: Model, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    with Server([model], engine=ort(), port=0) as server:
        edge = Edge(server.address, at="add1", cache=cache)
        monkeypatch.setattr(edge._channel._connection, "_sendmsg", interrupted)
        with pytest.raises(KeyboardInterrupt):
            edge.infer(inputs()[0])
        began = time.perf_counter()
        edge.close()
        assert time.perf_counter() - began < 2


def test_a_servers_words_are_cleaned_on_the_device(model: Model, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Server([model], engine=ort(), port=0) as server:

        def no(catalogue: Catalogue, fingerprint: str) -> Model:
            raise ModelError("\x1b[2J\x1b]0;title\x07gone\nserving on 6.6.6.6")

        monkeypatch.setattr(Catalogue, "__getitem__", no)
        with pytest.raises(ModelError) as caught:
            Edge(server.address, cache=cache)
        assert str(caught.value) == "[2J ]0;title gone serving on 6.6.6.6"


@pytest.mark.parametrize(
    ("says", "words"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", r"does not speak splitpoint \(it answered 'HTTP/1\.1 400 Bad Request"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", r"it answered 'SSH-2\.0-OpenSSH_9\.6'"),
        (b"", "closed the connection"),
        (None, "did not answer in 0.2 s"),
    ],
)
def test_something_else_on_the_port_is_recognised(says: bytes | None, words: str) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def stranger() -> None:
            sock, _ = listener.accept()
            with sock:
                if says is None:
                    stop.wait(5)
                else:
                    sock.recv(1000)
                    sock.sendall(says)

        stop = threading.Event()
        thread = threading.Thread(target=stranger)
        thread.start()
        with pytest.raises(ServerError, match=words):
            Edge(f"127.0.0.1:{listener.getsockname()[1]}", patience=Patience(connect_s=0.2))
        stop.set()
        thread.join()


def test_a_server_of_another_major_version_is_a_clear_error() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def newer() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.recv(1000)
                head = bytearray(wire.encode(Kind.WELCOME, 0, wire.Welcome()).buffers[0])  # type: ignore[arg-type]
                head[4] = 2
                sock.sendall(head)

        thread = threading.Thread(target=newer)
        thread.start()
        with pytest.raises(ProtocolError, match=r"speaks version 2 .* this side version 1"):
            Edge(f"127.0.0.1:{listener.getsockname()[1]}")
        thread.join()


def test_pings_keep_the_clock_fresh_without_a_round_trip_of_their_own(model: Model, cache: Path) -> None:
    now = [1000.0]
    with Server([model], engine=Gate(), port=0) as server:
        channel = Channel(connect(server.address), software="test", timeout_s=5, clock=lambda: now[0])
        channel.measure_clock()
        before = len(channel.clock._samples)
        assert before >= 1
        for step in (0.1, 2.0, 0.1, 2.0):
            now[0] += step
            with pytest.raises(ModelError):
                channel.ask(Kind.GRAPH, wire.GraphRequest("nope"), wire.GraphData)
        assert len(channel.clock._samples) == before + 2
        channel.close()
