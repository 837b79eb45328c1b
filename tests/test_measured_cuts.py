"""compare and sweep: with a real server, and with an edge that answers at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import pytest
from serving import nothing_leaks

from splitpoint.engines import open_engine
from splitpoint.errors import UsageError
from splitpoint.graph import Cut
from splitpoint.inputs import read_inputs
from splitpoint.link import Link
from splitpoint.measured_cuts import WARM_UP, CompareRow, compare, sweep, verdict
from splitpoint.models import load
from splitpoint.models.model import Model
from splitpoint.models.zoo import digits
from splitpoint.planning.constraints import Constraints
from splitpoint.planning.plans import Band, HopCosts, HostCosts, Option
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
        for c in found:
            cut, codecs = placement(edge.model.graph, c.option)
            assert set(cut.nodes) == set(c.option.on_edge)
            assert c.requests == 3
            assert 0 < c.measured.low <= c.measured.ms <= c.measured.high
            assert (c.up_nbytes > 0) == (c.option.kind != "device")
            if codecs and c.option.sized:
                # What travelled is what was planned: frame and all, the estimate is within a few bytes.
                assert c.up_nbytes == pytest.approx(c.option.up_nbytes, abs=16)
        with pytest.raises(UsageError, match="at least one"):
            compare(edge, worth_running(plan), [])


# --- without a server -------------------------------------------------------------------------------------------------


class FakeEdge:
    """An edge that answers at once, and remembers what it was asked for."""

    def __init__(self, model: Model) -> None:
        self.model = model
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
        k = len(self.did) / 1e3
        return Result({}, self._cut, Marks(0.0, k, k, k), up_nbytes=1)


def test_options_take_turns_and_the_first_rounds_are_not_counted() -> None:
    edge = FakeEdge(load("zoo:lenet5"))
    options = [option("server", "input", 0), option("device", "output", len(edge.model.graph.nodes))]
    told: list[tuple[int, int]] = []
    rows = compare(edge, options, [{"image": 0}, {"image": 1}, {"image": 2}], repeat=2,
                   on_progress=lambda *done: told.append(done))  # type: ignore[arg-type, list-item]  # fmt: skip
    asked = [f"{cut} {k % 3}" for k in range(WARM_UP + 2) for cut in ("input", "output")]
    assert edge.did == ["warm input", "warm output", *asked]
    assert told == [(k + 1, 8) for k in range(8)]
    assert [r.requests for r in rows] == [2, 2]
    assert [r.measured.ms for r in rows] == pytest.approx([8.0, 9.0])  # of 7 and 9 ms, of 8 and 10


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

    def took(c: CompareRow, ms: float) -> CompareRow:
        return msgspec.structs.replace(c, measured=Band(ms, ms * 0.9, ms * 1.1))

    assert "the plan was right" in verdict([took(first, 10), took(second, 20)])
    assert "50%" in verdict([took(first, 10), took(second, 20)])
    assert "more than requests vary by" in verdict([took(first, 20), took(second, 10)])
    assert "within what requests vary by" in verdict([took(first, 10.5), took(second, 10)])
    assert "not refuted" in verdict([took(first, 10), took(second, 10.5)])
