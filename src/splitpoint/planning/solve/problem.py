"""The placement problem as numbers: no names, no units, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Problem:
    """Which of `n` steps run on the device (the rest on the server), and what crosses between them.

    A *step* is a placed node, or a group of nodes that stay together, in topological order. `edge[i]` and `cloud[i]`
    are what step i costs on the device and on the server (float64[n], ≥ 0, ms). `before`/`after` (int32[m]) are pairs:
    if step ``after[j]`` is on the device, ``before[j]`` must be, too. Tensors that may cross: tensor t is made by step
    ``maker[t]`` (−1: it is an input of the model) and needed by the steps ``users[first[t]:first[t + 1]]``;
    it crosses, once, for `link[t]` (ms; inf: it must not), if its maker is on the device and a user is not.

    `edge_fixed` is paid if any step is on the device, `cloud_fixed` (round trip, frame, the server's own overhead) if
    any step is on the server. What comes back is part of `down[i]`: paid on the link if step i, which makes an
    output of the model, is on the server.

    For a sum it does not matter who is busy meanwhile. Where it does (heavy load), a tensor that crosses may keep the
    device busy for `encode[t]` and the server for `decode[t]` besides, and `server_fixed` is paid, by the server, if
    any step is there.
    """

    edge: Floats
    cloud: Floats
    before: Ints
    after: Ints
    maker: Ints
    link: Floats
    first: Ints
    users: Ints
    down: Floats
    edge_fixed: float = 0.0
    cloud_fixed: float = 0.0
    encode: Floats | float = 0.0
    decode: Floats | float = 0.0
    server_fixed: float = 0.0

    @property
    def steps(self) -> int:
        return len(self.edge)

    @property
    def across(self) -> Floats:
        """All that a tensor costs if it crosses (float64[tensors])."""
        return self.link + self.encode + self.decode

    @property
    def remote_fixed(self) -> float:
        """All that is paid if any step is on the server."""
        return self.cloud_fixed + self.server_fixed


@dataclass(frozen=True)
class StageTotals:
    """The three things that can be busy, for one placement (ms)."""

    edge: float
    link: float
    cloud: float

    @property
    def total(self) -> float:
        return self.edge + self.link + self.cloud

    @property
    def slowest(self) -> float:
        return max(self.edge, self.link, self.cloud)


@dataclass(frozen=True)
class Solution:
    """`on_edge` (bool[n]) is closed under predecessors; `bound` is proven: no placement has a smaller `value`.

    Both are inf where nothing is allowed; `on_edge` then means nothing.
    """

    on_edge: Bools
    value: float
    bound: float

    @property
    def gap(self) -> float:
        """How far `value` may be above the best there is, as a share of the bound."""
        if self.value <= self.bound:
            return 0.0
        return self.value / self.bound - 1 if self.bound > 0 else np.inf


def stages(problem: Problem, on_edge: Bools) -> StageTotals:
    """What a placement costs on the device, the link and the server, fixed costs included.

    Fixed costs: `edge_fixed` belongs to the device, `cloud_fixed` to the link, `server_fixed` to the server.
    """
    on_cloud = ~on_edge
    remote = bool(on_cloud.any())
    edge = float(problem.edge[on_edge].sum()) + (problem.edge_fixed if on_edge.any() else 0.0)
    cloud = float(problem.cloud[on_cloud].sum()) + (problem.server_fixed if remote else 0.0)
    at_hand = np.append(on_edge, True)[problem.maker]  # the model's inputs, −1, are always there
    owner = np.repeat(np.arange(problem.link.size), np.diff(problem.first))
    wanted = np.zeros(problem.link.size, bool)
    wanted[owner[on_cloud[problem.users]]] = True
    crossing = at_hand & wanted
    coding = [float((np.zeros(problem.link.size) + each)[crossing].sum()) for each in (problem.encode, problem.decode)]
    link = float(problem.link[crossing].sum() + problem.down[on_cloud].sum()) + (problem.cloud_fixed if remote else 0.0)
    return StageTotals(edge + coding[0], link, cloud + coding[1])


@cache
def simplex(count: int, parts: int) -> Floats:
    """All weights of `count` things that sum to one, in steps of 1/parts: float64[k, count]."""
    grid = [w for w in product(range(parts + 1), repeat=count - 1) if sum(w) <= parts]
    return np.array([(*w, parts - sum(w)) for w in grid]) / parts
