"""Measure what planning needs of a model on the machine this runs on, with the engine that will run it.

Engines fuse operators, so times of nodes do not add up to those of segments. What is measured are segments: head and
tail of cuts, compiled and run as they will be in service, one cut in memory at a time. The engine's kernel times
say how to share out what lies between two measured cuts.

A time budget ends the work wherever it is: the order is the whole model, its kernels, then cuts from coarse to fine,
then all cuts again from the other end, because a machine's speed drifts, then those that still look disturbed.
"""

from __future__ import annotations

import time
from bisect import insort
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from splitpoint import machine
from splitpoint.callbacks import call
from splitpoint.engines import Engine, KernelTimer, Session
from splitpoint.engines.stretch import refuse_limit
from splitpoint.engines.underway import limited
from splitpoint.errors import EngineError, UsageError
from splitpoint.models.model import Model
from splitpoint.profile.codec_times import codec_costs
from splitpoint.profile.costs import Floats
from splitpoint.profile.kernel_times import estimated, marked, node_times
from splitpoint.profile.power import Meter, measure_watts
from splitpoint.profile.profiles import CodecCost, Profile, SegmentCost, Stat, Watts
from splitpoint.profile.spare import Enough
from splitpoint.segments import Halves, samples_for, tried_with
from splitpoint.tensors import Array
from splitpoint.trace import Clock

#: Times every cut is visited if the budget allows, each time compiled anew, and times at most.
PASSES = 2
_MOST_VISITS = 5
#: Head + tail of a cut may lie so far from those of the cuts beside it before it is looked at again.
_SUSPICIOUS = 0.04
#: A visit whose median is so much above the cut's best one was disturbed, and is left out.
_DISTURBED = 1.15
#: Between two chain cuts so far apart (share of the model's time) other prefixes are measured as well.
_GAP = 0.05
#: A request comes after a wait for the network, and an engine that has slept runs a small model 5 to 10 % slower than
#: in a hot loop (measured: EfficientNet-Lite0 15.0 → 16.3 ms after 10 ms; ResNet-50 the same). So does every timed run.
PAUSE_S = 0.005
#: A run much shorter than that would leave most of the budget to pauses: twice its own time is enough, from this on.
_LEAST_PAUSE_S = 0.001
#: How far medians of a half that is compiled again and again lie apart (standard deviation ÷ median), and how many
#: halves that counts for. EfficientNet-Lite0 1.0 %, MobileNetV2 1.2, ZFNet-512 2.0, ResNet-50 2.7: their mean square.
_ANEW, _ANEW_COUNT = 0.02, 20
#: So many standard deviations below and above hold four in five.
_FOUR_OF_FIVE = 1.2816
#: Shares of the budget that codecs and power may take.
_CODECS, _POWER = 0.05, 0.03


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a measurement is: `done` of `total` visits, and at most how long it will still take."""

    what: str
    done: int
    total: int
    elapsed_s: float
    left_s: float


OnProgress = Callable[[Progress], None]


def profile_model(
    model: Model,
    engine: Engine,
    *,
    budget_s: float = 60.0,
    on_progress: OnProgress | None = None,
    proceed: Callable[[], None] = lambda: None,
    pause: Callable[[float], None] = time.sleep,
    note: str = "",
    watts: Watts | None = None,
    meter: Meter | None = None,
    clock: Clock = time.perf_counter,
) -> Profile:
    """What each cut of `model` costs here with `engine`, measured in about `budget_s` seconds (compiling included).

    >>> profile_model(load("zoo:lenet5"), open_engine(), budget_s=5).complete
    True

    A budget that ends before every single-tensor cut was measured gives a profile with ``complete=False``, whose other
    cuts are modelled. `watts` are taken as given; a `meter` measures them. `proceed` is called before
    each step, `pause` before each run: what they raise ends the survey, but after `Enough` what is measured by then is
    the result. UsageError for a budget that is not positive, EngineError if the model cannot run here, or one run takes
    longer than `underway.LONGEST_S`.
    """
    survey = ProfileRun(
        model, engine, budget_s=budget_s, note=note, watts=watts, clock=clock, proceed=proceed, pause=pause
    )
    with limited(f"{model.name} on made-up inputs"):
        try:
            survey.prepare(meter, on_progress)
            for _ in survey.visits(on_progress):
                pass
        except Enough:
            if not survey.begun:
                raise
    return survey.profile()


@dataclass(slots=True)
class CutVisit:
    """Milliseconds of one cut's halves, compiled once."""

    head: list[float] = field(default_factory=list)
    tail: list[float] = field(default_factory=list)
    head_nbytes: int = 0
    tail_nbytes: int = 0


class ProfileRun:
    """A measurement under way: `prepare`, then as many `visits` as the budget has room for, then `profile`."""

    def __init__(
        self,
        model: Model,
        engine: Engine,
        *,
        budget_s: float = 60.0,
        note: str = "",
        watts: Watts | None = None,
        clock: Clock = time.perf_counter,
        codecs: Callable[[Model, float, Callable[[], object] | None], dict[str, CodecCost]] | None = None,
        pause: Callable[[float], None] = time.sleep,
        proceed: Callable[[], None] = lambda: None,
    ) -> None:
        """`codecs` measures those, if not `codec_costs`; `pause` waits so many seconds, before every timed run;
        `proceed` is called before each step, and ends the survey by raising.
        """
        if not budget_s > 0:
            raise UsageError(f"the time budget must be above 0 seconds, not {budget_s:g}")
        refuse_limit()
        self.model, self.engine, self.note, self.watts = model, engine, note, watts
        self.budget_s = budget_s
        self._clock = clock
        self._pause, self._proceed = pause, proceed
        self._started = clock()
        self._end = self._started + budget_s
        self._codec_costs = codecs or codec_costs
        self._prefixes = model.graph.prefixes()
        self._inputs = samples_for(model, 1)[0]
        self._whole: list[float] = []
        self._visits: dict[int, list[CutVisit]] = {}
        self._failed: dict[int, str] = {}
        self._nodes: Floats = estimated(model.graph)
        self._codecs: dict[str, CodecCost] = {}
        self._visited = 0
        self._spent_s = 0.0

    @property
    def begun(self) -> bool:
        """Whether the whole model was measured: there is a `profile` from then on."""
        return bool(self._whole)

    # --- the whole model ----------------------------------------------------------------------------------------

    def prepare(self, meter: Meter | None = None, on_progress: OnProgress | None = None) -> None:
        """Measures the whole model, its kernels, codecs and power."""
        self._tell(on_progress, "the whole model", 1)
        compile_s = self._measure_whole(meter, on_progress)
        whole_s = float(np.median(self._whole)) / 1e3
        self._nodes *= whole_s * 1e3
        warm, runs = (2, 7) if whole_s < 0.1 else (1, 3)
        whole = marked(self.model)
        timely = self._left_s() > compile_s + (warm + runs) * whole_s
        if isinstance(self.engine, KernelTimer) and whole.outputs and timely:
            self._tell(on_progress, "kernel times", 1)
            kernels = self.engine.kernel_times(whole, self._inputs, runs, warm)
            self._nodes = node_times(self.model, kernels)

    def _measure_whole(self, meter: Meter | None, on_progress: OnProgress | None) -> float:
        """Fills in the whole's times; returns seconds that compiling took."""
        whole = self.model.whole()
        if not whole.outputs:  # what goes in is what comes out
            self._whole = [0.0]
            self._measure_codecs(None, on_progress)
            return 0.0
        started = self._clock()
        session = self.engine.compile(whole)
        try:
            compile_s = self._clock() - started
            with tried_with(self.model):
                session.run(self._inputs)
            [self._whole] = self._timed([(session, self._inputs)], self._end - 0.5 * self.budget_s)
            if meter is not None and self.watts is None and self._left_s() > 0.1 * self.budget_s:
                seconds = _POWER * self.budget_s
                self.watts = measure_watts(meter, lambda: session.run(self._inputs), self._clock, time.sleep, seconds)
            self._ends(session.nbytes)
            self._measure_codecs(lambda: session.run(self._inputs), on_progress)
        finally:
            session.close()
        return compile_s

    def _measure_codecs(self, run: Callable[[], object] | None, on_progress: OnProgress | None) -> None:
        if self._left_s() > 0:
            self._tell(on_progress, "codecs", 1)
            self._codecs = self._codec_costs(self.model, min(_CODECS * self.budget_s, 0.5 * self._left_s()), run)

    def _ends(self, nbytes: int) -> None:
        """The whole model is a head without a tail, and a tail without a head: two cuts are measured."""
        first, last = self._prefixes[0], self._prefixes[-1]
        if not self.model.tail(last).outputs:
            self._visits[len(self._prefixes) - 1] = [CutVisit(head=self._whole, head_nbytes=nbytes)]
        if not self.model.head(first).outputs:
            self._visits.setdefault(0, []).append(CutVisit(tail=self._whole, tail_nbytes=nbytes))

    def _wholes(self) -> list[list[float]]:
        """Every visit to the whole model, under whichever name."""
        ends = [v.head or v.tail for k in (0, len(self._prefixes) - 1) for v in self._visits.get(k, ())
                if bool(v.head) != bool(v.tail)]  # fmt: skip
        return ends or [self._whole]

    # --- cuts ---------------------------------------------------------------------------------------------------

    def visits(self, on_progress: OnProgress | None = None) -> Iterator[int]:
        """Measures cut after cut until the budget ends; yields the place of each in ``graph.prefixes()``."""
        candidates = self._candidates()
        total = len(candidates) * PASSES
        for k in self._order(candidates):
            visit_s = self._spent_s / self._visited if self._visited else float(np.median(self._whole)) / 1e3 * 5
            if self._left_s() < visit_s:
                return
            self._tell(on_progress, self._prefixes[k].name, max(total, self._visited))
            started = self._clock()
            try:
                visit = self.visit(k)
                self._visits.setdefault(k, []).append(visit)
            except EngineError as exc:  # some providers cannot build every part
                self._failed[k] = str(exc)
            self._spent_s += self._clock() - started
            self._visited += 1
            yield k

    def _candidates(self) -> list[int]:
        """Cuts of the chain, and prefixes where the chain has none for a while."""
        chain = [k for k, c in enumerate(self._prefixes) if c.index is not None]
        position = self._positions()
        more: list[int] = []
        for a, b in pairwise(chain):
            last = a
            for k in range(a + 1, b):
                if position[k] - position[last] >= _GAP and position[b] - position[k] >= _GAP / 2:
                    more.append(k)
                    last = k
        return sorted({*chain, *more})

    def _positions(self) -> Floats:
        """How far through the model's time each prefix is, 0…1."""
        done = np.cumsum([0.0, *(self._nodes[list(step)].sum() for step in self.model.graph.order)])
        return done / done[-1] if done[-1] > 0 else np.linspace(0, 1, len(done))

    def _order(self, candidates: Sequence[int]) -> Iterator[int]:
        """Coarse to fine, then from the end to the start, then what looks disturbed."""
        yield from self._coarse_to_fine(candidates)
        yield from (k for k in sorted(candidates, reverse=True) if k not in self._failed)
        while (k := self._most_suspicious()) is not None:
            yield k

    def _most_suspicious(self) -> int | None:
        """The cut whose head + tail lies furthest from the middle of its neighbours'; None if all look well.

        The sum changes little from one cut to the next, so it shows a disturbed visit, in whichever half.
        """
        places = [k for k in sorted(self._visits) if k not in self._failed]
        segments = [self._segment(k) for k in places]
        sums = np.array([sum(s.median for s in (x.head, x.tail) if s) for x in segments])
        beside = np.array([np.median(sums[max(0, j - 3) : j + 4]) for j in range(len(sums))])
        odd = np.abs(sums / np.maximum(beside, 1e-9) - 1)
        allowed = [(float(o), -k) for o, k in zip(odd, places, strict=True) if len(self._visits[k]) < _MOST_VISITS]
        worst, k = max(allowed, default=(0.0, 0))
        return -k if worst > _SUSPICIOUS else None

    def _coarse_to_fine(self, candidates: Sequence[int]) -> Iterator[int]:
        """Next is always the middle of the widest stretch (in the model's time) that has no measured cut."""
        position = self._positions()
        known = sorted({0, len(self._prefixes) - 1})
        # The ends are the whole model, which was just measured; but kernels cannot take less than they do.
        again = bool(self._whole) and float(np.median(self._whole)) > _DISTURBED * float(self._nodes.sum())
        yield from (k for k in known if k in candidates and (again or k not in self._visits))
        left = [k for k in candidates if k not in known]
        while left:
            places = np.searchsorted(known, left)
            widths = [position[known[p]] - position[known[p - 1]] for p in places]
            widest = max(widths)
            inside = [k for k, w in zip(left, widths, strict=True) if w == widest]
            p = int(np.searchsorted(known, inside[0]))
            middle = (position[known[p - 1]] + position[known[p]]) / 2
            chosen = min(inside, key=lambda k: (abs(position[k] - middle), k))
            insort(known, chosen)
            left.remove(chosen)
            yield chosen

    def visit(self, k: int) -> CutVisit:
        """Head and tail of the k-th prefix, compiled now, timed and closed again."""
        both = Halves(self.model, self._prefixes[k], self.engine)
        try:
            known = {**self._inputs, **(both.head.run(self._inputs) if both.head else {})}
            if both.tail:
                both.tail.run(known)
            present = [s for s in (both.head, both.tail) if s]
            taken = dict(zip(map(id, present), self._timed([(s, known) for s in present], self._end), strict=True))
            return CutVisit(
                taken.get(id(both.head), []),
                taken.get(id(both.tail), []),
                both.head.nbytes if both.head else 0,
                both.tail.nbytes if both.tail else 0,
            )
        finally:
            both.close()

    def _timed(self, pairs: Sequence[tuple[Session, Mapping[str, Array]]], until: float) -> list[list[float]]:
        """Milliseconds of runs of each session, in turns; at least one, however late it is.

        Each has run once before, because the first run allocates what later ones reuse.
        """
        feeds = [(s, {t.name: known[t.name] for t in s.inputs}) for s, known in pairs]
        taken: list[list[float]] = [[] for _ in feeds]
        self._turn(feeds, taken)
        round_ms = sum(times[0] for times in taken)
        runs = _runs_for(round_ms)
        if round_ms < 50:
            taken = [[] for _ in feeds]  # the caches are warm now
        while taken and len(taken[0]) < runs and (not taken[0] or self._clock() < until):
            self._turn(feeds, taken)
        return taken

    def _turn(self, feeds: Sequence[tuple[Session, Mapping[str, Array]]], taken: Sequence[list[float]]) -> None:
        clock = self._clock
        for (session, feed), times in zip(feeds, taken, strict=True):
            self._pause(pause_s(times[-1] if times else 0.0))
            began = clock()
            session.run(feed)
            times.append((clock() - began) * 1e3)

    # --- time ---------------------------------------------------------------------------------------------------

    def _left_s(self) -> float:
        return self._end - self._clock()

    def _tell(self, on_progress: OnProgress | None, what: str, total: int) -> None:
        self._proceed()
        if on_progress is None:
            return
        left_s = max(0.0, self._left_s())
        if self._visited:
            left_s = min(left_s, self._spent_s / self._visited * (total - self._visited))
        call(on_progress, Progress(what, self._visited, total, self._clock() - self._started, left_s))

    # --- the result ---------------------------------------------------------------------------------------------

    def profile(self) -> Profile:
        """What is known so far."""
        graph, engine = self.model.graph, self.engine
        anew = compiled_anew([x for v in self._visits.values() for x in ([i.head for i in v], [i.tail for i in v])])
        segments = tuple(self._segment(k, anew) for k in sorted(self._visits))
        chain = {k for k, c in enumerate(self._prefixes) if c.index is not None}
        note = self.note
        if self._failed:
            first = next(iter(self._failed))
            left_out = f"{len(self._failed)} cuts cannot be built here, {self._prefixes[first].name} among them"
            note = f"{note}; {left_out}" if note else left_out
        return Profile(
            fingerprint=self.model.fingerprint,
            graph=graph,
            engine=engine.name,
            device=engine.device,
            threads=engine.threads,
            machine=machine.this_machine(),
            versions=machine.versions(),
            created=machine.now(),
            complete=chain <= self._visits.keys(),
            whole=stat_of(self._wholes(), anew),
            segments=segments,
            nodes=tuple(round(float(ms), 6) for ms in self._nodes),
            codecs=self._codecs,
            watts=self.watts,
            note=note,
        )

    def _segment(self, k: int, anew: float = 0.0) -> SegmentCost:
        visits = self._visits[k]
        heads, tails = [v.head for v in visits if v.head], [v.tail for v in visits if v.tail]
        # The head of one end and the tail of the other are the same thing, the whole model: all visits to it count.
        if k == 0 and not heads:
            tails = self._wholes()
        elif k == len(self._prefixes) - 1 and not tails:
            heads = self._wholes()
        return SegmentCost(
            k,
            stat_of(heads, anew) if heads else None,
            stat_of(tails, anew) if tails else None,
            max(v.head_nbytes for v in visits),
            max(v.tail_nbytes for v in visits),
        )


def pause_s(run_ms: float) -> float:
    """Seconds to wait before a run like one that took `run_ms`.

    >>> pause_s(0.05), pause_s(2.0), pause_s(40.0)
    (0.001, 0.004, 0.005)
    """
    return min(PAUSE_S, max(_LEAST_PAUSE_S, 2e-3 * run_ms))


def _runs_for(round_ms: float) -> int:
    """How many runs a visit has: enough for a median, three where they are long.

    Fewer where both halves together take less than 2 ms: there compiling takes most of a visit, and more visits say
    more than more runs.
    """
    if round_ms > 250:
        return 3
    if round_ms > 50:
        return 5
    return 9 if round_ms < 2 else min(15, max(9, int(100 / round_ms)))


def compiled_anew(halves: Iterable[Sequence[Sequence[float]]]) -> float:
    """Standard deviation of the medians of a half that is compiled anew, as a share of them, by the undisturbed visits
    to each of `halves` (ms) and by what was seen before.

    >>> compiled_anew([]), round(compiled_anew([[[1.0], [1.1]]] * 80), 3)
    (0.02, 0.061)
    """
    medians = [[float(np.median(times)) for times in _undisturbed(visits)] for visits in halves]
    apart = [np.array(each) / np.mean(each) - 1 for each in medians if len(each) > 1 and min(each) > 0]
    squares = _ANEW_COUNT * _ANEW**2 + sum(float(np.sum(each**2)) for each in apart)
    return float(np.sqrt(squares / (_ANEW_COUNT + sum(len(each) - 1 for each in apart))))


def _undisturbed(visits: Sequence[Sequence[float]]) -> list[Sequence[float]]:
    """Those of `visits` that nothing disturbed."""
    known = [times for times in visits if times]
    best = min((float(np.median(times)) for times in known), default=0.0)
    return [times for times in known if np.median(times) <= best * _DISTURBED]


def stat_of(visits: Sequence[Sequence[float]], anew: float = 0.0) -> Stat:
    """Median of the runs (ms) of those visits that nothing disturbed; 10th and 90th percentile of all runs, and as much
    further away as it takes to hold four of five later ones, which are compiled anew (`compiled_anew`).

    What disturbs a measurement will disturb requests, too: it is no part of what a cut costs, but of how far to trust
    that.

    >>> stat_of([[2.0, 1.0, 3.0], [9.0, 9.0, 9.0]])
    Stat(median=2.0, p10=1.5, p90=9.0, count=3)
    """
    quiet = _undisturbed(visits)
    runs = [ms for times in quiet for ms in times]
    middle = float(np.median(runs))
    off = _FOUR_OF_FIVE * anew * middle * np.sqrt(1 + 1 / len(quiet))
    low, high = np.percentile([ms for times in visits for ms in times], (10, 90))
    below, above = (float(np.hypot(max(ms, 0.0), off)) for ms in (middle - low, high - middle))
    low_ms, middle, high_ms = (round(max(ms, 0.0), 6) for ms in (middle - below, middle, middle + above))
    return Stat(middle, low_ms, high_ms, len(runs))
