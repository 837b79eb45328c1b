"""The search, wherever it stops."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from placements import (
    NEVER,
    SAME,
    Layers,
    Needs,
    all_stages,
    any_cost,
    any_problem,
    best_of,
    check,
    closed_sets,
    densenet,
    googlenet,
    problem_of,
    resnet,
    slowest_stage,
    unet,
    with_costs_of,
    woven,
)
from plans import is_closed

import splitpoint as sp
from splitpoint.graph import Graph
from splitpoint.planning.solve.min_cut import least
from splitpoint.planning.solve.problem import Floats, Problem, stages
from splitpoint.planning.solve.search import Limit, search


@pytest.mark.parametrize("seed", range(3))
def test_wide_graph_comes_with_a_small_gap(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = problem_of(woven(120, rng), rng, slower=2, link=10)
    found = search(problem, "slowest", budget_s=NEVER, most_work=10_000)
    assert is_closed(problem, found.on_edge)
    assert found.value == stages(problem, found.on_edge).slowest
    assert found.gap <= 0.01
    again = search(problem, "slowest", budget_s=NEVER, most_work=10_000)
    assert (again.value, again.bound) == (found.value, found.bound)
    assert np.array_equal(again.on_edge, found.on_edge)
    # The least sum is a placement, too, and a third of it a bound (DADS).
    total = least(problem)
    assert found.bound <= stages(problem, total.on_edge).slowest
    assert found.value >= total.bound / 3 * (1 - SAME)


def test_bound_holds_wherever_the_search_stops() -> None:
    """After the first linear program or a few more, where a better placement often is still to be found."""
    rng = np.random.default_rng(8)
    unfinished = 0
    for _ in range(30):
        problem = problem_of(woven(12, rng), rng, slower=2, link=4, cost=any_cost)
        best = all_stages(problem, closed_sets(problem)).max(axis=1).min()
        for most_nodes in (0, 3, 9):
            found = search(problem, "slowest", budget_s=NEVER, most_work=0, most_nodes=most_nodes)
            check(found, problem, best, stages(problem, found.on_edge).slowest, exact=False)
            unfinished += found.value > best * 1.001
    assert unfinished > 5


def test_search_without_time_still_answers() -> None:
    """Whenever the clock ends it: a placement and a bound that holds; more time, no worse."""
    rng = np.random.default_rng(1)
    problem = problem_of(woven(60, rng), rng, slower=2, link=10)
    best = search(problem, "slowest", budget_s=NEVER)
    values = []
    for ticks in (0, 1, 2, 5, 20, 100):
        clock = itertools.count()
        found = search(problem, "slowest", budget_s=ticks, most_work=0, clock=lambda clock=clock: float(next(clock)))
        assert is_closed(problem, found.on_edge)
        assert found.bound <= best.value * (1 + SAME)
        assert found.value >= best.bound * (1 - SAME)
        values.append(found.value)
    assert values == sorted(values, reverse=True)


def test_two_limits_at_once() -> None:
    rng = np.random.default_rng(5)
    both = 0
    for _ in range(100):
        problem = any_problem(rng, 8, any_cost)
        sets = closed_sets(problem)
        costs = [with_costs_of(problem, any_problem(rng, 8, any_cost), rng) for _ in range(2)]
        spent = [all_stages(c, sets).sum(axis=1) for c in costs]
        most = [float(np.median(s[np.isfinite(s)])) for s in spent]
        keep = [s <= m * (1 + SAME) for s, m in zip(spent, most, strict=True)]
        total = all_stages(problem, sets).sum(axis=1)
        best = best_of(total, keep[0] & keep[1])
        found = search(problem, "total", [Limit(c, m) for c, m in zip(costs, most, strict=True)], budget_s=NEVER)
        check(found, problem, best, stages(problem, found.on_edge).total, exact=True)
        both += best > max(best_of(total, keep[0]), best_of(total, keep[1]))
    assert both > 5


def test_sum_without_limits_is_the_minimum_cut() -> None:
    """Two ways that share no code: the relaxation has no gap where a minimum cut is the answer."""
    rng = np.random.default_rng(3)
    for _ in range(5):
        problem = problem_of(woven(80, rng), rng, slower=3, link=4)
        found = search(problem, "total", budget_s=NEVER)
        best = least(problem)
        assert found.value <= best.value * (1 + 1.1e-3)
        assert found.bound <= best.value * (1 + SAME)
        assert best.bound <= found.value * (1 + SAME)


def test_limit_that_nothing_keeps() -> None:
    problem = problem_of(resnet(), np.random.default_rng(0))
    memory = dataclasses.replace(
        problem, edge=np.ones(problem.steps), cloud=problem.cloud * 0, link=problem.link * 0, down=problem.down * 0
    )
    for found in (search(problem, "total", [Limit(memory, -1.0)]), search(problem, "slowest", [Limit(memory, -1.0)])):
        assert (found.value, found.bound) == (NEVER, NEVER)
    nothing = search(problem, "total", [Limit(memory, 0.0)])
    assert not nothing.on_edge.any()
    assert nothing.gap == 0
    ten = search(dataclasses.replace(problem, edge=problem.edge * 0), "slowest", [Limit(memory, 10.0)])
    assert ten.on_edge.sum() <= 10
    assert ten.gap == 0


def test_infinite_limit_is_none() -> None:
    problem = problem_of(googlenet(), np.random.default_rng(0))
    forbidden = dataclasses.replace(problem, edge=np.full(problem.steps, NEVER))
    free = search(problem, "slowest")
    limited = search(problem, "slowest", [Limit(forbidden, NEVER)])
    assert limited.value == free.value


@pytest.mark.parametrize("seed", range(8))
def test_equals_brute_force(seed: int) -> None:
    """1,600 graphs of up to 9 steps, each also with a limit, for the largest stage and for the sum."""
    rng = np.random.default_rng(seed)
    split = tight = 0
    for _ in range(200):
        problem = any_problem(rng, int(rng.integers(1, 10)), any_cost)
        sets = closed_sets(problem)
        three = all_stages(problem, sets)
        slowest, total = three.max(axis=1), three.sum(axis=1)
        found = search(problem, "slowest", budget_s=NEVER)
        check(found, problem, slowest.min(), stages(problem, found.on_edge).slowest, exact=True)
        split += math.isfinite(found.value) and 0 < found.on_edge.sum() < problem.steps

        limited = with_costs_of(problem, any_problem(rng, problem.steps, any_cost), rng)
        spent = all_stages(limited, sets).sum(axis=1)
        most = float(rng.choice(spent[np.isfinite(spent)] if np.isfinite(spent).any() else np.ones(1)))
        most *= float(rng.choice([1.0, 1.0, 0.7, 1.1]))
        keeps = spent <= most * (1 + SAME)
        limit = Limit(limited, most)
        found = search(problem, "slowest", [limit], budget_s=NEVER)
        check(found, problem, best_of(slowest, keeps), stages(problem, found.on_edge).slowest, exact=True)
        assert math.isinf(found.value) or stages(limited, found.on_edge).total <= most * (1 + SAME)
        tight += best_of(slowest, keeps) > slowest.min()
        found = search(problem, "total", [limit], budget_s=NEVER)
        check(found, problem, best_of(total, keeps), stages(problem, found.on_edge).total, exact=True)
        assert math.isinf(found.value) or stages(limited, found.on_edge).total <= most * (1 + SAME)
    assert split > 40  # or the test would be about nothing
    assert tight > 30


@pytest.mark.parametrize("seed", range(4))
def test_coding_keeps_the_device_and_the_server_busy(seed: int) -> None:
    """Tensors that cost device and server, too, and a server with a cost of its own: equal to brute force."""
    rng = np.random.default_rng(seed)
    changed = 0
    for _ in range(60):
        plain = any_problem(rng, int(rng.integers(2, 9)), any_cost)
        coding = rng.uniform(0, 5, (2, plain.link.size))
        problem = dataclasses.replace(plain, encode=coding[0], decode=coding[1], server_fixed=float(rng.uniform(0, 3)))
        sets = closed_sets(problem)
        three = all_stages(problem, sets)
        three[:, 0] += all_stages(only_across(plain, coding[0]), sets).sum(axis=1)
        three[:, 2] += all_stages(only_across(plain, coding[1]), sets).sum(axis=1)
        three[:, 2] += problem.server_fixed * (~sets).any(axis=1)
        slowest, total = three.max(axis=1), three.sum(axis=1)
        found = search(problem, "slowest", budget_s=NEVER)
        check(found, problem, slowest.min(), stages(problem, found.on_edge).slowest, exact=True)
        found = least(problem)
        check(found, problem, total.min(), stages(problem, found.on_edge).total, exact=True)
        found = search(problem, "total", budget_s=NEVER)
        check(found, problem, total.min(), stages(problem, found.on_edge).total, exact=True)
        changed += bool(slowest.min() > all_stages(plain, sets).max(axis=1).min())
    assert changed > 10


def only_across(problem: Problem, link: Floats) -> Problem:
    """The wiring of a problem in which nothing costs but what crosses."""
    free = np.zeros(problem.steps)
    return dataclasses.replace(problem, edge=free, cloud=free, down=free, link=link, edge_fixed=0.0, cloud_fixed=0.0)


@pytest.mark.parametrize("seed", range(3))
def test_costs_from_a_nanosecond_to_an_hour(seed: int) -> None:
    """An early tensor of an hour does not wipe out what nanoseconds decide later."""
    rng = np.random.default_rng(seed)
    for _ in range(100):
        problem = any_problem(rng, 8, lambda rng: float(rng.uniform(1, 10) * 10.0 ** rng.integers(-6, 7)))
        best = all_stages(problem, closed_sets(problem)).max(axis=1).min()
        found = search(problem, "slowest", budget_s=NEVER)
        check(found, problem, best, stages(problem, found.on_edge).slowest, exact=True)


def test_hour_beside_nanoseconds_in_a_chain() -> None:
    """The first tensor takes an hour to send, the rest of the chain is a matter of nanoseconds."""
    ns = 1e-6
    problem = Problem(
        edge=np.array([1.0, 1, 3, 9]) * ns,
        cloud=np.array([1.0, 9, 3, 1]) * ns,
        before=np.arange(3, dtype=np.int32),
        after=np.arange(1, 4, dtype=np.int32),
        maker=np.arange(-1, 3, dtype=np.int32),
        link=np.array([3.6e6, 7 * ns, 2 * ns, 5 * ns]),
        first=np.arange(5, dtype=np.int32),
        users=np.arange(4, dtype=np.int32),
        down=np.zeros(4),
    )
    found = search(problem, "slowest")
    assert found.on_edge.tolist() == [True, True, False, False]
    assert found.value == pytest.approx(4 * ns, rel=1e-12)
    assert found.gap == 0
    assert slowest_stage(problem, found.on_edge) == "cloud"


def transformer() -> Needs:
    net = Layers()
    x = net.chain(-1, 3)
    for _ in range(12):
        norm = net.chain(x, 1)
        q, k, v = (net.chain(norm, 4) for _ in range(3))
        x = net.add(x, net.chain(net.add(net.add(q, k), v), 3))
        x = net.add(x, net.chain(x, 4))
    net.chain(x, 2)
    return net.needs


def two_inputs() -> Needs:
    """Two towers of their own, joined, and a head on the side."""
    net = Layers()
    x = net.chain(net.add(net.chain(-1, 10), net.chain(-1, 12)), 6)
    net.chain(x, 4)
    net.chain(x, 9)
    return net.needs


NETS = {f.__name__: f for f in (googlenet, resnet, transformer, densenet, unet, two_inputs)}


@pytest.mark.parametrize("name", NETS)
def test_networks_are_solved_exactly(name: str) -> None:
    """The gap is nothing, whatever the speeds: what prefixes and weighted sums alone cannot show."""
    needs = NETS[name]()
    inner = 0
    for slower, link in itertools.product((1, 2, 8), (0.1, 1, 3, 10, 30)):
        problem = problem_of(
            needs, np.random.default_rng(round(10 * link)), slower=slower, link=link, outputs=[len(needs) - 1]
        )
        found = search(problem, "slowest", budget_s=NEVER)
        assert is_closed(problem, found.on_edge)
        assert found.value == stages(problem, found.on_edge).slowest
        assert found.gap == 0
        prefixes = [stages(problem, np.arange(len(needs)) < k).slowest for k in range(len(needs) + 1)]
        assert found.value <= min(prefixes) * (1 + SAME)
        inner += found.value < min(prefixes) * (1 - 1e-6)
        assert getattr(stages(problem, found.on_edge), slowest_stage(problem, found.on_edge)) == found.value
    assert inner or name in ("resnet", "densenet", "unet")  # where nearly every placement is a prefix


def test_real_network(efficientnet: Graph) -> None:
    problem = of_graph(efficientnet, slower=4, mbps=30)
    found = search(problem, "slowest")
    assert found.gap == 0
    assert 0 < found.on_edge.sum() < problem.steps
    slowest = min(stages(problem, np.arange(problem.steps) < k).slowest for k in range(problem.steps + 1))
    assert found.value == pytest.approx(slowest, rel=SAME)  # a chain in order: prefixes are all there is


@pytest.fixture(scope="module")
def efficientnet() -> Graph:
    return sp.load("zoo:efficientnet_lite0").graph


def of_graph(graph: Graph, slower: float, mbps: float) -> Problem:
    """Costs by FLOPs (100 GFLOP/s on the server) and bytes."""
    step = {i: k for k, members in enumerate(graph.order) for i in members}
    work = np.array([sum(graph.nodes[i].flops for i in members) / 1e8 + 0.005 for members in graph.order])
    pairs = np.array(sorted({(step[m], step[i]) for i in step for m in graph.makers(i)}), np.int32)
    names = list(graph.consumers)
    users = [sorted({step[i] for i in graph.consumers[t]}) for t in names]
    return Problem(
        edge=work * slower,
        cloud=work,
        before=pairs[:, 0],
        after=pairs[:, 1],
        maker=np.array([step[graph.producer[t]] if t in graph.producer else -1 for t in names], np.int32),
        link=np.array([graph.tensors[t].nbytes * 8e-3 / mbps for t in names]),
        first=np.cumsum([0, *map(len, users)]).astype(np.int32),
        users=np.array([u for us in users for u in us], np.int32),
        down=np.zeros(len(work)),
    )


def test_input_that_must_stay() -> None:
    """An infinite price on the input: at least one step on the device, and on a link without price just that."""
    problem = problem_of(resnet(), np.random.default_rng(0), slower=100)
    problem = dataclasses.replace(problem, link=np.where(problem.maker < 0, NEVER, 0.0))
    found = search(problem, "slowest")
    assert found.on_edge.sum() == 1
    assert found.gap == 0


def test_nothing_allowed() -> None:
    problem = problem_of(unet(), np.random.default_rng(0))
    problem = dataclasses.replace(
        problem, edge=np.full(problem.steps, NEVER), link=np.where(problem.maker < 0, NEVER, 1.0)
    )
    found = search(problem, "slowest")
    assert (found.value, found.bound) == (NEVER, NEVER)


def test_fixed_costs_only_where_they_are_paid() -> None:
    problem = dataclasses.replace(
        problem_of(resnet(), np.random.default_rng(0), slower=1, link=0), edge_fixed=7.0, cloud_fixed=5.0
    )
    dear = dataclasses.replace(problem, edge_fixed=1e3)
    assert not search(dear, "slowest").on_edge.any()
    dear = dataclasses.replace(problem, cloud_fixed=1e3)
    assert search(dear, "slowest").on_edge.all()


def test_no_steps() -> None:
    empty = problem_of([], np.random.default_rng(0))
    found = search(empty, "slowest")
    assert (found.value, found.bound, found.on_edge.size) == (0, 0, 0)
