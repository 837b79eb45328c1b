"""The minimum cut against brute force over every predecessor-closed set, with costs from a nanosecond to an hour."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import is_closed

from splitpoint.planning.solve.min_cut import Cutter, least
from splitpoint.planning.solve.problem import Bools, Problem, Solution, stages

#: In nanoseconds every cost here is an integer and every sum below 2^53: float64 is exact, so `==` is fair.
NANOSECOND, MICROSECOND, MILLISECOND, SECOND, HOUR = 1.0, 1e3, 1e6, 1e9, 3.6e12
MIXED = (NANOSECOND, MICROSECOND, MILLISECOND, SECOND, HOUR)


def draw(rng: np.random.Generator, size: int, scales: tuple[float, ...], zeros: float = 0.15) -> Any:
    """Integer costs of every magnitude in `scales`, some of them 0."""
    costs = np.floor(rng.uniform(1, 10, size) * rng.choice(scales, size))
    return np.where(rng.random(size) < zeros, 0.0, costs)


def random_problem(
    rng: np.random.Generator,
    n: int,
    scales: tuple[float, ...] = MIXED,
    *,
    inputs: int = 1,
    outputs: int = 1,
    forbidden: float = 0.0,
    fixed: bool = True,
    density: float = 0.3,
) -> Problem:
    """A random DAG: tensors with one user or many, some needed only for their shape (precedence, nothing crosses)."""
    tensors: list[tuple[int, list[int]]] = []
    pairs: set[tuple[int, int]] = set()
    for _ in range(inputs):
        users = np.flatnonzero(rng.random(n) < density)
        tensors.append((-1, sorted({0, *users.tolist()}) if n else []))
    for v in range(n):
        for _ in range(int(rng.integers(1, 3))):  # some steps make two tensors
            later = [u for u in range(v + 1, n) if rng.random() < density]
            pairs.update((v, u) for u in later)
            # A group's inner tensors have their maker among the users.
            tensors.append((v, later + [v] * int(rng.random() < 0.1)))
        pairs.update((v, u) for u in range(v + 1, n) if rng.random() < density / 4)
    link = draw(rng, len(tensors), scales)
    link[rng.random(len(tensors)) < forbidden] = np.inf
    down = np.zeros(n)
    ends = rng.choice(n, min(outputs, n), replace=False) if n else np.zeros(0, int)
    down[ends] = draw(rng, len(ends), scales)
    before, after = np.array(sorted(pairs), np.int32).reshape(-1, 2).T
    return Problem(
        edge=draw(rng, n, scales),
        cloud=draw(rng, n, scales),
        before=before,
        after=after,
        maker=np.array([m for m, _ in tensors], np.int32),
        link=link,
        first=np.cumsum([0, *(len(u) for _, u in tensors)]).astype(np.int32),
        users=np.array([u for _, us in tensors for u in us], np.int32),
        down=down,
        edge_fixed=float(draw(rng, 1, scales, 0.5)[0]) if fixed else 0.0,
        cloud_fixed=float(draw(rng, 1, scales, 0.3)[0]) if fixed else 0.0,
    )


def closed_sets(problem: Problem) -> Bools:
    """Every predecessor-closed placement, one a row."""
    n = problem.steps
    every = (np.arange(1 << n)[:, None] >> np.arange(n) & 1).astype(bool)
    return every[~(every[:, problem.after] & ~every[:, problem.before]).any(axis=1)]


def totals(problem: Problem, sets: Bools) -> Any:
    """What each placement costs, written apart from `stages`: tensor by tensor, user by user."""
    cost = np.where(sets, problem.edge, 0.0).sum(axis=1) + np.where(~sets, problem.cloud, 0.0).sum(axis=1)
    cost += np.where(~sets, problem.down, 0.0).sum(axis=1)
    for t, (a, b) in enumerate(pairwise(problem.first)):
        made = sets[:, problem.maker[t]] if problem.maker[t] >= 0 else np.ones(len(sets), bool)
        crosses = made & (~sets[:, problem.users[a:b]]).any(axis=1)
        cost += np.where(crosses, problem.link[t], 0.0)
    cost += np.where(sets.any(axis=1), problem.edge_fixed, 0.0)
    cost += np.where((~sets).any(axis=1), problem.cloud_fixed, 0.0)
    return cost


def check(problem: Problem, found: Solution, sets: Bools | None = None) -> None:
    """`found` is the best of all placements (of `sets`), prices itself right, and its bound holds and is tight."""
    best = totals(problem, closed_sets(problem) if sets is None else sets).min()
    assert is_closed(problem, found.on_edge)
    assert found.value == best
    assert found.bound <= best
    if np.isfinite(best):
        assert found.value == stages(problem, found.on_edge).total
        assert found.gap <= 1e-10
        assert math.isfinite(found.value)
    else:
        assert found.bound == np.inf
        assert math.isinf(found.value)


def many(count: int, seed: int) -> Iterator[np.random.Generator]:
    """`count` generators, each of its own seed: a failure is repeated with one of them."""
    return (np.random.default_rng([seed, k]) for k in range(count))


# --- against brute force ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seed", "scales"),
    [(0, MIXED), (1, (MILLISECOND,)), (2, (NANOSECOND, HOUR)), (3, (1.0,)), (4, (MICROSECOND, MILLISECOND))],
    ids=["every magnitude", "milliseconds", "nanosecond and hour", "ties", "two magnitudes"],
)
def test_equal_to_brute_force(seed: int, scales: tuple[float, ...]) -> None:
    """Several inputs and outputs, tensors with many users, fixed costs on both sides."""
    for rng in many(300, seed):
        n = int(rng.integers(1, 9))
        problem = random_problem(
            rng, n, scales,
            inputs=int(rng.integers(1, 4)), outputs=int(rng.integers(1, 4)), density=rng.uniform(0.1, 0.7),
        )  # fmt: skip
        check(problem, least(problem))


def test_equal_to_brute_force_where_tensors_must_not_cross() -> None:
    """Links that are inf forbid placements, and sometimes all but one."""
    interior = 0
    for rng in many(300, 10):
        problem = random_problem(rng, int(rng.integers(1, 9)), inputs=2, outputs=2, forbidden=rng.uniform(0, 0.6))
        found = least(problem)
        check(problem, found)
        interior += 0 < found.on_edge.sum() < problem.steps
    assert interior > 50


def test_equal_to_brute_force_with_steps_that_stay() -> None:
    """Steps kept on the device or on the server; where they contradict each other, nothing is feasible."""
    impossible = 0
    for rng in many(300, 20):
        problem = random_problem(rng, int(rng.integers(2, 9)), forbidden=rng.choice([0.0, 0.2]))
        keep_edge, keep_cloud = rng.random((2, problem.steps)) < 0.2
        keep_edge &= ~keep_cloud
        found = least(problem, keep_edge=keep_edge, keep_cloud=keep_cloud)
        sets = closed_sets(problem)
        sets = sets[sets[:, keep_edge].all(axis=1) & ~sets[:, keep_cloud].any(axis=1)]
        if not len(sets) or np.isinf(totals(problem, sets).min()):
            impossible += 1
            assert math.isinf(found.value)
            assert found.bound == np.inf
        else:
            check(problem, found, sets)
            assert found.on_edge[keep_edge].all()
            assert not found.on_edge[keep_cloud].any()
    assert impossible > 20


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_equal_to_brute_force_as_hypothesis_likes_it(data: st.DataObject) -> None:
    """Shapes and costs drawn one by one, so that a failure shrinks to the smallest graph there is."""
    n = data.draw(st.integers(0, 6), "steps")
    cost = st.one_of(st.integers(0, 3), st.integers(0, int(HOUR))).map(float)
    link = st.one_of(cost, st.just(np.inf))
    costs = lambda of: np.array(data.draw(st.lists(of, min_size=n, max_size=n)), float)  # noqa: E731
    pairs = [(a, b) for b in range(n) for a in range(b) if data.draw(st.booleans())]
    tensors = data.draw(
        st.lists(st.tuples(st.integers(-1, n - 1), link, st.sets(st.integers(0, max(0, n - 1)))), max_size=6)
    )
    # A user comes after the maker, as in any graph.
    tensors = [(m, c, sorted(u for u in us if m < u < n)) for m, c, us in tensors]
    pairs += [(m, u) for m, _, us in tensors for u in us if m >= 0]
    before, after = np.array(pairs, np.int32).reshape(-1, 2).T
    problem = Problem(
        edge=costs(cost),
        cloud=costs(cost),
        before=before,
        after=after,
        maker=np.array([m for m, _, _ in tensors], np.int32),
        link=np.array([c for _, c, _ in tensors], float),
        first=np.cumsum([0, *(len(u) for _, _, u in tensors)]).astype(np.int32),
        users=np.array([u for _, _, us in tensors for u in us], np.int32),
        down=costs(cost),
        edge_fixed=data.draw(cost),
        cloud_fixed=data.draw(cost),
    )
    check(problem, least(problem))


# --- magnitudes ---------------------------------------------------------------------------------------------------


def chain(edge: Any, cloud: Any, link: Any, **more: Any) -> Problem:
    """Steps one after the other; ``link[0]`` is the input's, ``link[i]`` that of what step i − 1 makes."""
    n = len(edge)
    steps = np.arange(n, dtype=np.int32)
    return Problem(
        edge=np.array(edge, float),
        cloud=np.array(cloud, float),
        before=steps[:-1],
        after=steps[1:],
        maker=steps - 1,
        link=np.array(link, float),
        first=np.arange(n + 1, dtype=np.int32),
        users=steps,
        down=more.pop("down", np.zeros(n)),
        **more,
    )


def test_a_nanosecond_decides_beside_an_hour() -> None:
    """The hours must be paid wherever the cut is; three cuts differ by one nanosecond in 7.2 × 10¹²."""
    for best in range(1, 4):
        link = np.array([HOUR, 5.0, 5.0, 5.0, HOUR])
        link[best] = 4.0
        problem = chain([HOUR, 0, 0, 0, 2 * HOUR], [2 * HOUR, 0, 0, 0, HOUR], link)
        found = least(problem)
        assert found.on_edge.tolist() == [k < best for k in range(5)]
        assert found.value == 2 * HOUR + 4
        assert found.gap < 1e-14


def test_nanoseconds_are_not_lost_where_everything_else_is_hours() -> None:
    """All on one side costs hours, the best placement some nanoseconds: rounding to U ÷ 2^29 would make it 0."""
    n = 40
    rng = np.random.default_rng(5)
    edge, cloud = np.floor(rng.uniform(1, 9, n)), np.full(n, HOUR)
    edge[n // 2 :], cloud[n // 2 :] = HOUR, edge[: n // 2]
    link = np.full(n, HOUR)
    link[n // 2] = 3
    found = least(chain(edge, cloud, link))
    assert found.value == edge[: n // 2].sum() + cloud[n // 2 :].sum() + 3
    assert found.gap < 1e-12


def test_random_chains_of_every_magnitude() -> None:
    """Long chains, whose oracle is every prefix: hundreds of roundings add up in one cut."""
    for rng in many(60, 30):
        n = int(rng.integers(50, 400))
        problem = chain(draw(rng, n, MIXED[:4]), draw(rng, n, MIXED[:4]), draw(rng, n, MIXED), cloud_fixed=3.0)
        found = least(problem)
        oracle = min(stages(problem, np.arange(n) < k).total for k in range(n + 1))
        assert found.value == oracle
        assert found.bound <= oracle
        assert found.gap <= 1e-12


def test_fractions_and_irrational_costs() -> None:
    """Costs that float64 only approximates: equal within a few of its roundings."""
    for rng in many(200, 40):
        problem = random_problem(rng, int(rng.integers(1, 8)))
        scaled = dataclasses.replace(
            problem, **{k: getattr(problem, k) * (np.pi * 1e-7) for k in ("edge", "cloud", "link", "down")}
        )
        found = least(scaled)
        best = totals(scaled, closed_sets(scaled)).min()
        assert found.value == pytest.approx(best, rel=1e-13)
        assert found.bound <= best * (1 + 1e-15)
        assert found.gap <= 1e-10


@pytest.mark.parametrize("scale", [2.0**-60, 2.0**-30, 2.0**30, 2.0**60])
def test_the_unit_does_not_matter(scale: float) -> None:
    """Multiplied by a power of two, every cost gives the same placement: no unit is built in."""
    for rng in many(40, 50):
        problem = random_problem(rng, 8)
        scaled = dataclasses.replace(
            problem,
            **{k: getattr(problem, k) * scale for k in ("edge", "cloud", "link", "down", "edge_fixed", "cloud_fixed")},
        )
        a, b = least(problem), least(scaled)
        assert b.value == a.value * scale
        assert a.on_edge.tolist() == b.on_edge.tolist()


# --- what it means ------------------------------------------------------------------------------------------------


def test_a_tensor_with_several_users_is_paid_once() -> None:
    """One tensor of 10 to three users on the server: 10, not 30."""
    problem = Problem(
        edge=np.array([1.0, 50, 50, 50]),
        cloud=np.array([100.0, 1, 1, 1]),
        before=np.zeros(3, np.int32),
        after=np.arange(1, 4, dtype=np.int32),
        maker=np.array([-1, 0], np.int32),
        link=np.array([1000.0, 10]),
        first=np.array([0, 1, 4], np.int32),
        users=np.arange(4, dtype=np.int32),
        down=np.zeros(4),
    )
    found = least(problem)
    assert found.on_edge.tolist() == [True, False, False, False]
    assert found.value == 1 + 10 + 3


def test_data_never_goes_back() -> None:
    """The middle step is cheap on the server, the last on the device only: the middle one stays on the device."""
    problem = chain([1, 100, 1], [1000, 1, 1000], [0, 0, 0])
    found = least(problem)
    assert found.on_edge.tolist() == [True, True, True]
    assert found.value == 102


def test_fixed_costs_decide_between_splitting_and_not() -> None:
    """A split that saves 10 is worth a round trip of 9 and not one of 11."""
    costs: dict[str, Any] = {"edge": [5, 25], "cloud": [25, 5], "link": [50, 10]}
    near, far = (least(chain(**costs, cloud_fixed=f)) for f in (9.0, 11.0))
    assert near.on_edge.tolist() == [True, False]
    assert (near.value, near.bound) == (29, pytest.approx(29))
    assert far.on_edge.tolist() == [True, True]
    assert (far.value, far.bound) == (30, pytest.approx(30))


def test_the_device_is_chosen_where_nothing_is_gained() -> None:
    found = least(chain([5, 5], [5, 5], [0, 0]))
    assert found.on_edge.all()
    assert found.value == 10


def test_the_answers_way_down_counts() -> None:
    """The server is faster, and the answer is larger than what it saves."""
    problem = chain([10, 10], [1, 1], [1, 1], down=np.array([0.0, 100]))
    assert least(problem).on_edge.all()


def test_a_model_without_steps() -> None:
    """Nothing to place: nothing costs anything."""
    empty = np.zeros(0, np.int32)
    nothing = Problem(
        np.zeros(0), np.zeros(0), empty, empty, empty, np.zeros(0), np.zeros(1, np.int32), empty, np.zeros(0), 3.0, 4.0
    )
    assert least(nothing).value == 0


def test_a_step_that_fits_nowhere() -> None:
    found = least(chain([1, np.inf], [1, np.inf], [1, 1]))
    assert math.isinf(found.value)
    assert found.gap == 0


# --- again and again ----------------------------------------------------------------------------------------------


def test_a_cutter_plans_other_costs_of_the_same_graph() -> None:
    """Other links, other device, other server, one after the other: each as if planned anew."""
    for rng in many(60, 60):
        problem = random_problem(rng, int(rng.integers(2, 9)), inputs=2)
        cutter = Cutter(problem)
        check(problem, cutter.least(problem))
        for _ in range(4):
            other = dataclasses.replace(
                problem,
                link=draw(rng, problem.link.size, MIXED),
                edge=draw(rng, problem.steps, MIXED),
                cloud_fixed=float(rng.integers(1, 1e9)),
            )
            check(other, cutter.least(other))
        check(problem, cutter.least(problem))


def test_costs_are_left_alone() -> None:
    """The problem's arrays are the caller's."""
    problem = random_problem(np.random.default_rng(1), 8, forbidden=0.2)
    before = {k: np.copy(getattr(problem, k)) for k in ("edge", "cloud", "link", "down")}
    least(problem)
    assert all(np.array_equal(costs, getattr(problem, k)) for k, costs in before.items())


def test_a_large_graph_is_proven_best() -> None:
    """2,000 steps with skip connections: no oracle, but the flow proves the cut."""
    rng = np.random.default_rng(70)
    n = 2000
    makers = np.arange(n - 1)
    skips = np.minimum(n - 1, makers + rng.integers(2, 60, n - 1))
    before, after = np.concatenate([[makers, makers + 1], [makers, skips]], axis=1).astype(np.int32)
    problem = Problem(
        edge=rng.lognormal(0, 2, n) * np.linspace(0.2, 5, n),
        cloud=rng.lognormal(0, 2, n) * np.linspace(5, 0.2, n),
        before=before,
        after=after,
        maker=np.arange(-1, n - 1, dtype=np.int32),
        link=rng.lognormal(1, 2, n),
        first=np.array([0, *range(1, 2 * n, 2)], np.int32),
        users=np.array([0, *np.stack([makers + 1, skips], axis=1).ravel()], np.int32),
        down=np.zeros(n),
    )
    found = least(problem)
    assert is_closed(problem, found.on_edge)
    assert 0 < found.on_edge.sum() < n
    assert found.value == stages(problem, found.on_edge).total
    assert found.gap < 1e-11
