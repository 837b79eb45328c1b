"""Tables of kernels whose times follow a known formula, and what is learned from them."""

from __future__ import annotations

from functools import cache

import numpy as np

from splitpoint.predict.kernels.kernel_table import Table
from splitpoint.predict.learn.latency_model import Latency
from splitpoint.predict.learn.training import train


def convolutions(rows: int, seed: int = 0, noise: float = 0.03) -> Table:
    """A device that computes 20 GFLOP/s, twice as fast in 3×3 of stride 1, and wastes what is over in blocks of 8."""
    draw = np.random.default_rng(seed)
    c = {
        "HW": draw.choice([7.0, 14, 28, 56, 112], rows),
        "kernel": draw.choice([1.0, 3, 5], rows),
        "stride": draw.choice([1.0, 2], rows),
        "Cin": np.round(2 ** draw.uniform(2, 9, rows)),
        "Cout": np.round(2 ** draw.uniform(2, 9, rows)),
    }
    pixels = np.ceil(c["HW"] / c["stride"]) ** 2
    macs = pixels * c["kernel"] ** 2 * c["Cin"] * np.ceil(c["Cout"] / 8) * 8
    faster = np.where((c["kernel"] == 3) & (c["stride"] == 1), 2.0, 1.0)
    moved = c["HW"] ** 2 * c["Cin"] + pixels * c["Cout"]
    ms = (0.01 + macs / faster / 1e7 + moved / 2e6) * np.exp(noise * draw.normal(size=rows))
    return Table("conv", c | {"FLOPs": 2 * macs}, ms)


def elements(kind: str, rows: int, seed: int = 0) -> Table:
    draw = np.random.default_rng(seed)
    c = {"elements": np.round(10 ** draw.uniform(3, 6, rows)), "op": draw.choice([0.0, 6.0], rows)}
    ms = (0.005 + c["elements"] * np.where(c["op"] == 0, 1e-6, 8e-6)) * np.exp(0.03 * draw.normal(size=rows))
    return Table(kind, c, ms)


@cache
def learned() -> Latency:
    return train({"conv": convolutions(700), "activation": elements("activation", 200)}, name="test", quick=True)
