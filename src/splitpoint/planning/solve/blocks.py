"""The predecessor-closed sets of a problem's steps, as numbers: several measures at once, block after block.

A directed graph often is a *series* of blocks: all of one comes before any of the next (a residual or inception block,
the projections of an attention layer, a single layer of a chain). A closed set then holds whole blocks, a part of at
most one, and nothing behind: the closed sets of the graph are those of its blocks, and these are few enough to count.
The decomposition is of the order itself, not of its tensors: side outputs and several inputs make blocks wide, never
wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from splitpoint.planning.solve.problem import Bools, Floats, Ints, Problem


@dataclass(frozen=True)
class Measures:
    """`count` quantities that a placement has, each a sum: float64[count, n] or float64[count, tensors], ≥ 0.

    `inside[j, i]` is paid if step i is on the device, `outside[j, i]` if it is on the server, `across[j, t]` if tensor
    t crosses; `fixed_inside[j]` if any step is on the device, `fixed_outside[j]` if any is on the server.
    """

    inside: Floats
    outside: Floats
    across: Floats
    fixed_inside: Floats
    fixed_outside: Floats

    @property
    def count(self) -> int:
        return len(self.inside)

    def __add__(self, other: Measures) -> Measures:
        """These measures and those of `other`, which has the same steps and tensors."""
        pairs = [(getattr(self, name), getattr(other, name)) for name in self.__dataclass_fields__]
        return Measures(*(np.concatenate(pair) for pair in pairs))


def three_stages(problem: Problem) -> Measures:
    """What keeps the device, the link and the server busy, as three measures (see `problem.stages`)."""
    nothing, free = np.zeros(problem.steps), np.zeros(problem.link.size)
    return Measures(
        np.array([problem.edge, nothing, nothing]),
        np.array([nothing, problem.down, problem.cloud]),
        np.array([free + problem.encode, problem.link, free + problem.decode]),
        np.array([problem.edge_fixed, 0.0, 0.0]),
        np.array([0.0, problem.cloud_fixed, problem.server_fixed]),
    )


def one_sum(problem: Problem) -> Measures:
    """Everything that `problem` counts, as one measure."""
    return Measures(
        problem.edge[None],
        (problem.cloud + problem.down)[None],
        problem.across[None],
        np.array([problem.edge_fixed]),
        np.array([problem.remote_fixed]),
    )


@dataclass(frozen=True)
class CrossingTensor:
    """One that may cross, by the steps that make and need it. `last` is its last user."""

    index: int
    maker: int
    users: tuple[int, ...]

    @property
    def last(self) -> int:
        return self.users[-1]


class StepOrder:
    """The order of a problem's steps: who comes before whom, and the blocks in series."""

    def __init__(self, problem: Problem) -> None:
        self.steps = problem.steps
        self.needs: list[list[int]] = [[] for _ in range(problem.steps)]
        for before, after in sorted(set(zip(problem.before.tolist(), problem.after.tolist(), strict=True))):
            if before > after:
                raise ValueError(f"step {after} comes before step {before}, which it needs: steps are in order")
            if before < after:
                self.needs[after].append(before)
        self.tensors = tuple(_tensors(problem))

    @cached_property
    def blocks(self) -> tuple[tuple[int, int], ...]:
        """``(first, end)`` of each block: all steps below `first` come before all of it, in every order."""
        ancestors: list[int] = []  # as bits
        whole: list[int] = []  # every step below this number is an ancestor
        for needs in self.needs:
            bits = 0
            for before in needs:
                bits |= ancestors[before] | 1 << before
            ancestors.append(bits)
            whole.append((~bits & (bits + 1)).bit_length() - 1)
        ends, least = [], self.steps
        for step in range(self.steps - 1, -1, -1):
            if least > step:
                ends.append(step + 1)
            least = min(least, whole[step])
        ends.reverse()
        return tuple(zip([0, *ends][:-1], ends, strict=True))

    @cached_property
    def _spans(self) -> tuple[Ints, Ints]:
        """Tensors and prefix lengths, in pairs: this tensor crosses when that many first steps are on the device."""
        indices, lengths = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for t in self.tensors:
            indices.append(np.full(t.last - t.maker, t.index))
            lengths.append(np.arange(t.maker + 1, t.last + 1))
        return np.concatenate(indices), np.concatenate(lengths)

    def prefixes(self, measures: Measures) -> Floats:
        """float64[count, n + 1]: the measures with the first 0, 1, … n steps on the device.

        Sums only, no differences: an early tensor of an hour would wipe out a later one of a nanosecond.
        """
        values = np.zeros((measures.count, self.steps + 1))
        values[:, 1:] = np.cumsum(measures.inside, axis=1)
        values[:, :-1] += np.cumsum(measures.outside[:, ::-1], axis=1)[:, ::-1]
        values[:, 1:] += measures.fixed_inside[:, None]
        values[:, :-1] += measures.fixed_outside[:, None]
        tensors, lengths = self._spans
        for row, across in zip(values, measures.across, strict=True):
            if across.any():
                row += np.bincount(lengths, across[tensors], self.steps + 1)
        return values


def _tensors(problem: Problem) -> Iterator[CrossingTensor]:
    for t, maker in enumerate(problem.maker.tolist()):
        # The maker's own step is where the maker is: nothing crosses to it.
        users = {u for u in problem.users[problem.first[t] : problem.first[t + 1]].tolist() if u != maker}
        if users and min(users) < maker:
            raise ValueError(f"step {min(users)} uses a tensor that step {maker} makes later: steps are in order")
        if users:
            yield CrossingTensor(t, maker, tuple(sorted(users)))


class Block:
    """The closed sets that end inside one block: all before it on the device, all behind it on the server.

    Neither the empty nor the whole part of the block is meant: those are prefixes. So both fixed costs are paid.
    """

    def __init__(self, order: StepOrder, measures: Measures, first: int, end: int) -> None:
        self.order, self.measures, self.first, self.end = order, measures, first, end
        self.passing = [t for t in order.tensors if t.maker < first and t.last >= end]
        self.inner = [t for t in order.tensors if t.maker < end and t.last >= first and t.last < end]
        self.leaving = [t for t in order.tensors if first <= t.maker < end and t.last >= end]
        self.base: Floats = (
            measures.inside[:, :first].sum(axis=1)
            + measures.outside[:, end:].sum(axis=1)
            + measures.across[:, [t.index for t in self.passing]].sum(axis=1)
            + measures.fixed_inside
            + measures.fixed_outside
        )
        #: What each step of the block costs on the device, with what then leaves the block in any case.
        self.enter: Floats = measures.inside[:, first:end].copy()
        for t in self.leaving:
            self.enter[:, t.maker - first] += measures.across[:, t.index]
        self.stay: Floats = measures.outside[:, first:end]

    @property
    def size(self) -> int:
        return self.end - self.first

    def on_edge(self, part: Bools) -> Bools:
        """The whole placement (bool[n]) of which `part` (bool[size]) is in this block."""
        chosen = np.zeros(self.order.steps, bool)
        chosen[: self.first] = True
        chosen[self.first : self.end] = part
        return chosen

    def parts(self, caps: Floats, work: int) -> tuple[Bools, Floats] | None:
        """Every closed part (bool[k, size]) with all its measures (float64[k, count]) below `caps`.

        None if that takes more than `work` entries of the parts, unfinished ones included. Steps are decided one after
        the other; a part is dropped as soon as what is decided costs too much, since costs only grow.
        """
        rows, values = np.zeros((1, self.size), bool), self.base[None].copy()
        for step in range(self.first, self.end):
            rows, values = self._decide(rows, values, step)
            fits = (values < caps).all(axis=1)
            if not fits.all():
                rows, values = rows[fits], values[fits]
            work -= rows.size
            if work < 0:
                return None
        return rows, values

    def _decide(self, rows: Bools, values: Floats, step: int) -> tuple[Bools, Floats]:
        """Both choices for `step`, where the device has what it needs."""
        place = step - self.first
        possible = rows[:, [p - self.first for p in self.order.needs[step] if p >= self.first]].all(axis=1)
        chosen, chosen_values = rows[possible], values[possible] + self.enter[:, place]
        chosen[:, place] = True
        left_values = values + self.stay[:, place]
        for t in self._used_by[place]:
            # It crosses to this step first if the device has it and all its earlier users.
            having = [s - self.first for s in (t.maker, *t.users) if self.first <= s < step]
            left_values[rows[:, having].all(axis=1)] += self.measures.across[:, t.index]
        return np.concatenate([chosen, rows]), np.concatenate([chosen_values, left_values])

    @cached_property
    def _used_by(self) -> list[list[CrossingTensor]]:
        by_user: list[list[CrossingTensor]] = [[] for _ in range(self.size)]
        for t in self.inner:
            for user in t.users:
                if user >= self.first:
                    by_user[user - self.first].append(t)
        return by_user

    def along(self, ranking: Ints) -> Floats:
        """float64[count, size + 1]: the measures with the first 0, 1, … steps of `ranking` on the device.

        `ranking` holds all places in the block in some topological order.
        """
        values = np.zeros((self.measures.count, self.size + 1))
        values[:, 1:] = np.cumsum(self.enter[:, ranking], axis=1)
        values[:, :-1] += np.cumsum(self.stay[:, ranking[::-1]], axis=1)[:, ::-1]
        rank = np.empty(self.size + 1, np.int64)
        rank[ranking] = np.arange(self.size)
        rank[-1] = -1  # what comes before the block
        indices, makers, users, starts = self._inner_arrays
        if indices.size:
            made, last = rank[makers], np.maximum.reduceat(rank[users], starts)
            spans = last - made
            lengths = np.arange(spans.sum()) + np.repeat(made + 1 - np.cumsum(spans) + spans, spans)
            for row, across in zip(values, self.measures.across[:, indices], strict=True):
                if across.any():
                    row += np.bincount(lengths, np.repeat(across, spans), self.size + 1)
        return values + self.base[:, None]

    @cached_property
    def _inner_arrays(self) -> tuple[Ints, Ints, Ints, Ints]:
        """Index and maker of each inner tensor, all their users, and where each tensor's users start.

        Makers and users are places in the block, −1 for what comes before it.
        """
        users = [[max(u - self.first, -1) for u in t.users] for t in self.inner]
        starts = np.cumsum([0, *map(len, users)])[:-1]
        return (
            np.array([t.index for t in self.inner], np.int64),
            np.array([max(t.maker - self.first, -1) for t in self.inner], np.int64),
            np.array([u for each in users for u in each], np.int64),
            starts,
        )
