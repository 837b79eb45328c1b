"""Whether requests go to a server that has let us down, and when it is tried again: a circuit breaker, without I/O.

    up ── a lost connection, or three failures in a row ──► down ── a probe is answered ──► trying
    ▲                                                        ▲                                │
    └───────────────── one request is answered ──────────────┼────────────────────────────────┤
                                                             └── it fails: a longer pause ────┘

Pauses grow from 0.1 s to 10 s, each drawn anew up to its length (full jitter): not all edges come back at once.

>>> breaker = Breaker(Random(1))
>>> breaker.lost(now_s=5.0)
>>> breaker.state, breaker.allows(now_s=5.0)
('down', False)
>>> breaker.probed(now_s=5.1)
>>> breaker.allows(5.1), breaker.allows(5.1)       # one request is risked
(True, False)
>>> breaker.succeeded()
>>> breaker.state
'up'
"""

from __future__ import annotations

from random import Random
from typing import Final, Literal

LinkState = Literal["up", "down", "trying"]
UP: Final = "up"
DOWN: Final = "down"
TRYING: Final = "trying"


class Breaker:
    """The state of one server in our eyes, down after `failures` in a row. Its owner has a lock."""

    def __init__(
        self, random: Random, *, failures: int = 3, first_pause_s: float = 0.1, longest_pause_s: float = 10.0
    ) -> None:
        self._random, self._most = random, failures
        self._first_s, self._longest_s = first_pause_s, longest_pause_s
        self.state: LinkState = UP
        self.due_s = 0.0
        """When the next probe is due, while the state is down."""
        self._in_a_row = 0
        self._opened = 0  # times without a success between them: the exponent of the pause
        self._risked = False  # the one request of "trying" is under way
        self._quiet_until_s = float("-inf")

    @property
    def well(self) -> bool:
        """Whether one more success would change nothing."""
        return self.state == UP and not self._in_a_row

    def allows(self, now_s: float) -> bool:
        """Whether a request may go to the server now; of "trying" it is the only one until it has ended."""
        if now_s < self._quiet_until_s:
            return False
        if self.state == UP:
            return True
        if self.state == TRYING and not self._risked:
            self._risked = True
            return True
        return False

    def succeeded(self) -> None:
        """A request was answered."""
        self._in_a_row = 0
        if self.state == TRYING:
            self.state, self._opened, self._risked = UP, 0, False

    def failed(self, now_s: float, retry_after_s: float = 0.0) -> None:
        """A request was late or refused, the connection still stands; none goes over for `retry_after_s`."""
        self._in_a_row += 1
        if retry_after_s > 0:
            self._quiet_until_s = max(self._quiet_until_s, now_s + min(retry_after_s, self._longest_s))
        if self.state == TRYING or (self.state == UP and self._in_a_row >= self._most):
            self._open(now_s)

    def lost(self, now_s: float) -> None:
        """The connection has ended."""
        if self.state != DOWN:
            self._open(now_s)

    def dropped(self) -> None:
        """Whoever asked does not wait for the answer: it says nothing, and another request may be risked."""
        self._risked = False

    def probed(self, now_s: float) -> None:
        """A probe was answered, and the tail is open: the server may be well."""
        if self.state == DOWN:
            self.state, self._risked = TRYING, False

    def missed(self, now_s: float) -> None:
        """A probe was not answered."""
        if self.state == DOWN:
            self._open(now_s)

    def _open(self, now_s: float) -> None:
        pause_s = min(self._first_s * 2.0 ** min(self._opened, 60), self._longest_s)
        self.state, self._risked, self._in_a_row = DOWN, False, 0
        self._opened += 1
        self.due_s = now_s + self._random.uniform(0.0, pause_s)
