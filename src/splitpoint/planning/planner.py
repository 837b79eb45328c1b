"""Graph × profiles × link → Plan: the honest table.

Neither a model file nor an engine is needed: profiles come from JSON. Milliseconds are those of a connection in use:
what TCP's slow start adds to the first requests of a new one is not part of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TypeAlias

import msgspec
import numpy as np

from splitpoint.calibration.calibrations import Calibration, Quality
from splitpoint.codecs import CODECS, open_codec, picture
from splitpoint.errors import UsageError
from splitpoint.graph import Cut, Graph
from splitpoint.link import Link
from splitpoint.planning.advice import ALIKE, advise, contradiction, explain
from splitpoint.planning.candidates import Candidates, efficient
from splitpoint.planning.choice import least, nearly, pareto, rows
from splitpoint.planning.constraints import Constraints, check_budget
from splitpoint.planning.cost_model import CostModel
from splitpoint.planning.hosts import RAW, Host, check_same_model, quality_of
from splitpoint.planning.objectives import weights_of
from splitpoint.planning.placement_search import PlacementSearch
from splitpoint.planning.plans import AgreementRanges, Option, Plan, kept, value
from splitpoint.planning.scoring import Scorer, uniform
from splitpoint.planning.sensitivity import Curves, curves, ranges
from splitpoint.planning.solve.problem import Bools, Solution
from splitpoint.profile.profiles import Profile

#: (device's, server's), or by the names ``edge`` and ``cloud``.
Profiles: TypeAlias = Sequence[Profile] | Mapping[str, Profile]

#: Rows of the table behind the best split.
RUNNERS_UP = 3
#: JPEG's quality where no calibration says which is enough: what cameras use.
DEFAULT_JPEG = "jpeg:90"
#: Agreements that a plan with a calibration says the best rates of, whatever was asked for.
AGREEMENTS = (0.9, 0.95, 0.98)


def plan(
    graph: Graph | None,
    profiles: Profiles,
    link: Link,
    *,
    objective: str = "latency",
    constraints: Constraints | None = None,
    calibration: Calibration | None = None,
) -> Plan:
    """Whether and where to cut `graph` (None: the profiles' own) for the least of `objective`: latency (ms), throughput
    (ms of the slowest stage), energy (mJ), bytes, or server-time (ms), each of one request.

    `profiles` are the device's and the server's. InputError if something is of another model; UsageError for
    constraints that no placement keeps, with the nearest plan that exists.
    """
    return Planner(graph, profiles, objective=objective, constraints=constraints, calibration=calibration).plan(link)


class Planner:
    """Plans for one device and one server, link after link. What the link does not change is computed once."""

    def __init__(
        self,
        graph: Graph | None,
        profiles: Profiles,
        *,
        objective: str = "latency",
        constraints: Constraints | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        edge, cloud = pair(profiles)
        self.graph = graph if graph is not None else edge.graph
        self.constraints = constraints or Constraints()
        self.hosts = (Host("device", edge, self.constraints.max_edge_memory), Host("server", cloud))
        check_same_model(self.graph, self.hosts, calibration)
        self.objective, self._calibration = objective, calibration
        weights_of(objective, self.hosts)  # an objective that is none is told now
        check_budget(self.constraints, calibration)
        self.costs = CostModel(self.graph, self.hosts, codecs=self._codecs(), calibration=calibration)
        self._scorer = Scorer(self.costs, self.constraints)
        self._candidates = Candidates(self.costs, self._scorer, objective)
        self._search = PlacementSearch(self.costs, self.constraints, self._candidates)
        self._cuts: dict[bytes, Cut] = {}
        self._placed: dict[tuple[int, ...], Cut] = {}

    def _codecs(self) -> tuple[str, ...]:
        """Those that may be used besides raw. Pictures are priced apart (`_pictures`): there are many of them."""
        limits = self.constraints
        return limits.codecs or (self._calibrated() if limits.faithful or limits.best_that_fits else ())

    def _calibrated(self) -> tuple[str, ...]:
        """The codecs that are calibrated and no pictures."""
        rows = self._calibration.rows if self._calibration is not None else ()
        known = {r.codec: r.encode_ms > 0 or all(host.knows(r.codec) for host in self.hosts) for r in rows}
        return tuple(name for name, timed in known.items() if timed and not picture(name))

    # --- plans --------------------------------------------------------------------------------------------------

    def plan(self, link: Link, *, sensitivity: bool = True) -> Plan:
        """The whole table for `link`, and, unless `sensitivity` is False, what is best at which bandwidth.

        UsageError if nothing keeps to the constraints.
        """
        options, floor = self._options(link)
        best = least(options, self.objective)
        if best is None:
            raise UsageError(contradiction(self.constraints, lambda left: self._nearest(left, link)))
        table = rows(options, best, self.objective, splits=RUNNERS_UP + 1)
        reached = value(best, self.objective)
        bound = min(floor, reached)
        limits = self.constraints
        limited = any(limit is not None for limit in (limits.deadline_ms, limits.max_edge_memory, limits.shared))
        return Plan(
            model=self.graph.name,
            fingerprint=self.hosts[0].profile.fingerprint,
            objective=self.objective,
            hosts=tuple(host.profile.where for host in self.hosts),
            links=(link,),
            best=best,
            options=table,
            bound=bound,
            gap=reached / bound - 1 if bound > 0 else 0.0,
            advice=advise(table, best, self.objective, limited=limited),
            constraints=limits.said,
            sensitivity=ranges(self.best, link, best) if sensitivity else (),
            agreements=self._agreements(link) if sensitivity else (),
            why=explain(table, best, self.objective),
        )

    def best(self, link: Link) -> Option | None:
        """The best option alone (about 1 ms of CPU); None if none keeps to the constraints."""
        options = [*self._baselines(link, opponents=False), *self._candidates.best(link)]
        return least([*options, *self._solved(self._search.glance(link), link)], self.objective)

    def price(self, cut: Cut | Iterable[int], codecs: Sequence[str], link: Link) -> Option:
        """The row of one placement, refused or not. `cut` may be the nodes of its head (`Option.on_edge`); `codecs` has
        one for each tensor that crosses, in order. CutError for nodes that no cut puts on the device.
        """
        if not isinstance(cut, Cut):
            cut = self._cut_of(tuple(cut))
        return self._scorer.option(cut, codecs, link)

    def points(self, link: Link) -> list[Option]:
        """Every partition point: of each topological prefix the best row, by the objective, of those with one codec for
        all that crosses; refused only where each is."""

        def at(cut: Cut) -> Option:
            rows = [self._scorer.option(cut, uniform(cut, codec), link) for codec in self.costs.codecs]
            return min(rows, key=lambda o: (bool(o.refused), value(o, self.objective)))

        return [at(cut) for cut in self._candidates.cuts]

    def local(self, link: Link) -> Option:
        """The row of everything on the device."""
        return self._baselines(link)[0]

    def remote(self, link: Link) -> Option | None:
        """The best prefix or baseline that uses the server; None if none keeps to the constraints."""
        options = [*self._baselines(link)[1:], *self._candidates.best(link, self._candidates.remote)]
        return least(options, self.objective)

    def slowed(self, device: float, server: float) -> Planner:
        """A planner for the same machines while they compute so many times slower than their profiles say."""
        hosts = zip(self.hosts, (device, server), strict=True)
        profiles = [host.profile if factor == 1 else host.profile.slowed(factor) for host, factor in hosts]
        planner = self._like(profiles, self.constraints, self.objective)
        planner._placed = self._placed
        return planner

    def relaxed(self, constraints: Constraints, objective: str) -> Planner:
        """A planner for the same machines with other constraints and another objective."""
        return self._like([host.profile for host in self.hosts], constraints, objective)

    def _like(self, profiles: Profiles, limits: Constraints, objective: str) -> Planner:
        return Planner(self.graph, profiles, objective=objective, constraints=limits, calibration=self._calibration)

    def bounded(self) -> Planner:
        """The same for who chooses while nobody looks (`Constraints.bounded`)."""
        limits = self.constraints.bounded
        return self if limits == self.constraints else self.relaxed(limits, self.objective)

    @property
    def nothing_lossy(self) -> str:
        """A sentence where answers must be kept and nothing that loses any is shown to keep them; else empty."""
        limits, known = self.constraints, self._calibration
        if not limits.faithful or known is None or any(not limits.too_lossy(row.quality) for row in known.rows):
            return ""
        best = max((row.quality for row in known.rows), key=lambda quality: -quality.bound)
        return f"no codec is shown to keep the answers as asked for, so none is used: {limits.too_lossy(best)}"

    def finer(self, option: Option, link: Link) -> Option:
        """`option`, or another codec for the same cut that keeps more of the answers, if nobody could tell the two
        apart by the objective; where it is said how many must be kept."""
        if not self.constraints.faithful or option.exact:
            return option
        cut, most = self._cut_of(option.on_edge), value(option, self.objective) * (1 + ALIKE)
        codecs = {*self.costs.codecs, *(self._known_pictures(sent=True) if not option.on_edge else ())}
        options = [self._scorer.option(cut, uniform(cut, codec), link) for codec in sorted(codecs)]
        near = [o for o in options if not o.refused and value(o, self.objective) <= most]
        return max((option, *near), key=lambda o: (kept(o) or 0.0, -value(o, self.objective)))

    def frontier(self, link: Link, most: int = 8) -> Sequence[Option]:
        """At most `most` options that a queue of requests may need: the best one, then others that are the cheapest
        for some prices of the device's, the link's and the server's time. Empty if nothing keeps to the constraints.
        """
        best = self.best(link)
        if best is None:
            return ()
        kept = [best]
        for option in (*self._baselines(link), *self._candidates.frontier(link, most)):
            if not option.refused and not any(nearly(option, other, link) for other in kept):
                kept.append(option)
        return kept[:most]

    def _agreements(self, link: Link) -> tuple[AgreementRanges, ...]:
        """What is best at which bandwidth where each of `AGREEMENTS` must be kept; nothing without a calibration."""
        if self._calibration is None or not self._calibration.judged:
            return ()
        stretches = []
        for share in AGREEMENTS:
            limits = msgspec.structs.replace(self.constraints, agreement=share, max_drop=None)
            planner = self.relaxed(limits, self.objective)
            stretches.append(AgreementRanges(share, ranges(planner.best, link, planner.best(link))))
        return tuple(stretches)

    def front(self, link: Link) -> Sequence[Option]:
        """The options that no other has fewer milliseconds, fewer bytes up and more agreement than, whatever agreement
        is asked for, opponents among them; the fastest first. Only those whose agreement is known."""
        limits = msgspec.structs.replace(self.constraints, agreement=None, max_drop=None, codecs=self._calibrated())
        return pareto(self.relaxed(limits, "latency")._priced(link))

    def _priced(self, link: Link) -> list[Option]:
        """What is allowed of every prefix with every codec, and all pictures."""
        allowed = np.argwhere(self._candidates.scores(link)[1]).tolist()
        options = [self._candidates.option(prefix, codec, link) for prefix, codec in allowed]
        frame = self._candidates.cuts[0]
        shown = [*self._known_pictures(sent=True), *self._known_pictures(sent=False)]
        return options + [self._scorer.option(frame, uniform(frame, codec), link) for codec in shown]

    def curves(self, link: Link) -> Curves:
        """The objective of each kind of option as a function of the uplink's bandwidth."""
        return curves(self._kinds, link)

    def _kinds(self, link: Link) -> dict[str, float]:
        """Kind → the objective's least value among its options, JPEG even where its accuracy is not known."""
        values: dict[str, float] = {o.kind: value(o, self.objective) for o in self._baselines(link)}
        scores, allowed = self._candidates.scores(link)
        inside = np.where(allowed & self._candidates.interior[:, None], scores, np.inf)
        values["split"] = float(inside.min(initial=np.inf))
        best = self.best(link)
        values["best"] = value(best, self.objective) if best is not None else np.inf
        if best is not None and best.kind == "split":
            values["split"] = min(values["split"], values["best"])
        return values

    def _nearest(self, left: Constraints, link: Link) -> Option | None:
        """The nearest option under the constraints that are left when others are given up."""
        if self.constraints.max_edge_memory is not None and left.max_edge_memory is None:
            return self.relaxed(left, self.objective)._candidates.smallest(link)
        late = self.constraints.deadline_ms is not None and left.deadline_ms is None
        return self.relaxed(left, "latency" if late else self.objective).best(link)

    # --- options ------------------------------------------------------------------------------------------------

    def _options(self, link: Link) -> tuple[list[Option], float]:
        """The baselines, the best cuts there are, and a value that no placement is below."""
        options = [*self._baselines(link), *self._candidates.table(link, RUNNERS_UP + 1)]
        solutions, floor = self._search.solutions(link)
        options += [o for s in solutions for o in self._solved(s, link)]
        return list({(o.on_edge, o.codecs): o for o in options}.values()), floor

    def _baselines(self, link: Link, *, opponents: bool = True) -> list[Option]:
        """All on the device; all on the server, raw, as the best picture that may be sent, where there is such a
        thing, and as the best that may not (`opponents`)."""
        cuts = self._candidates.cuts
        options = [self._scorer.option(cuts[-1], uniform(cuts[-1], RAW), link)]
        if len(cuts) > 1:
            frame = cuts[0]
            for codecs in ((RAW,), self._pictures, self._opponents if opponents else ()):
                priced = [self._scorer.option(frame, uniform(frame, codec), link) for codec in codecs]
                options += sorted(priced, key=lambda o: (value(o, self.objective), o.total.ms))[:1]
        return options

    @cached_property
    def _pictures(self) -> Sequence[str]:
        """Pictures to price, of those that may be sent: without a calibration, JPEG as it was asked for. None where the
        model takes no image, or the profiles have no times for JPEG."""
        frame, jpeg = self._candidates.cuts[0], open_codec(DEFAULT_JPEG)
        if not any(jpeg.accepts(t) for t in frame.crossing) or not all(h.knows(DEFAULT_JPEG) for h in self.hosts):
            return ()
        asked = [c for c in self.constraints.codecs if picture(c)]
        return self._cheapest(self._known_pictures(sent=True)) or (asked or [DEFAULT_JPEG])[-1:]

    @cached_property
    def _opponents(self) -> Sequence[str]:
        return self._cheapest(self._known_pictures(sent=False))

    def _known_pictures(self, *, sent: bool) -> Mapping[str, Quality]:
        """Pictures whose agreement was measured, of those that may be sent or of the others."""
        frame, calibrated = self._candidates.cuts[0], self.costs.calibrated
        named = [c for c in calibrated.codecs if picture(c) and (c.partition(":")[0] in CODECS) == sent]
        known = {c: calibrated.quality(frame, c) for c in named if all(host.knows(c) for host in self.hosts)}
        return {codec: quality for codec, quality in known.items() if quality is not None}

    def _cheapest(self, known: Mapping[str, Quality]) -> Sequence[str]:
        """Those that keep the answers as asked for (unasked: change none) and could be the best on some link; where
        none does, the one with the most agreement."""
        limits, frame = self.constraints, self._candidates.cuts[0]
        if limits.max_bytes is not None:
            fitting = {c: q for c, q in known.items() if not self._scorer.too_large(frame, uniform(frame, c))}
            known = fitting or known
        kept = [c for c, q in known.items() if (q.agreement == 1 or limits.faithful) and not limits.too_lossy(q)]
        if not kept:
            return sorted(known, key=lambda c: (known[c].agreement or 0.0, quality_of(c) or 0))[-1:]
        coded = [[self.costs.coded(0, t, c) for t in frame.crossing] for c in kept]
        costs = np.array([np.sum([(k.nbytes, k.encode_ms, k.decode_ms) for k in row], axis=0) for row in coded])
        return [c for k, c in enumerate(kept) if efficient(costs, k)]

    def _solved(self, solution: Solution, link: Link) -> Iterable[Option]:
        """A solution's placement with the codecs that suit it, by the full model."""
        if not np.isfinite(solution.value):
            return
        cut = self._cut(solution.on_edge)
        if len(cut.nodes) in (0, len(self.graph.placed)):
            return
        chosen = self._search.choice.codecs(link, self.objective)
        places = [self.costs.steps.place[t.name] for t in cut.crossing]
        option = self._scorer.option(cut, [self.costs.codecs[chosen[t]] for t in places], link)
        yield option
        if option.refused and not option.exact:
            yield self._scorer.option(cut, uniform(cut, RAW), link)
        if self.objective == "throughput":
            # The codecs of the least sum need not be those of the least slowest stage.
            others = (self._scorer.option(cut, uniform(cut, codec), link) for codec in self.costs.codecs)
            yield from (other for other in others if not other.refused)

    def _cut(self, on_edge: Bools) -> Cut:
        key = on_edge.tobytes()
        if key not in self._cuts:
            cut = self.costs.steps.cut(on_edge)
            self._cuts[key] = self._scorer.prefix_of(cut) or cut
        return self._cuts[key]

    def _cut_of(self, on_edge: tuple[int, ...]) -> Cut:
        if on_edge not in self._placed:
            cut = self.graph.cut_of(on_edge)
            self._placed[on_edge] = self._scorer.prefix_of(cut) or cut
        return self._placed[on_edge]


def pair(profiles: Profiles) -> tuple[Profile, Profile]:
    """(device's, server's) from a pair or a mapping; UsageError for anything else."""
    try:
        if isinstance(profiles, Mapping):
            return profiles["edge"], profiles["cloud"]
        edge, cloud = profiles
        return edge, cloud
    except (KeyError, ValueError, TypeError):
        raise UsageError("profiles are (the edge's, the server's), or {'edge': …, 'cloud': …}") from None
