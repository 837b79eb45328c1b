"""Collecting in virtual time with an engine whose kernels take what the test says, and once for real."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from virtual_kernels import FIXED_MS, VirtualEngine, collected

from splitpoint.errors import EngineError, UsageError
from splitpoint.predict.calibrate.collect import collect
from splitpoint.predict.calibrate.collection import Collection, load_collection, save_collection, started
from splitpoint.predict.calibrate.random_networks import FAMILIES

# --- the survey ---------------------------------------------------------------------------------------------------


def test_a_round_has_a_strip_of_every_family_and_the_budget_ends_it() -> None:
    engine = VirtualEngine()
    found = collected(engine, 30.0)
    assert 27.0 < found.spent_s <= 32.0
    assert found.spent_s == pytest.approx(engine.now_s)
    assert [s.family for s in found.strips][: len(FAMILIES)] == list(FAMILIES)[: len(found.strips)]
    for s in found.strips:
        assert min(s.kernels_ms()) > 0
    assert found.rows == sum(len(s.rows) for s in found.strips)


def test_what_learning_takes_in_the_end_is_kept_free() -> None:
    found = collected(VirtualEngine(), 30.0, learning_s=lambda tables: 10.0)
    assert 16.0 < found.spent_s <= 20.5
    assert len(collected(VirtualEngine(), 2.0, learning_s=lambda tables: 10.0).strips) == 1  # there is at least one


def test_the_whole_is_its_kernels_and_what_is_fixed() -> None:
    engine = VirtualEngine()
    found = collected(engine, 10.0)
    for s in found.strips:
        # Placed nodes alone have times of their own; what is copied runs as part of the whole.
        assert s.whole_ms - FIXED_MS == pytest.approx(float(s.kernels_ms().sum()), rel=0.02)


def test_the_same_seed_measures_the_same_strips() -> None:
    one, other = (collected(VirtualEngine(), 8.0) for _ in range(2))
    assert [s.rows for s in one.strips] == [s.rows for s in other.strips]
    third = collected(VirtualEngine(), 8.0, started(VirtualEngine(), seed=1))  # type: ignore[arg-type]
    assert [s.work for s in third.strips] != [s.work for s in one.strips]


def test_it_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    path = tmp_path / "device.strips.json"
    save_collection(path, collected(VirtualEngine(), 6.0))
    begun = load_collection(path)
    done = collected(VirtualEngine(), 14.0, begun)
    assert done.strips[: len(begun.strips)] == begun.strips
    whole = collected(VirtualEngine(), 14.0)
    both = min(len(done.strips), len(whole.strips))
    assert both > len(begun.strips)
    assert [s.rows for s in done.strips[:both]] == [s.rows for s in whole.strips[:both]]
    assert collected(VirtualEngine(), 5.0, begun) == begun  # nothing is left of a smaller budget


def test_a_disturbed_strip_is_measured_again_and_the_disturbance_left_out() -> None:
    # While the third strip's kernels are timed, something else runs.
    found = collected(VirtualEngine(slow={2: 3.0}), 18.0)
    third = found.strips[2]
    assert len(third.visits) == 2
    assert sum(third.visits[0].kernels) > 2.5 * sum(third.visits[1].kernels)
    assert float(third.kernels_ms().sum()) == pytest.approx(sum(third.visits[1].kernels))
    assert max(len(s.visits) for s in found.strips if s is not third) == 1


def test_what_is_least_known_for_its_cost_is_measured_next() -> None:
    """Only layer norm is not known: networks with it are taken more often than they are drawn."""
    learned = []

    def fit(tables: Mapping[str, Any]) -> Any:
        learned.append(sum(len(t) for t in tables.values()))
        return lambda kind, configs: np.full(len(next(iter(configs.values()))), 1.0 if kind == "layernorm" else 0.0)

    def share(found: Collection) -> float:
        return float(np.mean(["layernorm" in dict(s.rows) for s in found.strips[len(FAMILIES) :]]))

    chosen, drawn = collected(VirtualEngine(), 44.0, fit=fit), collected(VirtualEngine(), 44.0)
    assert len(chosen.strips) >= len(FAMILIES) + 8
    assert share(chosen) >= 1.3 * share(drawn)
    assert learned == sorted(learned)
    assert all(b >= a * 1.3 for a, b in pairwise(learned))  # not anew for every strip


def test_progress_is_told_before_every_strip() -> None:
    told: list[Any] = []
    found = collected(VirtualEngine(), 8.0, on_progress=told.append)
    assert len(told) == sum(len(s.visits) for s in found.strips)
    assert [p.done for p in told] == list(range(len(told)))
    assert told[0].what == next(iter(FAMILIES))
    assert told[-1].left_s < told[0].left_s


def test_an_engine_that_says_nothing_of_its_kernels_cannot_be_calibrated() -> None:
    class Silent:
        name, device, threads = "silent", "cpu", 1

    with pytest.raises(EngineError, match="does not say what its kernels take"):
        next(collect(started(VirtualEngine()), Silent(), budget_s=1.0))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="above 0"):
        next(collect(started(VirtualEngine()), VirtualEngine(), budget_s=0.0))  # type: ignore[arg-type]
