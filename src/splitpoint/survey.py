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
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import msgspec

from splitpoint.calibration.calibrations import Calibration
from splitpoint.callbacks import call
from splitpoint.codecs import CODECS, usual_name
from splitpoint.engines import Engine
from splitpoint.errors import InputError, StorageError
from splitpoint.files import private_folder, read_text, write_atomic
from splitpoint.graph import Cut, Graph
from splitpoint.link import Link
from splitpoint.machine import EMULATED, default_cache, now, this_machine, versions
from splitpoint.models.input_values import digest
from splitpoint.models.model import Model
from splitpoint.planning.constraints import Constraints, Shared
from splitpoint.planning.planner import Planner
from splitpoint.planning.plans import Option, Plan
from splitpoint.profile.files import load_profile, profile_bytes
from splitpoint.profile.kernel_times import typical_ms
from splitpoint.profile.measure import profile_model
from splitpoint.profile.profiles import CodecCost, Profile, Stat
from splitpoint.profile.spare import Spare
from splitpoint.units import counted

#: Kept profiles of other models that are looked at, which takes some milliseconds each.
_LATEST = 3
#: What takes less is not announced.
_AT_ONCE_S = 0.5
#: Told what is being measured, before it begins, and what is known already.
OnStep = Callable[[str], None]


class Reached(Protocol):
    """A server that is reached, with one of its models: what of an `Edge` is used here."""

    @property
    def model(self) -> Model: ...

    @property
    def shared(self) -> Shared | None: ...

    def profile_server(self, budget_s: float = ..., fresh: bool = ..., *, within_s: float | None = ...) -> Profile: ...

    def measure_link(self, budget_s: float = ..., *, software: bool = ...) -> Link: ...


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
    with _announced(on_step, f"the server profiles {edge.model.name}, at most {budget_s:g} s"):
        there = edge.profile_server(budget_s, fresh=fresh)
    if link is None:
        call(on_step, "measuring the link, at most 3 s")
        link = edge.measure_link()
    if edge.shared is not None:
        deepest = edge.shared.cut.name
        call(on_step, f"cuts behind {deepest} are left out: the server shares no more of {edge.model.name}")
    return Survey(here, there, link, edge.shared)


@contextmanager
def _announced(on_step: OnStep, text: str) -> Iterator[None]:
    """Says what is done inside, unless it is done at once: what a server has kept is no work."""
    timer = threading.Timer(_AT_ONCE_S, call, (on_step, text))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def profile_here(
    model: Model,
    engine: Engine,
    *,
    budget_s: float,
    cache: Path | None = None,
    fresh: bool = False,
    on_step: OnStep = lambda text: None,
    beside: Spare | None = None,
) -> Profile:
    """The profile of `model` on this machine: kept by an earlier run, or measured now with stand-in weights, and kept.

    With `beside` it is measured with what requests leave; if that ends early, what is measured by then is kept (Enough
    if that is nothing). Under `splitpoint lab slow` it is measured anew each time and not kept: it is an emulated
    machine's.
    """
    note = os.environ.get(EMULATED, "")
    place = _place(model, engine, cache or default_cache(lambda text: call(on_step, text)))
    profile, spent_s = (None, 0.0) if fresh else _kept_here(place, model, on_step)
    if profile is not None and (profile.complete or spent_s >= budget_s):
        cuts = counted(profile.measured, "measured cut")
        call(on_step, f"this machine's profile of {model.name}: {cuts}, of {profile.created[:10]} (kept)")
        return profile
    more: dict[str, Any] = {}
    if beside is not None:
        more = {"clock": beside.clock, "proceed": beside.proceed, "pause": beside.pause}
    else:
        again = "" if note else " (kept for the next time)"
        call(on_step, f"profiling {model.name} here, at most {budget_s:g} s{again}")
    clock = more.get("clock", perf_counter)
    began_s, before, before_s = clock(), profile, spent_s
    profile = profile_model(model.with_stand_ins(), engine, budget_s=budget_s, note=note, **more)
    spent_s = min(budget_s, clock() - began_s) if beside is not None and beside.over else budget_s
    if before is not None and spent_s < before_s:  # it was ended early, and an earlier run had longer
        return before
    if not note:
        try:
            _keep(place, profile, spent_s)
        except StorageError as exc:
            call(on_step, f"this machine's profile of {model.name} is not kept for the next time: {exc}")
    return profile


@dataclass(frozen=True)
class Basis:
    """What is believed of one side before it was profiled, and why; `sure`: it was, for as long as it may be."""

    profile: Profile
    why: str
    sure: bool = False


def known_here(model: Model, engine: Engine, *, budget_s: float, cache: Path | None, on_step: OnStep) -> Basis:
    """What is known of this machine without measuring: the profile of `model` that an earlier run kept; else what its
    FLOPs would take at the speed of another model of which one was kept; else at that of a core like many."""
    place = _place(model, engine, cache or default_cache(lambda text: call(on_step, text)))
    profile, spent_s = _kept_here(place, model, on_step)
    if profile is not None:
        sure = profile.complete or spent_s >= budget_s
        return Basis(profile, f"this machine as profiled on {profile.created[:10]}", sure)
    if (other := _kept_of_another(place.parent, _of(engine))) is not None:
        usual_ms = max(float(typical_ms(other.graph).sum()), 1e-9)
        why = f"this machine by the model's FLOPs, as fast as for {other.graph.name}"
        return Basis(by_flops(model, engine, other.whole.median / usual_ms), why)
    return Basis(by_flops(model, engine), "this machine by the model's FLOPs")


def by_flops(model: Model, engine: Engine, slowdown: float = 1.0) -> Profile:
    """A guess of what `model` takes on a machine that was never measured with it: `slowdown` times what a core like
    many takes for its FLOPs and bytes, and codecs as on the machine that those were tried on."""
    nodes = slowdown * typical_ms(model.graph)
    whole = float(nodes.sum())
    return Profile(
        fingerprint=model.fingerprint, graph=model.graph, engine=engine.name, device=engine.device,
        threads=engine.threads, machine=this_machine(), versions=versions(), created=now(), complete=False,
        whole=Stat(whole, whole, whole, 0), segments=(), nodes=tuple(nodes.tolist()),
        codecs={usual_name(kind): CodecCost(*entry.cost) for kind, entry in CODECS.items()}, note="by its FLOPs",
    )  # fmt: skip


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


def _kept_here(place: Path, model: Model, on_step: OnStep) -> tuple[Profile | None, float]:
    """What an earlier run kept of `model` at `place`, and its budget; None under emulation."""
    if os.environ.get(EMULATED) or not os.path.isfile(place):  # not if it is for another user alone
        return None, 0.0
    try:
        return _kept(private_folder(place.parent) / place.name, model) or (None, 0.0)
    except StorageError as exc:
        call(on_step, f"a profile of {model.name} that was kept here is not used: {exc}")
        return None, 0.0


def _kept_of_another(folder: Path, ending: str) -> Profile | None:
    """The latest profile that was kept in `folder` with this ending and is of this machine as it is."""
    if os.environ.get(EMULATED) or not os.path.isdir(folder):
        return None
    try:
        files = private_folder(folder).glob(f"*{ending}")
        latest = sorted(files, key=os.path.getmtime, reverse=True)
    except (StorageError, OSError):  # another user's, or cleared away meanwhile
        return None
    return next((kept[0] for file in latest[:_LATEST] if (kept := _kept(file, None)) is not None), None)


def _place(model: Model, engine: Engine, cache: Path) -> Path:
    values = digest(model.values)
    name = f"{model.fingerprint[:16]}-{values}" if values else model.fingerprint[:16]
    return cache / "profiles" / f"{name}{_of(engine)}"


def _of(engine: Engine) -> str:
    """How the names of kept profiles end that are of this engine."""
    return f"-{engine.name}-{engine.device}-{engine.threads}.profile.json"


def _kept(place: Path, model: Model | None) -> tuple[Profile, float] | None:
    """The profile (of `model`; None: any) that an earlier run kept and its budget, if it still describes this
    machine."""
    try:
        profile = load_profile(place)
        spent_s = float(read_text(_budget(place), 64, "a number of seconds"))
    except (InputError, OSError, ValueError):  # none, of another version, or half a file: measured anew
        return None
    ours = (model.fingerprint if model is not None else profile.fingerprint, this_machine(), versions())
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
