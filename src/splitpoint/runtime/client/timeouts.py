"""When an answer is late: after what was predicted and four times the usual deviation, or 200 ms if that is more, or
when finishing here must begin to meet the deadline. Before anything is known of a cut it is one second.

>>> times = AnswerTimes(Patience())
>>> times.late_s()
1.0
>>> for wait_s in (0.050, 0.052, 0.048, 0.051):
...     times.add(wait_s)
>>> round(times.late_s(), 3)                            # 50.5 ms and the least
0.251
>>> round(times.late_s(left_s=0.200, here_s=0.080), 3)  # 80 ms are needed here
0.12
"""

from __future__ import annotations

from collections import deque
from math import ceil, inf
from statistics import median

import msgspec

#: Waits that are remembered of a cut, and times it was finished here.
_KEEP, _KEEP_HERE = 32, 8
#: Once that many are known, what is usual is worked out anew after so many more.
_EVERY = 64
#: Waits for the usual answer are rounded up to this: setting another one costs a system call.
_STEP_S = 0.01


class Patience(msgspec.Struct, frozen=True):
    """How long a server is waited for, seconds; tests bring shorter ones.

    `answer_s` is how long any answer may take, `connect_s` the first connection, and `greet_s` one that is made again.
    With `need_server` one that is not there when the edge is made is an error, whatever the fallback.

    An answer is late after `first_s`, before anything is known of a cut; then after what is predicted and `least_s`, or
    `spreads` mean deviations. A connection on which a late answer and then a ping do not come for `pong_s` (or four
    times the predicted wait) is given up. `failures` in a row open the breaker, whose pauses, drawn with `seed`, grow
    from `pause_s` to `longest_pause_s`, the longest that a busy server can put a request off, too. Where all can be
    answered here, the first cut's tail is waited for `open_s` longer than compiling the head takes, and a server's
    profile for twice its budget and `profile_s`: both are tried again behind.
    """

    answer_s: float = 30.0
    connect_s: float = 5.0
    first_s: float = 1.0
    least_s: float = 0.2
    spreads: float = 4.0
    pong_s: float = 2.0
    failures: int = 3
    pause_s: float = 0.1
    longest_pause_s: float = 10.0
    greet_s: float = 5.0
    open_s: float = 3.0
    profile_s: float = 5.0
    need_server: bool = False
    seed: int | None = None


PATIENCE = Patience()


class AnswerTimes:
    """What is known of one cut: how long its answers were waited for, and what finishing here took."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._seen: deque[float] = deque(maxlen=_KEEP)
        self._here: deque[float] = deque(maxlen=_KEEP_HERE)
        self._usual = self._deviation = 0.0
        self._fresh = 0  # waits since what is usual was worked out
        self._planned_s = 0.0
        self._patient_s = patience.first_s

    def plan(self, total_s: float) -> None:
        """A plan predicts `total_s` of a whole request, its head included; 0: none does."""
        self._planned_s = total_s
        self._set_patient()

    def add(self, wait_s: float) -> None:
        """An answer that was waited for, from the moment it was handed over."""
        self._seen.append(wait_s)
        self._fresh += _EVERY if wait_s > self._patient_s > 0.0 or len(self._seen) < _KEEP else 1

    def patient_s(self) -> float:
        """`late_s` without a deadline, rounded up; 0 where it depends on what a request's head took.

        Asked for after a request was sent, so that the server computes while what is usual is worked out anew.
        """
        if self._fresh >= _EVERY:
            self._set_patient()
        return self._patient_s

    def _set_patient(self) -> None:
        self._patient_s = 0.0 if self._planned_s else ceil(self.late_s() / _STEP_S) * _STEP_S

    def _settle(self) -> None:
        """Works out what is usual. Sorting takes some percent of a short round trip: now and then, and for what was
        late."""
        if self._fresh >= _EVERY:
            self._fresh = 0
            self._usual = median(self._seen)
            self._deviation = median(abs(w - self._usual) for w in self._seen)

    def finished(self, here_s: float) -> None:
        """The rest of a request was computed here."""
        self._here.append(here_s)

    @property
    def predicted_s(self) -> float:
        """How long the next answer is likely to take at most: as planned, else as seen; 0 if nothing is known."""
        self._settle()
        return self._planned_s or self._usual

    @property
    def here_s(self) -> float:
        """How long finishing here takes: the longest of the last times, as a deadline hangs on it. 0 if not known."""
        return max(self._here, default=0.0)

    def late_s(self, left_s: float = inf, here_s: float = 0.0, spent_s: float = 0.0) -> float:
        """When an answer is late, from the moment its request was handed over: `left_s` before the deadline, `spent_s`
        after it began (its head). Finishing here is likely to take `here_s`."""
        self._settle()
        patience = self._patience
        if self._planned_s or self._seen:
            predicted_s = max(0.0, self._planned_s - spent_s) if self._planned_s else self._usual
            usual = predicted_s + max(patience.spreads * self._deviation, patience.least_s)
        else:
            usual = patience.first_s
        return max(0.0, min(usual, left_s - here_s))
