"""Does it stay right while things change? A step, a mobile trace, and what a switch costs.

    python -m bench.adapt                  # all three
    python -m bench.adapt step trace       # some of it
    python -m bench.adapt --rounds 1       # sooner

Read this first. One machine plays all parts: the device on one core; server and relay on the other. The link is
*emulated* (`splitpoint.lab.relay`), the device too: each run of its engine takes longer by waiting
(`lab.slow_device.Stretched`), and while it waits, the core is free for the thread that adapts, which a slower device's
would not be. The network is EfficientNet-Lite0; int8 is allowed for what crosses, JPEG is not (it wins nearly
everywhere, and there would be nothing to adapt). The LTE-like trace is made up, not recorded (`bench.mobile`). Those it
is compared with, *fixed* plans, wait for their answers however long they take; the edge that adapts finishes here what
is late, as it does by default.

*step*: 50 → 2 → 50 Mbit/s under requests back to back. p95 of those started 1 s or more after the step down, and 3 s or
more after the step up, over that of the best fixed plan in that state, measured in the same run.

*trace*: a request every quarter of a second. Who still waits for an answer asks nothing new: such slots count what that
request took. The *oracle* takes in every slot the least that any fixed plan took there in its own replay: it knows the
trace, and also every plan's luck. Means are over slots, so slow times count as much as they last.

*switch*: two cuts that are ready, in turns, on a link that does not change; then the same requests while other cuts are
compiled beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from time import perf_counter, sleep

from bench.common import EDGE_CORE, SERVE, SERVER_CORE, header, helper, pin
from bench.split import said
from splitpoint.engines import open_engine
from splitpoint.errors import SplitpointError
from splitpoint.inputs import read_inputs
from splitpoint.lab.relay import Relay
from splitpoint.lab.scenario import find, load_scenario
from splitpoint.lab.slow_device import Stretched
from splitpoint.link import Link
from splitpoint.link.link_trace import LinkTrace
from splitpoint.models import load
from splitpoint.models.model import Model
from splitpoint.models.zoo import photos
from splitpoint.planning.constraints import Constraints
from splitpoint.planning.planner import Planner
from splitpoint.planning.plans import Option
from splitpoint.profile.measure import profile_model
from splitpoint.profile.profiles import Profile
from splitpoint.runtime.adapt.switch_log import Switch
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.timeouts import Patience
from splitpoint.survey import placement
from splitpoint.tensors import Array

SOURCE = "zoo:efficientnet_lite0"
FAST, SLOW = Link(50, 50, 10, 0, "50 Mbit/s"), Link(2, 2, 10, 0, "2 Mbit/s")
#: Slowdowns of the device at which there is something to adapt: at the step, and on the trace.
STEP_FACTOR, TRACE_FACTOR = 6.0, 12.0
#: Seconds in each state, and what is left out after each step.
STATE_S, DOWN_S, UP_S = 9.0, 1.0, 3.0
SLOT_S = 0.25
PROFILE_S = 20.0
#: Fixed plans that are replayed: those that win most of the trace.
PLANS = 5
P95_TARGET, GAP_TARGET, ORACLE_TARGET = 1.2, 1.5, 1.1
PUBLISHED = "NEUKONFIG's published downtimes: 6 s (pause and resume), 0.6 s, < 1 ms (at twice the memory)"


@dataclass(frozen=True)
class Sample:
    """One request, seconds on our clock; `error` is empty if it was answered."""

    began: float
    ended: float
    cut: str
    fallback: str
    error: str = ""

    @property
    def ms(self) -> float:
        return (self.ended - self.began) * 1e3


class Bench:
    """Server and relay on the other core, and what planning needs to know of both machines."""

    def __init__(self, model: Model, relay: Relay, here: Profile, there: Profile, seconds: float) -> None:
        self.model, self.relay, self.here, self.there, self.seconds = model, relay, here, there, seconds
        self.image: Mapping[str, Array] = read_inputs(model, photos()[0])

    def planner(self, factor: float) -> Planner:
        profiles = (self.here.slowed(factor), self.there)
        return Planner(self.model.graph, profiles, constraints=Constraints(codecs=("int8",)))

    @contextmanager
    def fixed(self, option: Option, factor: float) -> Iterator[Edge]:
        """An edge that stays with one plan and waits."""
        cut, codecs = placement(self.model.graph, option)
        engine = Stretched(open_engine(threads=1), factor)
        with Edge(
            self.relay.address, self.model, at=cut, codec=codecs, engine=engine, patience=Patience(answer_s=120)
        ) as edge:
            edge.infer(self.image)
            yield edge

    @contextmanager
    def adapting(self, factor: float, link: Link) -> Iterator[Edge]:
        """An edge that adapts, as it does by default, and finishes here what is late."""
        engine = Stretched(open_engine(threads=1), factor)
        with Edge(
            self.relay.address, self.model, at="input", engine=engine, fallback="local", patience=Patience(answer_s=120)
        ) as edge:
            edge.adapt(self.planner(factor), link)
            yield edge

    def ask(self, edge: Edge) -> Sample:
        """One request."""
        began = perf_counter()
        try:
            result = edge.infer(self.image)
        except SplitpointError as exc:
            return Sample(began, perf_counter(), "", "", str(exc))
        return Sample(began, perf_counter(), result.cut, result.fallback)

    def back_to_back(self, edge: Edge, until: Callable[[], bool]) -> list[Sample]:
        samples = []
        while not until():
            samples.append(self.ask(edge))
        return samples


@contextmanager
def set_up(seconds: float) -> Iterator[Bench]:
    """Everything running; `seconds` of the trace are to be replayed."""
    model = load(SOURCE)
    pin(EDGE_CORE)
    with helper(SERVE, SOURCE) as server, Relay(said(server), FAST) as relay:
        os.sched_setaffinity(relay.pid, {SERVER_CORE})
        with Edge(
            relay.address, model, at="input", engine=open_engine(threads=1), patience=Patience(answer_s=120)
        ) as edge:
            here = profile_model(model, open_engine(threads=1), budget_s=PROFILE_S)
            there = edge.profile_server(PROFILE_S)
        say(f"{SOURCE}: whole {here.whole.median:.1f} ms on the device's core, {there.whole.median:.1f} ms there")
        yield Bench(model, relay, here, there, seconds)


# --- a step -----------------------------------------------------------------------------------------------------------


def step(bench: Bench, rounds: int) -> dict[str, object]:
    """50 → 2 → 50 Mbit/s, and every fixed plan in both states; some rounds, because the machine's own speed drifts."""
    planner = bench.planner(STEP_FACTOR)
    options = {link.name: planner.best(link) for link in (FAST, SLOW)}
    say(f"\n--- step: device emulated {STEP_FACTOR:g}x slower; planned for " + "; ".join(
        f"{name}: {o.label}, {o.total.ms:.0f} ms" for name, o in options.items() if o))  # fmt: skip
    plans = {o.label: o for o in (*options.values(), planner.local(FAST), planner.remote(SLOW)) if o}
    runs, taken = [], {link.name: {label: list[float]() for label in plans} for link in (FAST, SLOW)}
    for _ in range(rounds):
        runs.append(_one_step(bench))
        for link in (FAST, SLOW):
            for label, option in plans.items():
                taken[link.name][label] += _fixed(bench, option, link)
    fixed = {state: {k: percentile(v) for k, v in times.items()} for state, times in taken.items()}
    for state, p95s in fixed.items():
        say(f"  fixed, {state}: " + "; ".join(f"{label} p95 {p95:.1f} ms" for label, p95 in p95s.items()))
    down = [s for run in runs for s in run.after(run.fell, run.rose, DOWN_S)]
    up = [s for run in runs for s in run.after(run.rose, run.ended, UP_S)]
    report: dict[str, object] = {"fixed_p95_ms": fixed}
    for name, samples, link, grace_s in (("down", down, SLOW, DOWN_S), ("up", up, FAST, UP_S)):
        best = min(fixed[link.name], key=fixed[link.name].__getitem__)
        p95, least = percentile([s.ms for s in samples]), fixed[link.name][best]
        report[f"{name}_p95_ms"], report[f"{name}_over_best"] = p95, p95 / least
        say(f"{grace_s:g} s after the step {name}: p95 {p95:.1f} ms of {len(samples)}, best fixed plan ({best}) "
            f"{least:.1f} ms: {p95 / least:.2f}x (target ≤ {P95_TARGET}x)")  # fmt: skip
    failed = sum(bool(s.error) for run in runs for s in run.samples)
    late = sum(bool(s.fallback) for run in runs for s in run.samples)
    total = sum(len(run.samples) for run in runs)
    say(f"{total} requests, {failed} failed (target 0), {late} finished here because the server was late")
    report |= {"requests": total, "failed": failed, "finished_here": late, "gaps": _gaps(runs)}
    return report


@dataclass(frozen=True)
class Run:
    """One round: its requests, when the link fell and rose, and what was switched."""

    samples: Sequence[Sample]
    fell: float
    rose: float
    ended: float
    switches: Sequence[tuple[float, Switch]]

    def after(self, step: float, end: float, grace_s: float) -> list[Sample]:
        """Requests started `grace_s` after a step or later, and before the next."""
        return [s for s in self.samples if step + grace_s <= s.began < end]


def _one_step(bench: Bench) -> Run:
    bench.relay.set_link(FAST)
    with bench.adapting(STEP_FACTOR, FAST) as edge:
        began = perf_counter()
        bench.back_to_back(edge, lambda: perf_counter() > began + STATE_S / 2)  # what is likely gets ready
        start, moments = perf_counter(), list[float]()

        def play() -> None:
            for at, link in ((STATE_S, SLOW), (2 * STATE_S, FAST)):
                sleep(max(0.0, start + at - perf_counter()))
                bench.relay.set_link(link)
                moments.append(perf_counter())

        player = threading.Thread(target=play)
        player.start()
        samples = bench.back_to_back(edge, lambda: perf_counter() > start + 3 * STATE_S)
        player.join()
        adaptive = edge.adaptive
    assert adaptive is not None
    switches = [(adaptive.began_s + s.at_s, s) for s in adaptive.switches]
    for at, switch in switches:
        say(f"  {at - start:5.1f} s: {switch}")
    return Run(samples, moments[0], moments[1], perf_counter(), [(a, s) for a, s in switches if a > start])


def _fixed(bench: Bench, option: Option, link: Link) -> list[float]:
    """What requests take with one plan in one state, back to back."""
    bench.relay.set_link(link)
    with bench.fixed(option, STEP_FACTOR) as edge:
        end = perf_counter() + STATE_S / 2
        return [s.ms for s in bench.back_to_back(edge, lambda: perf_counter() > end)]


def _gaps(runs: Sequence[Run]) -> list[dict[str, float]]:
    """For each switch: the gap across it, and the longest between any two answers around it, over the steady one."""
    gaps = []
    for run in runs:
        ends = [s.ended for s in run.samples]
        for at, switch in run.switches:
            before = [b - a for a, b in pairwise(ends) if at - 3 < b <= at - 0.5]
            after = [b - a for a, b in pairwise(ends) if at + 1 <= a < at + 3.5]
            near = [b - a for a, b in pairwise(ends) if at - 1 <= b and a <= at + 1]
            if not (before and after and near) or switch.gap_ms is None:
                continue
            steady = max(median(before), median(after)) * 1e3
            row = {"gap_ms": switch.gap_ms, "steady_ms": steady, "over": switch.gap_ms / steady,
                   "longest_near_ms": max(near) * 1e3}  # fmt: skip
            gaps.append(row)
            say(f"  {switch.old} → {switch.new}: {switch.gap_ms:.1f} ms between answers across the switch, steady "
                f"{steady:.1f}: {row['over']:.2f}x (target ≤ {GAP_TARGET}x); longest within 1 s of it "
                f"{row['longest_near_ms']:.0f} ms")  # fmt: skip
    say(f"  ({PUBLISHED})")
    return gaps


# --- a trace ----------------------------------------------------------------------------------------------------------


def trace(bench: Bench, rounds: int) -> dict[str, object]:
    """The shipped mobile trace: fixed plans, the oracle over them, and the edge that adapts."""
    shaped = load_scenario(find("lte")).shaped()
    assert isinstance(shaped, LinkTrace)
    kept = [k for k, at in enumerate(shaped.times) if at < bench.seconds]
    shaped = LinkTrace(shaped.times[: len(kept)], shaped.links[: len(kept)], shaped.name)
    planner = bench.planner(TRACE_FACTOR)
    options = _winners(planner, shaped)
    say(f"\n--- trace: {shaped.name}, {shaped.duration:.0f} s, {min(k.up_mbps for k in shaped.links):.1f} to "
        f"{max(k.up_mbps for k in shaped.links):.1f} Mbit/s up, a request as slow as on {shaped.mean.up_mbps:.1f}; "
        f"device emulated {TRACE_FACTOR:g}x slower")  # fmt: skip
    fixed: dict[str, list[float]] = {}
    for option in options:
        with bench.fixed(option, TRACE_FACTOR) as edge:
            samples, fixed[option.label] = _replay(bench, edge, shaped)
        _row(option.label, samples, fixed[option.label])
    oracle = [min(taken) for taken in zip(*fixed.values(), strict=True)]
    _row("oracle", [], oracle)
    best = min(mean(slots) for slots in fixed.values())
    report: dict[str, object] = {"fixed_ms": {k: mean(v) for k, v in fixed.items()}, "oracle_ms": mean(oracle)}
    means = []
    for _ in range(rounds):
        bench.relay.set_link(shaped.links[0])
        with bench.adapting(TRACE_FACTOR, shaped.links[0]) as edge:
            end = perf_counter() + 5
            bench.back_to_back(edge, lambda e=end: perf_counter() > e)
            samples, slots = _replay(bench, edge, shaped)
            count = len(edge.switches)
        _row(f"adapting, {count} switches", samples, slots)
        means.append(mean(slots))
        say(f"  {means[-1] / mean(oracle):.3f}x of the oracle (target ≤ {ORACLE_TARGET}x), {means[-1] / best:.3f}x of "
            f"the best fixed plan (target < 1x)")  # fmt: skip
    return report | {"adapting_ms": means}


def _winners(planner: Planner, shaped: LinkTrace) -> list[Option]:
    """Everything here, everything there, and the plans that are best for most of the trace."""
    wins: dict[str, tuple[int, Option]] = {}
    for link in shaped.links[::2]:
        if (best := planner.best(link)) is not None:
            wins[best.label] = (wins.get(best.label, (0, best))[0] + 1, best)
    ranked = sorted(wins.values(), key=lambda w: -w[0])[:PLANS]
    say("  planned along the trace: " + "; ".join(f"{o.label} {n / len(shaped.links[::2]):.0%}" for n, o in ranked))
    link = shaped.mean
    plain = planner.graph.prefixes()[0]
    ends = [planner.local(link), planner.price(plain, ["raw"] * len(plain.crossing), link)]
    return list({o.label: o for o in (*ends, *(o for _, o in ranked))}.values())


def _replay(bench: Bench, edge: Edge, shaped: LinkTrace) -> tuple[list[Sample], list[float]]:
    """Requests along the trace, and milliseconds by slot: of the request that began in it, or was still under way."""
    bench.relay.set_link(shaped)
    began = perf_counter()
    slots: list[float | None] = [None] * int(shaped.duration / SLOT_S)
    samples = []
    for k in range(len(slots)):
        now = perf_counter()
        if now > began + (k + 1) * SLOT_S:
            slots[k] = samples[-1].ms  # it was on its way all the time
            continue
        sleep(max(0.0, began + k * SLOT_S - now))
        samples.append(bench.ask(edge))
        slots[k] = samples[-1].ms
    return samples, [ms for ms in slots if ms is not None]


def _row(label: str, samples: Sequence[Sample], slots: Sequence[float]) -> None:
    failed = sum(bool(s.error) for s in samples)
    late = sum(bool(s.fallback) for s in samples)
    say(f"  {label:48} mean {mean(slots):7.1f} ms  median {median(slots):7.1f}  p95 {percentile(slots):7.1f}"
        + (f"  {failed} failed, {late} finished here" if samples else ""))  # fmt: skip


# --- a switch ---------------------------------------------------------------------------------------------------------


def switch(bench: Bench, rounds: int) -> dict[str, object]:
    """Switching between cuts that are ready; and compiling others while requests go on."""
    bench.relay.set_link(FAST)
    engine = Stretched(open_engine(threads=1), STEP_FACTOR)
    graph = bench.model.graph
    say("\n--- switch: cuts that are ready, in turns, on a link that does not change")
    with Edge(bench.relay.address, bench.model, at="input", engine=engine, patience=Patience(answer_s=120)) as edge:
        edge.warm("output")
        steady = {at: _steady(bench, edge, at) for at in ("input", "output")}
        over = []
        for k in range(10 * rounds):
            at = ("output", "input")[k % 2]
            last = bench.ask(edge)
            edge.switch(at)
            over.append((bench.ask(edge).ended - last.ended) * 1e3 / steady[at])
            bench.ask(edge)
        say(f"  steady {steady['input']:.1f} ms (server) and {steady['output']:.1f} (device); across {len(over)} "
            f"switches the gap is {median(over):.2f}x of it, at most {max(over):.2f}x "
            f"(target ≤ {GAP_TARGET}x)")  # fmt: skip
        edge.switch("input")
        chain = graph.chain()
        cuts = [chain[k * len(chain) // 8] for k in range(1, 8)]
        compiling = threading.Thread(target=lambda: [edge.warm(cut) for cut in cuts])
        began = perf_counter()
        compiling.start()
        samples = bench.back_to_back(edge, lambda: not compiling.is_alive())
        took_s = perf_counter() - began
        ends = [s.ended for s in samples]
        gaps = [(b - a) * 1e3 for a, b in pairwise(ends)]
        say(f"  while {len(cuts)} cuts are compiled ({took_s:.1f} s): gaps {median(gaps):.1f} ms, at most "
            f"{max(gaps):.1f} ({max(gaps) / steady['input']:.2f}x)")  # fmt: skip
    return {"steady_ms": steady, "over": over, "compiling_gaps_ms": gaps}


def _steady(bench: Bench, edge: Edge, at: str) -> float:
    edge.switch(at)
    ends = [bench.ask(edge).ended for _ in range(40)]
    return median([(b - a) * 1e3 for a, b in pairwise(ends)])


# --- all of it --------------------------------------------------------------------------------------------------------


def percentile(values: Sequence[float], share: float = 0.95) -> float:
    """The smallest value that `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def say(text: str) -> None:
    print(text, flush=True)


PARTS: Mapping[str, Callable[[Bench, int], dict[str, object]]] = {"switch": switch, "step": step, "trace": trace}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Does it stay right while things change?")
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=90.0, help="how much of the trace is replayed")
    parser.add_argument("--out", type=Path, default=Path("out") / "adapt.json")
    given = parser.parse_args(arguments)
    print(header())
    reports = {}
    with set_up(given.seconds) as bench:
        for name in given.parts or PARTS:
            reports[name] = PARTS[name](bench, given.rounds)
            given.out.parent.mkdir(exist_ok=True)
            given.out.write_text(json.dumps(reports, indent=1))


if __name__ == "__main__":
    main()
