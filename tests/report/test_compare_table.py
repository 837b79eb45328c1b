"""Predicted beside measured: rows and the verdict."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from serving import nothing_leaks

from splitpoint.engines import open_engine
from splitpoint.link import Link
from splitpoint.models import load
from splitpoint.planning.plans import Band
from splitpoint.report.compare_table import CompareRow, verdict
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.server.server import Server
from splitpoint.survey import survey, worth_running

SLOW = Link(1.0, 1.0, 5.0)


@pytest.fixture
def server() -> Iterator[Server]:
    with nothing_leaks(), Server([load("zoo:lenet5")], engine=open_engine(threads=1), port=0) as made:
        yield made


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
