"""A plan for a device and a server that are both there: profile both, measure the link, plan.

>>> with Server([load("zoo:lenet5")], engine=open_engine(), port=0) as server:
...     with Edge(server.address, at="cut:input") as edge:
...         known = survey(edge, open_engine(), budget_s=0.5, cache=tmp)
...         best = known.planner(edge.model.graph).plan(known.link).best
...         cut = edge.switch(*placement(edge.model.graph, best))
>>> cut.nodes == set(best.on_edge)
True
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from splitpoint.calibration.calibrations import Calibration
from splitpoint.callbacks import call
from splitpoint.engines import Engine
from splitpoint.errors import InputError, StorageError
from splitpoint.files import private_folder, read_text, write_atomic
from splitpoint.graph import Cut, Graph
from splitpoint.link import Link
from splitpoint.machine import EMULATED, default_cache, this_machine, versions
from splitpoint.models.input_values import digest
from splitpoint.models.model import Model
from splitpoint.planning.constraints import Constraints, Shared
from splitpoint.planning.planner import Planner
from splitpoint.planning.plans import Option, Plan
from splitpoint.profile.files import load_profile, profile_bytes
from splitpoint.profile.measure import profile_model
from splitpoint.profile.profiles import Profile
from splitpoint.units import counted

#: Told what is being measured, before it begins, and what is known already.
OnStep = Callable[[str], None]


class Reached(Protocol):
    """A server that is reached, with one of its models: what of an `Edge` is used here."""

    @property
    def model(self) -> Model: ...

    @property
    def shared(self) -> Shared | None: ...

    def profile_server(self, budget_s: float = ..., fresh: bool = ...) -> Profile: ...

    def measure_link(self) -> Link: ...


@dataclass(frozen=True)
class Survey:
    """What planning needs to know about a device, a server and the network between them."""

    edge: Profile
    cloud: Profile
    link: Link
    shared: Shared | None = None
    """What the server allows, where that is not every cut."""

    def planner(
        self, graph: Graph, *, constraints: Constraints | None = None, calibration: Calibration | None = None
    ) -> Planner:
        """Plans for this device and server, and any link."""
        if self.shared is not None:
            constraints = msgspec.structs.replace(constraints or Constraints(), shared=self.shared)
        return Planner(graph, (self.edge, self.cloud), constraints=constraints, calibration=calibration)


def survey(
    edge: Reached,
    engine: Engine,
    *,
    budget_s: float,
    link: Link | None = None,
    cache: Path | None = None,
    fresh: bool = False,
    on_step: OnStep = lambda text: None,
) -> Survey:
    """Profiles of `edge`'s model here and on its server (each at most about `budget_s`), and the link between them.

    The device's profile is kept in `cache`, where that can be written, and used again while machine, engine and
    versions are the same and no longer budget could make a better one; the server keeps its own. `fresh` measures anew.
    No weights are fetched for it: stand-ins of the same size take as long. `link` is used instead of a measured one if
    given. Raises ServerError if the server does not profile itself.
    """
    here = profile_here(edge.model, engine, budget_s=budget_s, cache=cache, fresh=fresh, on_step=on_step)
    call(on_step, f"the server profiles {edge.model.name}, at most {budget_s:g} s (unless it has done so before)")
    there = edge.profile_server(budget_s, fresh=fresh)
    if link is None:
        call(on_step, "measuring the link, at most 3 s")
        link = edge.measure_link()
    if edge.shared is not None:
        deepest = edge.shared.cut.name
        call(on_step, f"cuts behind {deepest} are left out: the server shares no more of {edge.model.name}")
    return Survey(here, there, link, edge.shared)


def profile_here(
    model: Model,
    engine: Engine,
    *,
    budget_s: float,
    cache: Path | None = None,
    fresh: bool = False,
    on_step: OnStep = lambda text: None,
) -> Profile:
    """The profile of `model` on this machine: kept by an earlier run, or measured now with stand-in weights, and kept.

    Under `splitpoint lab slow` it is measured anew each time and not kept: it is an emulated machine's.
    """
    note = os.environ.get(EMULATED, "")
    place = _place(model, engine, cache or default_cache(lambda text: call(on_step, text)))
    kept = None
    if not (fresh or note) and os.path.isfile(place):  # not if it is for another user alone
        try:
            kept = _kept(private_folder(place.parent) / place.name, model)
        except StorageError as exc:
            call(on_step, f"a profile of {model.name} that was kept here is not used: {exc}")
    if kept is not None:
        profile, spent_s = kept
        if profile.complete or spent_s >= budget_s:
            cuts = counted(profile.measured, "measured cut")
            call(on_step, f"this machine's profile of {model.name}: {cuts}, of {profile.created[:10]} (kept)")
            return profile
    again = "" if note else " (kept for the next time)"
    call(on_step, f"profiling {model.name} here, at most {budget_s:g} s{again}")
    profile = profile_model(model.with_stand_ins(), engine, budget_s=budget_s, note=note)
    if not note:
        try:
            _keep(place, profile, budget_s)
        except StorageError as exc:
            call(on_step, f"this machine's profile of {model.name} is not kept for the next time: {exc}")
    return profile


def placement(graph: Graph, option: Option) -> tuple[Cut, Mapping[str, str]]:
    """The cut of `option` and the codecs of what crosses there, as `Edge.switch` takes them.

    InputError for nodes that the graph does not have.
    """
    if not all(0 <= k < len(graph.nodes) for k in option.on_edge):
        raise InputError(f"the plan names nodes that {graph.name} does not have")
    by_nodes = graph.cut_of(option.on_edge)
    cut = next((c for c in graph.chain() if c.nodes == by_nodes.nodes), by_nodes)
    return cut, {t.name: t.codec for t in option.crossing if t.codec != "raw"}


def worth_running(plan: Plan) -> Sequence[Option]:
    """The options worth running, seven at most, the planned one first. JPEG is run also where its accuracy is not
    known: running it says what it would save."""
    others = [o for o in plan.options if o != plan.best and (not o.refused or o.kind == "jpeg")]
    return [plan.best, *others][:7]


# --- profiles that are kept -------------------------------------------------------------------------------------------


def _place(model: Model, engine: Engine, cache: Path) -> Path:
    values = digest(model.values)
    name = f"{model.fingerprint[:16]}-{values}" if values else model.fingerprint[:16]
    return cache / "profiles" / f"{name}-{engine.name}-{engine.device}-{engine.threads}.profile.json"


def _kept(place: Path, model: Model) -> tuple[Profile, float] | None:
    """The profile that an earlier run kept and its budget, if it still describes this machine."""
    try:
        profile = load_profile(place)
        spent_s = float(read_text(_budget(place), 64, "a number of seconds"))
    except (InputError, OSError, ValueError):  # none, of another version, or half a file: measured anew
        return None
    ours = (model.fingerprint, this_machine(), versions())
    return (profile, spent_s) if (profile.fingerprint, profile.machine, profile.versions) == ours else None


def _keep(place: Path, profile: Profile, budget_s: float) -> None:
    private_folder(place.parent)
    try:
        _budget(place).unlink(missing_ok=True)
    except OSError as exc:
        raise StorageError(f"{place} cannot be written: {exc.strerror or exc}") from exc
    write_atomic(place, profile_bytes(profile))
    write_atomic(_budget(place), f"{budget_s:g}\n".encode())


def _budget(place: Path) -> Path:
    """Where the seconds are written that a kept profile was allowed."""
    return place.with_suffix(".budget")
