"""Graph × profiles × link → Plan: the honest table.

    edge, cloud = load_profile("edge.profile.json"), load_profile("cloud.profile.json")
    found = splitpoint.plan(edge.graph, (edge, cloud), Link(5.85, 20, 40), constraints=Constraints(codecs=("int8",)))
    print(found.advice)     # Split after blocks.6, int8: 63.0 ms, 28.1 ms (31 %) less than all on the device.

Neither a model file nor an engine is needed: profiles come from JSON.

A plan's milliseconds are those of a connection that is in use. What TCP's slow start adds to the first requests of a
new one is not part of them: `splitpoint.link.transfer.unvalidated_slow_start_ms` estimates it, on its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TypeAlias

import numpy as np

from splitpoint.calibration.calibrations import Calibration
from splitpoint.codecs import open_codec
from splitpoint.errors import UsageError
from splitpoint.graph import Cut, Graph
from splitpoint.link import Link
from splitpoint.planning.advice import ALIKE, advise, explain, margin
from splitpoint.planning.candidates import Candidates
from splitpoint.planning.codec_costs import RAW, Pricing, quality_of
from splitpoint.planning.constraints import Constraints, check_budget
from splitpoint.planning.cost_model import Costing
from splitpoint.planning.infeasible import contradiction
from splitpoint.planning.objectives import weights_of
from splitpoint.planning.plans import Option, Plan, value
from splitpoint.planning.same_model import check
from splitpoint.planning.scoring import Scorer, jpeg_inputs, uniform
from splitpoint.planning.sensitivity import Curves, curves, ranges
from splitpoint.planning.solve.constrained import Limit, least_within
from splitpoint.planning.solve.frontier import supported
from splitpoint.planning.solve.min_cut import Cutter
from splitpoint.planning.solve.problem import Bools, Floats, Problem, Solution
from splitpoint.planning.solve.throughput import bottleneck
from splitpoint.profile.profiles import Profile

#: (device's, server's), or by the names ``edge`` and ``cloud``.
Profiles: TypeAlias = Sequence[Profile] | Mapping[str, Profile]

#: Rows of the table behind the best split.
RUNNERS_UP = 3
#: JPEG's quality where no calibration says which is enough: what cameras use.
DEFAULT_JPEG = "jpeg:90"
#: Seconds that a search without an exact answer may take: for a plan, and for one of the many of its sensitivity.
_SEARCH_S, _GLANCE_S = 1.0, 0.05
#: A split that promises less than this share, and less than the error bars, is not worth it.
DOUBTFUL = 0.05
#: Between those that are `ALIKE`, the simpler.
_SIMPLER = {"device": 0, "server": 1, "jpeg": 2, "split": 3}


def plan(
    graph: Graph | None,
    profiles: Profiles,
    link: Link,
    *,
    objective: str = "latency",
    constraints: Constraints | None = None,
    calibration: Calibration | None = None,
) -> Plan:
    """Whether and where to cut `graph` (None: the profiles') for the least of `objective`: one of
    latency, throughput, energy, bytes, server-time.

    `profiles` are the device's and the server's, of the same model. Raises InputError if something is of another
    model, UsageError for constraints that no placement keeps: the message has the nearest one that exists.
    """
    return Planner(graph, profiles, objective=objective, constraints=constraints, calibration=calibration).plan(link)


class Planner:
    """Plans for one device and server, and one link after the other: what does not change is computed once."""

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
        check(self.graph, edge, cloud, calibration)
        self.objective, self._calibration = objective, calibration
        self.constraints = constraints or Constraints()
        self.weights = weights_of(objective, edge.watts)
        if self.constraints.max_drop is not None:
            check_budget(self.constraints.max_drop, calibration)
        self.pricing = Pricing(edge, cloud)
        self.codecs = self._codecs(calibration)
        for name in self.codecs:
            self.pricing.require(name)
        self._scorer = Scorer(self.graph, self.pricing, self.constraints, calibration)
        rows = calibration.rows if calibration is not None else ()
        measured = {
            (r.prefix, r.codec, k): n for r in rows if not open_codec(r.codec).sized for k, n in enumerate(r.nbytes)
        }
        self._candidates = Candidates(self.graph, self.pricing, self.codecs, measured)
        self._cuts: dict[bytes, Cut] = {}
        self._placed: dict[tuple[int, ...], Cut] = {}

    def _codecs(self, calibration: Calibration | None) -> tuple[str, ...]:
        """raw, and those that may be used besides."""
        asked = self.constraints.codecs
        if not asked and self.constraints.max_drop is not None and calibration is not None:
            asked = tuple(dict.fromkeys(r.codec for r in calibration.rows if self.pricing.knows(r.codec)))
        return tuple(dict.fromkeys((RAW, *(open_codec(name).name for name in asked))))

    # --- plans --------------------------------------------------------------------------------------------------

    def plan(self, link: Link, *, sensitivity: bool = True) -> Plan:
        """The whole table for `link`; without `sensitivity`, not how it depends on the bandwidth."""
        options, floor = self._options(link)
        best = self._least(options)
        if best is None:
            raise UsageError(contradiction(self, link))
        table = self._table(options, best)
        found = value(best, self.objective)
        bound = min(floor, found)
        edge, cloud = self.pricing.edge, self.pricing.cloud
        return Plan(
            model=self.graph.name,
            fingerprint=edge.fingerprint,
            objective=self.objective,
            link=link,
            edge=edge.where,
            cloud=cloud.where,
            best=best,
            options=table,
            bound=bound,
            gap=found / bound - 1 if bound > 0 else 0.0,
            advice=advise(table, best, self.objective, limited=self._limited),
            constraints=self.constraints.said,
            sensitivity=ranges(self.best, link, best) if sensitivity else (),
            why=explain(table, best, self.objective),
        )

    def best(self, link: Link) -> Option | None:
        """The best option alone, for a new link; None if none keeps to the constraints."""
        scores, allowed = self._scores(link)
        options = self._baselines(link)
        if allowed.any():
            options.append(self._cheapest(scores, allowed, link))
        options += self._solved(self._searched(self._costing, link, _GLANCE_S), link)
        return self._least(options)

    def price(self, cut: Cut | Iterable[int], codecs: Sequence[str], link: Link) -> Option:
        """The row of one placement for `link`, refused or not; `cut` may also be the nodes of its head
        (`Option.on_edge`). `codecs` are those of what crosses, in order.

        CutError for nodes that no cut puts on the device.
        """
        if not isinstance(cut, Cut):
            cut = self._cut_of(tuple(cut))
        return self._scorer.option(cut, codecs, link)

    def local(self, link: Link) -> Option:
        """The row of everything on the device."""
        return self._baselines(link)[0]

    def remote(self, link: Link) -> Option | None:
        """The best option that uses the server: a prefix or a baseline; None if none keeps to the constraints."""
        scores, allowed = self._scores(link)
        allowed &= self._candidates.remote[:, None]
        options = self._baselines(link)[1:]
        if allowed.any():
            options.append(self._cheapest(scores, allowed, link))
        return self._least(options)

    def slowed(self, device: float, server: float) -> Planner:
        """A planner for the same device and server while they compute so many times slower than their profiles say."""
        edge, cloud = self.pricing.edge, self.pricing.cloud
        found = Planner(
            self.graph,
            (edge if device == 1 else edge.slowed(device), cloud if server == 1 else cloud.slowed(server)),
            objective=self.objective, constraints=self.constraints, calibration=self._calibration,
        )  # fmt: skip
        found._placed = self._placed
        return found

    def frontier(self, link: Link, most: int = 8) -> Sequence[Option]:
        """The best option for `link`, then others that are allowed and the cheapest for some prices of the device's,
        the link's and the server's time: what is chosen from where requests are planned together. None if none is.
        """
        best = self.best(link)
        if best is None:
            return ()
        found, cuts = self._candidates, self._candidates.cuts
        costs = np.stack(np.broadcast_arrays(*found.parts(link)), -1)
        rows = np.argwhere(self._scores(link)[1])
        chosen = [rows[k] for k in supported(costs[rows[:, 0], rows[:, 1]], most)]
        options = [self._scorer.option(cuts[p], uniform(cuts[p], self.codecs[c]), link) for p, c in chosen]
        kept = [best]
        for option in [o for o in (*self._baselines(link), *options) if not o.refused]:
            if not any(_nearly(option, other, link) for other in kept):
                kept.append(option)
        return kept[:most]

    def curves(self, link: Link) -> Curves:
        """The objective of each kind of option as a function of the uplink's bandwidth."""
        return curves(self._kinds, link, self.objective)

    def _kinds(self, link: Link) -> dict[str, float]:
        """Kind → the objective's least value among its options, JPEG even where its accuracy is not known."""
        scores, allowed = self._scores(link)
        found = {o.kind: value(o, self.objective) for o in self._baselines(link)}
        inside = np.where(allowed & self._candidates.interior[:, None], scores, np.inf)
        found["split"] = float(inside.min(initial=np.inf))
        best = self.best(link)
        found["best"] = value(best, self.objective) if best is not None else np.inf
        if best is not None and best.kind == "split":
            found["split"] = min(found["split"], found["best"])
        return found

    # --- options ------------------------------------------------------------------------------------------------

    def _options(self, link: Link) -> tuple[list[Option], float]:
        """The baselines, the best cuts there are, and a value that no placement is below."""
        scores, allowed = self._scores(link)
        options = [*self._baselines(link), *self._prefixes(scores, allowed, link)]
        solutions, floor = self._solve(link)
        options += [o for s in solutions for o in self._solved(s, link)]
        return list({(o.on_edge, o.codecs): o for o in options}.values()), floor

    def _baselines(self, link: Link) -> list[Option]:
        cuts = self._candidates.cuts
        options = [self._scorer.option(cuts[-1], uniform(cuts[-1], RAW), link)]
        if len(cuts) > 1:
            options.append(self._scorer.option(cuts[0], uniform(cuts[0], RAW), link))
            if self._jpeg is not None:
                options.append(self._scorer.option(cuts[0], uniform(cuts[0], self._jpeg), link))
        return options

    @cached_property
    def _jpeg(self) -> str | None:
        """JPEG at the lowest quality that is good enough; None where the model takes no image, or the profiles no JPEG.

        Good enough: within the budget, or, without one, no label changed. The best there is where none is.
        """
        if not jpeg_inputs(self.graph) or not self.pricing.knows(DEFAULT_JPEG):
            return None
        frame = self._candidates.cuts[0]
        known = {
            c: r.quality for c in self._scorer.calibrated if c.startswith("jpeg:") and (r := self._scorer.row(frame, c))
        }
        asked = [c for c in self.constraints.codecs if c.startswith("jpeg:")]
        for codec in sorted(known, key=_quality):
            quality = known[codec]
            enough = self._scorer.too_lossy(quality, [codec]) == "" and (
                self.constraints.max_drop is not None or quality.agreement == 1
            )
            if enough:
                return codec
        return max(known or asked or [DEFAULT_JPEG], key=_quality)

    def _prefixes(self, scores: Floats, allowed: Bools, link: Link) -> list[Option]:
        """The best prefixes, one codec each: of the allowed ones, and the very best if none is allowed."""
        inside = self._candidates.interior[:, None] & np.ones_like(allowed)
        chosen = _ranked(np.where(allowed & inside, scores, np.inf), RUNNERS_UP + 1)
        if not chosen:
            chosen = _ranked(np.where(inside, scores, np.inf), 1)
        if self._candidates.remote[0] and allowed[0].any():
            chosen.append((0, int(np.where(allowed[0], scores[0], np.inf).argmin())))
        cuts = self._candidates.cuts
        return [self._scorer.option(cuts[p], uniform(cuts[p], self.codecs[c]), link) for p, c in chosen]

    def _cheapest(self, scores: Floats, allowed: Bools, link: Link) -> Option:
        """The row of the least of `scores`."""
        p, c = (int(k) for k in np.unravel_index(np.where(allowed, scores, np.inf).argmin(), scores.shape))
        cut = self._candidates.cuts[p]
        return self._scorer.option(cut, uniform(cut, self.codecs[c]), link)

    def _scores(self, link: Link) -> tuple[Floats, Bools]:
        """The objective of every prefix with every codec, and which of them are allowed."""
        found, limits = self._candidates, self.constraints
        latency = found.values(link, weights_of("latency", None))
        if self.objective == "throughput":
            scores = found.slowest(link)
        elif self.objective == "latency":
            scores = latency
        else:
            scores = found.values(link, self.weights)
        allowed = self._kept.copy()
        if limits.deadline_ms is not None:
            allowed &= found.high(link, latency) <= limits.deadline_ms
        # A hair of latency decides between equals: zero bytes, zero server time.
        return scores + 1e-9 * latency, allowed

    @cached_property
    def _kept(self) -> Bools:
        """bool[prefixes, codecs]: what the constraints allow on any link."""
        found, limits = self._candidates, self.constraints
        allowed = np.ones((len(found.cuts), len(self.codecs)), bool)
        if limits.keep_input_local:
            allowed &= ~found.leaks[:, None]
        if limits.shared is not None:
            allowed &= np.array([not limits.shared.refusal(cut, self.graph) for cut in found.cuts])[:, None]
        if limits.max_edge_memory is not None:
            allowed &= (found.memory <= limits.max_edge_memory)[:, None]
        for c, name in enumerate(self.codecs):
            if not open_codec(name).exact:
                for p, cut in enumerate(found.cuts):
                    allowed[p, c] &= self._accurate(cut, name)
        return allowed

    def _accurate(self, cut: Cut, codec: str) -> bool:
        names = [self.pricing.codec_for(codec, t).name for t in cut.crossing]
        if all(open_codec(n).exact for n in names):
            return True
        row = self._scorer.row(cut, codec)
        return not self._scorer.too_lossy(row.quality if row else None, names)

    # --- the exact search ---------------------------------------------------------------------------------------

    def _solve(self, link: Link) -> tuple[list[Solution], float]:
        """Placements of the whole graph, not of its prefixes alone, and the proven bound.

        What does not add up (accuracy) is left out of the bound, which stays true.
        """
        floor = self._searched(self._bounding, link, _SEARCH_S)
        solutions = [floor]
        if self._costing is not self._bounding:
            # The bound holds for every codec; what is chosen may use only what is accurate enough.
            solutions.append(self._searched(self._costing, link, _SEARCH_S))
        if self.objective == "latency" and len(self.graph.order) > 1 and not _mixed(solutions[-1]):
            # One side has everything: the best true split, for the table.
            solutions.append(self._inside(link))
        return solutions, floor.bound

    def _known(self, link: Link) -> float:
        """The least slowest stage of an allowed prefix: what a better placement must stay below."""
        scores, allowed = self._scores(link)
        return float(np.where(allowed, scores, np.inf).min())

    def _problem(self, costing: Costing, link: Link, most: float = np.inf) -> Problem:
        """The costs of every placement; steps too large for the device's memory, and those that the server does not
        share, cost without limit there."""
        problem = costing.problem(link, self.objective, most=most)
        shared = self.constraints.shared
        if self._room is None and shared is None:
            return problem
        fits = np.arange(problem.steps) < (problem.steps if self._room is None else self._room)
        if shared is not None:
            fits &= costing.on_edge(shared.cut.nodes)
        return dataclasses.replace(problem, edge=np.where(fits, problem.edge, np.inf))

    @cached_property
    def _room(self) -> int | None:
        """How many steps the device has memory for; None without a limit.

        Exactly what `Scorer.memory_of` allows: it grows with the prefix, and a cut counts as the smallest around it.
        """
        limit = self.constraints.max_edge_memory
        return None if limit is None else int(np.flatnonzero(self._candidates.memory <= limit)[-1])

    def _searched(self, costing: Costing, link: Link, search_s: float) -> Solution:
        stream = self.objective == "throughput"
        problem = self._problem(costing, link, self._known(link) if stream else np.inf)
        deadline = self.constraints.deadline_ms
        limits = []
        if deadline is not None and self.objective != "latency":
            limits.append(Limit(costing.problem(link), deadline))
        if stream:
            return bottleneck(problem, within=limits, budget_s=search_s)
        if limits:
            return least_within(problem, limits, budget_s=search_s)
        return self._cutter.least(problem)

    def _inside(self, link: Link) -> Solution:
        problem = self._problem(self._costing, link)
        first, last = np.zeros(problem.steps, bool), np.zeros(problem.steps, bool)
        first[0] = last[-1] = True
        return self._cutter.least(problem, keep_edge=first, keep_cloud=last)

    @cached_property
    def _bounding(self) -> Costing:
        """The costs of every placement with every codec: a bound for those with less choice."""
        local = self.constraints.keep_input_local
        return Costing(self.graph, self.pricing.edge, self.pricing.cloud, codecs=self.codecs, keep_input_local=local)

    @cached_property
    def _costing(self) -> Costing:
        """The costs of what may be chosen: codecs tensor by tensor, as far as they are accurate enough."""
        limits = self.constraints
        if limits.max_drop is None and self._calibration is None:
            return self._bounding
        return Costing(
            self.graph, self.pricing.edge, self.pricing.cloud, codecs=self.codecs, calibration=self._calibration,
            max_drop=limits.max_drop, keep_input_local=limits.keep_input_local,
        )  # fmt: skip

    @cached_property
    def _cutter(self) -> Cutter:
        return Cutter(self._bounding.problem(Link(1.0, 1.0, 1.0), self.objective))

    def _solved(self, solution: Solution, link: Link) -> Iterable[Option]:
        """A solution's placement with the codecs that suit it, by the full model."""
        if not np.isfinite(solution.value):
            return
        cut = self._cut(solution.on_edge)
        if len(cut.nodes) in (0, len(self.graph.placed)):
            return
        chosen = self._costing.chosen(link, self.objective)
        option = self._scorer.option(cut, [chosen[t.name] for t in cut.crossing], link)
        yield option
        if option.refused and not option.exact:
            yield self._scorer.option(cut, uniform(cut, RAW), link)
        if self.objective == "throughput":
            # The codecs of the least sum need not be those of the least slowest stage.
            others = (self._scorer.option(cut, uniform(cut, codec), link) for codec in self.codecs)
            yield from (other for other in others if not other.refused)

    def _cut(self, on_edge: Bools) -> Cut:
        key = on_edge.tobytes()
        if key not in self._cuts:
            cut = self._costing.cut(on_edge)
            prefix = self._scorer.prefix_of(cut)
            self._cuts[key] = cut if prefix is None else self._candidates.cuts[prefix]
        return self._cuts[key]

    def _cut_of(self, on_edge: tuple[int, ...]) -> Cut:
        found = self._placed.get(on_edge)
        if found is None:
            cut = self.graph.cut_of(on_edge)
            prefix = self._scorer.prefix_of(cut)
            found = self._placed[on_edge] = cut if prefix is None else self._candidates.cuts[prefix]
        return found

    # --- choosing -----------------------------------------------------------------------------------------------

    def _rank(self, option: Option) -> tuple[float, float, int]:
        return value(option, self.objective), option.total.ms, _SIMPLER[option.kind]

    def _table(self, options: Sequence[Option], best: Option) -> tuple[Option, ...]:
        """The rows in order: the plain baselines, the best split and the next best ones at other cuts; `best`."""
        rows = [o for kind in ("device", "server", "jpeg") if (o := _first(options, kind)) is not None]
        splits = sorted((o for o in options if o.kind == "split"), key=lambda o: (bool(o.refused), *self._rank(o)))
        cuts = {o.on_edge: o for o in reversed(splits)}
        rows += [o for o in splits if cuts[o.on_edge] is o][: RUNNERS_UP + 1]
        return tuple(rows) if best in rows else (*rows, best)

    def smallest(self, link: Link) -> Option | None:
        """The option with the least memory on the device that keeps to the constraints."""
        allowed = self._scores(link)[1].any(axis=1)
        memory = np.where(allowed, self._candidates.memory, np.inf)
        if not np.isfinite(memory.min(initial=np.inf)):
            return None
        prefix = int(memory.argmin())
        cut, kept = self._candidates.cuts[prefix], self._scores(link)[1][prefix]
        return self._scorer.option(cut, uniform(cut, self.codecs[int(kept.argmax())]), link)

    def relaxed(self, constraints: Constraints, objective: str) -> Planner:
        """A planner for the same device and server with other constraints."""
        profiles = (self.pricing.edge, self.pricing.cloud)
        return Planner(
            self.graph, profiles, objective=objective, constraints=constraints, calibration=self._calibration
        )

    def _least(self, options: Iterable[Option]) -> Option | None:
        """The best of what is allowed; or a simpler kind of option that nobody could tell from it."""
        allowed = [o for o in options if not o.refused]
        if not allowed:
            return None
        least = min(allowed, key=self._rank)
        near = [o for o in allowed if self._alike(o, least)]
        return min(near, key=lambda o: (_SIMPLER[o.kind], *self._rank(o)))

    def _alike(self, option: Option, least: Option) -> bool:
        """Whether `option` is as good as `least`, as far as anybody knows."""
        low, more = value(least, self.objective), value(option, self.objective)
        if more <= low * (1 + ALIKE):
            return True
        if self.objective != "latency" or least.kind != "split" or option.kind == "split":
            return False
        # Two halves have two wake-ups, two caches to fill: a split must show that it gains more than its error bars.
        return more <= low * (1 + DOUBTFUL) and more - low <= margin(least, option, self.objective)

    @property
    def _limited(self) -> bool:
        """Whether a limit may keep the model from being all on the device."""
        limits = self.constraints
        return any(limit is not None for limit in (limits.deadline_ms, limits.max_edge_memory, limits.shared))


def pair(profiles: Profiles) -> tuple[Profile, Profile]:
    """(device's, server's) from a pair or a mapping; UsageError for anything else."""
    try:
        if isinstance(profiles, Mapping):
            return profiles["edge"], profiles["cloud"]
        edge, cloud = profiles
        return edge, cloud
    except (KeyError, ValueError, TypeError):
        raise UsageError("profiles are (the device's, the server's), or {'edge': …, 'cloud': …}") from None


def _nearly(option: Option, other: Option, link: Link) -> bool:
    """Whether `other`, which is as simple or simpler, keeps nothing busy for longer, as far as anybody knows."""
    if _SIMPLER[other.kind] > _SIMPLER[option.kind]:
        return False
    slack = ALIKE * option.total.ms
    return all(a <= b + slack for a, b in zip(_parts(other, link), _parts(option, link), strict=True))


def _parts(option: Option, link: Link) -> tuple[float, float, float]:
    """For how long device, link and server are busy with it."""
    at = option.stages
    network = link.up_ms(option.up_nbytes) + link.down_ms(option.down_nbytes)
    return at["edge"].ms + at["encode"].ms, network, at["server"].ms


def _first(options: Iterable[Option], kind: str) -> Option | None:
    return next((o for o in options if o.kind == kind), None)


def _quality(codec: str) -> int:
    return quality_of(codec) or 0


def _ranked(scores: Floats, count: int) -> list[tuple[int, int]]:
    """(prefix, codec) of the least finite scores, each prefix once, with its best codec."""
    best = scores.argmin(axis=1)
    least = scores[np.arange(len(scores)), best]
    order = np.argsort(least, kind="stable")[:count]
    return [(int(p), int(best[p])) for p in order if np.isfinite(least[p])]


def _mixed(solution: Solution) -> bool:
    return bool(solution.on_edge.any() and not solution.on_edge.all())
