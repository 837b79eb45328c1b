"""The running part of adapting: in virtual time with an edge that is none, and once with real sockets."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest
from plans import profiles
from relays import ThreadRelay
from serving import nothing_leaks

from splitpoint.cli import main
from splitpoint.engines import open_engine
from splitpoint.errors import ServerError, UsageError
from splitpoint.graph import Cut
from splitpoint.inputs import read_inputs
from splitpoint.link import Link
from splitpoint.models import load
from splitpoint.models.model import Segment
from splitpoint.models.zoo import digits
from splitpoint.planning.constraints import Constraints
from splitpoint.planning.planner import Planner
from splitpoint.planning.plans import Option
from splitpoint.runtime.adapt.controller import Adaptive, Watching
from splitpoint.runtime.adapt.prewarm import KEPT_S, MOST
from splitpoint.runtime.adapt.switch_policy import Policy
from splitpoint.runtime.client import auto_planning
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.edge_settings import AutoPlan
from splitpoint.runtime.events import Event
from splitpoint.runtime.probe.link_probe import Glimpse
from splitpoint.runtime.probe.server_clock import Offset
from splitpoint.runtime.result import Marks, Request, Result, Watcher
from splitpoint.runtime.server.server import Server
from splitpoint.survey import Survey
from splitpoint.tensors import Array

RTT_MS = 10.0
FAST, SLOW = Link(50, 200, RTT_MS), Link(2, 8, RTT_MS)
PHOTO = Request(np.zeros((1, 224, 224, 3), np.uint8))


@cache
def planner() -> Planner:
    """A device of 100 ms and a server of 8: the server on a fast link, the device on a slow one."""
    pair = profiles("zoo:efficientnet_lite0", 100.0, 8.0)
    return Planner(None, pair, constraints=Constraints(codecs=("int8",)))


class World:
    """An edge that is none, its link, and the clock."""

    def __init__(self, link: Link = FAST) -> None:
        self.now_s, self.next_s = 100.0, 100.1
        self.link = link
        self.watchers: list[Watcher] = []
        self.link_state = "up"
        self.cut: Cut = planner().graph.cut("input")
        self.codecs: Mapping[str, str] = {}
        self.predicted: list[float | None] = []
        self.warmed: list[str] = []
        self.forgotten: list[str] = []
        self.beside: list[str] = []
        self.lets_beside = True
        self.probes: list[tuple[float, int]] = []
        self.told: list[Event] = []
        self.broken: dict[str, Exception] = {}
        self.took: list[tuple[float, float]] = []
        self.due: list[Result] = []  # answers that are on their way
        self.free_s = 0.0  # when the uplink has sent what it was given: frames do not overtake each other
        self.adaptive: Adaptive

    def adapt(self, watching: Watching | None = None, link: Link = FAST) -> Adaptive:
        self.adaptive = Adaptive(
            self, planner(), link, watching, on_event=self.told.append, clock=lambda: self.now_s,
            beside=lambda job: job(),
        )  # fmt: skip
        self.watchers.append(self.adaptive)
        return self.adaptive

    # --- what an edge does ---

    def switch(self, at: Cut, codec: object = None, *, predicted_ms: float | None = None) -> Cut:
        if at.name in self.broken:
            raise self.broken[at.name]
        self.cut, self.codecs = at, codec if isinstance(codec, Mapping) else {}
        self.predicted.append(predicted_ms)
        return at

    def warm(self, at: Cut, codec: object = None) -> Cut:
        if at.name in self.broken:
            raise self.broken[at.name]
        self.warmed.append(at.name)
        return at

    def forget(self, at: Cut) -> None:
        assert at.nodes != self.cut.nodes
        self.forgotten.append(at.name)

    def holds(self, at: Cut) -> bool:
        return True

    def shadow(self, inputs: Request, at: Cut, codec: object = None) -> bool:
        assert inputs is PHOTO
        if not self.lets_beside:
            return False
        self.beside.append(at.name)
        codecs = codec if isinstance(codec, Mapping) else {}
        result = self._answer(self._priced(at, codecs), at, self.now_s)
        self.due.append(result)
        return True

    def glimpse(self, nbytes: int, timeout_s: float) -> Glimpse | None:
        self.probes.append((self.now_s, nbytes))
        if self.link_state == "silent":
            return None
        if self.free_s > self.now_s:  # behind a frame that is late itself; who waits has asked too early
            return None
        return Glimpse(RTT_MS, nbytes, self.link.up_ms(nbytes) + RTT_MS / 2, 60, RTT_MS / 2)

    # --- what happens ---

    def _priced(self, cut: Cut, codecs: Mapping[str, str]) -> Option:
        return planner().price(cut, [codecs.get(t.name, "raw") for t in cut.crossing], self.link)

    def _arrives_s(self, nbytes: float, handed_s: float) -> float:
        self.free_s = max(self.free_s, handed_s) + self.link.up_ms(nbytes) * 1e-3
        return self.free_s + RTT_MS / 2e3

    def _answer(self, option: Option, cut: Cut, handed_s: float) -> Result:
        """The server's answer to a request that was handed over then."""
        up_s = self._arrives_s(option.up_nbytes, handed_s) - handed_s
        tail_s = planner().hosts[1].profile.tail(cut).median * 1e-3
        down_s = self.link.down_ms(option.down_nbytes) * 1e-3 + RTT_MS / 2e3
        times = struct.pack("<8d", handed_s + up_s, 0, 0, 0, tail_s, 0, 0, 0)
        ended_s = handed_s + up_s + tail_s + down_s
        return Result(
            {}, cut.name, Marks(handed_s, handed_s, handed_s, ended_s), up_nbytes=option.up_nbytes,
            down_nbytes=option.down_nbytes, raw_times=times, offset=Offset(0.0, RTT_MS / 2e3, handed_s),
        )  # fmt: skip

    def _pass(self, to_s: float) -> None:
        """Time passes, and the edge thinks ten times a second."""
        while (now_s := min([self.next_s, *(r.marks.ended for r in self.due)])) <= to_s:
            self.now_s = now_s
            if now_s == self.next_s:
                self.next_s += 0.1
                self.adaptive.tick(now_s)
            for result in [r for r in self.due if r.marks.ended == now_s]:
                self.due.remove(result)
                self._tell(result)
        self.now_s = to_s

    def _tell(self, result: Result) -> None:
        for watcher in self.watchers:
            watcher.answered(result, (result.marks.ended - result.marks.packed) * 1e3)

    def rest(self, seconds: float) -> None:
        self._pass(self.now_s + seconds)

    def ask(self) -> float:
        """One request, in milliseconds. One that is late is finished here, and its late answer is heard."""
        began_s, cut = self.now_s, self.cut
        option = self._priced(cut, self.codecs)
        head_s = planner().hosts[0].profile.head(cut).median * 1e-3
        self._pass(began_s + head_s)
        for watcher in self.watchers:
            watcher.computed(cut, head_s * 1e3)
        result = Result({}, cut.name, Marks(began_s, self.now_s, self.now_s, self.now_s))
        if option.up_nbytes:
            result = self._remote(option, cut, began_s)
        for watcher in self.watchers:
            watcher.delivered(PHOTO, result)
        self.took.append((began_s, (self.now_s - began_s) * 1e3))
        return self.took[-1][1]

    def _remote(self, option: Option, cut: Cut, began_s: float) -> Result:
        handed_s, result = self.now_s, self._answer(option, cut, self.now_s)
        late_s = handed_s + (self.predicted[-1] or 0.0) * 1e-3 + 0.2
        self.due.append(result)
        if result.marks.ended > late_s:
            self._pass(late_s)
            for watcher in self.watchers:
                watcher.overdue(option.up_nbytes, (late_s - handed_s) * 1e3)
            self.adaptive.tick(self.now_s)  # it is urgent
            self._pass(min(result.marks.ended, late_s + 0.1))
            return Result({}, cut.name, Marks(began_s, handed_s, handed_s, self.now_s), fallback="the server was late")
        self._pass(result.marks.ended)
        return msgspec.structs.replace(result, marks=Marks(began_s, handed_s, handed_s, self.now_s))

    def ask_for(self, seconds: float) -> None:
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self.ask()


# --- the edge that adapts -------------------------------------------------------------------------------------------


def test_it_cuts_for_the_link_that_is_believed() -> None:
    world = World()
    world.adapt(link=SLOW)
    assert world.cut.name == "output"
    world.adapt(link=FAST)
    assert world.cut.name != "output"
    assert world.predicted[-1] == planner().best(FAST).total.ms  # type: ignore[union-attr]


def test_a_step_down_and_up_is_followed_in_time() -> None:
    world = World()
    adaptive = world.adapt()
    world.ask_for(5)
    assert adaptive.switches == []
    world.link, fell_s = SLOW, world.now_s
    world.ask_for(6)
    assert world.cut.name == "output"
    down = list(adaptive.switches)
    assert down[0].at_s + 100 - fell_s < 1
    assert len(down) <= 2  # what is late says how slow the link is at best, and its answer how slow it is
    assert all("the uplink fell" in s.why and s.gain_ms > 0 for s in down)
    world.link, rose_s = FAST, world.now_s
    world.ask_for(6)
    assert world.cut.name != "output"
    up = adaptive.switches[len(down)]
    assert up.at_s + 100 - rose_s < 3
    assert max(ms for began_s, ms in world.took if began_s > rose_s + 3) < 60


def test_every_switch_is_told_with_the_gap_around_it() -> None:
    world = World()
    adaptive = world.adapt()
    world.ask_for(5)
    world.link = SLOW
    world.ask_for(4)
    told = [e.sentence for e in world.told if e.kind == "switched"]
    switch = adaptive.switches[0]
    assert told == [str(s) for s in adaptive.switches]
    # The first answer of the new cut comes one request after the last of the old one.
    first_ms = next(ms for began_s, ms in world.took if began_s >= 100 + switch.at_s)
    assert switch.gap_ms == pytest.approx(first_ms)
    assert switch.usual_ms is not None
    assert f"{switch.old} → {switch.new} (the uplink fell to" in told[0]


def test_a_switch_without_answers_is_told_when_adapting_ends() -> None:
    world = World()
    adaptive = world.adapt()
    world.rest(1)
    for watcher in world.watchers:
        watcher.state("down")
    world.link_state = "down"
    world.rest(0.2)
    assert world.cut.name == "output"
    assert world.told == []
    adaptive.close()
    assert [e.kind for e in world.told] == ["switched"]
    assert adaptive.switches[0].gap_ms is None
    assert "the server is gone" in str(adaptive.switches[0])
    assert world.watchers == []


def test_one_request_in_k_goes_beside_while_all_runs_here() -> None:
    world = World(SLOW)
    world.adapt(Watching(explore_every=5, probe_every_s=0), link=SLOW)
    for _ in range(50):
        world.ask()
    assert 6 <= len(world.beside) <= 10  # one at a time, and each takes as long as six requests
    assert world.probes == []
    none = World(SLOW)
    none.adapt(Watching(explore_every=0, probe_every_s=0), link=SLOW)
    for _ in range(50):
        none.ask()
    assert none.beside == []


def test_probes_alone_find_a_link_that_rose() -> None:
    world = World(SLOW)
    adaptive = world.adapt(Watching(explore_every=0), link=SLOW)
    world.rest(20)
    assert adaptive.switches == []
    sent = sum(nbytes for at_s, nbytes in world.probes if at_s > 100)
    assert 0.002 * 250_000 * 20 < sent <= 0.01 * 250_000 * 20
    world.link, rose_s = FAST, world.now_s
    world.rest(3)
    assert world.cut.name != "output"
    assert adaptive.switches[0].at_s + 100 - rose_s < 3


def test_nothing_is_sent_while_requests_use_the_link() -> None:
    world = World()
    world.adapt()
    world.ask_for(10)
    assert world.probes == []
    assert world.beside == []


def test_a_probe_without_an_answer_moves_the_work_here_before_a_request_suffers() -> None:
    world = World()
    world.adapt()
    world.ask_for(2)
    world.link_state = "silent"
    world.rest(5)
    assert world.probes == []  # not up: nothing is sent at all
    world.link_state = "up"
    world.glimpse = lambda nbytes, timeout_s: None  # type: ignore[method-assign]
    world.rest(5)
    assert world.cut.name == "output"


def test_the_likely_cuts_are_made_ready_before_they_are_needed() -> None:
    world = World()
    world.adapt()
    world.ask_for(3)
    assert "output" in world.warmed
    assert len(set(world.warmed)) == len(world.warmed)
    assert 2 <= len(world.warmed) <= MOST
    world.link = Link(0.3, 1, RTT_MS)
    world.ask_for(KEPT_S + 10)
    assert world.forgotten
    assert world.cut.name not in world.forgotten


def test_what_cannot_be_made_ready_is_said_and_left_for_a_while() -> None:
    world = World()
    world.broken["output"] = ServerError("only heads are handed out")
    adaptive = world.adapt()
    world.ask_for(5)
    assert sum("only heads" in e.sentence for e in world.told) == 1
    world.link = SLOW
    world.ask_for(5)
    # It goes on with what there is, and does not ask again and again.
    assert world.cut.name != "output"
    assert all(s.new != "all on the edge" for s in adaptive.switches)
    assert sum("could not switch" in e.sentence for e in world.told) == 1


def test_a_server_that_is_gone_is_left_and_returned_to() -> None:
    world = World()
    adaptive = world.adapt()
    world.ask_for(3)
    world.link_state = "down"
    for watcher in world.watchers:
        watcher.failed("reset")
        watcher.state("down")
    world.ask_for(3)
    assert world.cut.name == "output"
    assert world.beside == []
    assert world.probes == []
    world.link_state, world.lets_beside = "trying", False  # it has not opened the cuts again yet
    for watcher in world.watchers:
        watcher.state("trying")
    world.ask_for(0.5)
    assert world.beside == []
    world.lets_beside = True
    world.ask_for(1.0)
    assert world.beside, "who is trying wants a request soon, and again where it could not be sent"
    world.link_state = "up"
    for watcher in world.watchers:
        watcher.state("up")
    world.ask_for(4)
    assert world.cut.name != "output"
    assert adaptive.switches[0].why == "the server is gone"


def test_a_dwell_lies_between_switches_on_a_square_wave() -> None:
    world = World()
    adaptive = world.adapt(Watching(policy=Policy(dwell_s=1.0)))
    for k in range(40):
        world.link = SLOW if k % 2 else FAST
        world.ask_for(0.4)
    moments = [s.at_s for s in adaptive.switches]
    assert all(b - a >= 1.0 - 1e-9 for a, b in pairwise(moments))


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UsageError, match="probed every"):
        Watching(probe_every_s=-1)
    with pytest.raises(UsageError, match="probed every"):
        Watching(probe_every_s=float("nan"))
    with pytest.raises(UsageError, match="one request in"):
        Watching(explore_every=-1)


# --- its parts ------------------------------------------------------------------------------------------------------


def test_nothing_is_made_ready_on_a_link_that_is_down() -> None:
    world = World()
    world.adapt()
    world.link_state = "down"
    world.ask_for(2)
    assert world.warmed == []
    world.link_state = "up"
    world.ask_for(2)
    assert world.warmed


# --- with real sockets ----------------------------------------------------------------------------------------------


@pytest.fixture
def relayed() -> Iterator[ThreadRelay]:
    with (
        nothing_leaks(),
        Server([load("zoo:lenet5")], engine=open_engine(threads=1), port=0) as server,
        ThreadRelay(server.address, Link(50, 50, 2)) as relay,
    ):
        yield relay


class Paced:
    """An engine whose whole model takes a given time, and what is less than it no longer than it takes."""

    def __init__(self, seconds: float) -> None:
        self.engine = open_engine(threads=1)
        self.name, self.device, self.threads = self.engine.name, self.engine.device, 1
        self.seconds = seconds

    def compile(self, segment: Segment) -> PacedSession:
        return PacedSession(self, segment)


class PacedSession:
    def __init__(self, engine: Paced, segment: Segment) -> None:
        self._session, self._engine = engine.engine.compile(segment), engine
        self.inputs, self.outputs, self.nbytes = self._session.inputs, self._session.outputs, self._session.nbytes
        self._whole = segment.inputs[0].name == "image" and segment.outputs[0].name == "logits"

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        if self._whole:
            time.sleep(self._engine.seconds)
        return self._session.run(inputs)

    def close(self) -> None:
        self._session.close()


@pytest.mark.parametrize("fallback", ["local", "error"])
def test_a_throttled_link_is_left_and_returned_to_without_a_wrong_answer(relayed: ThreadRelay, fallback: str) -> None:
    model = load("zoo:lenet5")
    pair = profiles("zoo:lenet5", 20.0, 1.0)
    images = [read_inputs(model, d) for d in digits()[:4]]
    whole = open_engine(threads=1).compile(model.whole())
    right = [whole.run(image) for image in images]
    told: list[Event] = []
    asked = 0

    def ask_until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
        nonlocal asked
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for image, wanted in zip(images, right, strict=True):
                found = edge.infer(image)
                asked += 1
                for name, array in wanted.items():
                    np.testing.assert_allclose(found.outputs[name], array, rtol=1e-4, atol=1e-5)
            if condition():
                return True
        return False

    with Edge(
        relayed.address, model, at="input", engine=Paced(0.02), fallback=fallback, on_event=told.append
    ) as edge:  # fmt: skip
        edge.adapt(Planner(model.graph, pair), Link(50, 50, 2))
        assert edge.cut.name == "input"
        assert ask_until(lambda: asked > 100)
        relayed.set_link(Link(0.05, 0.05, 2))
        assert ask_until(lambda: edge.cut.name == "output")
        assert ask_until(lambda: edge.switches[0].gap_ms is not None)
        relayed.set_link(Link(50, 50, 2))
        assert ask_until(lambda: edge.cut.name == "input")
        first = edge.switches[0]
    assert first.old == "all on the server, raw input"
    assert first.new == "all on the edge"
    assert sum(e.kind == "switched" for e in told) == len(edge.switches) >= 2


def test_an_edge_plans_by_itself_and_says_what_it_did(relayed: ThreadRelay, tmp_path: Path) -> None:
    told: list[Event] = []
    with Edge(relayed.address, plan=AutoPlan(budget_s=0.5), cache=tmp_path, on_event=told.append) as edge:
        digit = read_inputs(edge.model, digits()[0])
        assert edge.infer(digit).outputs
        assert edge.switches == ()
        assert edge.adaptive is not None
    with pytest.raises(UsageError, match="plan"):
        Edge(relayed.address, plan="soon", cache=tmp_path)
    with pytest.raises(UsageError, match="plan"):
        Edge(relayed.address, plan="auto", at="pool1", cache=tmp_path)


def test_run_adapts_unless_told_not_to(
    relayed: ThreadRelay, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Watching | None] = []
    adapt = Edge.adapt

    def noted(
        edge: Edge, planner: Planner, link: Link, watching: Watching | None = None, *, current: Option | None = None
    ) -> Adaptive:
        given.append(watching)
        return adapt(edge, planner, link, watching, current=current)

    monkeypatch.setattr(Edge, "adapt", noted)
    known = Survey(*profiles("zoo:lenet5", 20.0, 1.0), Link(50, 50, 2))
    monkeypatch.setattr(auto_planning, "survey", lambda *given, **more: known)
    images = [str(d) for d in digits()[:3]]
    words = ["--cloud", relayed.address, "--cache", str(tmp_path), "--threads", "1", "--profile-first", "--json"]
    assert main(["run", *images, *words, "--probe-every", "2s"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert given == [Watching(probe_every_s=2.0)]
    assert main(["run", *images, *words, "--no-adapt"]) == 0
    assert main(["run", images[0], *words]) == 0, "one request has nothing to follow"
    assert len(given) == 1
    assert main(["run", *images, *words, "--probe-every", "0"]) == 0
    assert given[-1] == Watching(probe_every_s=0.0)
    assert main(["run", *images, *words, "--probe-every", "3s"]) == 0
    assert given[-1] == Watching(probe_every_s=3.0), "seconds, as --budget"
    assert main(["run", *images, *words, "--probe-every", "-1s"]) == 2
    assert "--probe-every is a time" in capsys.readouterr().err
