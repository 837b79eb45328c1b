"""Linear fits: the base of a kind (so many ms for a unit of each term), and the seed's regression to compare with."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from splitpoint.profile.costs import Floats

#: Rounds of reweighting until the sum of |log(measured ÷ base)| hardly falls.
_ROUNDS = 12
#: Rows closer than this share to the line are all alike.
_NEAR = 0.05
#: From so many rows on a cell has a base of its own, from so many the common one times a factor.
_CELL_ROWS, _SCALED_ROWS = 25, 3


def fit_base(terms: Mapping[str, Floats], latency_ms: Floats) -> dict[str, float]:
    """Non-negative ms for a unit of each term, that make the ratio of measured to base nearest 1 in most rows.

    Least squares of relative errors (Lawson and Hanson's, non-negative), reweighted towards least absolute logarithms:
    a row that was disturbed, or ran a kernel of its own, does not bend the line for all others. A term that only
    rows shorter than usual have is not priced: the microsecond between two of those, taken as the price of a thousandth
    of what other kernels have of it, made 160 ms of a network of 11.
    """
    from scipy.optimize import nnls

    usual = np.median(latency_ms)
    names = tuple(name for name, amount in terms.items() if latency_ms[amount > 0].max(initial=0.0) >= usual)
    amounts = np.stack([terms[name] for name in names], axis=1)
    unit = np.maximum(amounts.max(axis=0), 1e-300)
    rows = amounts / unit
    weights = 1 / latency_ms
    prices = nnls(rows * weights[:, None], latency_ms * weights)[0]
    for _ in range(_ROUNDS):
        line = np.maximum(rows @ prices, 1e-3 * latency_ms)
        far = np.abs(np.log(latency_ms / line))
        weights = 1 / np.maximum(line, 0.1 * latency_ms) / np.sqrt(np.maximum(far, _NEAR))
        prices = nnls(rows * weights[:, None], latency_ms * weights)[0]
    base = {name: float(ms) for name, ms in zip(names, prices / unit, strict=True) if ms > 0}
    # No kernel takes nothing, whatever its sizes.
    return {"1": 0.01 * float(latency_ms.min())} | base


def fit_cells(terms: Mapping[str, Floats], latency_ms: Floats, cells: NDArray[np.str_]) -> dict[str, dict[str, float]]:
    """A base for all rows (""), and one for each cell with rows enough; with few, the common one is scaled to them."""
    bases = {"": fit_base(terms, latency_ms)}
    common = base_of(bases[""], terms)
    for cell in np.unique(cells).tolist():
        rows = cells == cell
        if cell and rows.sum() >= _CELL_ROWS:
            bases[cell] = fit_base({name: values[rows] for name, values in terms.items()}, latency_ms[rows])
        elif cell and rows.sum() >= _SCALED_ROWS:
            factor = float(np.median(latency_ms[rows] / common[rows]))
            bases[cell] = {name: ms * factor for name, ms in bases[""].items()}
    return bases


def cells_base(
    bases: Mapping[str, Mapping[str, float]], terms: Mapping[str, Floats], cells: NDArray[np.str_]
) -> Floats:
    """What the base of each row's cell says, in ms; the common one where the cell has none."""
    ms = base_of(bases[""], terms)
    for cell, base in bases.items():
        rows = cells == cell
        if cell and rows.any():
            ms[rows] = base_of(base, {name: values[rows] for name, values in terms.items()})
    return ms


def base_of(base: Mapping[str, float], terms: Mapping[str, Floats]) -> Floats:
    """What `base` says of rows with these terms, in ms."""
    return np.asarray(np.sum([ms * terms[name] for name, ms in base.items()], axis=0), np.float64)


def fit_linear(columns: Mapping[str, Floats], latency_ms: Floats) -> dict[str, float]:
    """Ordinary least squares on the columns as they are, the constant as "1": what Neurosurgeon's replica does."""
    names = [name for name, values in columns.items() if np.ptp(values) > 0]
    rows = np.stack(
        [np.ones(len(latency_ms)), *(columns[name] / np.abs(columns[name]).max() for name in names)], axis=1
    )
    slopes = np.linalg.lstsq(rows, latency_ms, rcond=None)[0].tolist()
    units = [1.0, *(float(np.abs(columns[name]).max()) for name in names)]
    return {name: k / unit for name, k, unit in zip(["1", *names], slopes, units, strict=True)}
