"""Devices that ask a server for its profile of itself, and what each profile was given."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from serving import Gate, affine, nothing_leaks

from splitpoint.errors import ServerError
from splitpoint.models.model import Model
from splitpoint.profile import measure
from splitpoint.profile.profiles import Profile
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.events import Event
from splitpoint.runtime.server import profile_jobs as profiling
from splitpoint.runtime.server.server import Server

MEASURE = profiling.profile_model


@pytest.fixture
def budgets(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """What each profile that a server makes was given. It takes 0.1 s, and more than 5 s would have been enough."""
    found: list[float] = []

    def quickly(model: Model, engine: Gate, *, budget_s: float, proceed: Callable[[], None], **more: Any) -> Profile:
        found.append(budget_s)
        profile = MEASURE(model, engine, budget_s=0.1, proceed=proceed)
        return msgspec.structs.replace(profile, complete=budget_s > 5)

    monkeypatch.setattr(measure, "codec_costs", lambda *given: {})
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
