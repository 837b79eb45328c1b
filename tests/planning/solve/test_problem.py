"""What one placement costs on either side and on the way, by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from splitpoint.planning.solve.problem import Problem, Solution, StageTotals, stages

#: input → a → b → c, and b's input is needed by c as well.
CHAIN = Problem(
    edge=np.array([1.0, 2.0, 4.0]),
    cloud=np.array([0.1, 0.2, 0.4]),
    before=np.array([0, 1], np.int32),
    after=np.array([1, 2], np.int32),
    maker=np.array([-1, 0, 1], np.int32),
    link=np.array([10.0, 20.0, 30.0]),
    first=np.array([0, 1, 3, 4], np.int32),
    users=np.array([0, 1, 2, 2], np.int32),
    down=np.array([0.0, 0.0, 5.0]),
    edge_fixed=0.5,
    cloud_fixed=7.0,
)


@pytest.mark.parametrize(
    ("device", "expected"),
    [(0, (0.0, 22.0, 0.7)), (1, (1.5, 32.0, 0.6)), (2, (3.5, 62.0, 0.4)), (3, (7.5, 0.0, 0.0))],
)
def test_what_a_chain_costs(device: int, expected: tuple[float, float, float]) -> None:
    totals = stages(CHAIN, np.arange(3) < device)
    assert (totals.edge, totals.link, totals.cloud) == pytest.approx(expected)
    assert totals.total == pytest.approx(sum(expected))
    assert totals.slowest == pytest.approx(max(expected))


def test_coding_and_the_servers_own_cost_keep_their_side_busy() -> None:
    problem = dataclasses.replace(CHAIN, encode=np.full(3, 0.01), decode=np.full(3, 0.02), server_fixed=3.0)
    totals = stages(problem, np.array([True, True, False]))
    assert (totals.edge, totals.cloud) == pytest.approx((3.52, 3.44))
    assert problem.remote_fixed == 10.0
    assert problem.across == pytest.approx(CHAIN.link + 0.03)


def test_a_gap_is_a_share_of_the_bound() -> None:
    on_edge = np.ones(1, bool)
    assert Solution(on_edge, 11.0, 10.0).gap == pytest.approx(0.1)
    assert Solution(on_edge, 10.0, 10.0).gap == 0
    assert Solution(on_edge, 1.0, 0.0).gap == np.inf
    assert StageTotals(1.0, 2.0, 3.0).total == 6.0
