"""Blocks in series and their closed parts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from placements import (
    NEVER,
    SAME,
    Needs,
    all_stages,
    any_cost,
    any_problem,
    closed_sets,
    densenet,
    googlenet,
    problem_of,
    resnet,
    slowest_stage,
    unet,
)

from splitpoint.planning.solve.blocks import Block, StepOrder, three_stages
from splitpoint.planning.solve.problem import stages
from splitpoint.planning.solve.search import Limit, search


def test_block_that_is_cut_inside() -> None:
    """Two branches of equal work between two equal machines: one each, as no prefix and no weighted sum has it."""
    needs: Needs = [(-1,), (0,), (0,), (1, 2)]
    problem = problem_of(needs, np.random.default_rng(0), slower=1, link=0.01)
    problem = dataclasses.replace(problem, edge=np.array([0.0, 9, 5, 0]), cloud=np.array([0.0, 5, 9, 0]))
    found = search(problem, "slowest")
    assert found.on_edge.tolist() == [True, False, True, False]
    assert (found.value, found.gap) == (5, 0)
    assert slowest_stage(problem, found.on_edge) == "edge"


def test_blocks_in_series() -> None:
    def blocks(needs: Needs) -> list[int]:
        order = StepOrder(problem_of(needs, np.random.default_rng(0)))
        assert [b for a, b in order.blocks][:-1] == [a for a, b in order.blocks][1:]
        return [end - first for first, end in order.blocks]

    assert blocks([(-1,)] + [(k,) for k in range(9)]) == [1] * 10
    assert max(blocks(googlenet())) == 13
    assert max(blocks(densenet())) == 1  # many long-lived tensors, but only one order
    assert blocks([(-1,), (0,), (0,), (1, 2), (3,)]) == [1, 2, 1, 1]
    assert blocks([(-1,), (-1,), (0, 1), (2,), (2,)]) == [2, 1, 2]
    # A side output is behind nothing: all that follows it is one block.
    assert blocks([(-1,), (0,), (0,), (2,), (3,)]) == [1, 4]


def test_parts_of_a_block_are_all_and_priced() -> None:
    rng = np.random.default_rng(2)
    for _ in range(80):
        problem = any_problem(rng, 8, any_cost)
        order, measures = StepOrder(problem), three_stages(problem)
        seen = []
        for first, end in order.blocks:
            block = Block(order, measures, first, end)
            found = block.parts(np.full(3, NEVER), 10**6)
            assert found is not None
            for part, values in zip(*found, strict=True):
                if 0 < part.sum() < block.size:
                    on_edge = block.on_edge(part)
                    seen.append(tuple(on_edge))
                    three = stages(problem, on_edge)
                    assert values == pytest.approx([three.edge, three.link, three.cloud], rel=SAME)
        seen += [tuple(np.arange(8) < b) for b in (0, *(end for _, end in order.blocks))]
        sets = closed_sets(problem)
        finite = sets[np.isfinite(all_stages(problem, sets)).all(axis=1)]
        assert len(seen) == len(set(seen))
        assert {tuple(s) for s in finite} <= set(seen) <= {tuple(s) for s in sets}


def test_wrong_wiring_is_refused() -> None:
    problem = problem_of(unet(), np.random.default_rng(0))
    with pytest.raises(ValueError, match="steps are in order"):
        search(dataclasses.replace(problem, before=problem.after, after=problem.before), "slowest")
    with pytest.raises(ValueError, match="steps are in order"):
        search(dataclasses.replace(problem, maker=np.full(problem.link.size, problem.steps - 1, np.int32)), "slowest")
    other = problem_of(resnet(), np.random.default_rng(0))
    with pytest.raises(ValueError, match="same steps"):
        search(problem, "slowest", [Limit(other, 1.0)])
