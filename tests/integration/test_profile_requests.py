"""A server that measures itself, and stand-ins for weights that are not there."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
from serving import Gate, affine, nothing_leaks, until

from splitpoint import wire
from splitpoint.errors import (
    InputError,
    ServerError,
    UsageError,
)
from splitpoint.models.model import Model
from splitpoint.profile import measure
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.server.server import Server
from splitpoint.wire import Kind, Limits


@pytest.fixture
def clean() -> Iterator[None]:
    with nothing_leaks():
        yield


@pytest.fixture
def no_codecs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "codec_costs", lambda *given: {})


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return affine(tmp_path_factory.mktemp("affine"))


@pytest.mark.usefixtures("no_codecs", "clean")
def test_a_server_measures_itself_once(chain: Model) -> None:
    gate = Gate()
    with Server([chain], engine=gate, port=0) as server, Edge(server.address, chain, at="input", engine=gate) as edge:
        profile = edge.profile_server(5.0)
        assert profile.fingerprint == chain.fingerprint
        assert profile.engine == "gate"
        assert profile.complete
        compiled = len(gate.compiled)
        assert edge.profile_server(5.0) == profile
        assert len(gate.compiled) == compiled, "the second time it had it already"


@pytest.mark.usefixtures("no_codecs", "clean")
def test_only_one_profile_at_a_time_and_leaving_ends_it(chain: Model) -> None:
    gate = Gate()
    with Server([chain], engine=gate, port=0) as server:
        first = Edge(server.address, chain, at="input", engine=gate)
        second = Edge(server.address, chain, at="input", engine=gate)
        gate.open.clear()
        failures: list[Exception] = []

        def ask() -> None:
            try:
                first.profile_server(30.0)
            except ServerError as exc:
                failures.append(exc)

        asking = threading.Thread(target=ask)
        asking.start()
        assert gate.entered.acquire(timeout=5)
        first.close()
        asking.join(10)
        assert len(failures) == 1
        compiled = len(gate.compiled)
        assert until(lambda: len(server._peers) == 1)
        gate.open.set()
        assert until(lambda: server.services.profiling.thread is None)
        assert len(gate.compiled) <= compiled + 1, "nobody waited for it"
        assert second.profile_server(5.0).complete
        second.close()


@pytest.mark.usefixtures("no_codecs", "clean")
def test_the_end_of_the_server_ends_a_profile(chain: Model) -> None:
    gate = Gate()
    server = Server([chain], engine=gate, port=0)
    server.start()
    with Edge(server.address, chain, at="input", engine=gate) as edge:
        gate.open.clear()
        failures: list[Exception] = []

        def ask() -> None:
            try:
                edge.profile_server(30.0)
            except ServerError as exc:
                failures.append(exc)

        asking = threading.Thread(target=ask)
        asking.start()
        assert gate.entered.acquire(timeout=5)
        closing = threading.Thread(target=server.close, args=(5.0,))
        closing.start()
        assert until(server.services.profiling._closed.is_set)
        gate.open.set()
        closing.join(10)
        asking.join(10)
        assert not closing.is_alive()
        assert "ending" in str(failures[0])


@pytest.mark.usefixtures("no_codecs", "clean")
@pytest.mark.parametrize(
    ("share", "limit", "budget_s", "says"),
    [
        ("model", 0.0, 5.0, "does not measure itself"),
        ("none", 60.0, 5.0, "hands out no models"),
        ("model", 60.0, float("nan"), "number of seconds, not nan"),
        ("model", 60.0, float("inf"), "number of seconds, not inf"),
        ("model", 60.0, -1.0, "number of seconds, not -1.0"),
    ],
)
def test_a_server_may_refuse(chain: Model, share: str, limit: float, budget_s: float, says: str) -> None:
    gate = Gate()
    limits = Limits(profile_s=limit)
    with (
        Server([chain], engine=gate, port=0, share=share, limits=limits) as server,
        Edge(server.address, chain, at="input", engine=gate) as edge,
    ):
        request = wire.ProfileRequest(chain.fingerprint, budget_s)  # past the edge's own check
        with pytest.raises((ServerError, InputError), match=says):
            edge._channel.ask(Kind.PROFILE, request, wire.Profiled)
        if says.startswith("number"):
            with pytest.raises(UsageError, match="number of seconds above 0"):
                edge.profile_server(budget_s)
        x = np.zeros((1, 1024), np.float32)
        assert edge.infer(x).outputs, "the connection goes on"


@pytest.mark.usefixtures("no_codecs", "clean")
def test_an_engine_that_fails_while_measuring_is_an_error_of_this_request(chain: Model) -> None:
    gate = Gate()
    with Server([chain], engine=gate, port=0) as server, Edge(server.address, chain, at="input", engine=gate) as edge:
        gate.fails = RuntimeError("secret path /root")
        with pytest.raises(ServerError, match="cannot measure this model") as caught:
            edge.profile_server(5.0)
        assert "secret" not in str(caught.value)
        gate.fails = None
        assert edge.profile_server(5.0).complete
