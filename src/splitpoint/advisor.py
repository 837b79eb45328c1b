"""A plan for a device and a server that are both there: profile both, measure the link, plan.

>>> with Server([load("zoo:lenet5")], engine=open_engine(), port=0) as server:
...     with Edge(server.address, at="input") as edge:
...         known = survey(edge, open_engine(), budget_s=0.5, cache=tmp)
...         best = known.planner(edge.model.graph).plan(known.link).best
...         cut = edge.switch(*placement(edge.model.graph, best))
>>> cut.nodes == set(best.on_edge)
True
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from splitpoint.calibration.values import Calibration
from splitpoint.engines import Engine
from splitpoint.errors import InputError, StorageError
from splitpoint.files import write_atomic
from splitpoint.graph import Cut, Graph
from splitpoint.link import Link
from splitpoint.machine import default_cache, this_machine, versions
from splitpoint.models.model import Model
from splitpoint.planning.constraints import Constraints
from splitpoint.planning.plan import Planner
from splitpoint.planning.values import Option, Plan
from splitpoint.profile.files import load_profile, profile_bytes
from splitpoint.profile.measure import profile_model
from splitpoint.profile.values import Profile
from splitpoint.runtime.edge import Edge

#: Told what is being measured, before it begins.
OnStep = Callable[[str], None]


@dataclass(frozen=True)
class Survey:
    """What planning needs to know about a device, a server and the network between them."""

    edge: Profile
    cloud: Profile
    link: Link

    def planner(
        self,
        graph: Graph,
        *,
        objective: str = "latency",
        constraints: Constraints | None = None,
        calibration: Calibration | None = None,
    ) -> Planner:
        """Plans for this device and server, and any link."""
        profiles = (self.edge, self.cloud)
        return Planner(
            graph, profiles, objective=objective, constraints=constraints or Constraints(), calibration=calibration
        )


def survey(
    edge: Edge,
    engine: Engine,
    *,
    budget_s: float,
    link: Link | None = None,
    cache: Path | None = None,
    fresh: bool = False,
    on_step: OnStep = lambda text: None,
) -> Survey:
    """Profiles of `edge`'s model here and on its server (each at most about `budget_s`), and the link between them.

    The device's profile is kept in `cache` and used again while machine, engine and versions are the same; the server
    keeps its own. `fresh` measures anew here. No weights are fetched for it: stand-ins of the same size take as long.
    `link` is used instead of a measured one if given. Raises ServerError if the server does not profile itself.
    """
    model = edge.model
    here = None if fresh else _kept(model, engine, cache)
    if here is None:
        on_step(f"profiling {model.name} here, at most {budget_s:g} s (kept for the next time)")
        here = profile_model(model.with_stand_ins(), engine, budget_s=budget_s)
        _keep(here, cache)
    on_step(f"the server profiles {model.name}, at most {budget_s:g} s (unless it has done so before)")
    there = edge.profile_server(budget_s)
    if link is None:
        on_step("measuring the link, at most 3 s")
        link = edge.measure_link()
    return Survey(here, there, link)


def placement(graph: Graph, option: Option) -> tuple[Cut, Mapping[str, str]]:
    """The cut of `option` and the codecs of what crosses there, as `Edge.switch` takes them."""
    by_nodes = graph.cut_of(option.on_edge)
    cut = next((c for c in graph.chain() if c.nodes == by_nodes.nodes), by_nodes)
    return cut, {t.name: t.codec for t in option.crossing if t.codec != "raw"}


def _place(model: Model, engine: Engine, cache: Path | None) -> Path:
    folder = (cache or default_cache()) / "profiles"
    return folder / f"{model.fingerprint[:16]}-{engine.name}-{engine.device}-{engine.threads}.profile.json"


def _kept(model: Model, engine: Engine, cache: Path | None) -> Profile | None:
    """The profile that an earlier run kept, if it still describes this machine."""
    path = _place(model, engine, cache)
    if not path.exists():
        return None
    try:
        found = load_profile(path)
    except InputError:  # of another version, or half a file: measured anew
        return None
    same = found.fingerprint == model.fingerprint and found.machine == this_machine() and found.versions == versions()
    return found if same else None


def _keep(profile: Profile, cache: Path | None) -> None:
    folder = (cache or default_cache()) / "profiles"
    name = f"{profile.fingerprint[:16]}-{profile.engine}-{profile.device}-{profile.threads}.profile.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise StorageError(f"{folder} cannot be written: {exc.strerror or exc}") from exc
    write_atomic(folder / name, profile_bytes(profile))


def rows(plan: Plan, most: int = 6) -> Sequence[Option]:
    """The options worth running: every allowed one of the table, `most` at the most, the best first."""
    allowed = [o for o in plan.options if not o.refused]
    return [plan.best, *(o for o in allowed if o != plan.best)][:most]
