"""A device that asks a server for its profile, until that has time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import msgspec
import pytest
from serving import Gate, affine, nothing_leaks, until

from splitpoint.errors import BusyError, ServerError
from splitpoint.models.model import Model
from splitpoint.profile import measure
from splitpoint.profile.profiles import Profile
from splitpoint.runtime.client import remote_profile as asking_module
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.events import Event
from splitpoint.runtime.server import profile_jobs as profiling
from splitpoint.runtime.server.server import Server

MEASURE = profiling.profile_model


@pytest.fixture(autouse=True)
def budgets(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """What each profile that a server makes was given. It takes 0.1 s, and more than 5 s would have been enough."""
    found: list[float] = []

    def quickly(model: Model, engine: Gate, *, budget_s: float, proceed: Callable[[], None]) -> Profile:
        found.append(budget_s)
        profile = MEASURE(model, engine, budget_s=0.1, proceed=proceed)
        return msgspec.structs.replace(profile, complete=budget_s > 5)

    monkeypatch.setattr(measure, "codec_costs", lambda model, budget_s: {})
    monkeypatch.setattr(profiling, "profile_model", quickly)
    with nothing_leaks():
        yield found


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Model]:
    folder = tmp_path_factory.mktemp("affine")
    return [affine(folder, name=f"affine{k}", seed=k) for k in range(3)]


class Asking:
    """A device in a thread of its own that asks for the server's profile."""

    def __init__(
        self, server: Server, model: Model, budget_s: float, tell: Callable[[Event], None] = lambda _: None, **how: bool
    ) -> None:
        self.edge = Edge(server.address, model, at="input", engine=Gate(), on_event=tell)
        self.got: list[Profile | ServerError] = []
        self._arguments, self._how = budget_s, how
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()

    def _ask(self) -> None:
        try:
            self.got.append(self.edge.profile_server(self._arguments, **self._how))
        except ServerError as exc:
            self.got.append(exc)

    def end(self) -> Profile | ServerError:
        self._thread.join(20)
        self.edge.close()
        [got] = self.got
        return got


def askers(server: Server) -> int:
    with server.services.profiling._lock:
        return sum(len(job.askers) for job in server.services.profiling._jobs)


def test_a_device_asks_a_busy_server_again(models: list[Model], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "_MOST_WAITING", 0)
    gate, told = Gate(is_open=False), []
    with Server(models, engine=gate, port=0) as server:
        first = Asking(server, models[0], 0.3)
        assert until(lambda: askers(server) == 1)
        second = Asking(server, models[1], 10.0, told.append)
        assert until(lambda: bool(told)), "its user is told that it waits"
        assert "making another profile" in told[0].sentence
        gate.open.set()
        assert isinstance(first.end(), Profile)
        profile = second.end()
    assert isinstance(profile, Profile)
    assert profile.fingerprint == models[1].fingerprint
    assert len(told) == 1


def test_a_server_that_stays_busy_is_an_error(models: list[Model], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "_MOST_WAITING", 0)
    monkeypatch.setattr(asking_module, "_BUSY_S", 0.0)
    gate = Gate(is_open=False)
    with Server(models, engine=gate, port=0) as server:
        first = Asking(server, models[0], 20.0)
        assert until(lambda: askers(server) == 1)
        refused = Asking(server, models[1], 0.01).end()
        gate.open.set()
        first.end()
    assert isinstance(refused, BusyError)
    assert refused.retry_after_s > 1


def test_closing_the_device_ends_its_waiting(models: list[Model], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "_MOST_WAITING", 0)
    gate, told = Gate(is_open=False), []
    with Server(models, engine=gate, port=0) as server:
        first = Asking(server, models[0], 20.0)
        assert until(lambda: askers(server) == 1)
        second = Asking(server, models[1], 60.0, told.append)
        assert until(lambda: bool(told))
        second.edge.close()
        assert "closed" in str(second.end())
        gate.open.set()
        first.end()
