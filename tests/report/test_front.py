"""The Pareto front as a file."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from planning_cases import EFFICIENT, pair
from plans import calibration, model_of

from splitpoint.errors import MissingExtraError
from splitpoint.link import Link
from splitpoint.planning.planner import Planner
from splitpoint.planning.plans import Option, Plan
from splitpoint.report.front import COLUMNS, write_front

LINK = Link(5.85, 20.0, 10.0)


@pytest.fixture(scope="module")
def front() -> tuple[Plan, list[Option]]:
    model = model_of(EFFICIENT)
    rows = {
        (0, "jpeg:90"): 0.9,
        (0, "webp:90"): 0.92,
        (model.graph.cut("blocks.5.project.norm").index or 0, "int8"): 0.99,
    }
    planner = Planner(None, pair(), calibration=calibration(model, rows, share=0.1))
    return planner.plan(LINK, sensitivity=False), list(planner.front(LINK))


def test_the_csv_has_a_line_an_option(front: tuple[Plan, list[Option]], tmp_path: Path) -> None:
    plan, options = front
    write_front(plan, options, tmp_path / "f.csv")
    with (tmp_path / "f.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == list(COLUMNS)
    assert [line["option"] for line in lines] == [o.label for o in options]
    webp = next(line for line in lines if line["kind"] == "opponent")
    assert (webp["sent"], webp["agreement"], webp["inputs"], webp["codecs"]) == ("False", "0.92", "1000", "webp:90")
    assert 0.9 < float(webp["not_below"]) < 0.92
    device = next(line for line in lines if line["kind"] == "device")
    assert (device["sent"], device["agreement"], device["up_bytes"]) == ("True", "1.0", "0")


def test_the_picture(front: tuple[Plan, list[Option]], tmp_path: Path) -> None:
    path = tmp_path / "f.png"
    try:
        write_front(*front, path)
    except MissingExtraError:
        pytest.skip("without matplotlib")
    assert path.read_bytes()[:4] == b"\x89PNG"
