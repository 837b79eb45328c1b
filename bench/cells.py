"""Where a cut inside the network is the best answer, planned and measured: `python -m bench.cells`.

    python -m bench.cells [--seconds 200]     # goes on where out/cells.json ends, for about so long
    python -m bench.cells --report [--map docs/cells.png]

Cells are networks with real weights × links of 0.5 to 100 Mbit/s (both ways alike) with round trips of 5 to 60 ms ×
devices 2 to 16 times slower × 90, 95 and 98 % agreement × latency, throughput and bytes. All are planned. Those that
are measured are drawn by a seed; `MEASURED` of them are the table. Photos may travel as pictures everywhere.

*Read this first.* Links, devices and cores are as in `bench.truth`: the relay and the slowed device are emulated, what
is computed and sent is real; codecs are not slowed. Plans are made from profiles of both cores, the link as it is set,
and a calibration (`bench.calibrated`) of calibration photos. Measured are `PHOTOS` test photos, the same for everything
in a cell. The *options* of a cell are: the whole model on either side, every picture and every codec at a calibrated
cut that kept that agreement and that nothing else at its cut is both smaller and quicker to code than, and all other
cuts of the chain raw. Pictures that splitpoint does not send (AVIF, WebP) are planned only: `opponent`.

- latency: the median milliseconds of requests one after the other.
- throughput: milliseconds an answer of a stream; the device is a machine of its own (`bench.apart`).
- bytes: those of a request both ways, with nine answers in ten within twice the least latency that was planned.

*Regret* is what the planned option took over the least that any option took, less one. An option is not measured where
nine tenths of its bytes ÷ rate, the round trip and its head take longer than the best that was measured already, or
where the planner predicts twice that.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from math import inf
from pathlib import Path
from random import Random
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from bench.apart import Apart
from bench.calibrated import REAL, calibrated, place_of, read
from bench.cameras import SERVE_CALIBRATED
from bench.common import EDGE_CORE, SERVER_CORE, header, helper, pin
from bench.nets import path_of
from bench.split import said
from bench.truth import Bench, Candidate, as_candidate, spin_until
from splitpoint.calibration.calibrations import Calibration
from splitpoint.codecs import CODECS, picture
from splitpoint.engines import open_engine
from splitpoint.lab.relay import Relay
from splitpoint.lab.slow_device import Stretched
from splitpoint.link import Link
from splitpoint.link.presets import PRESETS
from splitpoint.models import load
from splitpoint.models.model import Model
from splitpoint.planning.constraints import Constraints, input_like
from splitpoint.planning.planner import Planner
from splitpoint.planning.plans import Option, value
from splitpoint.profile.measure import profile_model
from splitpoint.profile.profiles import Profile
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.timeouts import Patience

RATES = (0.5, 1, 2, 5, 10, 20, 50, 100)
ROUND_TRIPS = (5, 20, 60)
SLOWDOWNS = (2, 4, 8, 16)
AGREEMENTS = (0.90, 0.95, 0.98)
OBJECTIVES = ("latency", "throughput", "bytes")
#: Cells that are measured, of all networks together, in the order that the seed draws.
SEED, MEASURED = 17, 90
#: Test photos that everything in a cell is measured with, and those that say what is worth that.
PHOTOS, FIRST = 12, 4
#: Twice the least latency: by when answers must be there where bytes are counted.
WITHIN = 2.0
#: What is predicted to take so many times as long as the best that was measured is not measured.
UNLIKELY = 2.0
_WINDOW = 6
_FRAMES, _STREAM_S = (18, 66), 2.0


@dataclass(frozen=True)
class Cell:
    network: str
    mbps: float
    rtt_ms: float
    slow: int
    agreement: float
    objective: str

    @property
    def link(self) -> str:
        return f"{self.mbps:g} Mbit/s {self.rtt_ms:g} ms"

    def __str__(self) -> str:
        return f"{self.network} {self.objective:10} {self.agreement:.0%} {self.link:17} {self.slow:2}x"


LINKS: Mapping[str, Link] = dict(PRESETS) | {
    f"{mbps:g} Mbit/s {rtt:g} ms": Link(mbps, mbps, rtt) for mbps, rtt in product(RATES, ROUND_TRIPS)
}


def cells(network: str) -> list[Cell]:
    return [
        Cell(network, *of)
        for of in product(RATES, ROUND_TRIPS, SLOWDOWNS, AGREEMENTS, OBJECTIVES)
    ]  # fmt: skip


def drawn(network: str) -> list[Cell]:
    """The cells of a network in the order in which they are measured: its share of `MEASURED` are the table's."""
    order = cells(network)
    Random(f"{SEED}:{network}").shuffle(order)
    return order[: MEASURED // len(REAL)]


@dataclass(frozen=True)
class Planned:
    """The planner's answer for a cell. `deadline_ms` is that of the cells that count bytes; `opponent` what the best
    picture that is not sent would take (infinite: it is in no table)."""

    option: Option
    predicted: float
    opponent: float
    opponent_as: str
    deadline_ms: float


@dataclass(frozen=True)
class Row:
    """One measured cell, in the unit of its objective. `late`: the planned option missed the deadline."""

    cell: Cell
    chosen: str
    kind: str
    predicted: float
    measured: float
    best: str
    best_kind: str
    best_measured: float
    kinds: Mapping[str, float]
    opponent: float
    opponent_as: str
    late: bool
    tried: int
    skipped: int
    seconds: float

    @property
    def regret(self) -> float:
        if self.late:
            return inf
        return self.measured / self.best_measured - 1 if self.best_measured else (inf if self.measured else 0.0)


class Table:
    """One network between a device and a server: plans of all its cells, and measurements."""

    def __init__(self, model: Model, known: Calibration, bench: Bench, streamed: Edge, apart: Apart, profiles: tuple[
        Profile, Profile], software_ms: float) -> None:  # fmt: skip
        self.model, self.known, self.bench, self.streamed, self.apart = model, known, bench, streamed, apart
        self.profiles, self.software_ms = profiles, software_ms
        self.shown = input_like(model.graph)
        self._planners: dict[tuple[int, float, str], Planner] = {}
        self._warm: set[tuple[bool, str]] = set()

    # --- planning -----------------------------------------------------------------------------------------------

    def planner(self, slow: int, agreement: float, objective: str) -> Planner:
        key = slow, agreement, objective
        if key not in self._planners:
            here, there = self.profiles
            self._planners[key] = Planner(
                self.model.graph, (here.slowed(slow), there), objective=objective,
                constraints=Constraints(agreement=agreement), calibration=self.known,
            )  # fmt: skip
        return self._planners[key]

    def within(self, cell: Cell) -> tuple[Planner, Link, float]:
        """Who plans it, for which link, and by when answers must be there."""
        link = Link(cell.mbps, cell.mbps, cell.rtt_ms, software_ms=self.software_ms)
        planner = self.planner(cell.slow, cell.agreement, cell.objective)
        if cell.objective != "bytes":
            return planner, link, inf
        fastest = self.planner(cell.slow, cell.agreement, "latency").best(link)
        assert fastest
        deadline_ms = WITHIN * fastest.total.ms
        limits = Constraints(agreement=cell.agreement, deadline_ms=deadline_ms)
        return planner.relaxed(limits, "bytes"), link, deadline_ms

    def best(self, cell: Cell) -> Option:
        planner, link, _ = self.within(cell)
        return planner.best(link) or planner.plan(link, sensitivity=False).best

    def plan(self, cell: Cell) -> Planned:
        planner, link, deadline_ms = self.within(cell)
        plan = planner.plan(link, sensitivity=False)
        others = [o for o in plan.options if o.kind == "opponent" and o.total.high <= deadline_ms]
        other = min(others, key=lambda o: value(o, cell.objective), default=None)
        return Planned(
            plan.best, value(plan.best, cell.objective), value(other, cell.objective) if other else inf,
            other.label if other else "", deadline_ms,
        )  # fmt: skip

    def kind(self, kind: str, crossing: Sequence[str]) -> str:
        """A cut where nothing crosses but the input, rearranged, is none inside: all is on the server."""
        return "server" if kind == "split" and all(name in self.shown for name in crossing) else kind

    def chosen(self, option: Option) -> Candidate:
        kind = self.kind(option.kind, [t.name for t in option.crossing])
        return replace(as_candidate(self.model, option), kind=kind)

    # --- options ------------------------------------------------------------------------------------------------

    def options(self, agreement: float) -> Iterator[Candidate]:
        """What a cell's best is chosen from."""
        prefixes = {cut.nodes: k for k, cut in enumerate(self.model.graph.prefixes())}
        for cut in self.model.graph.chain():
            kind = self.kind({"output": "device"}.get(cut.name, "split"), [t.name for t in cut.crossing])
            yield Candidate(f"{cut.name} raw", kind, cut, {}, cut.nbytes)
            rows = [
                r
                for r in self.known.rows
                if r.prefix == prefixes.get(cut.nodes)
                and r.codec.partition(":")[0] in CODECS
                and (r.quality.agreement or 0.0) >= agreement
            ]
            costs = {r.codec: (sum(r.nbytes), r.encode_ms + r.decode_ms) for r in rows}
            for codec, cost in costs.items():
                if not any(o != cost and o[0] <= cost[0] and o[1] <= cost[1] for o in costs.values()):
                    travels = {t.name: codec for t in cut.crossing}
                    yield Candidate(f"{cut.name} {codec}", "jpeg" if picture(codec) else kind, cut, travels, cost[0])

    def floor_ms(self, candidate: Candidate, cell: Cell) -> float:
        """What it takes at least: its bytes, the round trip, and the longest head that is part of its own, as measured
        at full speed; of a stream the longest of these that keeps something busy."""
        chain = [cut.name for cut in self.model.graph.chain()]
        before = chain[: chain.index(candidate.cut.name) + 1] if candidate.cut.name in chain else []
        head = cell.slow * 0.9 * max((self.bench.heads.get(name, 0.0) for name in before), default=0.0)
        if candidate.kind == "device":
            return head
        up = 0.9 * LINKS[cell.link].up_ms(candidate.nbytes)
        return max(head, up) if cell.objective == "throughput" else head + up + cell.rtt_ms

    # --- measuring ----------------------------------------------------------------------------------------------

    def warm(self, candidate: Candidate, streaming: bool) -> None:
        if (streaming, candidate.name) not in self._warm:
            self._warm.add((streaming, candidate.name))
            if streaming:
                self.bench.set_link("lan")
                self.streamed.switch(candidate.cut, candidate.codecs)
                self.apart.factor = 1.0
                for image in self.bench.images:
                    self.streamed.infer(image)
            else:
                self.bench.warm(candidate)

    def stream_ms(self, candidate: Candidate, cell: Cell, seconds: float) -> float:
        """Milliseconds an answer, once the stream is under way."""
        self.bench.set_link(cell.link)
        self.apart.factor = float(cell.slow)
        self.streamed.switch(candidate.cut, candidate.codecs)
        began = perf_counter()

        def items() -> Iterator[Mapping[str, Any]]:
            for k in range(_FRAMES[1]):
                if k >= _FRAMES[0] and (k - _WINDOW) % PHOTOS == 0 and perf_counter() - began > seconds:
                    return
                yield self.bench.images[k % PHOTOS]

        moments = [r.marks.ended for r in self.streamed.stream(items(), window=_WINDOW)]
        whole = (len(moments) - _WINDOW) // PHOTOS * PHOTOS or PHOTOS  # every photo as often
        return (moments[-1] - moments[-1 - whole]) / whole * 1e3

    def latencies(self, candidate: Candidate, cell: Cell, photos: Sequence[int], give_up: float = inf) -> list[float]:
        """Milliseconds of one request a photo; fewer where the first one takes more than `give_up`."""
        taken: list[float] = []
        for k in photos:
            taken.append(self.bench.once(candidate, cell.link, cell.slow, k))
            if taken[0] > give_up:
                break
        return taken

    def explore(self, cell: Cell, planned: Planned) -> tuple[dict[str, float], dict[str, Candidate], int]:
        """A first measurement of all options that have not lost: (what they took, options, how many had lost)."""
        streaming = cell.objective == "throughput"
        chosen = self.chosen(planned.option)
        link = Link(cell.mbps, cell.mbps, cell.rtt_ms, software_ms=self.software_ms)
        planner = self.planner(cell.slow, cell.agreement, cell.objective)

        def guess(c: Candidate) -> float:
            option = planner.price(c.cut, [c.codecs.get(t.name, "raw") for t in c.cut.crossing], link)
            return value(option, cell.objective)

        known = {c.name: c for c in self.options(cell.agreement)}
        guesses = {name: guess(c) for name, c in known.items()}
        options = {chosen.name: chosen} | {name: known[name] for name in sorted(guesses, key=lambda n: guesses[n])}
        taken: dict[str, float] = {}
        skipped = 0
        for name, candidate in options.items():
            best = min(taken.values(), default=inf)
            if self.floor_ms(candidate, cell) >= best or guesses.get(name, 0.0) > UNLIKELY * best:
                skipped += 1
                continue
            self.warm(candidate, streaming)
            if streaming:
                taken[name] = self.stream_ms(candidate, cell, 0.0)
            else:
                taken[name] = median(self.latencies(candidate, cell, range(FIRST), 2 * best))
        return taken, options, skipped

    def measure(self, cell: Cell) -> Row:
        began = perf_counter()
        planned = self.plan(cell)
        decide = self._fewest if cell.objective == "bytes" else self._fastest
        row = decide(cell, planned)
        return replace(row, seconds=perf_counter() - began)

    def _fastest(self, cell: Cell, planned: Planned) -> Row:
        taken, options, skipped = self.explore(cell, planned)
        ranked = sorted(taken, key=lambda name: taken[name])
        chosen = self.chosen(planned.option).name
        firsts = {options[name].kind: name for name in reversed(ranked) if taken[name] < 1.3 * taken[ranked[0]]}
        playing = list(dict.fromkeys([chosen, *ranked[:3], *firsts.values()]))
        again: dict[str, list[float]] = {name: [] for name in playing}
        if cell.objective == "throughput":
            for name in playing * 2:
                again[name].append(self.stream_ms(options[name], cell, _STREAM_S))
        else:
            for k in range(PHOTOS):
                for name in playing:
                    again[name] += self.latencies(options[name], cell, [k])
        final = {name: median(values) for name, values in again.items()}
        return self._row(
            cell, planned, final | {n: t for n, t in taken.items() if n not in final}, options, final, skipped
        )

    def _fewest(self, cell: Cell, planned: Planned) -> Row:
        """Options from the fewest bytes on until one is in time."""
        chosen = self.chosen(planned.option)
        ordered = sorted(self.options(cell.agreement), key=lambda c: 0 if c.kind == "device" else c.nbytes)
        options = {c.name: c for c in ordered} | {chosen.name: chosen}
        final: dict[str, float] = {}
        skipped = 0
        late = True
        for name in [chosen.name, *options]:
            if name in final:
                if name == chosen.name and not late:
                    break  # all that has fewer bytes came too late
                continue
            candidate = options[name]
            if name != chosen.name and self.floor_ms(candidate, cell) > planned.deadline_ms:
                skipped += 1
                continue
            self.warm(candidate, False)
            if self.latencies(candidate, cell, [0])[0] > 1.5 * planned.deadline_ms:
                continue
            sizes, times = [], []
            for k in range(PHOTOS):
                times += self.latencies(candidate, cell, [k])
                assert self.bench.last
                sizes.append(self.bench.last.up_nbytes + self.bench.last.down_nbytes)
            in_time = float(np.quantile(times, 0.9)) <= planned.deadline_ms
            if name == chosen.name:
                late, final[name] = not in_time, float(median(sizes))
            elif in_time:
                final[name] = float(median(sizes))
                break
        row = self._row(cell, planned, final, options, final, skipped)
        return replace(row, late=late)

    def _row(
        self, cell: Cell, planned: Planned, taken: Mapping[str, float], options: Mapping[str, Candidate],
        final: Mapping[str, float], skipped: int,
    ) -> Row:  # fmt: skip
        chosen = self.chosen(planned.option)
        best = min(final, key=lambda name: final[name])
        kinds: dict[str, float] = {}
        for name, took in taken.items():
            kinds[options[name].kind] = min(took, kinds.get(options[name].kind, inf))
        return Row(
            cell, chosen.name, chosen.kind, planned.predicted, final.get(chosen.name, inf), best, options[best].kind,
            final[best], kinds, planned.opponent, planned.opponent_as, False, len(taken), skipped, 0.0,
        )  # fmt: skip


_WORDS = {
    "device": "all on the edge", "server": "all on the server, lossless", "jpeg": "a picture to the server",
    "split": "a cut inside",
}  # fmt: skip

# --- running, and what is kept --------------------------------------------------------------------------------------


class Kept:
    """What was measured so far, and what was planned, in one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        known = json.loads(path.read_text()) if path.exists() else {}
        self.rows = [Row(**row | {"cell": Cell(**row["cell"])}) for row in known.get("rows", ())]
        #: Network → [cell, kind, what is planned], of the first session.
        self.plans: dict[str, list[tuple[dict[str, Any], str, str]]] = known.get("plans", {})
        self.profiled_s: float = known.get("profiled_s", 0.0)
        """Seconds that profiles took, of all sessions."""

    def save(self) -> None:
        self.path.parent.mkdir(exist_ok=True)
        partial = self.path.with_suffix(".part")
        rows = [asdict(row) for row in self.rows]
        partial.write_text(json.dumps({"profiled_s": self.profiled_s, "plans": self.plans, "rows": rows}, indent=1))
        partial.replace(self.path)


def run(network: str, kept: Kept, until: float, profile_s: float) -> None:
    """Plans all cells of a network, and measures of those drawn as many as there is time for."""
    done = {row.cell for row in kept.rows}
    left = [cell for cell in drawn(network) if cell not in done]
    if not left:
        return
    model, known = load(path_of(network)), calibrated(network)
    pin(EDGE_CORE)
    began = perf_counter()
    with (
        helper(SERVE_CALIBRATED, path_of(network), str(place_of(network))) as server,
        Relay(said(server), PRESETS["lan"]) as relay,
    ):
        engine = Stretched(open_engine(threads=1), 1.0, wait_until=spin_until)
        apart = Apart(open_engine(threads=1), 1.0)
        patience = Patience(answer_s=120)
        with (
            Edge(relay.address, model, at="input", engine=engine, patience=patience, calibration=known) as edge,
            Edge(relay.address, model, at="input", engine=apart, patience=patience, calibration=known) as streamed,
        ):
            profiles = profile_model(model, open_engine(threads=1), budget_s=profile_s), edge.profile_server(profile_s)
            software_ms = edge.measure_link().software_ms
            kept.profiled_s += perf_counter() - began
            here, there = (p.whole.median for p in profiles)
            print(f"{network}: whole {here:.1f} ms on the device's core, {there:.1f} there, software {software_ms:.2f}")
            bench = Bench(edge, relay, engine, read(model, "test")[:PHOTOS], LINKS)
            prefixes = model.graph.prefixes()
            bench.heads |= {prefixes[s.prefix].name: s.head.median for s in profiles[0].segments if s.head}
            table = Table(model, known, bench, streamed, apart, profiles, software_ms)
            if network not in kept.plans:
                bests = [(cell, table.best(cell)) for cell in cells(network)]
                kept.plans[network] = [(asdict(c), table.chosen(o).kind, o.label) for c, o in bests]
                kept.save()
            print(f"{len(kept.plans[network])} cells planned; {perf_counter() - began:.0f} s so far", flush=True)
            for cell in left:
                if perf_counter() > until:
                    break
                # A stream's device waits most of the time: its core is then the relay's, which the server's is else.
                core = EDGE_CORE if cell.objective == "throughput" else SERVER_CORE
                os.sched_setaffinity(relay.pid, {core})
                row = table.measure(cell)
                kept.rows.append(row)
                kept.save()
                print(said_of(row), flush=True)


def said_of(row: Row) -> str:
    return (
        f"  {row.cell}  {row.chosen} predicted {row.predicted:.1f} measured {row.measured:.1f}; best {row.best} "
        f"{row.best_measured:.1f}; regret {row.regret:.1%}{', late' if row.late else ''} ({row.tried} tried, "
        f"{row.skipped} skipped, {row.seconds:.0f} s)"
    )


def report(kept: Kept) -> None:
    for network, plans in kept.plans.items():
        print(f"{network}: {len(plans)} cells planned")
        for objective in OBJECTIVES:
            for agreement in AGREEMENTS:
                counts = Counter(k for c, k, _ in plans if (c["objective"], c["agreement"]) == (objective, agreement))
                print(f"  {objective:10} {agreement:.0%}: " + ", ".join(f"{_WORDS[k]} {n}" for k, n in counts.items()))
    rows = kept.rows
    if not rows:
        return
    spent = sum(row.seconds for row in rows)
    print(
        f"{len(rows)} of {MEASURED} cells measured in {spent / 60:.0f} min, {kept.profiled_s / 60:.0f} of profiles; "
        f"{sum(r.tried for r in rows)} options measured, {sum(r.skipped for r in rows)} had lost before"
    )
    print(f"{'':26}  n  regret median   worst   > 2 %  > 10 %   error median   worst    a cut is best")
    groups: dict[str, Callable[[Row], bool]] = {"all": lambda _: True}
    groups |= {objective: lambda r, o=objective: r.cell.objective == o for objective in OBJECTIVES}  # type: ignore[misc]
    groups |= {f"{share:.0%} agreement": lambda r, a=share: r.cell.agreement == a for share in AGREEMENTS}  # type: ignore[misc]
    groups["an interior cut is best"] = lambda r: r.best_kind == "split"
    for title, wanted in groups.items():
        some = [r for r in rows if wanted(r)]
        if some:
            regrets = [r.regret for r in some]
            errors = [abs(r.predicted / r.measured - 1) for r in some if r.measured]
            inside = sum(r.best_kind == "split" for r in some)
            print(
                f"{title:26}{len(some):3}{median(regrets):15.1%}{max(regrets):8.1%}"
                f"{sum(r > 0.02 for r in regrets):8}{sum(r > 0.1 for r in regrets):8}"
                f"{median(errors or [0.0]):15.1%}{max(errors, default=0.0):8.1%}{inside:10} of {len(some)}"
            )
    better = [r for r in rows if r.best_kind == "split" and r.opponent < r.best_measured]
    print(f"a picture that is not sent is predicted to be better than the best cut in {len(better)} of these")
    print(f"planned options that missed their deadline: {sum(r.late for r in rows)}")


# --- the map --------------------------------------------------------------------------------------------------------

_COLOURS = {"device": "#4c78a8", "server": "#e45756", "jpeg": "#b279a2", "split": "#54a24b"}
_WIDE, _HIGH, _LEFT, _TOP, _GAP = 26, 14, 74, 60, 26


def draw(kept: Kept, network: str, path: Path) -> None:
    """The plan of every cell as a coloured field, and what was measured to be the best as a framed one inside it."""
    rows = list(product(SLOWDOWNS, ROUND_TRIPS))
    wide, high = _WIDE * len(RATES) + _GAP, _HIGH * len(rows) + 2 * _GAP
    image = Image.new("RGB", (_LEFT + wide * len(AGREEMENTS), _TOP + high * len(OBJECTIVES)), "white")
    pen = ImageDraw.Draw(image)
    pen.text((8, 6), f"{network}: planned (field) and measured to be the best (framed)", fill="black")
    for k, (kind, colour) in enumerate(_COLOURS.items()):
        pen.rectangle((8 + 175 * k, 26, 20 + 175 * k, 38), fill=colour)
        pen.text((25 + 175 * k, 26), _WORDS[kind], fill="black")
    best = {row.cell: row.best_kind for row in kept.rows}
    for of, kind, _ in kept.plans[network]:
        cell = Cell(**of)
        column, line = AGREEMENTS.index(cell.agreement), OBJECTIVES.index(cell.objective)
        left = _LEFT + wide * column + _WIDE * RATES.index(cell.mbps)
        top = _TOP + high * line + _HIGH * rows.index((cell.slow, int(cell.rtt_ms)))
        pen.rectangle((left, top, left + _WIDE - 2, top + _HIGH - 2), fill=_COLOURS.get(kind, "grey"))
        if cell in best:
            inner = (left + 6, top + 2, left + _WIDE - 8, top + _HIGH - 4)
            pen.rectangle(inner, fill=_COLOURS.get(best[cell], "grey"), outline="black")
    for line, objective in enumerate(OBJECTIVES):
        for column, agreement in enumerate(AGREEMENTS):
            left, top = _LEFT + wide * column, _TOP + high * line
            pen.text((left, top - 13), f"{objective}, {agreement:.0%} agreement", fill="black")
            for k, mbps in enumerate(RATES):
                pen.text((left + _WIDE * k + 2, top + _HIGH * len(rows)), f"{mbps:g}", fill="black")
            pen.text((left, top + _HIGH * len(rows) + 11), "Mbit/s", fill="black")
        for k, (slow, rtt) in enumerate(rows):
            pen.text((6, _TOP + high * line + _HIGH * k), f"{slow}x {rtt} ms", fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.cells", description="Where a cut inside is the best answer.")
    parser.add_argument("--networks", nargs="+", choices=REAL, default=REAL)
    parser.add_argument("--seconds", type=float, default=inf, help="begin no cell after so long")
    parser.add_argument("--profile-s", type=float, default=20.0, help="seconds for each side's profile")
    parser.add_argument("--report", action="store_true", help="say what is known, measure nothing")
    parser.add_argument("--map", type=Path, help="write it as a picture, a file for each network")
    parser.add_argument("--out", type=Path, default=Path("out") / "cells.json")
    given = parser.parse_args(arguments)
    print(header(), flush=True)
    kept = Kept(given.out)
    if not given.report:
        until = perf_counter() + given.seconds
        for network in given.networks:
            if perf_counter() < until:
                run(network, kept, until, given.profile_s)
    report(kept)
    if given.map:
        for network in kept.plans:
            draw(kept, network, given.map.with_stem(f"{given.map.stem}-{network}"))


if __name__ == "__main__":
    main()
