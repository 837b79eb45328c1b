"""Frames at their times, and what becomes of those that come too fast. No clock of its own: it is an argument.

A camera does not wait. A folder or a video is paced like one: frame k is due at k ÷ rate, ready or not.

>>> pace = FramePace(10.0, drop=True)
>>> pace.next(0.0), pace.next(0.25)  # the next is due; then two are, of which the newer is taken
(DueFrame(due_s=0.0, wait_s=0.0, skip=0), DueFrame(due_s=0.2, wait_s=0.0, skip=1))
>>> pace.next(0.25).wait_s           # the one after them is not yet
0.05
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import isfinite
from time import perf_counter
from typing import Generic, NamedTuple, TypeVar

import msgspec

from splitpoint.callbacks import call
from splitpoint.errors import UsageError
from splitpoint.trace import Clock

#: What happens when frames come faster than they are answered.
QUEUE, DROP_OLDEST, DEGRADE = POLICIES = ("queue", "drop-oldest", "degrade")
#: Frames of a camera that may wait with `queue`: two seconds of an ordinary one. Memory has an end.
HELD = 64
#: Frames that a change of the option is given to show, at least.
_FRAMES = 8
_HAIR = 1e-9
#: The share of dropped frames that is too much, and for how long there must be none before a dearer option is tried.
_DROPPED, _LEAST_CALM_S, _MOST_CALM_S = 0.1, 5.0, 60.0

T = TypeVar("T")


class DueFrame(NamedTuple):
    """The next frame to begin: when it was or is due, how long to wait for it, and how many before it to drop."""

    due_s: float
    wait_s: float
    skip: int


class FramePace:
    """Which frame of a source that waits is next, and when, at `rate` frames a second from the first call on: of
    several that are due the newest, with `drop`, or each in turn, however late."""

    def __init__(self, rate: float, *, drop: bool) -> None:
        if not (isfinite(rate) and rate > 0):
            raise UsageError(f"a rate is a number of frames a second above 0, not {rate}")
        self._rate, self._drop = rate, drop
        self._start: float | None = None
        self._index = 0

    def next(self, now_s: float) -> DueFrame:
        """The frame to take at `now_s`, or to wait for."""
        if self._start is None:
            self._start = now_s
        behind = (now_s - self._start) * self._rate - self._index
        skip = int(behind + _HAIR) if self._drop and behind > 0 else 0
        due_s = self._start + (self._index + skip) / self._rate
        self._index += skip + 1
        return DueFrame(due_s, max(0.0, round(due_s - now_s, 9)), skip)


class Thin:
    """Which frames of a camera to take so that there are `rate` a second; all of them if the rate is 0.

    >>> thin = Thin(10.0)
    >>> [k for k in range(12) if thin.takes(k / 30)]
    [0, 3, 6, 9]
    """

    def __init__(self, rate: float) -> None:
        self._period_s = 1 / rate if rate else 0.0
        self._due: float | None = None

    def takes(self, at_s: float) -> bool:
        """Whether the frame that came at `at_s` is one of them; a quarter of a period too early is in time."""
        if self._due is not None and at_s < self._due - self._period_s / 4:
            return False
        due = at_s if self._due is None or at_s - self._due > self._period_s else self._due
        self._due = due + self._period_s
        return True


class Relief:
    """When to go to a cheaper option, `level` 1 … `levels`, and when back: a function of what was dropped, and when.

    One level up if more than a tenth of the frames of the last `settle_s` were dropped, at more than one time (one
    hiccup is no overload), and not before a change has had so long to show. One level down after 5 s without a drop;
    where that was too early, the next attempt waits twice as long, up to a minute.
    """

    def __init__(self, levels: int, *, settle_s: float = 1.0) -> None:
        self.level = 0
        self._levels, self._settle_s, self._calm_s = levels, settle_s, _LEAST_CALM_S
        self._seen: deque[tuple[float, int]] = deque()
        self._changed: float | None = None
        self._in_a_row = 0
        self._returned = self._dropped = float("-inf")

    def taken(self, now_s: float, dropped: int) -> int:
        """The level from now on; a frame was taken at `now_s`, and `dropped` before it were not."""
        if self._changed is None:
            self._changed = now_s
            return self.level
        self._seen.append((now_s, dropped))
        while self._seen[0][0] <= now_s - self._settle_s:
            self._seen.popleft()
        self._in_a_row = self._in_a_row + 1 if dropped else 0
        if dropped:
            self._dropped = now_s
        if self._strained(now_s):
            too_early = now_s - self._returned < self._calm_s
            self._calm_s = min(2 * self._calm_s, _MOST_CALM_S) if too_early else _LEAST_CALM_S
            self._move(1, now_s)
        elif self.level and now_s - max(self._changed, self._dropped) >= self._calm_s:
            self._returned = now_s
            self._move(-1, now_s)
        return self.level

    def _strained(self, now_s: float) -> bool:
        if self.level == self._levels or self._changed is None or now_s - self._changed < self._settle_s:
            return False
        lost = sum(n for _, n in self._seen)
        often = self._in_a_row > 1 or sum(n > 0 for _, n in self._seen) > 1
        return often and lost > _DROPPED * (lost + len(self._seen))

    def _move(self, by: int, now_s: float) -> None:
        self.level += by
        self._changed, self._in_a_row = now_s, 0
        self._seen.clear()


class Counts(msgspec.Struct):
    """What became of a stream's frames: those begun, those dropped, and those begun with a cheaper option."""

    taken: int = 0
    dropped: int = 0
    degraded: int = 0

    @property
    def captured(self) -> int:
        """All that came, as far as somebody was there to take them."""
        return self.taken + self.dropped


@dataclass(frozen=True, slots=True)
class Taken(Generic[T]):
    """A frame that is to be begun now. `due_s` is when it was to come; 0 where none was promised."""

    frame: T
    due_s: float
    level: int


class Mailbox(Generic[T]):
    """Frames between a camera and whoever takes them: `room` of them, and then the oldest is dropped."""

    def __init__(self, room: int) -> None:
        self._frames: deque[T] = deque(maxlen=room)
        self._changed = threading.Condition()
        self._ended = False
        self._failure: BaseException | None = None
        self.dropped = 0

    def put(self, frame: T) -> None:
        """A frame has come."""
        with self._changed:
            self.dropped += len(self._frames) == self._frames.maxlen
            self._frames.append(frame)
            self._changed.notify()

    def end(self, failure: BaseException | None = None) -> None:
        """No more will come; `failure` is why."""
        with self._changed:
            self._ended = True
            self._failure = self._failure or failure
            self._changed.notify()

    def take(self) -> T | None:
        """The oldest frame that is here, waited for; None behind the last. Raises what ended it."""
        with self._changed:
            self._changed.wait_for(lambda: self._frames or self._ended)
            if self._frames:
                return self._frames.popleft()
            if self._failure is not None:
                raise self._failure
            return None


class Feed(Generic[T]):
    """The frames of a source as they are to be begun, with `counts`; for one reader.

    `live` frames come by themselves, others at `rate` or, if that is 0, as fast as they are taken. `policy` is one of
    `POLICIES`. With `degrade` `moved` is called with the level of the option to use, whenever it changes, up to
    `levels`; where no level is left, the oldest is dropped.
    """

    def __init__(
        self,
        frames: Iterable[T],
        *,
        live: bool,
        rate: float,
        policy: str,
        levels: int = 0,
        moved: Callable[[int], None] = lambda level: None,
        captured_s: Callable[[T], float] = lambda frame: 0.0,
        clock: Clock = perf_counter,
        wait: Callable[[float], bool] | None = None,
    ) -> None:
        if policy not in POLICIES:
            raise UsageError(f"what to do on overload is one of {', '.join(POLICIES)}, not {policy}")
        self._frames, self._live, self._rate, self._policy = frames, live, rate, policy
        self._captured_s, self._clock, self._moved = captured_s, clock, moved
        self._stopped = threading.Event()
        self._wait = wait or self._stopped.wait
        self._mailbox: Mailbox[T] = Mailbox(HELD if policy == QUEUE else 1)
        self._relief = Relief(levels, settle_s=max(1.0, _FRAMES / rate) if rate else 1.0)
        self.counts = Counts()

    @property
    def paced(self) -> bool:
        """Whether frames come at their own times, ready or not."""
        return self._live or self._rate > 0

    def stop(self) -> None:
        """No frame is given any more; those that were are."""
        self._stopped.set()
        self._mailbox.end()

    def __iter__(self) -> Iterator[Taken[T]]:
        source = self._watched() if self._live else self._paced() if self._rate else self._plain()
        level = 0
        for frame, due_s, dropped in source:
            if self._stopped.is_set():
                return
            self.counts.taken += 1
            self.counts.dropped += dropped
            if self._policy == DEGRADE and (now := self._relief.taken(self._clock(), dropped)) != level:
                level = now
                call(self._moved, level)
            self.counts.degraded += level > 0
            yield Taken(frame, due_s, level)

    def _plain(self) -> Iterator[tuple[T, float, int]]:
        return ((frame, 0.0, 0) for frame in self._frames)

    def _paced(self) -> Iterator[tuple[T, float, int]]:
        """A source that waits, as if it did not. The next frame is read before it is due."""
        frames, pace = iter(self._frames), FramePace(self._rate, drop=self._policy != QUEUE)
        newest = next(frames, None)
        while newest is not None:
            turn, dropped = pace.next(self._clock()), 0
            if turn.wait_s and self._wait(turn.wait_s):
                return
            while dropped < turn.skip and (later := next(frames, None)) is not None:
                newest, dropped = later, dropped + 1
            yield newest, turn.due_s - (turn.skip - dropped) / self._rate, dropped
            newest = next(frames, None)

    def _watched(self) -> Iterator[tuple[T, float, int]]:
        """A camera, read all the time by a thread of its own."""
        threading.Thread(target=self._watch, name="camera", daemon=True).start()
        known = 0
        while (frame := self._mailbox.take()) is not None:
            dropped = self._mailbox.dropped
            yield frame, self._captured_s(frame), dropped - known
            known = dropped

    def _watch(self) -> None:
        thin = Thin(self._rate)
        try:
            for frame in self._frames:
                if self._stopped.is_set():
                    break
                if thin.takes(self._captured_s(frame)):
                    self._mailbox.put(frame)
            self._mailbox.end()
        except BaseException as exc:
            self._mailbox.end(exc)
