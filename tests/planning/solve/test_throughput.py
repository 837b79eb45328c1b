"""Heavy load and limits: equal to brute force on small graphs, exact on networks in blocks, honest where not."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from plans import is_closed

import splitpoint as sp
from splitpoint.graph import Graph
from splitpoint.planning.solve.blocks import Block, StepOrder, three_stages
from splitpoint.planning.solve.constrained import Limit, least_within
from splitpoint.planning.solve.min_cut import least
from splitpoint.planning.solve.problem import Bools, Floats, Problem, Solution, stages
from splitpoint.planning.solve.throughput import bottleneck


def slowest_stage(problem: Problem, on_edge: Bools) -> str:
    totals = stages(problem, on_edge)
    return max(("edge", "link", "cloud"), key=lambda name: getattr(totals, name))


SAME = 1e-9  # sums of the same numbers in another order
NEVER = math.inf

Needs = Sequence[Sequence[int]]


# --- problems ---------------------------------------------------------------------------------------------------------


def problem_of(
    needs: Needs,
    rng: np.random.Generator,
    *,
    slower: float = 4.0,
    link: float = 1.0,
    outputs: Sequence[int] = (),
    cost: Callable[[np.random.Generator], float] = lambda rng: float(rng.uniform(0.5, 1.5)),
) -> Problem:
    """Steps that need what `needs` lists (−1: the model's input), one tensor each; tensors shrink with depth."""
    users: dict[int, list[int]] = {}
    for step, before in enumerate(needs):
        for maker in sorted(set(before)):
            users.setdefault(maker, []).append(step)
    pairs = np.array([(m, u) for m, us in users.items() for u in us if m >= 0], np.int32).reshape(-1, 2)
    work = np.array([cost(rng) for _ in needs])
    size = np.array([cost(rng) * (1 - 0.8 * max(m, 0) / len(needs)) for m in users])
    down = np.zeros(len(needs))
    down[list(outputs)] = 0.1
    return Problem(
        edge=work * slower,
        cloud=work,
        before=pairs[:, 0],
        after=pairs[:, 1],
        maker=np.array(list(users), np.int32),
        link=size * link,
        first=np.cumsum([0, *map(len, users.values())]).astype(np.int32),
        users=np.array([u for us in users.values() for u in us], np.int32),
        down=down,
    )


def any_cost(rng: np.random.Generator) -> float:
    """Nothing, a small whole number (so that many placements tie), or anything."""
    kind = rng.random()
    return 0.0 if kind < 0.15 else float(rng.integers(1, 10)) if kind < 0.5 else float(np.exp(2 * rng.normal()))


def any_problem(rng: np.random.Generator, steps: int, cost: Callable[[np.random.Generator], float]) -> Problem:
    """Random wiring: several inputs and ends, tensors with several users, orders without a tensor, infinite prices."""
    maker, first, users, pairs = [], [0], [], set()
    for _ in range(rng.integers(1, steps + 3)):
        made = int(rng.integers(-1, steps - 1)) if steps > 1 else -1
        wanted = sorted({int(u) for u in rng.integers(made + 1, steps, rng.integers(1, 4))})
        pairs |= {(made, u) for u in wanted if made >= 0}
        if made >= 0 and rng.random() < 0.2:
            wanted.insert(0, made)  # a group needs what it makes itself
        maker.append(made)
        users += wanted
        first.append(len(users))
    for a, b in rng.integers(0, steps, (rng.integers(0, steps), 2)):
        pairs.add((int(min(a, b)), int(max(a, b))))
    order = np.array(sorted(pairs), np.int32).reshape(-1, 2)

    def costs(count: int, *, infinite: float = 0.0) -> Floats:
        drawn = np.array([cost(rng) for _ in range(count)])
        if rng.random() < 0.2:
            drawn[rng.random(count) < infinite] = NEVER
        return drawn

    down = costs(steps)
    down[rng.random(steps) < 0.7] = 0.0
    return Problem(
        edge=costs(steps, infinite=0.1),
        cloud=costs(steps, infinite=0.1),
        before=order[:, 0],
        after=order[:, 1],
        maker=np.array(maker, np.int32),
        link=costs(len(maker), infinite=0.3),
        first=np.array(first, np.int32),
        users=np.array(users, np.int32),
        down=down,
        edge_fixed=cost(rng) if rng.random() < 0.5 else 0.0,
        cloud_fixed=cost(rng) if rng.random() < 0.5 else 0.0,
    )


def with_costs_of(problem: Problem, other: Problem, rng: np.random.Generator) -> Problem:
    """The wiring of one, the steps' costs of the other."""
    free = np.zeros(problem.steps)
    only_edge = rng.random() < 0.5  # as memory is
    return dataclasses.replace(
        problem,
        edge=other.edge,
        cloud=free if only_edge else other.cloud,
        down=free if only_edge else other.down,
        link=rng.uniform(0, 3, problem.link.size) * (not only_edge),
        edge_fixed=0.0,
        cloud_fixed=0.0,
    )


# --- the same questions answered by trying everything ---------------------------------------------------------------


def closed_sets(problem: Problem) -> Bools:
    """All of them: bool[k, n]."""
    every = (np.arange(1 << problem.steps)[:, None] >> np.arange(problem.steps) & 1).astype(bool)
    return every[~(every[:, problem.after] & ~every[:, problem.before]).any(axis=1)]


def all_stages(problem: Problem, sets: Bools) -> Floats:
    """float64[k, 3]: device, link and server of every set, as the docstring of `Problem` says it."""
    edge = np.where(sets, problem.edge, 0.0).sum(axis=1) + problem.edge_fixed * sets.any(axis=1)
    cloud = np.where(~sets, problem.cloud, 0.0).sum(axis=1)
    link = np.where(~sets, problem.down, 0.0).sum(axis=1) + problem.cloud_fixed * (~sets).any(axis=1)
    for t, (start, end) in enumerate(itertools.pairwise(problem.first)):
        maker = problem.maker[t]
        made = np.ones(len(sets), bool) if maker < 0 else sets[:, maker]
        link += np.where(made & (~sets[:, problem.users[start:end]]).any(axis=1), problem.link[t], 0.0)
    return np.stack([edge, link, cloud], axis=1)


def check(found: Solution, problem: Problem, best: float, value: float, *, exact: bool) -> None:
    """`found` is a placement, worth what it says; its bound is one; nothing is left to find if `exact`."""
    assert found.bound <= best * (1 + SAME)
    if math.isinf(best):
        assert found.value == NEVER
        assert not exact or found.bound == NEVER
    elif math.isfinite(found.value):
        assert is_closed(problem, found.on_edge)
        assert value == found.value
        assert found.value >= best * (1 - SAME)
        if exact:
            assert found.value <= best * (1 + SAME)
            assert found.gap <= SAME
    else:
        assert not exact


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
        found = bottleneck(problem, budget_s=NEVER)
        check(found, problem, slowest.min(), stages(problem, found.on_edge).slowest, exact=True)
        split += found.feasible and 0 < found.on_edge.sum() < problem.steps

        limited = with_costs_of(problem, any_problem(rng, problem.steps, any_cost), rng)
        spent = all_stages(limited, sets).sum(axis=1)
        most = float(rng.choice(spent[np.isfinite(spent)] if np.isfinite(spent).any() else np.ones(1)))
        most *= float(rng.choice([1.0, 1.0, 0.7, 1.1]))
        keeps = spent <= most * (1 + SAME)
        limit = Limit(limited, most)
        found = bottleneck(problem, within=[limit], budget_s=NEVER)
        check(found, problem, best_of(slowest, keeps), stages(problem, found.on_edge).slowest, exact=True)
        assert not found.feasible or stages(limited, found.on_edge).total <= most * (1 + SAME)
        tight += best_of(slowest, keeps) > slowest.min()
        found = least_within(problem, [limit], budget_s=NEVER)
        check(found, problem, best_of(total, keeps), stages(problem, found.on_edge).total, exact=True)
        assert not found.feasible or stages(limited, found.on_edge).total <= most * (1 + SAME)
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
        found = bottleneck(problem, budget_s=NEVER)
        check(found, problem, slowest.min(), stages(problem, found.on_edge).slowest, exact=True)
        found = least(problem)
        check(found, problem, total.min(), stages(problem, found.on_edge).total, exact=True)
        found = least_within(problem, [], budget_s=NEVER)
        check(found, problem, total.min(), stages(problem, found.on_edge).total, exact=True)
        changed += bool(slowest.min() > all_stages(plain, sets).max(axis=1).min())
    assert changed > 10


def only_across(problem: Problem, link: Floats) -> Problem:
    """The wiring of a problem in which nothing costs but what crosses."""
    free = np.zeros(problem.steps)
    return dataclasses.replace(problem, edge=free, cloud=free, down=free, link=link, edge_fixed=0.0, cloud_fixed=0.0)


def best_of(values: Floats, keeps: Bools) -> float:
    return float(values[keeps].min()) if keeps.any() else NEVER


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
        found = least_within(problem, [Limit(c, m) for c, m in zip(costs, most, strict=True)], budget_s=NEVER)
        check(found, problem, best, stages(problem, found.on_edge).total, exact=True)
        both += best > max(best_of(total, keep[0]), best_of(total, keep[1]))
    assert both > 5


@pytest.mark.parametrize("seed", range(3))
def test_bound_of_the_linear_program_holds(seed: int) -> None:
    """With no part of a block looked at, every bound comes from branch and bound: within 0.1 %, never too high."""
    rng = np.random.default_rng(100 + seed)
    branched = 0
    for _ in range(15):
        problem = any_problem(rng, int(rng.integers(4, 10)), any_cost)
        sets = closed_sets(problem)
        three = all_stages(problem, sets)
        limited = with_costs_of(problem, any_problem(rng, problem.steps, any_cost), rng)
        spent = all_stages(limited, sets).sum(axis=1)
        most = float(np.nanmedian(np.where(np.isfinite(spent), spent, np.nan))) if np.isfinite(spent).any() else 1.0
        keeps = spent <= most * (1 + SAME)
        limit = Limit(limited, most)
        for found, best, value in (
            (bottleneck(problem, budget_s=NEVER, most_work=0), three.max(axis=1).min(), "slowest"),
            (bottleneck(problem, within=[limit], budget_s=NEVER, most_work=0), best_of(three.max(1), keeps), "slowest"),
            (least_within(problem, [limit], budget_s=NEVER, most_work=0), best_of(three.sum(1), keeps), "total"),
        ):
            check(found, problem, best, getattr(stages(problem, found.on_edge), value), exact=False)
            assert found.feasible == math.isfinite(best)
            assert found.gap <= 1.1e-3
            branched += found.feasible and found.gap > 0
    assert branched > 3


@pytest.mark.parametrize("seed", range(3))
def test_costs_from_a_nanosecond_to_an_hour(seed: int) -> None:
    """An early tensor of an hour does not wipe out what nanoseconds decide later."""
    rng = np.random.default_rng(seed)
    for _ in range(100):
        problem = any_problem(rng, 8, lambda rng: float(rng.uniform(1, 10) * 10.0 ** rng.integers(-6, 7)))
        best = all_stages(problem, closed_sets(problem)).max(axis=1).min()
        found = bottleneck(problem, budget_s=NEVER)
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
    found = bottleneck(problem)
    assert found.on_edge.tolist() == [True, True, False, False]
    assert found.value == pytest.approx(4 * ns, rel=1e-12)
    assert found.gap == 0
    assert slowest_stage(problem, found.on_edge) == "cloud"


# --- networks in blocks ---------------------------------------------------------------------------------------------


class Layers:
    """Steps by what they need."""

    def __init__(self) -> None:
        self.needs: list[tuple[int, ...]] = []

    def add(self, *before: int) -> int:
        self.needs.append(before)
        return len(self.needs) - 1

    def chain(self, start: int, length: int) -> int:
        for _ in range(length):
            start = self.add(start)
        return start


def googlenet() -> Needs:
    net = Layers()
    x = net.chain(-1, 8)
    for _ in range(9):
        x = net.add(net.chain(x, 2), net.chain(x, 4), net.chain(x, 4), net.chain(x, 3))
    net.chain(x, 3)
    return net.needs


def resnet() -> Needs:
    net = Layers()
    x = net.chain(-1, 3)
    for k in range(16):
        x = net.add(net.chain(net.add(net.chain(x, 5), net.chain(x, 1 if k % 4 == 0 else 0)), 1))
    net.chain(x, 3)
    return net.needs


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


def densenet() -> Needs:
    net = Layers()
    x = net.chain(-1, 3)
    for _ in range(4):
        made = [x]
        for _ in range(6):
            made.append(net.chain(net.add(*made), 4))
        x = net.chain(net.add(*made), 3)
    return net.needs


def unet() -> Needs:
    net = Layers()
    x, kept = -1, []
    for _ in range(4):
        x = net.chain(x, 4)
        kept.append(x)
        x = net.add(x)
    for skip in reversed(kept):
        x = net.chain(net.add(net.chain(x, 1), skip), 4)
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
        found = bottleneck(problem, budget_s=NEVER)
        assert is_closed(problem, found.on_edge)
        assert found.value == stages(problem, found.on_edge).slowest
        assert found.gap == 0
        prefixes = [stages(problem, np.arange(len(needs)) < k).slowest for k in range(len(needs) + 1)]
        assert found.value <= min(prefixes) * (1 + SAME)
        inner += found.value < min(prefixes) * (1 - 1e-6)
        assert getattr(stages(problem, found.on_edge), slowest_stage(problem, found.on_edge)) == found.value
    assert inner or name in ("resnet", "densenet", "unet")  # where nearly every placement is a prefix


def test_block_that_is_cut_inside() -> None:
    """Two branches of equal work between two equal machines: one each, as no prefix and no weighted sum has it."""
    needs: Needs = [(-1,), (0,), (0,), (1, 2)]
    problem = problem_of(needs, np.random.default_rng(0), slower=1, link=0.01)
    problem = dataclasses.replace(problem, edge=np.array([0.0, 9, 5, 0]), cloud=np.array([0.0, 5, 9, 0]))
    found = bottleneck(problem)
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


def test_real_network(efficientnet: Graph) -> None:
    problem = of_graph(efficientnet, slower=4, mbps=30)
    found = bottleneck(problem)
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


# --- wide graphs ----------------------------------------------------------------------------------------------------


def woven(steps: int, rng: np.random.Generator) -> Needs:
    """No block to speak of: every step needs some of the last twelve."""
    return [(-1,), *(tuple(rng.integers(max(-1, v - 12), v, 2).tolist()) for v in range(1, steps))]


@pytest.mark.parametrize("seed", range(3))
def test_wide_graph_comes_with_a_small_gap(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = problem_of(woven(120, rng), rng, slower=2, link=10)
    found = bottleneck(problem, budget_s=NEVER, most_work=10_000)
    assert is_closed(problem, found.on_edge)
    assert found.value == stages(problem, found.on_edge).slowest
    assert found.gap <= 0.01
    again = bottleneck(problem, budget_s=NEVER, most_work=10_000)
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
            found = bottleneck(problem, budget_s=NEVER, most_work=0, most_nodes=most_nodes)
            check(found, problem, best, stages(problem, found.on_edge).slowest, exact=False)
            unfinished += found.value > best * 1.001
    assert unfinished > 5


def test_search_without_time_still_answers() -> None:
    """Whenever the clock ends it: a placement and a bound that holds; more time, no worse."""
    rng = np.random.default_rng(1)
    problem = problem_of(woven(60, rng), rng, slower=2, link=10)
    best = bottleneck(problem, budget_s=NEVER)
    values = []
    for ticks in (0, 1, 2, 5, 20, 100):
        clock = itertools.count()
        found = bottleneck(problem, budget_s=ticks, most_work=0, clock=lambda clock=clock: float(next(clock)))
        assert is_closed(problem, found.on_edge)
        assert found.bound <= best.value * (1 + SAME)
        assert found.value >= best.bound * (1 - SAME)
        values.append(found.value)
    assert values == sorted(values, reverse=True)


def test_sum_without_limits_is_the_minimum_cut() -> None:
    """Two ways that share no code: the relaxation has no gap where a minimum cut is the answer."""
    rng = np.random.default_rng(3)
    for _ in range(5):
        problem = problem_of(woven(80, rng), rng, slower=3, link=4)
        found = least_within(problem, [], budget_s=NEVER)
        best = least(problem)
        assert found.value <= best.value * (1 + 1.1e-3)
        assert found.bound <= best.value * (1 + SAME)
        assert best.bound <= found.value * (1 + SAME)


# --- borders ----------------------------------------------------------------------------------------------------------


def test_limit_that_nothing_keeps() -> None:
    problem = problem_of(resnet(), np.random.default_rng(0))
    memory = dataclasses.replace(
        problem, edge=np.ones(problem.steps), cloud=problem.cloud * 0, link=problem.link * 0, down=problem.down * 0
    )
    for found in (least_within(problem, [Limit(memory, -1.0)]), bottleneck(problem, within=[Limit(memory, -1.0)])):
        assert (found.value, found.bound, found.feasible) == (NEVER, NEVER, False)
    nothing = least_within(problem, [Limit(memory, 0.0)])
    assert not nothing.on_edge.any()
    assert nothing.gap == 0
    ten = bottleneck(dataclasses.replace(problem, edge=problem.edge * 0), within=[Limit(memory, 10.0)])
    assert ten.on_edge.sum() <= 10
    assert ten.gap == 0


def test_infinite_limit_is_none() -> None:
    problem = problem_of(googlenet(), np.random.default_rng(0))
    forbidden = dataclasses.replace(problem, edge=np.full(problem.steps, NEVER))
    free = bottleneck(problem)
    limited = bottleneck(problem, within=[Limit(forbidden, NEVER)])
    assert limited.value == free.value


def test_input_that_must_stay() -> None:
    """An infinite price on the input: at least one step on the device, and on a link without price just that."""
    problem = problem_of(resnet(), np.random.default_rng(0), slower=100)
    problem = dataclasses.replace(problem, link=np.where(problem.maker < 0, NEVER, 0.0))
    found = bottleneck(problem)
    assert found.on_edge.sum() == 1
    assert found.gap == 0


def test_nothing_allowed() -> None:
    problem = problem_of(unet(), np.random.default_rng(0))
    problem = dataclasses.replace(
        problem, edge=np.full(problem.steps, NEVER), link=np.where(problem.maker < 0, NEVER, 1.0)
    )
    found = bottleneck(problem)
    assert (found.value, found.bound, found.feasible) == (NEVER, NEVER, False)


def test_fixed_costs_only_where_they_are_paid() -> None:
    problem = dataclasses.replace(
        problem_of(resnet(), np.random.default_rng(0), slower=1, link=0), edge_fixed=7.0, cloud_fixed=5.0
    )
    dear = dataclasses.replace(problem, edge_fixed=1e3)
    assert not bottleneck(dear).on_edge.any()
    dear = dataclasses.replace(problem, cloud_fixed=1e3)
    assert bottleneck(dear).on_edge.all()


def test_no_steps() -> None:
    empty = problem_of([], np.random.default_rng(0))
    found = bottleneck(empty)
    assert (found.value, found.bound, found.on_edge.size) == (0, 0, 0)


def test_wrong_wiring_is_refused() -> None:
    problem = problem_of(unet(), np.random.default_rng(0))
    with pytest.raises(ValueError, match="steps are in order"):
        bottleneck(dataclasses.replace(problem, before=problem.after, after=problem.before))
    with pytest.raises(ValueError, match="steps are in order"):
        bottleneck(dataclasses.replace(problem, maker=np.full(problem.link.size, problem.steps - 1, np.int32)))
    other = problem_of(resnet(), np.random.default_rng(0))
    with pytest.raises(ValueError, match="same steps"):
        bottleneck(problem, within=[Limit(other, 1.0)])
