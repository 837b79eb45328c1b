"""Edges that adapt, in virtual time: links that change, a server with a queue, devices that throttle.

What is simulated is what a real edge sees: heads, frames one behind the other on the uplink, one worker, answers; a
request that is late is finished on the device, and its late answer still tells of the link. While everything runs on
the device, one request in twenty also goes over, and an idle link is probed with 1 % of what it carries.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from math import exp, log
from statistics import median

from plans import model_of, profiles

from splitpoint.calibration.calibrations import Calibration, CalibrationRow, Quality
from splitpoint.codecs import open_codec
from splitpoint.graph import Cut
from splitpoint.link import Link
from splitpoint.planning.constraints import Constraints
from splitpoint.planning.planner import Planner
from splitpoint.planning.plans import Option
from splitpoint.runtime.adapt.conditions import Conditions, Observer, Ran
from splitpoint.runtime.adapt.link_belief import FrameTime
from splitpoint.runtime.adapt.switch_policy import Adapter, Decision, Policy
from splitpoint.runtime.probe.link_probe import Glimpse

Course = Callable[[float], float]
TICK_S, PROBE_S, EXPLORE = 0.2, 1.0, 20
LEAST_MBPS = 1e-3


def always(value: float) -> Course:
    return lambda now_s: value


def steps(*changes: tuple[float, float]) -> Course:
    """(from when, value), in order."""
    return lambda now_s: next(v for at, v in reversed(changes) if now_s >= at or at == changes[0][0])


@cache
def planner(edge_ms: float = 100.0, cloud_ms: float = 8.0) -> Planner:
    """EfficientNet-Lite0 on a device and a server that is some ten times faster."""
    pair = profiles("zoo:efficientnet_lite0", edge_ms, cloud_ms)
    return Planner(None, pair, constraints=Constraints(codecs=("int8",)))


#: Level of klt → bytes at ``blocks.5.project.norm`` and share of 1,000 answers that stay. 95 % is what the mean of 42
#: keeps, and its lower end does not.
LEVELS = {36: (3200, 0.930), 42: (3900, 0.953), 48: (4600, 0.965), 60: (6000, 0.985), 72: (7500, 0.996)}


def front() -> Calibration:
    """A calibration of EfficientNet-Lite0 with levels of klt at three cuts, and int8 beside them."""
    model = model_of("zoo:efficientnet_lite0")
    places = {c.name: p for p, c in enumerate(model.graph.prefixes())}
    rows = []
    for cut, share in (("blocks.3.project.norm", 2.2), ("blocks.5.project.norm", 1.0), ("blocks.11.project.norm", 0.5)):
        (spec,) = model.graph.cut(cut).crossing
        fixed = open_codec("int8").nbytes(spec)
        rows.append(CalibrationRow(places[cut], "int8", (fixed,), fixed, Quality(1000, 0.999, 0.9, 0.1), 0.2, 0.1))
        for level, (nbytes, kept) in LEVELS.items():
            each = round(nbytes * share)
            quality = Quality(1000, kept, 0.9, 0.1)
            rows.append(CalibrationRow(places[cut], f"klt:{level}", (each,), 2 * each, quality, 0.3, 0.3))
    return Calibration(
        model=model.name, fingerprint=model.fingerprint, inputs=1000, classifier=True, output="logits", rows=tuple(rows)
    )


@cache
def faithful(agreement: float, edge_ms: float = 100.0) -> Planner:
    """The same network, device and server where so many answers must stay."""
    pair = profiles("zoo:efficientnet_lite0", edge_ms, 8.0)
    return Planner(None, pair, constraints=Constraints(agreement=agreement), calibration=front())


@cache
def cut_of(plan: Planner, option_nodes: tuple[int, ...]) -> Cut:
    return plan.graph.cut_of(option_nodes)


PLAIN: Course = always(1.0)


class World:
    """The clock, what is due, and the one worker of a server."""

    def __init__(self, seed: int = 0, server: Course = PLAIN, workers: int = 1) -> None:
        self.now_s = 0.0
        self.random = random.Random(seed)
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._slow = server
        self._free = [0.0] * workers
        self._load_ms = 0.0

    def at(self, when_s: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._due, (max(when_s, self.now_s), next(self._order), do))

    def run(self, until_s: float) -> None:
        while self._due and self._due[0][0] <= until_s:
            self.now_s, _, do = heapq.heappop(self._due)
            do()
        self.now_s = until_s

    def compute(self, tail_ms: float) -> tuple[float, float, float, float]:
        """A request that arrives now: (waited, computed, load as the server says, when it is done)."""
        worker = min(range(len(self._free)), key=lambda k: self._free[k])
        begins_s = max(self.now_s, self._free[worker])
        tail_ms *= self._slow(self.now_s) * self.noisy(0.03)
        self._free[worker] = begins_s + tail_ms * 1e-3
        queue_ms = (begins_s - self.now_s) * 1e3
        self._load_ms += 0.2 * (queue_ms - self._load_ms)
        return queue_ms, tail_ms, self._load_ms, self._free[worker]

    def noisy(self, share: float) -> float:
        return self.random.lognormvariate(0.0, share)


@dataclass
class Done:
    """One request: when it began, its milliseconds, with which option, and whether the device had to finish it."""

    began_s: float
    ms: float
    label: str
    late: bool


@dataclass
class Network:
    """An uplink that carries one frame after the other, at `up` Mbit/s; down is four times as fast."""

    up: Course
    rtt_ms: float = 10.0
    noise: float = 0.03
    grain_s: float = 0.05
    free_s: float = 0.0

    def sent_s(self, from_s: float, nbytes: float, factor: float = 1.0) -> float:
        """When the last of `nbytes` has left that are handed over at `from_s`."""
        now_s, left = max(from_s, self.free_s), nbytes * 8e-6 * factor
        while True:
            rate = max(self.up(now_s), LEAST_MBPS)
            edge_s = (int(now_s / self.grain_s + 1e-9) + 1) * self.grain_s
            if left <= rate * (edge_s - now_s):
                return now_s + left / rate
            left -= rate * (edge_s - now_s)
            now_s = edge_s


@dataclass
class Runner:
    """One edge: requests one after the other, begun every `period_s` at most. Fixed to an option, or adapting."""

    world: World
    network: Network
    plan: Planner
    period_s: float = 0.0
    fixed: Option | None = None
    choose: Callable[[Runner], Option] | None = None
    policy: Policy | None = None
    seed: int = 0
    device: Course = PLAIN
    start: Link = field(default_factory=lambda: Link(50, 200, 10))
    done: list[Done] = field(default_factory=list)
    switches: list[tuple[float, Decision]] = field(default_factory=list)
    seen: list[tuple[float, Conditions]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.observer = Observer(self.start)
        self.adaptive = self.fixed is None and self.choose is None
        best = self.plan.best(self.start)
        assert best is not None
        self.adapter = Adapter(self.plan, current=best, policy=self.policy, seed=self.seed)
        self.option = self.fixed or best
        self._waits: dict[tuple[int, ...], list[float]] = {}
        self._lates = self._flying = 0
        self._used_s = self._saved = 0.0
        self._random = random.Random(self.seed)
        self._reachable = True
        self.world.at(0.0, self._begin)
        if self.adaptive:
            self.world.at(TICK_S, self._tick)
            self.world.at(PROBE_S, self._probe)

    # --- deciding ---

    def _tick(self) -> None:
        now_s = self.world.now_s
        conditions = self.observer.conditions(now_s)
        self.seen.append((now_s, conditions))
        decision = self.adapter.decide(now_s, conditions)
        if decision.switch:
            self.switches.append((now_s, decision))
            self.option = decision.option
        self.world.at(now_s + TICK_S, self._tick)

    def _probe(self) -> None:
        """1 % of what an idle link carries: a third of what was saved in up to four seconds. It tells that the link
        is back."""
        now_s, world, network = self.world.now_s, self.world, self.network
        up = network.up(now_s)
        if up > LEAST_MBPS and not self._reachable:
            self._reachable = True
            self.observer.reachable(now_s, True)
        share = self.observer.conditions(now_s).link.up_mbps * 1250
        self._saved = min(self._saved + share * PROBE_S, 4 * share)
        nbytes = min(16_384.0, self._saved / 3)
        if up > LEAST_MBPS and not self._flying and now_s - self._used_s >= PROBE_S and nbytes >= 512:
            self._saved -= nbytes
            arrives_s = network.sent_s(now_s, nbytes, world.noisy(network.noise)) + network.rtt_ms / 2e3
            up_ms = (arrives_s - now_s) * 1e3
            back_s = arrives_s + network.rtt_ms / 2e3
            seen = Glimpse(network.rtt_ms, int(nbytes), up_ms, 60, network.rtt_ms / 2)
            world.at(back_s, lambda: self.observer.probed(back_s, seen))
        world.at(now_s + PROBE_S, self._probe)

    # --- requests ---

    def _begin(self) -> None:
        world = self.world
        if self.choose is not None:
            self.option = self.choose(self)
        option, began_s = self.option, world.now_s
        profile = self.plan.hosts[0].profile
        slow = self.device(began_s) * world.noisy(0.03)
        cut = cut_of(self.plan, option.on_edge)
        head_ms = profile.head(cut).median * slow
        head = Ran(head_ms, profile.head(cut).median, profile.whole.median)
        remote = bool(option.up_nbytes)
        ready_s = began_s + (head_ms + option.stages["encode"].ms) * 1e-3
        if self.adaptive:
            world.at(ready_s, lambda: self.observer.computed(ready_s, head))
        rest_ms = (profile.whole.median - profile.head(cut).median) * slow
        if not remote or (self.adaptive and not self._reachable):
            world.at(ready_s + rest_ms * 1e-3 * remote, lambda: self._finish(began_s, option, remote))
            # At random: edges that began together must not meet their own probes at the server.
            if self.adaptive and self._reachable and not self._flying and self._random.random() < 1 / EXPLORE:
                self._shadow()
            return
        over = [False]

        def finish(late: bool) -> None:
            if not over[0]:
                over[0] = True
                self._finish(began_s, option, late)

        def late() -> None:
            if not over[0]:
                self.observer.overdue(world.now_s, option.up_nbytes, (world.now_s - ready_s) * 1e3)
                self._late()
                world.at(world.now_s + rest_ms * 1e-3, lambda: finish(True))

        world.at(ready_s, lambda: self._send(option, lambda: finish(False)))
        if self.adaptive:
            world.at(ready_s + self._patience_ms(option) * 1e-3, late)

    def _finish(self, began_s: float, option: Option, late: bool) -> None:
        now_s = self.world.now_s
        self.done.append(Done(began_s, (now_s - began_s) * 1e3, option.label, late))
        ticks = (now_s - 1e-9) // self.period_s + 1 if self.period_s else 0.0
        self.world.at(max(now_s, ticks * self.period_s), self._begin)

    def _patience_ms(self, option: Option) -> float:
        known = self._waits.get(option.on_edge, [])[-9:]
        if not known:
            return max(option.total.ms, 1.0) + 200 if option.total.ms < 800 else 1000.0
        middle = median(known)
        return middle + max(4 * median(abs(w - middle) for w in known), 200.0)

    def _late(self) -> None:
        """Three in a row without an answer: the circuit breaker opens."""
        self._lates += 1
        if self._lates >= 3 and self.network.up(self.world.now_s) <= LEAST_MBPS:
            self._reachable = False
            self.observer.reachable(self.world.now_s, False)

    def _shadow(self) -> None:
        option = self.adapter.explore(self.observer.conditions(self.world.now_s))
        if option is not None:
            self._send(option, lambda: None)

    def _send(self, option: Option, heard: Callable[[], None]) -> None:
        """Upload, queue, tail, download; then the observer hears of it, and `heard` is called."""
        world, network = self.world, self.network
        handed_s, half_s = world.now_s, network.rtt_ms / 2e3
        left_s = network.sent_s(handed_s, option.up_nbytes, world.noisy(network.noise))
        network.free_s = left_s
        arrived_s = left_s + half_s
        cut = cut_of(self.plan, option.on_edge)
        self._flying += 1

        def arrive() -> None:
            queue_ms, tail_ms, load_ms, done_s = world.compute(self.plan.hosts[1].profile.tail(cut).median)
            down_ms = option.down_nbytes * 8e-3 / (4 * max(network.up(done_s), LEAST_MBPS)) + network.rtt_ms / 2

            def back() -> None:
                now_s = world.now_s
                self._used_s = now_s
                self._flying -= 1
                self._lates = 0
                if not self.adaptive:
                    return heard()
                remote_ms = (now_s - handed_s) * 1e3
                self._waits.setdefault(option.on_edge, []).append(remote_ms)
                up_ms = (arrived_s - handed_s) * 1e3
                cloud = self.plan.hosts[1].profile
                self.observer.answered(
                    now_s, FrameTime(option.up_nbytes, up_ms), FrameTime(option.down_nbytes, down_ms),
                    Ran(tail_ms, cloud.tail(cut).median, cloud.whole.median), queue_ms, load_ms, 0.0,
                    network.rtt_ms, remote_ms=remote_ms,
                )  # fmt: skip
                heard()

            world.at(done_s + down_ms * 1e-3, back)

        world.at(arrived_s, arrive)

    # --- what came of it ---

    def between(self, from_s: float, to_s: float) -> list[float]:
        """Milliseconds of the requests that began then."""
        return [d.ms for d in self.done if from_s <= d.began_s < to_s]


def p95(values: Sequence[float]) -> float:
    found = sorted(values)
    return found[min(len(found) - 1, int(0.95 * len(found)))]


def contenders(plan: Planner, rtt_ms: float = 10.0) -> list[Option]:
    """The options that are best on some link from 0.1 to 200 Mbit/s, and the two plain ones."""
    rates = [0.1 * 1.35**k for k in range(26)]
    found = [o for r in rates if (o := plan.best(Link(r, 4 * r, rtt_ms))) is not None]
    plain = plan.graph.prefixes()[0]
    link = Link(50, 200, rtt_ms)
    found += [plan.local(link), plan.price(plain, ["raw"] * len(plain.crossing), link)]
    return list({(o.on_edge, o.codecs): o for o in found}.values())


def oracle(options: Sequence[Option], plan: Planner) -> Callable[[Runner], Option]:
    """Who knows the trace: the option that is fastest for a request that begins now."""
    cuts = {o.on_edge: cut_of(plan, o.on_edge) for o in options}

    def choose(runner: Runner) -> Option:
        network, now_s = runner.network, runner.world.now_s

        def takes_s(option: Option) -> float:
            cut = cuts[option.on_edge]
            ready_s = now_s + (plan.hosts[0].profile.head(cut).median + option.stages["encode"].ms) * 1e-3
            if not option.up_nbytes:
                return ready_s - now_s
            left_s = network.sent_s(ready_s, option.up_nbytes)
            back_ms = option.down_nbytes * 8e-3 / (4 * network.up(left_s))
            return left_s - now_s + (network.rtt_ms + plan.hosts[1].profile.tail(cut).median + back_ms) * 1e-3

        return min(options, key=takes_s)

    return choose


def fixed_p95(option: Option, up_mbps: float, plan: Planner, seconds: float = 20.0) -> float:
    """The 95th percentile of an option on a link that does not change."""
    runner = Runner(World(7), Network(always(up_mbps)), plan, fixed=option)
    runner.world.run(seconds)
    return p95(runner.between(1.0, seconds))


def random_walk(seed: int, seconds: float = 120.0, low: float = 0.5, high: float = 60.0) -> Course:
    """An uplink like LTE's: its logarithm walks, a new value every half second, pulled to the middle; with fades."""
    generator = random.Random(seed)
    middle, at = (log(low) + log(high)) / 2, (log(low) + log(high)) / 2 + 0.5
    values, fade = [], 0
    for _ in range(int(seconds * 2) + 40):
        at += 0.05 * (middle + 0.5 - at) + generator.gauss(0.0, 0.25)
        at = min(max(at, log(low)), log(high))
        if fade == 0 and generator.random() < 0.012:
            fade = generator.randint(4, 16)
        fade = max(0, fade - 1)
        values.append(exp(at) * (0.15 if fade else 1.0))
    return lambda now_s: max(values[min(int(now_s * 2), len(values) - 1)], low / 4)
