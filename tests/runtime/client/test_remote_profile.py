"""A device that asks a server for its profile, until that has time."""

from __future__ import annotations

import pytest
from profile_asking import Asking, askers
from serving import Gate, until

from splitpoint.errors import BusyError
from splitpoint.models.model import Model
from splitpoint.profile.profiles import Profile
from splitpoint.runtime.client import remote_profile as asking_module
from splitpoint.runtime.server import profile_jobs as profiling
from splitpoint.runtime.server.server import Server

pytestmark = pytest.mark.usefixtures("budgets")


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
