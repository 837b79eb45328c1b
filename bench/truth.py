"""Was the plan right? Predicted beside measured, and the plan's cut beside the best of all cuts, over many scenarios.

    python -m bench.truth               # 6 networks x 5 links x 3 devices
    python -m bench.truth --subset      # two networks x 3 links x 1 device
    python -m bench.truth --codecs int8 # as if the input were no picture: no JPEG

Read this first. One machine plays all parts: the device on one core, the server on another (one thread each), a
relay between them that shapes both directions to a preset's rates and round trip, and a device that is made slower by
waiting after each run of the engine (`splitpoint.lab`). Slow devices and links are therefore *emulated*; compute is
real. Weights are random, but for EfficientNet-Lite0: they do not change how long anything takes, and they say nothing
about accuracy, so the codecs are allowed everywhere.

For every scenario: plan from profiles and a measured link; measure candidates (every single-tensor cut, raw and int8,
the baselines, and what was planned); measure the chosen one, the best ones and the baselines again, in turns. *Regret*
is the chosen one's median over the best median. A candidate is skipped only if it has lost already: its bytes ÷ rate
plus the round trip, plus its head as measured on the device, are more than the best latency that was measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter

from bench.common import EDGE_CORE, SERVE, SERVER_CORE, header, helper, pin
from bench.nets import SIX, path_of
from bench.split import said
from splitpoint.codecs import open_codec
from splitpoint.engines import open_engine
from splitpoint.graph import Cut
from splitpoint.inputs import read_inputs
from splitpoint.lab.relay import Relay
from splitpoint.lab.slow_device import Stretched
from splitpoint.link import Link
from splitpoint.link.presets import PRESETS
from splitpoint.models import load
from splitpoint.models.model import Model
from splitpoint.models.zoo import photos
from splitpoint.planning.constraints import Constraints
from splitpoint.planning.planner import Planner
from splitpoint.planning.plans import KINDS, Option
from splitpoint.profile.measure import profile_model
from splitpoint.profile.profiles import Profile
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.timeouts import Patience
from splitpoint.runtime.result import Result
from splitpoint.survey import placement
from splitpoint.tensors import Array

LINKS = ("3g", "4g", "wifi", "wifi5", "lan")
SLOWDOWNS = (2, 4, 16)
SUBSET = (("mobilenet_v2", "efficientnet_lite0"), ("4g", "wifi", "wifi5"), (4,))
CODECS = ("int8", JPEG := "jpeg:90")
PROFILE_S = 60.0
#: Rounds of the last, paired comparison; fewer where one round takes long.
ROUNDS, LONG_ROUNDS, LONG_MS = 7, 3, 3000.0
INFINITE = float("inf")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A cut and how its tensors travel."""

    name: str
    kind: str
    cut: Cut
    codecs: Mapping[str, str]
    nbytes: int


@dataclasses.dataclass(frozen=True)
class Row:
    """One scenario's result; milliseconds."""

    network: str
    link: str
    slow: int
    chosen: str
    kind: str
    predicted: float
    chosen_ms: float
    best: str
    best_kind: str
    best_ms: float
    device_ms: float
    server_ms: float
    jpeg_ms: float
    second_kind_ms: float
    plan_ms: float
    tried: int
    skipped: int

    @property
    def regret(self) -> float:
        return self.chosen_ms / self.best_ms - 1

    @property
    def error(self) -> float:
        return self.predicted / self.chosen_ms - 1

    @property
    def over_baseline(self) -> float:
        """How much slower than the better plain baseline (negative: faster)."""
        return self.chosen_ms / min(self.device_ms, self.server_ms, self.jpeg_ms) - 1

    @property
    def close(self) -> bool:
        """Whether the two best kinds of answer are within 25 %."""
        return self.second_kind_ms <= 1.25 * self.best_ms


def candidates(model: Model, codecs: Sequence[str]) -> list[Candidate]:
    """Every single-tensor cut, raw and int8; the input raw and as JPEG; all on the edge."""
    placed = []
    for cut in model.graph.chain():
        kind = {"input": "server", "output": "device"}.get(cut.name, "split")
        ways = [("raw", kind)]
        if kind == "server" and JPEG in codecs:
            ways.append((JPEG, "jpeg"))
        elif kind == "split" and "int8" in codecs:
            ways.append(("int8", kind))
        for name, as_kind in ways:
            codec = open_codec(name)
            specs = [t for t in cut.crossing if codec.accepts(t)]
            if name != "raw" and not specs:
                continue
            travels = {t.name: name for t in specs if name != "raw"}
            nbytes = sum(codec.nbytes(t) if t in specs else t.nbytes for t in cut.crossing)
            placed.append(Candidate(f"{cut.name} {name}", as_kind, cut, travels, nbytes))
    return placed


class Bench:
    """One network: an edge on our core, its server and the relay on the other, and every request that was measured."""

    def __init__(
        self, edge: Edge, relay: Relay, engine: Stretched, images: Sequence[Mapping[str, Array]],
        links: Mapping[str, Link] = PRESETS, codecs: Sequence[str] = CODECS,
    ) -> None:  # fmt: skip
        self.edge, self.relay, self.engine, self.images = edge, relay, engine, images
        self.links, self.codecs, self.model = links, codecs, edge.model
        self.link = ""
        self.last: Result | None = None
        #: (candidate, link, slowdown) → milliseconds. What stays on the device knows no link.
        self.taken: dict[tuple[str, str, int], list[float]] = {}
        #: Cut → milliseconds of its head on the device at full speed, the least seen.
        self.heads: dict[str, float] = {}
        #: (link, slowdown) → the least median so far.
        self.best: dict[tuple[str, int], float] = {}

    def set_link(self, link: str) -> None:
        if link != self.link:
            self.relay.set_link(self.links[link])
            self.link = link

    def once(self, candidate: Candidate, link: str, slow: int, turn: int = 0) -> float:
        """One request with the image whose turn it is, in milliseconds."""
        if candidate.kind != "device":
            self.set_link(link)
        self.engine.factor = float(slow)
        self.edge.switch(candidate.cut, candidate.codecs)
        self.last = result = self.edge.infer(self.images[turn % len(self.images)])
        head = result.trace.ms("head") / slow
        self.heads[candidate.cut.name] = min(self.heads.get(candidate.cut.name, INFINITE), head)
        return (result.marks.ended - result.marks.started) * 1e3

    def measure(self, candidate: Candidate, link: str, slow: int, times: int) -> float:
        """The median after `times` requests in all."""
        taken = self.taken.setdefault(_key(candidate, link, slow), [])
        while len(taken) < times:
            taken.append(self.once(candidate, link, slow, len(taken)))
        median_ms = median(taken)
        self.best[link, slow] = min(self.best.get((link, slow), INFINITE), median_ms)
        return median_ms

    def middle(self, candidate: Candidate, link: str, slow: int) -> float:
        taken = self.taken.get(_key(candidate, link, slow))
        return median(taken) if taken else INFINITE

    def warm(self, candidate: Candidate) -> None:
        """Compiles both halves and runs them at full speed: first runs allocate."""
        self.edge.warm(candidate.cut, candidate.codecs)
        for _ in range(2):
            self.once(candidate, "lan", 1)

    def forget(self, candidate: Candidate) -> None:
        """Frees what `candidate` had compiled: one more cut at a time in memory."""
        self.edge.switch("input")
        if candidate.cut.name != "input":
            self.edge.forget(candidate.cut)

    def has_lost(self, candidate: Candidate, head_ms: float, link: str, slow: int) -> bool:
        """Whether its bytes ÷ rate, round trip and head alone take longer than the best so far."""
        known = self.links[link]
        wire = 0.0 if candidate.kind == "device" else known.rtt_ms + known.up_ms(candidate.nbytes)
        return wire + head_ms * slow >= self.best.get((link, slow), INFINITE)


def _key(candidate: Candidate, link: str, slow: int) -> tuple[str, str, int]:
    return candidate.name, "" if candidate.kind == "device" else link, slow


def as_candidate(model: Model, option: Option) -> Candidate:
    cut, codecs = placement(model.graph, option)
    ways = "+".join(sorted({t.codec for t in option.crossing})) or "raw"
    return Candidate(f"{cut.name} {ways}", option.kind, cut, codecs, option.up_nbytes)


def spin_until(moment: float) -> None:
    """Returns at `moment` without giving the core away: the next run finds it as warm as a busy device's.

    For a `Stretched` whose engine has a core to itself. Sleeping leaves the core to
    others, and the run after it is cold: some 15 % longer for a whole network here, up to twice for a 0.6 ms head.
    """
    while perf_counter() < moment:
        pass


def run(
    name: str, links: Sequence[str], slowdowns: Sequence[int], profile_s: float, codecs: Sequence[str]
) -> list[Row]:
    """The rows of one network."""
    source = path_of(name)
    model = load(source)
    pin(EDGE_CORE)
    with helper(SERVE, source) as server, Relay(said(server), PRESETS["lan"]) as relay:
        os.sched_setaffinity(relay.pid, {SERVER_CORE})
        engine = Stretched(open_engine(threads=1), 1.0, wait_until=spin_until)
        with Edge(relay.address, model, at="input", engine=engine, patience=Patience(answer_s=120)) as edge:
            here = profile_model(model, open_engine(threads=1), budget_s=profile_s)
            there = edge.profile_server(profile_s)
            say(f"{name}: whole {here.whole.median:.1f} ms on the device's core, {there.whole.median:.1f} there")
            bench = Bench(edge, relay, engine, [read_inputs(model, photos()[0])], codecs=codecs)
            known = {}
            for link in links:
                bench.set_link(link)
                known[link] = edge.measure_link()
                say(f"  {link}: {known[link].up_mbps:.2f} Mbit/s up, round trip {known[link].rtt_ms:.2f} ms")
            plans = make_plans(model, here, there, known, slowdowns, codecs)
            tried, skipped = explore(bench, {s: c for s, (c, _, _) in plans.items()})
            return [final(bench, name, s, *plans[s], tried, skipped) for s in plans]


Scenario = tuple[str, int]
Planned = tuple[Candidate, Option, float]


def make_plans(
    model: Model, here: Profile, there: Profile, links: Mapping[str, Link], slowdowns: Sequence[int],
    codecs: Sequence[str],
) -> dict[Scenario, Planned]:  # fmt: skip
    """What is planned for each link and slowdown, and how long that took (ms)."""
    plans: dict[Scenario, Planned] = {}
    for slow in slowdowns:
        planner = Planner(model.graph, (here.slowed(slow), there), constraints=Constraints(codecs=tuple(codecs)))
        for name, link in links.items():
            began = perf_counter()
            best = planner.plan(link, sensitivity=False).best
            plans[name, slow] = as_candidate(model, best), best, (perf_counter() - began) * 1e3
    return plans


def explore(bench: Bench, chosen: Mapping[Scenario, Candidate]) -> tuple[int, int]:
    """Measures every candidate in every scenario that it has not lost already: (measured, skipped)."""
    everything = candidates(bench.model, bench.codecs)
    # The plain baselines and what was planned come first, so that there is something to lose against.
    first = [c for c in everything if c.kind != "split"] + list(chosen.values())
    done: set[str] = set()
    tried = skipped = 0
    floor = 0.0  # the longest head so far: later cuts of the chain contain it
    for candidate in [*first, *everything]:
        if candidate.name in done:
            continue
        done.add(candidate.name)
        inside = 0.0 if candidate in first else floor
        open_to = [s for s in chosen if not bench.has_lost(candidate, inside, *s)]
        if open_to:
            bench.warm(candidate)
            head = bench.heads[candidate.cut.name]
            if candidate not in first:
                floor = max(floor, 0.9 * head)
            for link, slow in open_to:
                if bench.has_lost(candidate, 0.9 * head, link, slow):
                    continue
                tried += 1
                if bench.measure(candidate, link, slow, 1) < 1.2 * bench.best[link, slow]:
                    bench.measure(candidate, link, slow, 3)
            bench.forget(candidate)
        skipped += len(chosen)
    return tried, skipped - tried


def final(
    bench: Bench, network: str, scenario: Scenario, chosen: Candidate, option: Option, plan_ms: float, tried: int,
    skipped: int,
) -> Row:  # fmt: skip
    """The chosen candidate, the best ones and the baselines once more, in turns."""
    link, slow = scenario
    known = {c.name: c for c in [*candidates(bench.model, bench.codecs), chosen]}
    ranked = sorted(known.values(), key=lambda c: bench.middle(c, link, slow))
    near = 1.5 * bench.middle(ranked[0], link, slow)
    plain = [c for c in ranked if c.kind != "split" and bench.middle(c, link, slow) <= near]
    playing = list({c.name: c for c in [chosen, *ranked[:2], *plain]}.values())
    for candidate in playing:
        bench.warm(candidate)
    taken: dict[str, list[float]] = {c.name: [] for c in playing}
    for _ in range(LONG_ROUNDS if near > LONG_MS else ROUNDS):
        for candidate in playing:
            taken[candidate.name].append(bench.once(candidate, link, slow))
    for candidate in playing:
        bench.forget(candidate)
    medians = {c.name: bench.middle(c, link, slow) for c in known.values()} | {k: median(v) for k, v in taken.items()}
    best = min(playing, key=lambda c: medians[c.name])
    kinds = {k: min((medians[c.name] for c in known.values() if c.kind == k), default=INFINITE) for k in KINDS}
    row = Row(
        network, link, slow, chosen.name, chosen.kind, option.total.ms, medians[chosen.name],
        best.name, best.kind, medians[best.name], kinds["device"], kinds["server"], kinds["jpeg"],
        min(v for k, v in kinds.items() if k != best.kind), plan_ms, tried, skipped,
    )  # fmt: skip
    say(
        f"  {link:5} {slow:3}x  {row.chosen:34} predicted {row.predicted:8.1f} measured {row.chosen_ms:8.1f}"
        f"  best {row.best:34} {row.best_ms:8.1f}  regret {row.regret:6.1%}"
    )
    return row


def report(rows: Sequence[Row], seconds: float) -> None:
    """The table's summary, apart for the scenarios where it matters."""
    once = {r.network: (r.tried, r.skipped) for r in rows}
    tried, skipped = (sum(counts) for counts in zip(*once.values(), strict=True))
    print(f"\n{len(rows)} scenarios in {seconds / 60:.0f} min; {tried} candidates measured, {skipped} had lost before")
    groups = {
        "all": list(rows),
        "two best kinds within 25 %": [r for r in rows if r.close],
        "an interior cut is best": [r for r in rows if r.best_kind == "split"],
    }
    print(f"{'':28}   n   regret median   worst   |error| median   worst   over baseline")
    for title, group in groups.items():
        if group:
            regrets, errors = [r.regret for r in group], [abs(r.error) for r in group]
            print(
                f"{title:28}{len(group):4}  {median(regrets):14.1%}{max(regrets):8.1%}  {median(errors):15.1%}"
                f"{max(errors):8.1%}  {max(r.over_baseline for r in group):14.1%}"
            )
    print("best kind: " + ", ".join(f"{KINDS[k]} {sum(r.best_kind == k for r in rows)}" for k in KINDS))
    print(f"plan time (a new link): median {median(r.plan_ms for r in rows):.1f} ms")


def say(text: str) -> None:
    print(text, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Was the plan right?")
    parser.add_argument("--subset", action="store_true", help="a sixth of it, in minutes")
    parser.add_argument("--networks", nargs="+", choices=SIX)
    parser.add_argument("--codecs", nargs="+", choices=CODECS, default=CODECS)
    parser.add_argument("--profile-s", type=float, default=PROFILE_S)
    parser.add_argument("--out", type=Path, default=Path("out") / "truth.json")
    given = parser.parse_args(arguments)
    networks, links, slowdowns = SUBSET if given.subset else (SIX, LINKS, SLOWDOWNS)
    print(header())
    began = perf_counter()
    rows: list[Row] = []
    for name in given.networks or networks:
        rows += run(name, links, slowdowns, given.profile_s, given.codecs)
        given.out.parent.mkdir(exist_ok=True)
        given.out.write_text(json.dumps([dataclasses.asdict(r) for r in rows], indent=1))
    report(rows, perf_counter() - began)


if __name__ == "__main__":
    main()
