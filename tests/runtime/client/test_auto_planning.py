"""How an edge plans by itself: what it guesses, when it profiles, when it goes over. No server, but for the last."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from math import inf
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from weakref import ref

import msgspec
import numpy as np
import pytest
from plans import profiles
from serving import nothing_leaks, until
from tabled import calibration as calibrated

from splitpoint.calibration.calibrations import Calibration
from splitpoint.engines import open_engine
from splitpoint.errors import BusyError, RefusedError, ServerError, SplitpointError, UsageError
from splitpoint.graph import Cut
from splitpoint.inputs import read_inputs
from splitpoint.link import Link
from splitpoint.models import load
from splitpoint.models.model import Model
from splitpoint.models.zoo import digits
from splitpoint.planning.constraints import Constraints, Shared
from splitpoint.planning.planner import Planner
from splitpoint.planning.plans import Option
from splitpoint.profile import spare
from splitpoint.profile.profiles import Profile
from splitpoint.runtime.adapt.controller import Watching
from splitpoint.runtime.client import auto_planning
from splitpoint.runtime.client.auto_planning import AutoPlanning
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.edge_settings import AutoPlan, Objective
from splitpoint.runtime.events import Event
from splitpoint.runtime.server import profile_jobs
from splitpoint.runtime.server.server import Server
from splitpoint.survey import Basis, by_flops

SLOW = Link(1.0, 1.0, 50.0)
LENET = load("zoo:lenet5")
#: On a slow link all is best on such a device.
HERE, THERE = profiles("zoo:lenet5", 5.0, 1.0)
ENGINE = open_engine(threads=1)


class FakeEdge:
    """What is used of an `Edge`, with all on the server at first, and a server that says `word` of its speed."""

    model: Model = LENET
    shared: Shared | None = None
    link_state = "up"
    begun = 0
    codecs: Mapping[str, str] = {}

    def __init__(self, word: Profile | SplitpointError, held: Callable[[Cut], bool] = lambda cut: True) -> None:
        self.cut, self._word, self.holds = LENET.graph.cut("cut:input"), word, held
        self.adaptive: Any = None
        self.asked: list[tuple[float, float | None]] = []
        self.switched: list[tuple[str, float | None]] = []
        self.adapted: list[tuple[str, Watching]] = []
        self.jobs: list[Callable[[], object]] = []
        self.looked: list[float] = []
        self.wanted: list[str] = []

    def profile_server(self, budget_s: float = 60.0, fresh: bool = False, *, within_s: float | None = None) -> Profile:
        self.asked.append((budget_s, within_s))
        if isinstance(self._word, SplitpointError):
            raise self._word
        return self._word

    def measure_link(self, budget_s: float = 3.0, *, software: bool = True) -> Link:
        assert not software, "that takes a second"
        self.looked.append(budget_s)
        return SLOW

    def fetch_first(self, cut: Cut) -> int:
        self.wanted.append(cut.name)
        return 0 if self.holds(cut) else 250_000

    def switch(self, at: Cut, codec: object = None, *, predicted_ms: float | None = None) -> Cut:
        self.cut = at
        self.switched.append((at.name, predicted_ms))
        return at

    def forget(self) -> None: ...

    def after_answer(self, job: Callable[[], object]) -> None:
        self.jobs.append(job)

    def adapt(
        self, planner: Planner, link: Link, watching: Watching | None = None, *, current: Option | None = None
    ) -> Any:
        assert watching is not None
        assert current is not None
        self.adapted.append((current.label, watching))
        self.adaptive = SimpleNamespace(believed=SimpleNamespace(link=Link(0.5, 0.5, 50.0)))
        return self.adaptive


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> list[Basis]:
    """What is known of this device: the last of these; profiling it gives `HERE`."""
    basis = [Basis(by_flops(LENET, ENGINE), "by a test")]
    monkeypatch.setattr(auto_planning, "known_here", lambda *given, **more: basis[-1])
    monkeypatch.setattr(auto_planning, "profile_here", lambda *given, **more: HERE)
    return basis


def begun(edge: FakeEdge, *, calibration: Calibration | None = None, **how: Any) -> tuple[AutoPlanning, list[Event]]:
    told: list[Event] = []
    planning = AutoPlanning(
        ref(edge),
        AutoPlan(**how),
        ENGINE,
        None,
        told.append,
        lambda: calibration,  # type: ignore[arg-type]
    )
    planning.begin()
    return planning, told


def planned(told: list[Event]) -> list[str]:
    return [e.sentence for e in told if e.kind == "planned"]


def nothing(cut: Cut) -> bool:
    return not cut.nodes


def test_the_guess_needs_nothing_that_is_not_here(known: list[Basis]) -> None:
    edge = FakeEdge(THERE, nothing)
    _, told = begun(edge)
    assert edge.switched == [("input", None)], "nobody knows what is late"
    assert [(label, watching.predict) for label, watching in edge.adapted] == [("all on the server, raw input", False)]
    assert planned(told) == [
        "a guess to begin with: all on the server, raw input (by a test; the server by its profile "
        f"(17 measured cuts); link {SLOW})"
    ]
    assert edge.looked == [0.3], "a short look"
    assert edge.asked == [(0.05, 0.5)]
    assert len(edge.jobs) == 1
    other = FakeEdge(THERE)
    begun(other)
    assert other.switched == [("output", None)], "what is here may be chosen"


def test_what_answers_must_be_kept_is_planned_for_with_what_is_calibrated_of_this_model(known: list[Basis]) -> None:
    kept = Constraints(agreement=0.9)
    planning, _ = begun(FakeEdge(THERE), constraints=kept, calibration=calibrated())
    assert planning.chosen is not None
    assert planning.chosen.plan.constraints == ("a drop of at most 10 %",), "by its lower end"
    begun(FakeEdge(THERE))
    with pytest.raises(UsageError, match="--agreement needs a calibration"):
        begun(FakeEdge(THERE), constraints=kept)


def test_after_an_answer_both_are_profiled_and_it_goes_over(known: list[Basis]) -> None:
    edge = FakeEdge(THERE, nothing)
    planning, told = begun(edge, budget_s=8.0)
    assert planning.stands_on == "guess"
    edge.jobs[0]()
    assert until(lambda: planning.stands_on == "profiled" and len(edge.adapted) == 2)
    planning.close()
    assert [budget_s for budget_s, _ in edge.asked] == [0.05, 4.0], "half of the budget each"
    label, watching = edge.adapted[1]
    assert (label, watching.predict) == ("all on the server, raw input", True), "until the other cut is ready"
    assert edge.switched[1][0] == "input"
    assert edge.switched[1][1] is not None
    said = planned(told)[1]
    assert "both sides are profiled (link 0.5 Mbit/s" in said, "as requests showed it meanwhile"
    assert said.endswith(
        "; instead of all on the server, raw input, when that is ready: fetching 250.0 kB of weights for it beside "
        "requests, about 4.0 s while none come, 40.0 s while they come without a pause"
    )
    assert edge.wanted == ["output"], "before other weights"
    assert planning.stand() == "guess", "requests are still cut by it"
    edge.switch(LENET.graph.cut("output"))
    assert planning.stand() == "profiled"
    edge.switch(LENET.graph.cut("input"))
    assert planning.stand() == "profiled", "by the plan, it has gone back"


def test_what_gains_too_little_is_not_waited_for(known: list[Basis], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto_planning, "gains", lambda *given: False)
    edge = FakeEdge(THERE, nothing)
    planning, told = begun(edge)
    edge.jobs[0]()
    assert until(lambda: planning.stands_on == "profiled" and len(edge.adapted) == 2)
    planning.close()
    assert planned(told)[1].endswith("; all on the server, raw input stays, as a change gains too little")
    assert (edge.wanted, planning.stand()) == ([], "profiled")


def test_without_adapting_it_goes_over_once(known: list[Basis]) -> None:
    edge = FakeEdge(THERE, nothing)
    planning, _ = begun(edge, adapt=False)
    edge.jobs[0]()
    assert until(lambda: len(edge.switched) == 2)
    planning.close()
    assert [name for name, _ in edge.switched] == ["input", "output"]
    assert edge.adapted == []


def test_what_is_known_of_both_sides_is_no_guess(known: list[Basis]) -> None:
    known.append(Basis(HERE, "kept", sure=True))
    edge = FakeEdge(THERE, nothing)
    planning, told = begun(edge)
    assert planning.stands_on == "profiled"
    assert edge.switched[0][0] == "output", "whatever it takes to fetch"
    assert edge.jobs == []
    assert not any("guess" in e.sentence for e in told)


def test_a_budget_of_0_measures_nothing(known: list[Basis]) -> None:
    edge = FakeEdge(THERE)
    planning, _ = begun(edge, budget_s=0.0)
    assert (planning.stands_on, edge.jobs) == ("guess", [])
    for wrong in ({"budget_s": -1.0}, {"budget_s": float("inf")}, {"budget_s": 0.0, "profile_first": True}):
        with pytest.raises(UsageError):
            AutoPlan(**wrong)


@pytest.mark.parametrize("why", [RefusedError("it does not measure itself"), BusyError("it measures others", 1.0)])
def test_a_server_that_is_not_profiled_is_guessed_on(known: list[Basis], why: SplitpointError) -> None:
    edge = FakeEdge(why, nothing)
    planning, told = begun(edge)
    edge.jobs[0]()
    assert until(lambda: len(edge.adapted) == 2)
    planning.close()
    assert planning.stands_on == "guess"
    assert f"{why}; the plan stays a guess of the server, corrected by what requests take" in [e.sentence for e in told]
    assert "this machine is profiled" in planned(told)[1]


def test_an_edge_that_is_closed_meanwhile_says_no_more(known: list[Basis], monkeypatch: pytest.MonkeyPatch) -> None:
    edge = FakeEdge(ServerError("this Edge is closed"), nothing)
    planning, told = begun(edge)
    before = len(told)

    def closing(*given: object, **more: object) -> Profile:
        planning.stop()
        return HERE

    monkeypatch.setattr(auto_planning, "profile_here", closing)
    edge.jobs[0]()
    planning.close()
    assert [e.sentence for e in told[before:]] == ["profiling beside requests, at most 20 s in all"]


@pytest.mark.parametrize(("objective", "kept"), [(None, 30.0), ("latency", 0.0), ("throughput", inf)])
def test_the_objective_holds_for_the_guess_and_the_plan(
    known: list[Basis], objective: Objective | None, kept: float
) -> None:
    edge = FakeEdge(THERE)
    planning, _ = begun(edge, objective=objective, watching=Watching(rate=30.0, predict=False))
    edge.jobs[0]()
    assert until(lambda: len(edge.adapted) == 2)
    planning.close()
    assert [watching.rate for _, watching in edge.adapted] == [kept, kept], "it goes on being adapted for it"
    assert planning.chosen is not None
    assert planning.chosen.planner.objective == planning.chosen.plan.objective
    assert bool(planning.chosen.load) == (objective is None), "the load test decides if nobody else does"
    if objective is not None:
        assert planning.chosen.plan.objective == objective


def test_an_edge_that_is_forgotten_or_closed_plans_no_more(known: list[Basis]) -> None:
    edge = FakeEdge(THERE, nothing)
    planning, told = begun(edge)
    job = edge.jobs.pop()
    planning.stop()
    job()
    planning.close()
    assert len(edge.adapted) == 1
    del edge
    planning.begin()
    assert len(planned(told)) == 1


def test_a_real_edge_answers_first_and_goes_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but the measuring, which is tested without a network: it ends when this test says so."""
    may_end = threading.Event()
    budgets: list[float] = []

    def here(*given: object, beside: spare.Spare, **more: object) -> Profile:
        assert may_end.wait(60)
        return HERE

    def there(*given: object, budget_s: float, **more: object) -> Profile:
        budgets.append(budget_s)
        return msgspec.structs.replace(THERE, complete=budget_s > 1.0)

    monkeypatch.setattr(auto_planning, "profile_here", here)
    monkeypatch.setattr(profile_jobs, "profile_model", there)
    told: list[Event] = []
    with nothing_leaks(), Server([LENET], engine=ENGINE, port=0) as server:
        with Edge(
            server.address, plan=AutoPlan(budget_s=8.0), engine=ENGINE, cache=tmp_path, on_event=told.append
        ) as edge:
            digit = read_inputs(edge.model, digits()[0])
            planning = edge.planning
            assert planning is not None
            assert planning.stands_on == "guess"
            assert not edge.model.head(edge.cut).blobs, "nothing is here"
            first = edge.infer(digit).outputs
            assert (planning.stands_on, len(planned(told))) == ("guess", 1)
            may_end.set()
            assert until(lambda: planning.stand() == "profiled", 60)
            assert edge.adaptive is not None
            again = edge.infer(digit).outputs
        assert len(planned(told)) == 2
        assert budgets == [0.05, 4.0], "the server is asked for a word, and for half of the budget"
    for name, value in first.items():
        np.testing.assert_allclose(again[name], value, rtol=1e-4, atol=1e-5)
