"""How `splitpoint run` streams: frames in, rows out, an end that loses nothing, and what it came to in a few lines."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from time import perf_counter
from types import FrameType

import click
import msgspec
import numpy as np

from splitpoint.cli import signals
from splitpoint.cli.answers import AnswerRows, Tag, missed_ms
from splitpoint.cli.console import progress, say
from splitpoint.cli.input_files import noting, read_photo
from splitpoint.cli.run_cut import Placed
from splitpoint.errors import InputError, MissingExtraError, SplitpointError, UsageError
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.whole_model import Local
from splitpoint.runtime.result import Request, Result
from splitpoint.runtime.stream.pacing import DEGRADE, DROP_OLDEST, HELD, QUEUE, Counts, Feed
from splitpoint.sources import Source, StreamFrame
from splitpoint.text import plain
from splitpoint.trace import Clock, Recorder, Span
from splitpoint.units import counted, ms, rate

#: How long Ctrl-C leaves what is under way.
DRAIN_S = 5.0
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
        self._total_ms.append(result.total_ms)
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


@dataclass
class Stream:
    """One run of the command: reads inputs, prints answers as they come, remembers inputs that could not be read."""

    runner: Edge | Local
    rows: AnswerRows
    feed: Feed[StreamFrame]
    count: int | None
    deadline_s: float = 0.0
    failed: list[SplitpointError] = field(default_factory=list)
    summary: StreamSummary = field(default_factory=StreamSummary)
    interrupted: int = 0
    """The signal that ended the run; 0: none did."""

    # --- running ------------------------------------------------------------------------------------------------

    def one_by_one(self) -> None:
        """Each input when the one before it is answered."""
        for request in self._requests():
            self._answered(self.runner.infer(request), "prepare")

    def all_at_once(self, window: int) -> None:
        """Device, link and server at the same time. Ctrl-C, SIGTERM or SIGHUP ends the reading; what is under way is
        still answered."""
        try:
            with progress(self.rows.terminal, lines=False) as bar, draining(self._interrupt):
                task = bar.add_task("streaming", total=self.count)
                for result in self.runner.stream(self._requests(), window=window):
                    self._answered(result)
                    bar.advance(task)
        except KeyboardInterrupt as exc:
            self.interrupted = signals.number_of(exc)
        finally:
            self.feed.stop()

    def _answered(self, result: Result, before: str = "held") -> None:
        result = whole(result, before)
        if self.deadline_s:  # the edge does not know it where it waits for late answers, too
            result = msgspec.structs.replace(result, deadline_s=self.deadline_s)
        self.summary.add(result)
        self.rows.print(result)

    def _interrupt(self, number: int) -> None:
        self.interrupted = number
        self.feed.stop()

    def _requests(self) -> Iterator[Request]:
        """Each frame with its times so far; one that cannot be read is reported and passed over."""
        alone, note = self.count == 1, noting()
        for taken in self.feed:
            recorder = Recorder()
            recorder.spans += taken.frame.spans
            if 0 < taken.due_s < (now := recorder.clock()):
                recorder.add("held", taken.due_s, now)
            try:
                with recorder.span("prepare"):
                    frame, model = taken.frame, self.runner.model  # which may be followed by another
                    inputs = read_photo(model, frame.path, note) if frame.path else frame.inputs(model)
            except (InputError, MissingExtraError) as exc:
                if alone:
                    raise
                self.failed.append(exc)
                say(f"splitpoint: {plain(str(exc))}")
                continue
            planning = self.runner.planning if isinstance(self.runner, Edge) else None
            stand = planning.stand() if planning is not None else ""
            yield Request(inputs, tuple(recorder.spans), Tag(frame.name, taken.level, frame.label, stand))

    # --- the end ------------------------------------------------------------------------------------------------

    def conclude(self, *, streamed: bool, policy: str) -> None:
        """Prints medians, speed, frames and trouble; to standard error where standard output is JSON."""
        summary, err = self.summary, self.rows.as_json
        self.rows.medians()
        if streamed and (summary.answered or self.interrupted):
            click.echo(summary.speed(), err=err)
            if self.feed.paced or self.interrupted:
                click.echo(summary.frames(self.feed.counts, policy), err=err)
        told = self.rows.fidelity.lines() if self.rows.fidelity is not None else ()
        for line in (*told, *summary.trouble()):
            click.echo(line, err=err)

    def check(self) -> None:
        """KeyboardInterrupt if it was interrupted; InputError if some of its inputs could not be read."""
        if self.interrupted:
            raise signals.raised(self.interrupted)
        if self.failed:
            raise InputError(
                f"{len(self.failed)} of {self.feed.counts.taken} inputs could not be read; the others were answered"
            )


def whole(result: Result, before: str = "held") -> Result:
    """`result` with the time before it began as a span, so that no millisecond is left out: its frame was ``held`` by
    those before it, or, one by one, it was this command that took some microseconds more to ``prepare`` it."""
    if not result.spans:
        return result
    held = Span(before, max(s.end for s in result.spans), result.marks.started)
    return msgspec.structs.replace(result, spans=(*result.spans, held)) if held.ms > 0 else result


@contextmanager
def draining(stop: Callable[[int], None], seconds: float = DRAIN_S) -> Iterator[None]:
    """Inside, the first Ctrl-C, SIGTERM or SIGHUP only calls `stop` with its number; a second one, or `seconds` after
    the first, interrupts as usual."""
    in_main = threading.current_thread() is threading.main_thread()  # which alone hears signals
    numbers = [n for n in signals.HANDLED if in_main and signal.getsignal(n) not in (signal.SIG_IGN, signal.SIG_DFL)]
    if not numbers:
        yield
        return
    came: list[int] = []

    @signals.Hears
    def interrupt(number: int, frame: FrameType | None) -> None:
        raise signals.raised(came[0])

    @signals.Hears
    def first(number: int, frame: FrameType | None) -> None:
        came.append(number)
        for each in numbers:
            signal.signal(each, interrupt)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        stop(number)
        # Not through a buffer that the main thread may be in the middle of.
        with suppress(OSError):
            os.write(2, b"stopping: what is under way is answered first (Ctrl-C again ends at once)\n")

    before = {number: signal.getsignal(number) for number in (*numbers, signal.SIGALRM)}
    signal.signal(signal.SIGALRM, interrupt)
    for number in numbers:
        signal.signal(number, first)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def check_policy(asked: str | None, source: Source, fps: float, *, has_options: bool) -> None:
    """UsageError for --on-overload with a source that waits to be read, or, for ``degrade``, without a plan that could
    have a cheaper option."""
    if asked is None:
        return
    if not fps and not source.live:
        raise UsageError(f"{source.name} waits until it is read, so nothing is overloaded: --on-overload needs --rate")
    if asked == DEGRADE and not has_options:
        raise UsageError(
            "--on-overload degrade changes to cheaper options of a plan: add --cloud, with --at auto or --plan"
        )


def pacing(source: Source, fps: float, policy: str, *, asked: bool) -> str:
    """A sentence: how fast `source` gives frames, and what happens to those that come too fast."""
    then = {
        QUEUE: f"frames wait (of a camera's at most {HELD})" if source.live else "frames wait",
        DROP_OLDEST: "the oldest is dropped",
        DEGRADE: "a cheaper option is used, and the oldest dropped where none is left",
    }[policy]
    how = f"at {rate(fps)}" if fps else "as it comes"
    hint = "" if asked else f" ({policy}; --on-overload says otherwise)"
    return f"{source.name} {how}; when that is too fast, {then}{hint}"


def degraded(runner: Edge | Local, placed: Placed, level: int) -> None:
    """Cuts as the option of `level` says (0: the planned one, the others are cheaper), and says so.

    An error is only said: mostly the server is gone, and the requests that are under way must not end for that.
    """
    assert isinstance(runner, Edge)
    try:
        option = placed.use(runner, level)
    except SplitpointError as exc:
        say(f"cannot change to another option: {exc}")
        return
    say(f"too fast: now {option.label}" if level else f"room again: back to {option.label}")
