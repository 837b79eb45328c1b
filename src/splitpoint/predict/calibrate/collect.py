"""Measure this device: random networks, the engine's own time of each kernel in them, and that of the whole.

Each strip is compiled and timed as `profile` times a model; its kernel times become rows. After a round with one strip
of every family, the next is the one of several whose kernels are known least for the seconds that measuring it takes.
Some are come back to later: a machine's speed drifts, and a visit that something disturbed does not fit the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from splitpoint.callbacks import call
from splitpoint.engines import Engine, KernelTimer
from splitpoint.engines.stretch import refuse_limit
from splitpoint.errors import EngineError, InputError, UsageError
from splitpoint.models.model import Model
from splitpoint.predict.calibrate.collection import Collection, MeasuredNetwork, NetworkVisit
from splitpoint.predict.calibrate.random_networks import DRAWN, FAMILIES, LEAST_WORK, MOST_WORK, random_network
from splitpoint.predict.kernels.kernel_kinds import KINDS
from splitpoint.predict.kernels.kernel_table import Table
from splitpoint.predict.kernels.kernels import Kernel, by_kind, kernels_of
from splitpoint.profile.costs import Floats
from splitpoint.profile.kernel_times import marked, node_times
from splitpoint.profile.measure import Progress, pause_s
from splitpoint.segments import samples_for
from splitpoint.trace import Clock

#: Of a strip's whole runs, half before and half after its kernel times: ms to spend on them, and how many there are.
_WHOLE_MS, _WHOLE_RUNS = 300.0, (4, 14)
_KERNEL_MS, _KERNEL_RUNS = 300.0, (4, 12)
#: A strip should not take longer than this; what it may weigh follows from how fast the device was so far.
_STRIP_MS = 160.0
#: A strip whose kernels do not add up to its whole as others' do, by so much, is looked at again, so many times.
_SUSPICIOUS, _MOST_VISITS = 0.08, 3
#: So many strips of about its size (itself counted) tell what is usual.
_BESIDE = 10
#: Every so many strips, one is come back to.
_REVISIT = 5
#: Strips to choose from, and how many new ones are drawn for each choice; the others are those that told most so far.
_POOL, _NEW = 12, 3
#: Every so many strips, one is taken as drawn: what is least known may be what cannot be known better (short kernels),
#: and not all that networks are made of.
_AS_DRAWN = 2
#: So much more rows, and what they say of others is learned anew, from so many of a kind: what is not known shows in
#: those, and learning must not take the time of measuring.
_GROWTH, _LEARNED = 1.5, 400

#: How unsure we are of a kind that was never measured: ln(high ÷ low).
_UNKNOWN = 2.0

#: (kind, columns) → how much is not known of each row: ln(high ÷ low) of its interval, times √ms.
Unsure = Callable[[str, Mapping[str, Floats]], Floats]
Fit = Callable[[Mapping[str, Table]], Unsure]


def collect(
    collection: Collection,
    engine: Engine,
    *,
    budget_s: float,
    fit: Fit | None = None,
    learning_s: Callable[[Mapping[str, Table]], float] = lambda tables: 0.0,
    on_progress: Callable[[Progress], None] | None = None,
    clock: Clock = time.perf_counter,
    pause: Callable[[float], None] = time.sleep,
) -> Iterator[Collection]:
    """`collection` with one visit more, again and again until it has taken `budget_s` seconds in all.

    `fit` learns from tables which kernels are known least; without it strips are taken as they come. `learning_s` says
    what learning from tables will take in the end, which is kept free. There is at least one strip. EngineError if
    the engine does not say what kernels take, UsageError for a budget that is not positive.
    """
    if not budget_s > 0:
        raise UsageError(f"the time budget must be above 0 seconds, not {budget_s:g}")
    refuse_limit()
    if not isinstance(engine, KernelTimer):
        raise EngineError(f"{engine.name} does not say what its kernels take: a machine is calibrated with onnxruntime")
    survey = _Survey(collection, engine, fit, clock, pause)
    now = clock()
    while True:
        count, spent = len(survey.collection.strips), survey.collection.spent_s
        if count and survey.collection.left_s(budget_s) <= learning_s(survey.collection.tables()):
            return
        if on_progress is not None:
            total = max(count + 1, round(count * budget_s / spent)) if count else len(FAMILIES)
            call(on_progress, Progress(survey.next_name(), count, total, spent, max(0.0, budget_s - spent)))
        survey.step()
        before, now = now, clock()  # what our caller did with the last one counts as well
        survey.collection = msgspec.structs.replace(survey.collection, spent_s=spent + now - before)
        yield survey.collection


@dataclass(frozen=True)
class _Candidate:
    """A strip that may be measured next."""

    seed: int
    family: str
    work: float
    model: Model
    kernels: tuple[Kernel, ...]


class _Survey:
    """A collection under way."""

    def __init__(
        self, collection: Collection, engine: KernelTimer, fit: Fit | None, clock: Clock, pause: Callable[[float], None]
    ) -> None:
        self.collection = collection
        self._engine, self._fit, self._clock, self._pause = engine, fit, clock, pause
        self._unsure: Unsure | None = None
        self._fitted_rows = 0
        self._pool: list[tuple[float, _Candidate]] = []
        self._drawn = max((s.seed for s in collection.strips), default=-1) + 1
        self._since_revisit = self._taken = 0

    # --- what is next -------------------------------------------------------------------------------------------

    def next_name(self) -> str:
        """The family of the next strip, as far as it is known."""
        return list(FAMILIES)[self._drawn % len(FAMILIES)]

    def step(self) -> None:
        """One visit more: of a strip that looks disturbed, now and then, or of a new one."""
        again = self._most_suspicious() if self._since_revisit >= _REVISIT else None
        if again is not None:
            self._since_revisit = 0
            self._revisit(again)
        else:
            self._since_revisit += 1
            self._measure(self._next())

    def _most_suspicious(self) -> int | None:
        """The strip whose kernels fit its whole worst, if it is worth another visit: others of its size tell."""
        strips = self.collection.strips
        sums = np.array([s.kernels_ms().sum() for s in strips])
        ratios = np.log([s.whole_ms for s in strips]) - np.log(sums)
        worst, suspect = _SUSPICIOUS, None
        for k, measured in enumerate(strips):
            beside = np.argsort(np.abs(np.log(sums / sums[k])))[1:_BESIDE]
            odd = abs(float(ratios[k] - np.median(ratios[beside]))) if len(beside) else 0.0
            if len(measured.visits) < _MOST_VISITS and odd > worst:
                worst, suspect = odd, k
        return suspect

    def _next(self) -> _Candidate:
        """The next network: one of each family first, then the one that is expected to teach most a second."""
        self._taken += 1
        if self._drawn < len(FAMILIES) or self._fit is None or not self._taken % _AS_DRAWN:
            return self._draw()
        self._refit()
        for _ in range(max(_NEW, _POOL - len(self._pool))):
            candidate = self._draw()
            self._pool.append((self._worth(candidate), candidate))
        self._pool.sort(key=lambda pair: pair[0], reverse=True)
        del self._pool[_POOL:]
        return self._pool.pop(0)[1]

    def _draw(self) -> _Candidate:
        """A new strip, of as much work as this device does in the time that one should take."""
        rng = np.random.default_rng([self.collection.seed, self._drawn])
        family = self.next_name() if self._drawn < len(FAMILIES) else DRAWN[int(rng.integers(len(DRAWN)))]
        most = float(np.clip(self._flops_a_ms() * _STRIP_MS, 4 * LEAST_WORK, MOST_WORK))
        work = LEAST_WORK * (most / LEAST_WORK) ** float(rng.random())
        seed = self._drawn
        self._drawn += 1
        model = random_network(seed, family, work)
        return _Candidate(seed, family, work, model, kernels_of(model))

    def _flops_a_ms(self) -> float:
        """FLOPs a ms of this device so far; a low guess before anything was measured."""
        flops = KINDS["conv"].columns.index("FLOPs")
        speeds = [
            sum(values[flops] for kind, values in s.rows if kind == "conv") / s.whole_ms for s in self.collection.strips
        ]
        return float(np.median(speeds)) if speeds else 1e7

    def _refit(self) -> None:
        if self._fit is not None and self.collection.rows > self._fitted_rows * _GROWTH:
            self._fitted_rows = self.collection.rows
            some = {  # at most `_LEARNED` rows of each kind, spread over all
                kind: table.take(np.linspace(0, len(table) - 1, min(len(table), _LEARNED)).astype(np.intp))
                for kind, table in self.collection.tables().items()
            }
            self._unsure = self._fit(some)
            self._pool = [(self._worth(candidate), candidate) for _, candidate in self._pool]

    def _worth(self, candidate: _Candidate) -> float:
        """The uncertainty of its kernels' times, summed, for each second that measuring them takes."""
        if self._unsure is None:
            return 0.0
        priced = [k for k in candidate.kernels if k.kind != "other"]
        unsure = sum(float(np.sum(self._unsure(kind, columns))) for kind, _, columns in by_kind(priced))
        return unsure / self._cost_s(candidate)

    def _cost_s(self, candidate: _Candidate) -> float:
        """Seconds that a visit is expected to take, by how long visits so far took compared with their estimates."""
        known = self.collection.strips
        slower = np.median([s.spent_s / len(s.visits) / _effort_s(s.weights_mb, s.whole_ms) for s in known])
        usual_ms = sum(k.flops for k in candidate.kernels) / self._flops_a_ms()
        return float(slower * _effort_s(candidate.model.nbytes / 1e6, usual_ms))

    # --- measuring ----------------------------------------------------------------------------------------------

    def _measure(self, candidate: _Candidate) -> None:
        began = self._clock()
        visit = self._visit(candidate.model, candidate.kernels)
        rows = tuple((k.kind, tuple(k.config.values())) for k in candidate.kernels)
        measured = MeasuredNetwork(
            candidate.seed, candidate.family, candidate.work, round(candidate.model.nbytes / 1e6, 3), rows, (visit,),
            round(self._clock() - began, 3),
        )  # fmt: skip
        self.collection = msgspec.structs.replace(self.collection, strips=(*self.collection.strips, measured))

    def _revisit(self, number: int) -> None:
        began = self._clock()
        strips = list(self.collection.strips)
        old = strips[number]
        model = random_network(old.seed, old.family, old.work)
        visit = self._visit(model, kernels_of(model))
        if len(visit.kernels) != len(old.rows):
            raise InputError("the measurements are of another version of splitpoint: begin anew, in another file")
        spent = round(old.spent_s + self._clock() - began, 3)
        strips[number] = msgspec.structs.replace(old, visits=(*old.visits, visit), spent_s=spent)
        self.collection = msgspec.structs.replace(self.collection, strips=tuple(strips))

    def _visit(self, model: Model, kernels: Sequence[Kernel]) -> NetworkVisit:
        """The whole, its kernels, and the whole again, so that a drift between the two shows in neither."""
        inputs = samples_for(model, 1)[0]
        session = self._engine.compile(model.whole())

        def run(usual_ms: float) -> float:
            self._pause(pause_s(usual_ms))
            began = self._clock()
            session.run(inputs)
            return (self._clock() - began) * 1e3

        try:
            session.run(inputs)
            usual = run(0.0)
            runs = _count(_WHOLE_MS, usual, _WHOLE_RUNS)
            whole = [run(usual) for _ in range(runs // 2)]
            profiled = _count(_KERNEL_MS, usual, _KERNEL_RUNS)
            times = node_times(model, self._engine.kernel_times(marked(model), inputs, profiled, 2))
            session.run(inputs)
            whole += [run(usual) for _ in range(runs - runs // 2)]
        finally:
            session.close()
        kernel_ms = tuple(round(float(times[list(k.nodes)].sum()), 6) for k in kernels)
        return NetworkVisit(tuple(round(ms, 4) for ms in whole), kernel_ms)


def quick_fit(tables: Mapping[str, Table]) -> Unsure:
    """How much a quick training on `tables` leaves unknown of kernels. MissingExtraError without scikit-learn.

    A tenth more or less of a long kernel matters more than of a short one, but not as much as it is longer: there are
    many short ones.
    """
    from splitpoint.predict.learn.training import train

    latency = train(tables, name="", quick=True)

    def unsure(kind: str, configs: Mapping[str, Floats]) -> Floats:
        if kind not in latency.kinds:
            return np.full(len(next(iter(configs.values()))), _UNKNOWN)
        times = latency.kinds[kind].predict(kind, configs)
        return np.minimum(np.log(times.high_ms / times.low_ms), _UNKNOWN) * np.sqrt(times.median_ms)

    return unsure


def _effort_s(weights_mb: float, run_ms: float) -> float:
    """Seconds for a strip on some machine: drawing it, compiling it twice, all its runs."""
    runs = _count(_WHOLE_MS, run_ms, _WHOLE_RUNS), _count(_KERNEL_MS, run_ms, _KERNEL_RUNS)
    return 0.3 + 0.02 * weights_mb + (sum(runs) + 5) * run_ms / 1e3 + runs[0] * pause_s(run_ms)


def _count(spend_ms: float, run_ms: float, limits: tuple[int, int]) -> int:
    """How many runs of `run_ms` there is time for."""
    return int(np.clip(spend_ms / max(run_ms, 1e-3), *limits))
