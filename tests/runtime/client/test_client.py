"""The seam to whoever computes tails: an edge over one that knows no frames is late, busy, wrong and gone like any."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from nearby import Nearby
from serving import affine, evaluate, until

from splitpoint.engines import open_engine
from splitpoint.errors import BusyError, ModelError, RefusedError, ServerError, UsageError
from splitpoint.link import Link
from splitpoint.models.model import Model
from splitpoint.planning.constraints import Constraints
from splitpoint.planning.planner import Planner
from splitpoint.profile.measure import profile_model
from splitpoint.runtime.client import RemoteProvider
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.edge_settings import ModelPolicy
from splitpoint.runtime.client.timeouts import Patience
from splitpoint.tensors import Array

QUICK = Patience(first_s=0.2, least_s=0.1, pong_s=0.2, pause_s=0.01, longest_pause_s=0.05, seed=1)
#: Nothing is late, however busy this machine is.
PATIENT = Patience(first_s=20.0, least_s=20.0, pause_s=0.01, longest_pause_s=0.05, seed=1)


pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def model(tmp_path: Any) -> Model:
    return affine(tmp_path)


@pytest.fixture
def place(model: Model) -> Nearby:
    return Nearby(model, open_engine(threads=1))


def x(seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(1, 1024)).astype(np.float32)


def right(model: Model, seed: int, outputs: dict[str, Array]) -> None:
    np.testing.assert_allclose(outputs["y3"], evaluate(model, x(seed)), rtol=1e-4, atol=1e-5)


def edge(place: Nearby, **how: Any) -> Edge:
    return Edge(place, place.model, **{"at": "add1", "engine": open_engine(threads=1), "patience": PATIENT, **how})


def test_it_is_a_provider(place: Nearby) -> None:
    assert isinstance(place, RemoteProvider)
    assert not isinstance("127.0.0.1", RemoteProvider)


@pytest.mark.parametrize("fallback", ["error", "wait", "local"])
def test_every_cut_is_answered_and_traced(place: Nearby, model: Model, fallback: str) -> None:
    with edge(place, fallback=fallback) as made:
        for k, cut in enumerate(model.graph.chain()):
            made.switch(cut)
            result = made.infer(x(k))
            right(model, k, result.outputs)
            assert result.fallback == ""
            if result.up_nbytes:
                assert {"head", "up", "tail", "down"} <= set(result.trace.stages())
                assert sum(result.trace.stages().values()) == pytest.approx(result.total_ms, abs=1e-6)
        results = list(made.stream([x(k) for k in range(6)], window=3))
    for k, result in enumerate(results):
        right(model, k, result.outputs)


def test_one_that_is_late_is_done_without(place: Nearby, model: Model) -> None:
    hold = threading.Event()
    with edge(place, fallback="local", patience=QUICK) as made:
        right(model, 0, made.infer(x()).outputs)

        def waits(outputs: dict[str, Array]) -> dict[str, Array]:
            hold.wait(10)
            return outputs

        place.answers = waits
        result = made.infer(x(1))
        right(model, 1, result.outputs)
        assert result.fallback == "the server was late"
        hold.set()
        assert until(lambda: not made.infer(x(2)).fallback)


def test_one_that_is_busy_is_asked_again(place: Nearby, model: Model) -> None:
    busy = [BusyError("no room", 0.01), BusyError("no room", 0.01)]

    def answers(outputs: dict[str, Array]) -> dict[str, Array]:
        if busy:
            raise busy.pop()
        return outputs

    place.answers = answers
    with edge(place, fallback="wait") as made:
        result = made.infer(x())
        right(model, 0, result.outputs)
        assert result.attempts == 3
    with edge(place) as made:
        busy.append(BusyError("no room", 0.01))
        with pytest.raises(BusyError, match="no room"):
            made.infer(x())


def test_one_that_may_not_be_asked_twice_is_not(model: Model) -> None:
    place = Nearby(model, open_engine(threads=1), repeatable=False)

    def fails(outputs: dict[str, Array]) -> dict[str, Array]:
        raise ServerError("half done")

    place.answers = fails
    with edge(place, fallback="wait") as made, pytest.raises(ServerError, match="half done"):
        made.infer(x())
    assert place.asked == 1
    with edge(place, fallback="local") as made:
        result = made.infer(x())
        right(model, 0, result.outputs)
        assert result.fallback == "the server failed: half done"


def test_one_that_answers_wrongly_is_left(place: Nearby, model: Model) -> None:
    with edge(place, fallback="local") as made:
        place.answers = lambda outputs: {**outputs, "y3": outputs["y3"][:, :7]}
        result = made.infer(x())
        right(model, 0, result.outputs)
        assert result.fallback.startswith("the server was wrong: the server's answer y3 must be float32[1,1024]")
        place.answers = lambda outputs: outputs
        assert until(lambda: not made.infer(x(1)).fallback)
    assert len(place.connections) > 1


@pytest.mark.parametrize("fallback", ["local", "wait"])
def test_one_that_goes_and_comes_back_is_used_again(place: Nearby, model: Model, fallback: str) -> None:
    with edge(place, fallback=fallback) as made:
        right(model, 0, made.infer(x()).outputs)
        place.there = False
        place.connections[-1].abort("went away")
        assert made.link_state == "down"
        if fallback == "local":
            result = made.infer(x(1))
            right(model, 1, result.outputs)
            assert result.fallback.startswith("the server is gone")
        else:
            with pytest.raises(ServerError, match="no answer within 50 ms"):
                made.infer(x(1), deadline_s=0.05)
        place.there = True
        assert until(lambda: not made.infer(x(2)).fallback)
        assert made.stats().connections == 2


def test_without_a_fallback_it_is_an_error(place: Nearby) -> None:
    with edge(place) as made:
        place.connections[-1].abort("went away")
        with pytest.raises(ServerError, match=r"went away; with the fallback error no connection is made again"):
            made.infer(x())
        assert made.link_state == "down"


def test_one_that_is_not_there_yet_is_done_without_or_waited_for(place: Nearby, model: Model) -> None:
    place.there = False
    with pytest.raises(ServerError, match="nobody is nearby"):
        edge(place)
    with edge(place, fallback="local") as made:
        assert not made.reached
        right(model, 0, made.infer(x()).outputs)
        place.there = True
        assert until(lambda: not made.infer(x(1)).fallback)
        assert made.reached


def test_what_only_our_own_servers_can_do_is_refused(place: Nearby, model: Model) -> None:
    with edge(place) as made:
        for ask in (made.measure_link, made.profile_server, lambda: made.glimpse(1000, 0.1)):
            with pytest.raises(RefusedError, match="hands out no weights"):
                ask()
        assert made.ping() == 0.0
    with pytest.raises(RefusedError):
        Edge(place, at="add1")  # its model would have to be fetched
    with pytest.raises(ServerError, match="cannot decode int8"):
        edge(place, codec="int8")
    with pytest.raises(ModelError):
        edge(place, models=ModelPolicy(pinned="0" * 12))
    with pytest.raises(UsageError, match="cannot be followed"):
        ModelPolicy(pinned="0" * 12, follow=True)


def test_a_plan_cuts_there_and_adapting_switches(place: Nearby, model: Model) -> None:
    engine = open_engine(threads=1)
    profile = profile_model(model, engine, budget_s=0.2)
    planner = Planner(model.graph, (profile.slowed(50.0), profile), constraints=Constraints())
    plan = planner.plan(Link(1000.0, 1000.0, 0.1), sensitivity=False)
    with Edge.from_plan(plan, place, model, engine=engine) as made:
        assert made.cut.nodes == set(plan.best.on_edge)
        made.adapt(planner, Link(1000.0, 1000.0, 0.1))
        right(model, 0, made.infer(x()).outputs)
        assert made.stats().believed is not None
