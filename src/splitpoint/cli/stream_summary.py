"""The end of a stream in a few lines: how many answers, how fast, what was dropped, late, or finished here."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from time import perf_counter

import numpy as np

from splitpoint.cli.run_rows import missed_ms, total_ms
from splitpoint.runtime.result import Result
from splitpoint.runtime.stream.pacing import Counts
from splitpoint.trace import Clock
from splitpoint.units import counted, ms, rate

#: A camera may run for days: its percentiles are those of so many last answers.
_REMEMBERED = 100_000


class StreamSummary:
    """Counts answers from now on, and sums them up in sentences."""

    def __init__(self, clock: Clock = perf_counter) -> None:
        self.answered = 0
        self._began = self._ended = clock()
        self._clock = clock
        self._total_ms: deque[float] = deque(maxlen=_REMEMBERED)
        self._fallbacks: Counter[str] = Counter()
        self._missed = self._guessed = 0
        self._deadline_s = self._worst_ms = 0.0

    def add(self, result: Result) -> None:
        """One more answer."""
        self.answered += 1
        self._ended = self._clock()
        self._total_ms.append(total_ms(result))
        if result.fallback:
            self._fallbacks[result.fallback.partition(":")[0]] += 1  # without the details, which are in the rows
        self._guessed += result.tag is not None and result.tag.plan == "guess"
        self._deadline_s = result.deadline_s
        if missed := missed_ms(result):
            self._missed += 1
            self._worst_ms = max(self._worst_ms, missed)

    def speed(self) -> str:
        """Answers, seconds, answers a second, median and p95."""
        seconds = self._ended - self._began
        if not self.answered:
            return "no answers"
        often = f" in {seconds:.2f} s: {rate(self.answered / seconds)}" if seconds > 0 else ""
        middle, slow = (float(q) for q in np.percentile(self._total_ms, (50, 95)))
        return f"{counted(self.answered, 'answer')}{often}, median {ms(middle)} ms, p95 {ms(slow)} ms"

    def trouble(self) -> Iterator[str]:
        """A line each for what was cut by a guess, what was finished here, and what came after its deadline."""
        if self._guessed:
            yield f"{self._guessed} of {self.answered} cut by a guess (--profile-first plans before the first)"
        if self._fallbacks:
            whys = "; ".join(f"{why}: {n}" if len(self._fallbacks) > 1 else why for why, n in self._fallbacks.items())
            yield f"{self._fallbacks.total()} of {self.answered} finished here ({whys})"
        if self._missed:
            yield (
                f"{self._missed} of {self.answered} after the deadline of {ms(self._deadline_s * 1e3)} ms, by "
                f"{ms(self._worst_ms)} ms at most"
            )

    def frames(self, counts: Counts, policy: str) -> str:
        """What became of the frames, where some may have been dropped."""
        left = counts.taken - self.answered
        parts = [counted(counts.captured, "frame"), f"{self.answered} answered"]
        if counts.dropped:
            parts.append(f"{counts.dropped} dropped ({policy})")
        if counts.degraded:
            parts.append(f"{counts.degraded} with a cheaper option")
        if left > 0:
            parts.append(f"{left} without an answer")
        return f"{parts[0]}: {', '.join(parts[1:])}"
