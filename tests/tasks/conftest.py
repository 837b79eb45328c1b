"""A server with two models, and a fleet that knows them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from queues import FAST, two_models
from serving import nothing_leaks

from splitpoint.engines import open_engine
from splitpoint.models.model import Model
from splitpoint.profile.measure import profile_model
from splitpoint.profile.profiles import Profile
from splitpoint.runtime.server.server import Server
from splitpoint.survey import Survey
from splitpoint.tasks.fleet import Fleet


@pytest.fixture(autouse=True)
def soon_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are sent together before the start only once."""
    monkeypatch.setattr("splitpoint.tasks.batch_trial.BUDGET_S", 0.02)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Model]:
    return two_models(tmp_path_factory.mktemp("nets"))


@pytest.fixture
def server(models: Mapping[str, Model]) -> Iterator[Server]:
    with nothing_leaks(), Server(list(models.values()), engine=open_engine(threads=1), port=0) as made:
        yield made


@pytest.fixture(scope="module")
def profiles(models: Mapping[str, Model]) -> Mapping[str, Profile]:
    return {name: profile_model(model, open_engine(threads=1), budget_s=0.3) for name, model in models.items()}


@pytest.fixture
def fleet(server: Server, profiles: Mapping[str, Profile], tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(server.address, engine=open_engine(threads=1), cache=tmp_path) as made:
        for name, profile in profiles.items():
            made.add((name, ""), name)
            made.know((name, ""), Survey(profile, profile, FAST))
        yield made
