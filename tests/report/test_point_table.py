"""Every partition point as rows: what they sum to, and which one is the plan's."""

from __future__ import annotations

import pytest
from planning_cases import LENET, pair
from plans import FOUR_G

from splitpoint.link import Link
from splitpoint.planning.constraints import Constraints
from splitpoint.planning.planner import Planner
from splitpoint.planning.plans import value
from splitpoint.report.point_table import COLUMNS, TABLE, point_rows


def test_each_point_is_priced_and_the_plans_is_marked() -> None:
    planner = Planner(None, pair(LENET, 60.0, 2.0))
    for link in (FOUR_G, Link(0.05, 0.05, 100.0)):
        plan, points = planner.plan(link), planner.points(link)
        rows = point_rows(points, plan)
        cuts = planner.graph.prefixes()
        assert [row.partition_point for row in rows] == [cut.name for cut in cuts]
        assert [set(option.on_edge) for option in points] == [set(cut.nodes) for cut in cuts]
        assert [row.best for row in rows].count(True) == 1
        assert min(rows, key=lambda row: row.total_ms).best
        for row, option in zip(rows, points, strict=True):
            assert row.total_ms == pytest.approx(row.edge_ms + row.transfer_ms + row.cloud_ms, abs=1e-6)
            assert row.total_ms == pytest.approx(value(option, "latency"), abs=1e-3)
        assert (rows[0].edge_ms, rows[-1].transfer_ms, rows[-1].cloud_ms) == (0, 0, 0)
        assert tuple(rows[0].flat()) == COLUMNS


def test_what_a_constraint_rules_out_says_so_and_codecs_that_were_asked_for_are_used() -> None:
    planner = Planner(None, pair(LENET, 60.0, 2.0), constraints=Constraints(codecs=("int8",), keep_input_local=True))
    rows = point_rows(planner.points(FOUR_G), planner.plan(FOUR_G))
    assert "the input would leave the edge" in rows[0].refused
    assert TABLE[0].cell(rows[0]) == "×"
    assert {row.codecs for row in rows[2:-1]} == {"int8"}
