"""Requests for one tail that wait at the same time, run as one batch: whether that is right, and whether it helps.

It is possible for tails whose inputs and outputs all begin with the same free dimension, and for requests whose shapes
are equal. It is right if no operator mixes what is in a batch (a mean over it, a scale found at run time): else one
client's answer would depend on another's request. The graph says so (`models.rows`), not what a client sends; a trial
of a batch of two, with data of our own, and a row of a batch that is computed again now and then, can only add doubt.
It helps if a batch takes at least a tenth less than its requests one by one: measured, in service.

To wait for more pays if they are likely to come within what their joining saves: who usually asks again soon after an
answer is expected, and how long runs of each size take is known. Arrivals that keep no such time are never waited for:
when there are too many of them, they meet in the queue by themselves.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import inf, prod
from statistics import median, median_high
from time import monotonic

import numpy as np

from splitpoint.models.model import Segment
from splitpoint.models.shapes import sample_inputs
from splitpoint.segments import strays, verdict_of
from splitpoint.tensors import ANY_RANK, ITEM_SIZES, Array, TensorSpec

Feed = Mapping[str, Array]
#: A session's `run`, or what stands before it.
Run = Callable[[Feed], dict[str, Array]]

#: A batch must be faster than its requests one by one by this share.
GAIN = 0.1
#: What a request must take less, by this share, in a batch than in one half as large, for larger ones to be tried.
_HOPE = 0.02
#: Runs of each size that are kept, and how many there must be before they are believed.
_KEPT, _ENOUGH = 9, 3
#: Pauses of one asker that are kept, and how many there must be before it is expected again.
_PAUSES, _USUAL = 8, 3
#: A row of every so many batches is computed again, and of the first, second, fourth … before.
_LOOK_AGAIN = 256
#: After that many batches or single runs that could have been either, one size is tried that is not used now.
_AGAIN = 100
#: Larger requests are not copied together: they fill the engine's caches by themselves.
_MOST_NBYTES = 8 << 20


def alike(segment: Segment) -> bool:
    """Whether all inputs and outputs begin with one free dimension, and nothing else about an output is open."""
    specs = (*segment.inputs, *segment.outputs)
    if not segment.inputs or not segment.outputs or not all(t.shape and isinstance(t.shape[0], str) for t in specs):
        return False
    batch = specs[0].shape[0]
    if ANY_RANK in (t.shape for t in specs):
        return False
    open_dims = {d for t in segment.inputs for d in t.shape[1:] if isinstance(d, str)}
    told = all(isinstance(d, int) or d in open_dims for t in segment.outputs for d in t.shape[1:])  # by the inputs'
    return told and batch not in open_dims and all(t.shape[0] == batch for t in specs)


def stackable(dtypes: Sequence[str], shapes: Sequence[Sequence[int]]) -> bool:
    """Whether requests of a batchable segment with such tensors can be copied together, and are worth it."""
    nbytes = sum(ITEM_SIZES[d] * prod(s) for d, s in zip(dtypes, shapes, strict=True))
    return len({shape[0] for shape in shapes}) == 1 and 0 < nbytes <= _MOST_NBYTES


def run_stacked(run: Run, feeds: Sequence[Feed]) -> list[dict[str, Array]]:
    """The outputs for each of `feeds`, whose shapes are equal, computed as one batch.

    Each is memory of its own: an answer that is slow to be read holds no other one's.
    """
    rows = len(next(iter(feeds[0].values())))
    outputs = run({name: np.concatenate([f[name] for f in feeds]) for name in feeds[0]})
    parts = {name: array.reshape(len(feeds), rows, *array.shape[1:]) for name, array in outputs.items()}
    return [{name: array[k].copy() for name, array in parts.items()} for k in range(len(feeds))]


def tried(run: Run, specs: Sequence[TensorSpec]) -> tuple[str, str]:
    """``equal``, ``different`` or ``inconclusive``, and why: a batch of two against the same two one by one.

    `specs` are the inputs of a request; what is in it is made up. The two differ in every place and in size: one is the
    other's mirror image, at half the size. InputError or EngineError if that cannot be run at all.
    """
    feed = sample_inputs(specs)
    feeds: list[Feed] = [feed, {name: _other(array) for name, array in feed.items()}]
    alone = [run(f) for f in feeds]
    try:
        together = run_stacked(run, feeds)
    except Exception as exc:  # a shape that is fixed somewhere inside, and engines are foreign code
        return "different", f"it does not run as a batch of two: {exc}"
    verdicts = {name: verdict_of([a[name] for a in alone], [t[name] for t in together]) for name in alone[0]}
    for name, verdict in sorted(verdicts.items(), key=lambda item: item[1]):  # different comes first
        if verdict != "equal":
            return verdict, f"a batch of two is {verdict} in output {name}"
    return "equal", ""


def _other(array: Array) -> Array:
    """What another request could hold: the same values in another order, and floats half as large."""
    turned = array.reshape(len(array), -1)[:, ::-1].reshape(array.shape)
    half: Array = turned / 2 if array.dtype.kind == "f" else turned
    return np.ascontiguousarray(half, array.dtype)


def recomputed(run: Run, feeds: Sequence[Feed], together: Sequence[Mapping[str, Array]], k: int) -> str:
    """``""`` if request `k` of a batch gets by itself what it got in it, but for rounding; else what does not."""
    alone = run(feeds[k])
    return next((f"output {name} of a batch strays" for name in alone if strays(alone[name], together[k][name])), "")


class Asker:
    """Who asks for one tail with inputs of one shape, by one connection: how soon after an answer it asks again."""

    __slots__ = ("_pauses", "_usual", "answered_s")

    def __init__(self) -> None:
        #: When its last answers were given after which it has not asked again.
        self.answered_s: deque[float] = deque(maxlen=_PAUSES)
        self._pauses: deque[float] = deque(maxlen=_PAUSES)
        self._usual: tuple[float, float] | None = (inf, inf)

    def asked(self, now_s: float) -> None:
        if self.answered_s:
            self._pauses.append(now_s - self.answered_s.popleft())
            self._usual = (inf, inf) if len(self._pauses) < _USUAL else None

    @property
    def usual_s(self) -> tuple[float, float]:
        """Within which it asks again mostly, and nearly always; infinite if that is not known.

        The median of its last pauses; and as TCP reckons when an answer is late (RFC 6298): the mean and four times the
        mean deviation, of all but the longest, which may have been a rest.
        """
        if self._usual is None:  # reckoned only where somebody could wait for it: a lone client's never is
            pauses = sorted(self._pauses)
            usual = pauses[: _PAUSES - 1]
            mean_s = sum(usual) / len(usual)
            self._usual = median_high(pauses), mean_s + 4 * sum(abs(s - mean_s) for s in usual) / len(usual)
        return self._usual


class Gain:
    """How many requests of one tail to run together, by what was measured. Any thread may call it.

    `verdict` is None until it has been tried whether that is right, then "" if it is, or why not. `used_s` is when one
    of them has run last, among others that waited.

    >>> gain = Gain(8)
    >>> gain.judge("equal", "")
    >>> for _ in range(4):
    ...     gain.add(1, 1.0)
    ...     gain.add(2, 1.5)
    ...     gain.add(4, 3.9)
    >>> gain.size(2), gain.size(5)
    (2, 2)
    """

    def __init__(self, most: int) -> None:
        self.verdict: str | None = None
        self.used_s = monotonic()
        self._batches = 0
        self._lock = threading.Lock()
        self._most = most
        #: 2, 4, 8 … and the largest that is allowed: few sizes that are tried out, each often.
        self._sizes: list[int] = sorted({*(1 << k for k in range(1, most.bit_length())), most} - {1})
        self._taken: defaultdict[int, deque[float]] = defaultdict(partial(deque, maxlen=_KEPT))
        self._first = set(range(2, most + 1))  # engines plan their memory at the first run of a shape
        #: The median seconds of a run, for each size of which enough is known.
        self._known: dict[int, float] = {}
        self._choices = 0
        #: Those who have been answered and not asked again, but for those who are not expected.
        self._away: set[Asker] = set()

    def judge(self, verdict: str, why: str) -> None:
        """What a trial, or a batch that was looked at again, has said. Only ``different`` forbids: see the top."""
        with self._lock:
            if verdict == "different":
                self.verdict = why
            elif self.verdict is None:
                self.verdict = ""

    def look_again(self) -> bool:
        """Whether a row of the batch that has just run is to be computed again; called once a batch."""
        with self._lock:
            self._batches += 1
            count = self._batches
        return count & (count - 1) == 0 or count % _LOOK_AGAIN == 0

    def add(self, size: int, seconds: float) -> None:
        """`size` requests have been computed as one, in `seconds`."""
        self.used_s = monotonic()
        with self._lock:
            if size in self._first:
                self._first.discard(size)
                return
            taken = self._taken[size]
            taken.append(seconds)
            if len(taken) >= _ENOUGH:
                self._known[size] = median(taken)

    def asked(self, asker: Asker, now_s: float) -> None:
        """A request of `asker` is here."""
        with self._lock:
            asker.asked(now_s)
            if not asker.answered_s:
                self._away.discard(asker)

    def answered(self, asker: Asker, now_s: float) -> None:
        """A request of `asker` is being answered."""
        with self._lock:
            asker.answered_s.append(now_s)
            self._away.add(asker)

    def company(self, waiting: int, now_s: float) -> tuple[int, float]:
        """How many to run together where `waiting` are there at `now_s`, and until when to wait for the others.

        Of the numbers that are likely to be there soon it is the one with the least time a request. Nobody's answer may
        be later for it than the last one's would else be: those who are there wait no longer than half of what one run
        takes less than two, which is what the others then are early by.
        """
        best = waiting, now_s
        if self.verdict or not self._away or waiting >= self._most:
            return best
        with self._lock:
            due = self._due(now_s)[: self._most - waiting]
            here, last_s = self._seconds(waiting), now_s
            least = min(here / waiting, (1 - GAIN) * self._seconds(1))
            for k, (likely_s, at_last_s) in enumerate(due, 1):
                wait_s, together = likely_s - now_s, self._seconds(waiting + k)
                each, most_s = (wait_s + together) / (waiting + k), (here + self._seconds(k) - together) / 2
                last_s = max(last_s, at_last_s)
                if each < least and wait_s <= most_s:
                    best, least = (waiting + k, min(now_s + most_s, last_s)), each
        return best

    def _due(self, now_s: float) -> list[tuple[float, float]]:
        """When those that are away have asked again mostly, and nearly always (`Asker.usual_s`), the first first.

        Who is later than that has, within as long again: what holds up one often holds up all, for a moment.
        """
        due: list[tuple[float, float]] = []
        longest_s = max(self._known.values(), default=0.0)  # half of it is more than a wait can ever save
        for asker in tuple(self._away):
            mostly_s, nearly_s = asker.usual_s
            soon = [s for s in asker.answered_s if 2 * (now_s - s - mostly_s) < longest_s]
            if 4 * mostly_s < longest_s and soon:
                due += [(now_s + abs(s + mostly_s - now_s), now_s + abs(s + nearly_s - now_s)) for s in soon]
            else:  # it takes too long, or has not come this time
                self._away.discard(asker)
        return sorted(due)

    def seconds(self, size: int) -> float:
        """How long a run of so many is likely to take, at most; 0.0 if nothing is known."""
        with self._lock:
            return self._seconds(size)

    def _seconds(self, size: int) -> float:
        """Between the sizes that are known, and beyond them, on a line; no more than one, if only that is known.

        A larger one is thus hoped to gain until it was measured.
        """
        known = self._known
        if size in known or not known:
            return known.get(size, 0.0)
        sizes = sorted(known)
        above = next((k for k, s in enumerate(sizes) if s > size), len(sizes) - 1)
        low, high = sizes[max(0, above - 1)], sizes[above]
        slope = max(0.0, known[high] - known[low]) / (high - low) if high > low else 0.0
        return max(0.0, known[low] + slope * (size - low))

    def size(self, waiting: int) -> int:
        """How many of `waiting` requests to run as one: the fastest a request, but one by one unless that gains."""
        fits = [s for s in self._sizes if s <= waiting]
        if not fits or self.verdict:
            return 1
        if self.verdict is None:
            return 2
        with self._lock:
            self._choices += 1
            if unknown := self._unknown([*fits, min(waiting, self._most)]):
                return unknown
            if self._choices % _AGAIN == 0:
                return (1, *fits)[self._choices // _AGAIN % (1 + len(fits))]
            return self._best([*fits, min(waiting, self._most)])

    def wanted(self) -> int:
        """The size that is worth waiting for: the best known one, or the next to be measured; 1 if none is."""
        if self.verdict or not self._sizes:
            return 1
        if self.verdict is None:
            return 2
        with self._lock:
            return self._unknown(self._sizes) or self._best(self._sizes)

    def _unknown(self, sizes: Sequence[int]) -> int:
        """The next size to be measured, 0 if none is: where two gain nothing, eight do not, and take long."""
        before = 0.0
        most = max(self._known, default=0)
        for size in (1, *sizes):
            if size not in self._known and (size == 1 or size > most):  # between others it is known well enough
                return size
            each = self._seconds(size) / size
            if before and each > (1 - _HOPE) * before:
                return 0
            before = each
        return 0

    def _best(self, sizes: Sequence[int]) -> int:
        """One of `sizes` that lies where it is known how long they take, or 1."""
        if 1 not in self._known:
            return 1
        each = {s: self._seconds(s) / s for s in (1, *sizes) if s <= max(self._known)}
        best = min(each, key=lambda s: (each[s], s))
        return best if each[best] < (1 - GAIN) * each[1] else 1
