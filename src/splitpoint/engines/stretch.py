"""Runs that take longer than they compute: a slower machine, emulated.

`splitpoint lab slow` says in `SLOWDOWN` how much slower the engines of the commands that it starts are. After every run
they wait, so that runs of any length are slowed by the same factor: a CPU limit lets short ones run at full speed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from math import isfinite
from typing import ParamSpec, TypeVar

from splitpoint.errors import UsageError

P = ParamSpec("P")
T = TypeVar("T")

#: Set for a command that `splitpoint lab slow` has slowed: the factor, or ``limit``.
SLOWDOWN = "SPLITPOINT_SLOWDOWN"
#: What a CPU limit sets it to.
LIMIT = "limit"
_MOST = 1000.0
#: The end of a wait is watched: a sleep ends late, and the run after it finds a cold core. Back to back a run of 1.3 ms
#: took 11.1 times as long after sleeping until 0.3 ms before the end, 10.6 so, and one of 0.08 ms 29 and 13.
_WATCHED_S = 5e-3


def check_factor(factor: float, *, least: float | None = None) -> float:
    """`factor` if a device can be that much slower: above 1 (or from `least`) and up to 1000. UsageError otherwise."""
    fits = isfinite(factor) and factor <= _MOST and (factor > 1 if least is None else factor >= least)
    if not fits:
        wanted = "above 1" if least is None else f"{least:g} or more"
        raise UsageError(f"a device can be slowed by a factor {wanted} and up to {_MOST:g}, not {factor:g}")
    return factor


def slowdown() -> float:
    """How many times as long as it computes every run of this process's engines takes: 1 unless `SLOWDOWN` says more.

    UsageError for what is no such factor.
    """
    text = os.environ.get(SLOWDOWN, "1")
    try:
        return 1.0 if text == LIMIT else check_factor(float(text), least=1.0)
    except ValueError:
        raise UsageError(f"${SLOWDOWN} is a factor, such as 4, not {text}") from None


def refuse_limit() -> None:
    """UsageError under a CPU limit of `splitpoint lab slow`: what is measured there is wrong for short computations."""
    if os.environ.get(SLOWDOWN) == LIMIT:
        raise UsageError(
            "this command runs under a CPU limit, which does not slow what computes for a few milliseconds: a profile "
            'would be wrong. Slow it with --method stretched (in a scenario: method = "stretched")'
        )


def stretched(run: Callable[P, T], factor: float) -> Callable[P, T]:
    """`run`, but it returns `factor` times as late; itself for 1."""
    if factor == 1:
        return run

    def longer(*args: P.args, **kwargs: P.kwargs) -> T:
        began = time.perf_counter()
        result = run(*args, **kwargs)
        sleep_until(began + (time.perf_counter() - began) * factor)
        return result

    return longer


def sleep_until(moment: float) -> None:
    """Returns at `moment`; sleeps until shortly before, and then leaves the core to whoever wants it."""
    while (left := moment - time.perf_counter()) > 0:
        time.sleep(max(0.0, left - _WATCHED_S))
