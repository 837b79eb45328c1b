"""The cost model as a minimum-cut problem: two hosts and the hop between them, every set of steps a placement.

The search is two-sided because its mathematics is: a minimum cut parts two terminals, and the steps on either side of
it cost what they cost there (`solve.problem`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from splitpoint.codecs import open_codec
from splitpoint.errors import InputError
from splitpoint.link import Link
from splitpoint.link.transfer import ANSWER_NBYTES, REQUEST_NBYTES
from splitpoint.planning.constraints import input_like
from splitpoint.planning.cost_model import CostModel
from splitpoint.planning.hosts import Host
from splitpoint.planning.objectives import ObjectiveWeights, weights_of
from splitpoint.planning.solve.problem import Floats, Ints, Problem
from splitpoint.profile.costs import NodeCosts

#: Objectives that many placements share the least value of, and what of it counts as the same (bytes, ms).
_TIES: Mapping[str, float] = {"bytes": 0.5, "server-time": 0.5e-6}


class SplitProblem:
    """The problem of a cost model with two hosts, for any link: a new link takes a few sums over arrays.

    >>> split = SplitProblem(CostModel(graph, (Host("device", edge), Host("server", cloud)), codecs=("raw", "int8")))
    >>> cut = split.costs.steps.cut(least(split.problem(PRESETS["4g"])).on_edge)

    `may_use` says of (tensor, inexact codec) whether it may travel so; exact codecs always may. `keep_input_local`
    forbids the model's input to cross, and all tensors that still show it (see `constraints.input_like`).
    """

    def __init__(
        self,
        costs: CostModel,
        *,
        may_use: Callable[[str, str], bool] = lambda tensor, codec: True,
        keep_input_local: bool = False,
    ) -> None:
        self.costs = costs
        (self._device, self._server), [self._table] = costs.hosts, costs.tables
        self._own, self._theirs = self._device.profile.costs(), self._server.profile.costs()
        self._head = self._steps(self._device, self._own, self._own.head)
        self._tail = self._steps(self._server, self._theirs, self._theirs.tail)
        tensors = costs.steps.tensors
        shown = input_like(costs.graph) if keep_input_local else ()
        self._local = np.array([t.name in shown for t in tensors], bool)
        self._usable = self._table.accepts.copy()
        for c, name in enumerate(costs.codecs):
            if not open_codec(name).exact:
                self._usable[:, c] &= np.array([may_use(t.name, name) for t in tensors], bool)

    def _steps(self, host: Host, costs: NodeCosts, nodes: Floats) -> Floats:
        """What each step costs on a host, by its profile."""
        graph = self.costs.graph
        if len(nodes) != len(graph.nodes):
            raise InputError(
                f"the {host.name}'s profile has {len(nodes)} nodes and {graph.name} has {len(graph.nodes)}: it is "
                "of another model, or of another version of it"
            )
        return self.costs.steps.sums(nodes)

    def problem(self, link: Link, objective: str = "latency", *, most: float = np.inf) -> Problem:
        """The problem in the objective's unit: ms (latency, server-time), mJ (energy) or bytes.

        Of placements with the same bytes or server time the one of least latency is the best: latency counts
        there, too, with a weight so small that all of it is less than a byte or a nanosecond. For throughput: the
        milliseconds that keep the device, the link (codecs included) and the server busy; the round trip does not.
        UsageError for an unknown objective, and for energy if the device's profile has no watts.

        For throughput a tensor has the least that any of its codecs takes of each stage, so that no placement with any
        choice of codecs is below its value here. A codec that alone takes more than `most` ms of a stage is left out:
        where a placement of that value is known, it is in none that is better.
        """
        w = self._weights(link, objective)
        up, down = _byte_costs(link, w)
        stream = objective == "throughput"
        if stream:
            encode, crossing, decode = self._stage_costs(up, most)
        else:
            crossing = self._tensor_costs(link, w).min(axis=1)
            encode = decode = np.zeros(len(crossing))
        crossing[self._local] = np.inf
        own = w.hosts[1] * self._theirs.tail_fixed
        around = w.trips[0] * link.rtt_ms + up * REQUEST_NBYTES + down * ANSWER_NBYTES
        steps = self.costs.steps
        return Problem(
            edge=w.hosts[0] * self._head,
            cloud=w.hosts[1] * self._tail,
            before=steps.before,
            after=steps.after,
            maker=steps.maker,
            link=crossing,
            first=steps.first,
            users=steps.users,
            down=down * steps.down,
            edge_fixed=w.hosts[0] * self._own.head_fixed,
            cloud_fixed=around if stream else own + around,
            encode=encode,
            decode=decode,
            server_fixed=own if stream else 0.0,
        )

    def codecs(self, link: Link, objective: str = "latency") -> Ints:
        """The codec of every tensor that may cross, as its place in ``costs.codecs``: the cheapest on this link."""
        # The first of equals: raw before codecs that gain nothing.
        cheapest: Ints = self._tensor_costs(link, self._weights(link, objective)).argmin(axis=1).astype(np.int32)
        return cheapest

    def _tensor_costs(self, link: Link, weights: ObjectiveWeights) -> Floats:
        """float64[tensors, codecs]: what each crossing costs."""
        up, _ = _byte_costs(link, weights)
        table = self._table
        device, server = weights.hosts
        return np.where(self._usable, device * table.encode_ms + up * table.nbytes + server * table.decode_ms, np.inf)

    def _stage_costs(self, up: float, most: float) -> tuple[Floats, Floats, Floats]:
        """The least that a tensor keeps the device, the link and the server busy, over its codecs (float64[tensors]).

        inf on the link for a tensor that no codec brings across within `most`.
        """
        stages = np.stack([self._table.encode_ms, up * self._table.nbytes, self._table.decode_ms])
        usable = self._usable & (stages <= most).all(axis=0)
        device, network, server = np.where(usable, stages, np.inf).min(axis=2)
        never = np.isinf(network)
        return np.where(never, 0.0, device), network, np.where(never, 0.0, server)

    def _weights(self, link: Link, objective: str) -> ObjectiveWeights:
        weights = weights_of(objective, self.costs.hosts)
        if objective == "throughput":
            return ObjectiveWeights(weights.hosts, weights.transfers, (0.0,))
        if objective not in _TIES:
            return weights
        latency = weights_of("latency", self.costs.hosts)
        up, down = _byte_costs(link, latency)
        raw = up * self._table.nbytes[:, 0].sum() + down * self.costs.steps.down.sum()
        fixed = self._own.head_fixed + self._theirs.tail_fixed + link.rtt_ms
        coded = (self._table.encode_ms + self._table.decode_ms).max(axis=1).sum()
        most = self._head.sum() + self._tail.sum() + raw + coded + fixed + up * REQUEST_NBYTES + down * ANSWER_NBYTES
        return weights.plus(latency, _TIES[objective] / max(1.0, most))


def _byte_costs(link: Link, weights: ObjectiveWeights) -> tuple[float, float]:
    """What a byte up and a byte down cost."""
    return weights.transfers[0] * link.up_ms(1) + weights.byte, weights.transfers[0] * link.down_ms(1) + weights.byte
