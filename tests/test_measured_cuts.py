"""compare and sweep: with a real server, and with an edge that answers at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec
import pytest
from serving import nothing_leaks

from splitpoint.engines import open_engine
from splitpoint.errors import UsageError
from splitpoint.graph import Cut
from splitpoint.inputs import read_inputs
from splitpoint.link import Link
from splitpoint.measured_cuts import AGAIN, WARM_UP, CompareRow, compare, sweep, sweep_again, verdict
from splitpoint.models import load
from splitpoint.models.model import Model
from splitpoint.models.zoo import digits
from splitpoint.planning.constraints import Constraints
from splitpoint.planning.plans import Band, HopCosts, HostCosts, Option
from splitpoint.report.sweep_table import FASTEST, SLOWER
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.result import Marks, Result
from splitpoint.runtime.server.server import Server
from splitpoint.survey import placement, survey, worth_running

SLOW = Link(1.0, 1.0, 5.0)


@pytest.fixture
def server() -> Iterator[Server]:
    with nothing_leaks(), Server([load("zoo:lenet5")], engine=open_engine(threads=1), port=0) as made:
        yield made


def test_every_row_of_the_table_runs_as_planned(server: Server, tmp_path: Path) -> None:
    engine = open_engine(threads=1)
    with Edge(server.address, at="input", engine=engine, cache=tmp_path) as edge:
        known = survey(edge, engine, budget_s=0.5, link=SLOW, cache=tmp_path)
        plan = known.planner(edge.model.graph, constraints=Constraints(codecs=("int8", "fp16"))).plan(SLOW)
        inputs = [read_inputs(edge.model, d) for d in digits()[:2]]
        found = compare(edge, worth_running(plan), inputs, repeat=3)
        assert [c.option for c in found] == list(worth_running(plan))
        assert found[0].option == plan.best
        assert any(c.fastest for c in found)
        for c in found:
            cut, codecs = placement(edge.model.graph, c.option)
            assert set(cut.nodes) == set(c.option.on_edge)
            assert c.requests in (3, AGAIN)
            assert 0 < c.measured.low <= c.measured.ms <= c.measured.high
            assert (c.up_nbytes > 0) == (c.option.kind != "device")
            if codecs and c.option.sized:
                # What travelled is what was planned: frame and all, the estimate is within a few bytes.
                assert c.up_nbytes == pytest.approx(c.option.up_nbytes, abs=16)
        with pytest.raises(UsageError, match="at least one"):
            compare(edge, worth_running(plan), [])


# --- without a server -------------------------------------------------------------------------------------------------


class FakeEdge:
    """An edge that answers at once, and remembers what it was asked for. `takes` says how long it was at a cut."""

    def __init__(self, model: Model, takes: Callable[[str, int], float] | None = None) -> None:
        self.model, self.takes = model, takes
        self.did: list[str] = []
        self._cut = ""

    def warm(self, cut: Cut, codec: object) -> None:
        self.did.append(f"warm {cut.name}")

    def switch(self, cut: Cut, codec: object) -> None:
        self._cut = cut.name

    def forget(self) -> None:
        self.did.append("forget")

    def infer(self, inputs: Mapping[str, int]) -> Result:
        self.did.append(f"{self._cut} {inputs['image']}")
        k = self.takes(self._cut, len(self.did)) if self.takes else len(self.did) / 1e3
        return Result({}, self._cut, Marks(0.0, k, k, k), up_nbytes=1)


def test_options_take_turns_and_the_first_rounds_are_not_counted() -> None:
    edge = FakeEdge(load("zoo:lenet5"))
    options = [option("server", "input", 0), option("device", "output", len(edge.model.graph.nodes))]
    told: list[tuple[int, int]] = []
    rows = compare(edge, options, [{"image": 0}, {"image": 1}, {"image": 2}], repeat=2,
                   on_progress=lambda *done: told.append(done))  # type: ignore[arg-type, list-item]  # fmt: skip
    asked, again = ([f"{cut} {k % 3}" for k in range(WARM_UP + n) for cut in ("input", "output")] for n in (2, AGAIN))
    warm = ["warm input", "warm output"]
    assert edge.did == [*warm, *asked, "forget", *warm, *again]  # two requests tell nothing apart
    assert told == [(k + 1, 8) for k in range(8)] + [(k + 1, 28) for k in range(28)]
    assert [(r.requests, r.fastest) for r in rows] == [(AGAIN, True), (AGAIN, False)]  # always 1 ms later


def test_what_is_slower_beyond_noise_is_measured_once() -> None:
    edge = FakeEdge(load("zoo:lenet5"), lambda cut, k: {"input": 10, "output": 20}[cut] / 1e3)
    options = [option("server", "input", 0), option("device", "output", len(edge.model.graph.nodes))]
    rows = compare(edge, options, [{"image": 0}], repeat=6)  # type: ignore[arg-type, list-item]
    assert [(r.requests, r.fastest) for r in rows] == [(6, True), (6, False)]
    assert verdict(rows).startswith("the plan was right")


def test_many_that_are_alike_take_turns_in_groups_and_all_are_named() -> None:
    model = load("zoo:lenet5")
    cuts = list(model.graph.chain())[:12]
    quick = {cuts[3].name: 0.001, cuts[10].name: 0.002}  # the others: 2 ms and what nobody can tell apart
    edge = FakeEdge(model, lambda cut, k: quick.get(cut, 0.005 if cut == cuts[5].name else 0.002 + k * 7919 % 5 / 1e6))
    rows = sweep_again(edge, cuts, [{"image": 0}])  # type: ignore[arg-type, list-item]
    assert [r.n for r in rows] == [AGAIN] * 12
    assert [r.verdict for r in rows] == [FASTEST if k == 3 else SLOWER for k in range(12)]
    del quick[cuts[3].name]
    edge = FakeEdge(model, lambda cut, k: 0.005 if cut == cuts[5].name else 0.002)
    rows = sweep_again(edge, cuts, [{"image": 0}])  # type: ignore[arg-type, list-item]
    assert [r.verdict for r in rows] == [SLOWER if k == 5 else FASTEST for k in range(12)]
    warmed = "".join("w" if did.startswith("warm") else "f" if did == "forget" else "" for did in edge.did)
    assert max(map(len, warmed.split("f"))) == 8  # cuts in memory at once


def test_a_sweep_holds_one_cut_at_a_time_and_asks_every_input_as_often() -> None:
    edge = FakeEdge(load("zoo:lenet5"))
    cuts = [edge.model.graph.cut(name) for name in ("input", "pool1")]
    inputs = [{"image": 0}, {"image": 1}]
    rows = sweep(edge, cuts, inputs, repeat=2, setup="fake")  # type: ignore[arg-type]
    first = next(rows)
    assert edge.did == ["forget", *(f"input {k % 2}" for k in range(WARM_UP + 4))]
    assert (first.split_layer, first.n, first.setup, first.model) == ("input", 4, "fake", "lenet5")
    assert [row.split_layer for row in rows] == ["pool1"]
    with pytest.raises(UsageError, match="at least one input"):
        next(sweep(edge, cuts, []))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"has no tensor imagge for a codec.*image"):
        next(sweep(edge, cuts, inputs, codec={"imagge": "int8"}))  # type: ignore[arg-type]


def option(kind: str, cut: str, nodes: int) -> Option:
    """A plan's row that predicts nothing."""
    band = Band(1.0, 1.0, 1.0)
    hop = HopCosts(cut, nodes=tuple(range(nodes)), crossing=(), up_nbytes=0, down_nbytes=0, up=band, down=band)
    hosts = HostCosts(band, band), HostCosts(band, band)
    return Option(kind=kind, hosts=hosts, hops=(hop,), total=band, throughput=1.0)


def test_the_verdict_says_by_how_much(server: Server, tmp_path: Path) -> None:
    engine = open_engine(threads=1)
    with Edge(server.address, at="input", engine=engine, cache=tmp_path) as edge:
        known = survey(edge, engine, budget_s=0.5, link=SLOW, cache=tmp_path)
        options = worth_running(known.planner(edge.model.graph).plan(SLOW))
    first, second, *_ = (CompareRow(o, Band(0, 0, 0), {}, 5, 0) for o in options)

    def took(c: CompareRow, ms: float, fastest: bool) -> CompareRow:
        return msgspec.structs.replace(c, measured=Band(ms, ms * 0.9, ms * 1.1), fastest=fastest)

    one, other = first.option.label, second.option.label
    right = verdict([took(first, 10, True), took(second, 20, False)])
    assert right == f"the plan was right: {one} is the fastest, 50% before {other}"
    late = f"planned: {one}; fastest: {other} (10.0 ms), which the plan is 100.0% slower than"
    assert verdict([took(first, 20, False), took(second, 10, True)]) == late
    agrees = f"the plan agrees within a millisecond: {one} (0.90 ms); fastest: {other} (0.40 ms)"
    assert verdict([took(first, 0.9, False), took(second, 0.4, True)]) == agrees
    right = f"the plan was right: {one} is the fastest, 0.03 ms before {other}"
    assert verdict([took(first, 0.40, True), took(second, 0.43, False)]) == right
    alike = verdict([took(first, 10.5, True), took(second, 10, True)])
    assert alike == f"the plan is not refuted: no difference beyond noise between {other} (10.0 ms), {one} (10.5 ms)"
    assert verdict([took(first, 10, True)]) == f"planned and measured: {one}, 10.0 ms"
