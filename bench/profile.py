"""Predicted head and tail times against measured ones, over all single-tensor cuts, in the same run.

    python -m bench.profile zoo:efficientnet_lite0 mobilenet_v2.onnx … [--budget 60]

After every visit of the profile one cut is measured by itself, compiled anew, from the other end of the chain: both see
the same drift of the machine. *Held out*: the profile with every second cut taken away, asked about those. *Measured
twice*: the first direct measurement against the second, than which no profile can be better. *Bands*: how many of the
direct measurements lie between p10 and p90 of what is modelled, and how wide that is, where the profile had only the
whole, or as many cuts as a budget would have had, and the engine's kernel times or only FLOPs to share out the rest.
``--cpu-time`` is for a shared machine: milliseconds that this process computed, without those that others took (one
thread only).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from time import perf_counter, process_time

import msgspec
import numpy as np

from bench.common import EDGE_CORE, header, pin
from splitpoint.engines import open_engine
from splitpoint.machine import EMULATED
from splitpoint.models import load
from splitpoint.models.model import Model
from splitpoint.profile.kernel_times import estimated
from splitpoint.profile.measure import ProfileRun, compiled_anew, stat_of
from splitpoint.profile.profiles import Profile, Stat
from splitpoint.trace import Clock

#: The issue's: 5 % median; 15 % worst, or 0.1 ms.
MEDIAN, WORST, NOTHING_MS = 0.05, 0.15, 0.1
#: Direct visits a cut gets at least.
VISITS = 2


class Pausing:
    """`clock`, standing still while somebody else measures."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._paused_s = clock, 0.0

    def __call__(self) -> float:
        return self._clock() - self._paused_s

    def pause(self, seconds: float) -> None:
        self._paused_s += seconds


@dataclass(frozen=True)
class Errors:
    """Over heads and tails of cuts: relative errors, and the same of those more than `NOTHING_MS` apart."""

    relative: list[float]
    large: list[float]
    where: str

    def __str__(self) -> str:
        median, high = np.percentile(self.relative, (50, 90))
        worst = max(self.large, default=0.0)
        verdict = "ok" if median <= MEDIAN and worst <= WORST else "MISSED"
        over = sum(e > WORST for e in self.large)
        return (
            f"median {median:5.1%}  p90 {high:6.1%}  worst {worst:6.1%}{f' at {self.where}' if worst > WORST else ''}"
            f"  ({over} of {len(self.relative)} over {WORST:.0%} and {NOTHING_MS} ms)  {verdict}"
        )


def main(
    names: Sequence[str], budget_s: float = 60.0, threads: int = 1, clock: Clock = perf_counter, cuts: int = 0
) -> None:
    for name in names:
        model = load(name)
        started = perf_counter()
        profile, direct, order = both(model, budget_s, threads, clock, cuts)
        chain = list(direct)
        print(
            f"{model.name}: whole {profile.whole}, {profile.measured} of {len(model.graph.chain())} cuts in "
            f"{budget_s:g} s, {perf_counter() - started:.0f} s with the direct measurements"
            f"{f'; {profile.note}' if profile.note else ''}"
        )
        if cuts:
            show(profile, direct)
        print(f"  measured cuts     {measured(profile, direct)}")
        if cuts:
            continue
        repeat = {k: (stat_of(v[0][:1]), stat_of(v[1][:1])) for k, v in direct.items() if v[0] and v[1]}
        print(f"  all cuts          {compare(profile, direct, chain)}")
        half = {s.prefix for s in profile.segments if s.prefix in (0, chain[-1])} | set(chain[::2])
        fewer = msgspec.structs.replace(profile, segments=tuple(s for s in profile.segments if s.prefix in half))
        print(f"  held-out cuts     {compare(fewer, direct, [k for k in chain if k not in half])}")
        print(f"  measured twice    {repeated(model, direct, repeat)}")
        flops = msgspec.structs.replace(profile, nodes=tuple(profile.whole.median * estimated(model.graph)))
        print(f"  bands             {bands(profile, direct, order)}")
        print(f"  bands by FLOPs    {bands(flops, direct, order)}", flush=True)


def show(profile: Profile, direct: dict[int, tuple[list[list[float]], list[list[float]]]]) -> None:
    """Each half's band, ~ if it is modelled, beside the direct measurement."""
    said, held = [], []
    for k, visits in direct.items():
        for side, stat, of in zip(("head", "tail"), (profile.head(k), profile.tail(k)), visits, strict=True):
            if of:
                ms = stat_of(of).median
                held.append(stat.p10 <= ms <= stat.p90)
                mark, out = "" if stat.count else "~", "" if held[-1] else "  OUTSIDE"
                said.append(
                    f"    {side} of {profile.graph.prefixes()[k].name:30.30} {mark}{stat} measured {ms:.2f}{out}"
                )
    print("\n".join(said))
    print(f"  {sum(held)} of {len(held)} halves lie in their band")


def measured(profile: Profile, direct: dict[int, tuple[list[list[float]], list[list[float]]]]) -> str:
    """How many direct measurements of what the profile measured, too, lie in its band: visits, and runs of them."""
    visits, runs, widths = [], [], []
    for k, of in direct.items():
        for stat, each in zip((profile.head(k), profile.tail(k)), of, strict=True):
            if stat.count and each:
                visits += [stat.p10 <= float(np.median(times)) <= stat.p90 for times in each]
                runs += [stat.p10 <= ms <= stat.p90 for times in each for ms in times]
                widths.append((stat.p90 - stat.p10) / 2 / max(stat.median, 1e-3))
    anew = f"compiled anew, a half differs by {compiled_anew([side for of in direct.values() for side in of]):.1%}"
    if not visits:
        return f"none; {anew}"
    return (
        f"in their band: {np.mean(visits):.0%} of {len(visits)} later visits (compiled anew), {np.mean(runs):.0%} of "
        f"{len(runs)} runs; ± {np.median(widths):.1%}; {anew}"
    )


def both(
    model: Model, budget_s: float, threads: int, now: Clock, cuts: int = 0
) -> tuple[Profile, dict[int, tuple[list[list[float]], list[list[float]]]], list[int]]:
    """The profile, and (head visits, tail visits) in ms of every cut of the chain, measured in between; the profile's
    own visits in order.
    """
    clock, engine = Pausing(now), open_engine(threads=threads)
    survey = ProfileRun(model, engine, budget_s=budget_s, clock=clock, note=os.environ.get(EMULATED, ""))
    other = ProfileRun(model, engine, budget_s=1e9, clock=now)
    chain = [k for k, c in enumerate(model.graph.prefixes()) if c.index is not None]
    if cuts:  # not the ends, which are the whole
        chain = [chain[k] for k in dict.fromkeys(np.linspace(1, len(chain) - 2, cuts).round().astype(int).tolist())]
    direct: dict[int, tuple[list[list[float]], list[list[float]]]] = {k: ([], []) for k in chain}
    backwards = cycle(chain[::-1])
    visits = 0

    def one() -> None:
        nonlocal visits
        started = now()
        k = next(backwards)
        visit = other.visit(k)
        for mine, theirs in zip(direct[k], (visit.head, visit.tail), strict=True):
            if theirs:
                mine.append(theirs)
        visits += 1
        clock.pause(now() - started)

    survey.prepare()
    order = []
    for k in survey.visits():
        order.append(k)
        if not cuts:
            one()
    while visits < VISITS * len(chain):
        one()
    return survey.profile(), direct, order


def compare(
    profile: Profile, direct: dict[int, tuple[list[list[float]], list[list[float]]]], cuts: list[int]
) -> Errors:
    pairs = [
        (predict(k).median, stat_of(visits).median, f"{side} of {profile.graph.prefixes()[k].name}")
        for k in cuts
        for side, predict, visits in zip(("head", "tail"), (profile.head, profile.tail), direct[k], strict=True)
        if visits
    ]
    return errors(pairs)


def bands(
    profile: Profile, direct: dict[int, tuple[list[list[float]], list[list[float]]]], order: Sequence[int]
) -> str:
    """For so many measured cuts beside the whole: how many of the other halves lie within their band, and its width."""
    last, said = len(profile.graph.order), []
    inner = [k for k in dict.fromkeys(order) if k not in (0, last)]
    for cuts in (0, 2, 5, 12, 20):
        kept = {0, last, *inner[:cuts]}
        part = msgspec.structs.replace(profile, segments=tuple(s for s in profile.segments if s.prefix in kept))
        halves = [
            (stat, stat_of(visits).median)
            for k in sorted(direct.keys() - kept)
            for stat, visits in zip((part.head(k), part.tail(k)), direct[k], strict=True)
            if visits
        ]
        if halves:
            inside = sum(stat.p10 <= ms <= stat.p90 for stat, ms in halves)
            width = np.median([(stat.p90 - stat.p10) / 2 / max(stat.median, 1e-3) for stat, _ in halves])
            said.append(f"{cuts} cuts {inside} of {len(halves)} ({inside / len(halves):.0%}) ± {width:.0%}")
    return "; ".join(said)


def repeated(
    model: Model,
    direct: dict[int, tuple[list[list[float]], list[list[float]]]],
    first: dict[int, tuple[Stat, Stat]],
) -> Errors:
    """The direct measurement's own first visit against its second: what no profile can be better than here."""

    def pairs() -> Iterator[tuple[float, float, str]]:
        for k, visits in direct.items():
            for side, of in enumerate(visits):
                if len(of) > 1 and k in first:
                    yield first[k][side].median, stat_of(of[1:2]).median, model.graph.prefixes()[k].name

    return errors(list(pairs()))


def errors(pairs: Sequence[tuple[float, float, str]]) -> Errors:
    errors = [(abs(a - b) / b, abs(a - b), where) for a, b, where in pairs]
    large = [(relative, where) for relative, ms, where in errors if ms > NOTHING_MS]
    return Errors([f[0] for f in errors], [r for r, _ in large], max(large, default=(0.0, ""))[1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=["zoo:efficientnet_lite0"])
    parser.add_argument("--budget", type=float, default=60.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cuts", type=int, default=0, help="measure so many directly, and print them")
    parser.add_argument("--cpu-time", action="store_true")
    arguments = parser.parse_args()
    pin(EDGE_CORE)
    print(header())
    main(
        arguments.models,
        arguments.budget,
        arguments.threads,
        process_time if arguments.cpu_time else perf_counter,
        arguments.cuts,
    )
