"""When to cut elsewhere: conditions → keep, or switch to this option, and why. Pure: time and randomness are arguments.

    adapter = Adapter(planner, current=plan.best, seed=1)
    decision = adapter.decide(now_s, observer.conditions(now_s))
    if decision.switch:
        edge.switch(*placement(graph, decision.option))     # the uplink fell to 2.1 Mbit/s

The best option is `option_costs`'. Four things keep it from flapping; `Policy` has their numbers:

* A gain must be worth it, and a small one must have been there for a while.
* Between two switches passes a least time. Always.
* A server is left because of its load after a time drawn at random. It is given more to do again only after it has
  looked free for a pause, drawn at random too, that doubles each time. So edges that share a server neither leave nor
  return together, and the second one sees whether there is still a need, or room.
* A switch that was soon undone is followed by such a pause as well. Leaving what has become worse waits for none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, isfinite
from random import Random
from typing import NamedTuple, TypeAlias

import msgspec

from splitpoint.errors import UsageError
from splitpoint.planning.advice import ALIKE
from splitpoint.planning.constraints import percent
from splitpoint.planning.planner import Planner
from splitpoint.planning.plans import Option, kept, value
from splitpoint.runtime.adapt.conditions import Conditions
from splitpoint.runtime.adapt.option_costs import OptionCosts, View, same
from splitpoint.units import mbps, ms

#: A pause is drawn between these shares of its length.
_JITTER = (0.1, 1.9)
#: After staying for so many times the last pause the next one is the shortest again.
_FORGIVEN = 4.0
#: What could not be switched to is tried again after this.
_RETRY_S = 0.2
#: The links that `Adapter.likely` plans for, as shares of the link now: the nearest first.
_LIKELY = (0.5, 2.0, 0.25, 4.0)


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """How willing an `Adapter` is to switch. UsageError for numbers that make no sense."""

    dwell_s: float = 1.0
    """Between two switches passes at least this."""
    gain: float = 0.1
    """A switch must promise this share of what a request takes now,"""
    gain_ms: float = 1.0
    """and so many milliseconds (where latency is the objective)."""
    urgent: float = 0.3
    """From this share on a gain is taken at once."""
    settle_s: float = 1.0
    """A gain of just `gain` must have been there for so long; a larger one for less, in inverse proportion."""
    leave_s: float = 2.0
    """A server is left because of its load within this time, drawn at random."""
    pause_s: float = 2.0
    """How long on average a server that was left because of its load must look free, the first time."""
    most_pause_s: float = 60.0
    """The longest such pause."""
    short_s: float = 3.0
    """A switch that is undone sooner was a mistake, whatever the reason: it too is followed by a pause."""
    calm_s: float = 10.0
    """Staying for so long, and for four times the last pause, makes up for earlier mistakes."""

    def __post_init__(self) -> None:
        for field in ("dwell_s", "gain_ms", "settle_s", "leave_s", "pause_s", "most_pause_s", "short_s", "calm_s"):
            if not 0 <= (number := getattr(self, field)) < inf:
                raise UsageError(f"a policy's {field} is a number from 0, not {number}")
        if not 0 <= self.gain <= self.urgent <= 1 or self.gain == 0:
            raise UsageError(
                f"a policy's gain and urgent are shares, 0 < gain ≤ urgent ≤ 1, not {self.gain} and {self.urgent}"
            )


class Decision(msgspec.Struct, frozen=True):
    """Whether to switch, and to what: `option` is the best one then, else the current one, at today's price.

    `why`, a part of a sentence, is what changed. `gain_ms` is what a request gains (0 if the server is gone). Where
    throughput is the objective now, `gain_rate` is what is gained of it, requests a second; 0 elsewhere.
    """

    switch: bool
    option: Option
    why: str = ""
    gain_ms: float = 0.0
    gain_rate: float = 0.0


class Adapter:
    """Decides for one edge, again and again. `current` is the option that it runs with, at the price when it was last
    looked at.

    `seed` should differ between edges: those that share a server must not decide at the same moments. `rate` is
    how many frames a second a stream brings: while the best option for latency keeps up with them it is chosen, else
    the one with the most throughput. One thread at a time.
    """

    def __init__(
        self, planner: Planner, *, current: Option, policy: Policy | None = None, seed: int = 0, rate: float = 0.0
    ) -> None:
        self.policy = policy or Policy()
        self._costs = OptionCosts(planner, rate)
        self._pauses, self._random = _Pauses(self.policy), Random(seed)
        self.current = self._before = current
        #: What was believed when the current option was chosen, when that was, and since when there is a better one.
        self._then: Conditions | None = None
        self._switched_s = -inf
        self._better_since: float | None = None
        self._draw = 0.0  # anew for each gain that is looked at, 0…1
        self._undo: tuple[Conditions | None, float, _Remembered] = (None, -inf, self._pauses.state)
        self._barred: _Barred | None = None

    def decide(self, now_s: float, conditions: Conditions) -> Decision:
        """Keep, or switch: then the option counts as `current` from now on (see `revert`)."""
        view = self._costs.view(conditions)
        best = self._costs.best(view) if conditions.reachable else view.alone()
        if best is not None and self._barred is not None and self._barred.bars(now_s, best):
            best = self._instead(now_s, view, conditions) or best
        current = self.current = view.price(self.current)
        then = self._then = self._then or conditions
        if best is None or same(current, best):
            self._better_since = None
            return Decision(False, current)
        cause = _cause(then, conditions, current, best)
        if not self._worth(now_s, current, best, cause, conditions):
            return Decision(False, current)
        self._undo = (self._then, self._switched_s, self._pauses.state)
        self._pauses.switched(now_s - self._switched_s, _direction(current, best), cause)
        self._before, self.current = current, best
        self._then, self._switched_s, self._better_since = conditions, now_s, None
        why = _said(cause, then, conditions) or "it is better now"
        if keeps_more(current, best, self._costs.objective):
            why = f"it takes as long, and {percent(kept(best) or 0.0)} of the answers stay"
        if not conditions.reachable:
            return Decision(True, best, why)
        gain_ms = current.total.ms - best.total.ms
        many = self._costs.objective == "throughput"
        return Decision(True, best, why, gain_ms, best.throughput - current.throughput if many else 0.0)

    def revert(self, now_s: float) -> Option:
        """The option before, which is the current one again, because the edge could not switch to the one that was
        decided for. That one is tried again a little later, and later each time; meanwhile another one may be chosen.
        """
        times = self._barred.times + 1 if self._barred is not None and same(self._barred.option, self.current) else 0
        pause_s = min(_RETRY_S * 2.0**times, self.policy.calm_s)
        self._barred = _Barred(self.current, now_s + pause_s, times)
        self.current, (self._then, self._switched_s, self._pauses.state) = self._before, self._undo
        return self.current

    def likely(self, conditions: Conditions, most: int = 4) -> Sequence[Option]:
        """At most `most` options worth having ready, each with another cut than the current one's: the best now, all on
        the device, the best if the link were twice or four times slower or faster, all on the server. Some ms of work.
        """
        view = self._costs.view(conditions)
        wanted = [view.best(), view.alone(), *(view.on(share).best() for share in _LIKELY), view.plain()]
        options = [o for o in wanted if o is not None]
        cuts = {o.on_edge: o for o in reversed(options) if o.on_edge != self.current.on_edge and not o.refused}
        return [o for o in options if cuts.get(o.on_edge) is o][:most]

    def explore(self, conditions: Conditions) -> Option | None:
        """The best option that uses the server, to learn of link and server while all runs on the device; None if
        there is none."""
        return self._costs.view(conditions).remote()

    def _instead(self, now_s: float, view: View, conditions: Conditions) -> Option | None:
        """The better of all on the edge and the best that uses the server, of what is not barred."""
        both = (view.alone(), view.remote() if conditions.reachable else None)
        left = [o for o in both if o is not None and not (self._barred and self._barred.bars(now_s, o))]
        return min(left, key=lambda o: value(o, self._costs.objective), default=None)

    # --- what speaks against a switch ---------------------------------------------------------------------------

    def _worth(self, now_s: float, current: Option, best: Option, cause: str, conditions: Conditions) -> bool:
        """Whether `best` is worth a switch now."""
        policy = self.policy
        if conditions.reachable:
            share = max(gain(current, best, self._costs.objective), policy.gain)
            if not gains(policy, current, best, self._costs.objective):
                self._better_since = None
                return False
            if self._better_since is None:
                self._better_since, self._draw = now_s, self._random.random()
            settle_s = policy.settle_s * policy.gain / share if share < policy.urgent else 0.0
            better_s, direction = now_s - self._better_since, _direction(current, best)
            if direction < 0 and cause in _LOAD:
                settle_s = max(settle_s, policy.leave_s * self._draw)
            paused_s = self._pauses.length_s(direction, cause) * (_JITTER[0] + (_JITTER[1] - _JITTER[0]) * self._draw)
            if better_s < max(settle_s, paused_s):
                return False
        barred = self._barred is not None and self._barred.bars(now_s, best)
        return not barred and now_s - self._switched_s >= policy.dwell_s


def gain(current: Option, best: Option, objective: str) -> float:
    """What `best` saves of the `objective`, as a share."""
    now, then = value(current, objective), value(best, objective)
    if current.refused and not best.refused:
        return 1.0  # it keeps to what was asked for, and the current one does not any more
    if not isfinite(now) or now <= 0:
        return 0.0
    return 1 - then / now


def keeps_more(current: Option, best: Option, objective: str) -> bool:
    """Whether `best` is the same cut with a codec that keeps more of the answers, and nobody could tell the two apart
    by the `objective`. Nothing is compiled for that."""
    now, then = kept(current), kept(best)
    if now is None or then is None or now >= then or current.on_edge != best.on_edge:
        return False
    return value(best, objective) <= value(current, objective) * (1 + ALIKE)


def gains(policy: Policy, current: Option, best: Option, objective: str) -> bool:
    """Whether `best` promises as much as a switch must."""
    if keeps_more(current, best, objective):
        return True
    gain_ms = current.total.ms - best.total.ms if objective == "latency" else inf
    return gain(current, best, objective) >= policy.gain and (gain_ms >= policy.gain_ms or bool(current.refused))


def _direction(current: Option, best: Option) -> int:
    """1 if `best` gives the server more to do, −1 if less, 0 if the same."""
    more = best.stages["server"].ms - current.stages["server"].ms
    return (more > 1e-9) - (more < -1e-9)


class _Barred(NamedTuple):
    """An option that the edge could not switch to, and until when it is not tried again."""

    option: Option
    until_s: float
    times: int

    def bars(self, now_s: float, option: Option) -> bool:
        return now_s < self.until_s and same(option, self.option)


# --- pauses -----------------------------------------------------------------------------------------------------------


#: Direction → the length of its pause, s; the direction of the last switch.
_Remembered: TypeAlias = tuple[Mapping[int, float], int]


class _Pauses:
    """Back-off in each direction: towards the server (1), and towards the device (−1)."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.state: _Remembered = ({1: 0.0, -1: 0.0}, 0)
        """All that it remembers; may be set to what it was."""

    def switched(self, stayed_s: float, direction: int, cause: str) -> None:
        """A switch after having stayed for `stayed_s`: if that was a mistake, the way back has a longer pause now."""
        if not direction:
            return
        policy, (lengths, last) = self._policy, self.state
        length_s = lengths[-direction]
        if stayed_s >= max(policy.calm_s, _FORGIVEN * length_s):
            length_s = 0.0
        loaded = direction < 0 and cause in _LOAD
        undone = last == -direction and stayed_s < policy.short_s and cause != "reachable"
        if loaded or undone:
            length_s = min(max(policy.pause_s, 2 * length_s), policy.most_pause_s)
        self.state = {**lengths, -direction: length_s}, direction

    def length_s(self, direction: int, cause: str) -> float:
        """How long a gain in `direction` must have been there; 0 for what is necessary."""
        # That one side has become slower is a reason to leave it at once; that the other has become faster can wait.
        necessary = (cause == "device") == (direction > 0)
        return 0.0 if not direction or necessary else self.state[0][direction]


# --- what changed -----------------------------------------------------------------------------------------------------

#: Causes that are the server's load.
_LOAD = frozenset({"queue", "server", "failing"})
#: A cause explains a gain if it has at least this share in it.
_EXPLAINS = 0.25


def _cause(then: Conditions, now: Conditions, current: Option, best: Option) -> str:
    """The name of what has changed since `then` and makes `best` better than `current`; empty if nothing does."""
    if now.reachable != then.reachable:
        return "reachable"
    remote = float(bool(current.up_nbytes)) - float(bool(best.up_nbytes))
    more = {stage: current.stages[stage].ms - best.stages[stage].ms for stage in ("edge", "server")}
    parts = {
        "up": (current.up_nbytes - best.up_nbytes) * (now.link.up_ms(1) - then.link.up_ms(1)),
        "down": (current.down_nbytes - best.down_nbytes) * (now.link.down_ms(1) - then.link.down_ms(1)),
        "trip": remote * (now.link.rtt_ms - then.link.rtt_ms),
        "queue": remote * (now.queue_ms - then.queue_ms),
        "overhead": remote * (now.overhead_ms - then.overhead_ms),
        "failing": remote * (now.failing - then.failing) * current.total.ms,
        "server": more["server"] * (1 - then.server / now.server),
        "device": more["edge"] * (1 - then.device / now.device),
    }
    name = max(parts, key=lambda k: parts[k])
    gain_ms = current.total.ms - best.total.ms
    return name if parts[name] > max(0.0, _EXPLAINS * gain_ms) else ""


def _said(cause: str, then: Conditions, now: Conditions) -> str:
    """A cause in words, for the event of a switch: ``the uplink fell to 2.1 Mbit/s``; empty if there is none."""
    link, before = now.link, then.link
    if cause == "reachable":
        return "the server is back" if now.reachable else "the server is gone"
    if cause == "up":
        return f"the uplink {_moved(before.up_mbps, link.up_mbps)}"
    if cause == "down":
        return f"the downlink {_moved(before.down_mbps, link.down_mbps)}"
    if cause == "trip":
        return f"the round trip is {ms(link.rtt_ms)} ms"
    if cause == "queue":
        return f"the server's queue is {'only ' * (now.queue_ms < then.queue_ms)}{ms(now.queue_ms)} ms"
    if cause == "overhead":
        return f"requests cost {ms(now.overhead_ms)} ms beyond the plan"
    if cause == "failing":
        return "the server fails" if now.failing > then.failing else "the server no longer fails"
    if cause in ("server", "device"):
        return f"the {cause} is {_factor(getattr(now, cause))}"
    return ""


def _moved(before: float, rate: float) -> str:
    """How a rate has changed, in words: ``fell to 2.1 Mbit/s``."""
    return f"{'fell' if rate < before else 'rose'} to {mbps(float(f'{rate:.2g}'))} Mbit/s"


def _factor(factor: float) -> str:
    """How fast a machine is, in words: ``1.8x slower than expected``."""
    if 1 / 1.05 < factor < 1.05:
        return "as fast as expected again"
    return f"{factor:.1f}x slower than expected" if factor > 1 else f"{1 / factor:.1f}x faster than expected"
