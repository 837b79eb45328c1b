"""A server accepts from any number of listeners."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import certificates
import numpy as np
import pytest
from serving import Gate, affine, nothing_leaks, until

from splitpoint.errors import ServerError, UnreachableError, UsageError
from splitpoint.models.model import Model
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.events import Event
from splitpoint.runtime.server.server import Server
from splitpoint.security import ServerSecurity
from splitpoint.transports import Listener, listen

X = np.ones((1, 1024), np.float32)


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return affine(tmp_path)


def three(name: str) -> Sequence[Listener]:
    return (
        listen("127.0.0.1", 0),
        listen("127.0.0.1", 0, security=certificates.server()),
        listen(f"memory://{name}"),
    )


def test_one_server_answers_over_tcp_tls_and_memory_at_once(model: Model, tmp_path: Path) -> None:
    told: list[Event] = []
    with nothing_leaks():
        with Server([model], engine=Gate(), listeners=three(tmp_path.name), on_event=told.append) as server:
            plain, encrypted, here = server.addresses
            assert server.address == plain
            assert here == f"memory://{tmp_path.name}"
            edges = [
                Edge(plain, model, at="input", engine=Gate()),
                Edge(encrypted, model, at="input", engine=Gate(), security=certificates.client()),
                Edge(here, model, at="input", engine=Gate()),
            ]
            for edge in edges:
                np.testing.assert_array_equal(edge.infer(X).outputs["y3"], X)
            assert server.stats().connections == 3
            assert [e.fields["address"] for e in told if e.kind == "listening"] == [plain, encrypted, here]
            assert len({e.fields["peer"] for e in told if e.kind == "connected"}) == 3
            for edge in edges:
                edge.close()
            assert until(lambda: not server.stats().connections)
        with pytest.raises(UnreachableError):
            Edge(here, model, at="input", engine=Gate())


def test_memory_is_a_host_like_any_other(model: Model, tmp_path: Path) -> None:
    with nothing_leaks():
        server = Server([model], engine=Gate(), host=f"memory://{tmp_path.name}")
        for _ in range(2):  # and it can start again
            with server, Edge(server.address, model, at="input", engine=Gate(), fallback="local") as edge:
                np.testing.assert_array_equal(edge.infer(X).outputs["y3"], X)


def test_listeners_that_are_given_are_closed_with_it_and_are_good_for_one_start(model: Model, tmp_path: Path) -> None:
    server = Server([model], engine=Gate(), listeners=[listen(f"memory://{tmp_path.name}")])
    with server:
        pass
    listen(f"memory://{tmp_path.name}").close()
    with pytest.raises(UsageError, match="has closed its listeners"):
        server.start()


def test_one_that_strangers_can_reach_is_refused_and_all_are_closed(model: Model, tmp_path: Path) -> None:
    listeners = [listen(f"memory://{tmp_path.name}"), listen("0.0.0.0", 0)]
    with nothing_leaks():
        server = Server([model], engine=Gate(), listeners=listeners)
        with pytest.raises(UsageError, match="other machines could use this server, without encryption or a token"):
            server.start()
    listen(f"memory://{tmp_path.name}").close()


def test_a_token_is_asked_for_whatever_the_listener(model: Model, tmp_path: Path) -> None:
    told: list[Event] = []
    security = ServerSecurity(token=certificates.TOKEN)
    listener = listen(f"memory://{tmp_path.name}")
    with Server([model], engine=Gate(), listeners=[listener], security=security, on_event=told.append) as server:
        with pytest.raises(ServerError, match="wants a token"):
            Edge(server.address, model, at="input", engine=Gate())
        with Edge(
            server.address, model, at="input", engine=Gate(), security=certificates.Security(token=certificates.TOKEN)
        ) as edge:
            edge.infer(X)
        assert until(lambda: server.stats().turned_away == 1)
    assert [e.fields["why"] for e in told if e.kind == "refused"]
