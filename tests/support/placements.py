"""Placement problems, the same questions answered by trying everything, and the shapes of networks."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
from plans import is_closed

from splitpoint.planning.solve.problem import Bools, Floats, Problem, Solution, stages


def slowest_stage(problem: Problem, on_edge: Bools) -> str:
    totals = stages(problem, on_edge)
    return max(("edge", "link", "cloud"), key=lambda name: getattr(totals, name))


SAME = 1e-9  # sums of the same numbers in another order


NEVER = math.inf


Needs = Sequence[Sequence[int]]


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


def best_of(values: Floats, keeps: Bools) -> float:
    return float(values[keeps].min()) if keeps.any() else NEVER


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


def woven(steps: int, rng: np.random.Generator) -> Needs:
    """No block to speak of: every step needs some of the last twelve."""
    return [(-1,), *(tuple(rng.integers(max(-1, v - 12), v, 2).tolist()) for v in range(1, steps))]
