"""Prices of terms, found again."""

from __future__ import annotations

import numpy as np
import pytest

from splitpoint.predict.learn.linear import cells_base, fit_base, fit_cells, fit_linear


def test_a_base_finds_the_price_of_each_term() -> None:
    draw = np.random.default_rng(0)
    terms = {"1": np.ones(200), "macs": 10 ** draw.uniform(0, 3, 200), "read": 10 ** draw.uniform(0, 3, 200)}
    ms = 0.5 + 0.02 * terms["macs"]
    ms[:20] *= 7  # disturbed
    base = fit_base(terms, ms)
    assert base["1"] == pytest.approx(0.5, rel=0.02)
    assert base["macs"] == pytest.approx(0.02, rel=0.02)
    assert base.get("read", 0.0) < 1e-4


def test_a_cell_with_few_rows_scales_the_common_base_and_one_with_fewer_uses_it() -> None:
    cells = np.array(["a"] * 40 + ["b"] * 3 + ["c"] * 2)
    terms = {"1": np.ones(45), "read": np.linspace(1, 5, 45)}
    bases = fit_cells(terms, np.where(cells == "a", 1.0, 2.0) * terms["read"], cells)
    assert set(bases) == {"", "a", "b"}
    assert cells_base(bases, terms, cells)[[0, 41, 44]] / terms["read"][[0, 41, 44]] == pytest.approx(
        [1.0, 2.0, 1.0], rel=0.05
    )


def test_linear_regression_is_there_to_compare_with() -> None:
    found = fit_linear({"x": np.array([1.0, 2, 3, 4]), "same": np.ones(4)}, np.array([5.0, 7, 9, 11]))
    assert found == pytest.approx({"1": 3.0, "x": 2.0})


def test_a_term_that_only_short_rows_have_has_no_price() -> None:
    """Gates of one pixel have an activation apart; from their microsecond nothing follows for whole pictures."""
    work = np.linspace(0.1, 5.0, 40)
    tiny = np.concatenate([np.zeros(40), [1e-5, 2e-5]])
    terms = {"1": np.ones(42), "macs": np.concatenate([work, [1e-4, 1e-4]]), "passes": tiny}
    ms = 0.01 + terms["macs"] + 200 * tiny
    assert "passes" not in fit_base(terms, ms)
    seen = np.concatenate([np.where(np.arange(40) % 2, work, 0.0), [0.0, 0.0]])
    assert fit_base(terms | {"passes": seen}, 0.01 + terms["macs"] + 2 * seen)["passes"] == pytest.approx(2, rel=0.01)
