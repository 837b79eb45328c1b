"""What networks really take on this machine, to judge predictions by: kept in a folder, and gone on with.

A folder has `NAME.graph` (the network without its weights: nothing has to be exported again), `NAME.profile.json` and
`wholes.json`. It may be made when it is quiet and judged by another day, or elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

from splitpoint.callbacks import call
from splitpoint.documents import Documents
from splitpoint.engines import Engine
from splitpoint.errors import InputError
from splitpoint.files import make_folder, read_file, write_atomic
from splitpoint.machine import Machine, this_machine, versions
from splitpoint.models.model import Model, build
from splitpoint.models.reading import parse_skeleton
from splitpoint.models.weights import StandIn
from splitpoint.predict.calibrate.collection import RunMs
from splitpoint.predict.calibrate.reference import REFERENCE_S, network, require, visit
from splitpoint.predict.learn.latency_model import Reference
from splitpoint.profile.files import load_profile, save_profile
from splitpoint.profile.measure import profile_model
from splitpoint.profile.profiles import Profile, Stat
from splitpoint.trace import Clock

FORMAT = 1
#: Visits to each whole network, one network after the other, so that what drifts meets all alike.
VISITS = 6
#: Of a budget, what visits to wholes may take.
WHOLES_SHARE = 0.5
#: Of a graph without weights.
_MOST_GRAPH = 256 << 20
_Visit = Annotated[list[RunMs], Meta(min_length=1)]


class Wholes(msgspec.Struct, kw_only=True):
    """`wholes.json`: milliseconds of every run of every visit, by network, and what measured them; `references` are of
    the networks that tell how fast the machine was meanwhile, by round.
    """

    format: int = FORMAT
    engine: str
    device: str
    threads: int
    machine: Machine
    versions: dict[str, str]
    visits: dict[str, list[_Visit]]
    references: dict[str, list[_Visit]] = {}


_WHOLES = Documents(
    what="a file of networks' times", holds=Wholes, format=FORMAT, made_by="splitpoint predict evaluate --data",
    most_bytes=16 << 20,  # the times of some hundred visits
    marks=("visits",),
)  # fmt: skip


@dataclass
class Truth:
    """Networks and what they take: `models` by name, visits to each whole, a profile each where there is one."""

    models: dict[str, Model]
    wholes: Wholes
    profiles: dict[str, Profile] = field(default_factory=dict)

    def whole(self, name: str, slowdowns: Sequence[float] = ()) -> Stat | None:
        """How long the whole network takes: the median of its visits, and between which its runs lie; None before there
        was one. (Not the quickest visit, as in a profile: one may be much quicker than all others.)

        With `slowdowns` (`ReferenceSpeed.rounds`) each visit counts as if the machine had been so many times faster
        in its round; visits of rounds that have none are left out.
        """
        visits = self.wholes.visits.get(name, [])
        if slowdowns:
            visits = [[ms / s for ms in taken] for taken, s in zip(visits, slowdowns, strict=False)]
        if not visits:
            return None
        middle = float(np.median([np.median(taken) for taken in visits]))
        low, high = np.percentile([ms for taken in visits for ms in taken], (10, 90))
        return Stat(middle, min(float(low), middle), max(float(high), middle), sum(map(len, visits)))

    def missing(self) -> bool:
        """Whether a network was never measured, or has no profile."""
        return any(not self.wholes.visits.get(n) or n not in self.profiles for n in self.models)


def begin(engine: Engine, models: Mapping[str, Model]) -> Truth:
    """Nothing is known yet of what `models` take with `engine` here."""
    wholes = Wholes(
        engine=engine.name, device=engine.device, threads=engine.threads, machine=this_machine(), versions=versions(),
        visits={},
    )  # fmt: skip
    return Truth(dict(models), wholes)


def measure(
    truth: Truth,
    engine: Engine,
    budget_s: float,
    *,
    references: Sequence[Reference] = (),
    folder: Path | None = None,
    on_step: Callable[[str, int, int], None] = lambda what, done, total: None,
    clock: Clock = time.perf_counter,
    pause: Callable[[float], None] = time.sleep,
    profiler: Callable[..., Profile] = profile_model,
) -> None:
    """Adds what `truth` lacks, in about `budget_s`: visits to wholes in rounds, and between them profiles.

    A machine's speed drifts within minutes: rounds at the beginning, between profiles and at the end meet all of it.
    So do `references`, which are visited between the wholes. Each is written to `folder` when it is there, so that
    what was interrupted goes on; then without references, for they say nothing of the speed of another time.
    InputError for references that this version does not draw.
    """
    end, wholes_s = clock() + budget_s, WHOLES_SHARE * budget_s
    light = {name: model.with_stand_ins() for name, model in truth.models.items()}
    todo = [name for name in light if name not in truth.profiles]
    done, visits = 0, truth.wholes.visits
    if visits and any(len(visits.get(n, ())) < VISITS for n in light):
        truth.wholes.references, references = {}, ()
    require(references)
    for k in range(VISITS):
        began = clock()
        wholes = [name for name in light if len(visits.get(name, ())) <= k and (k == 0 or wholes_s > 0)]
        for j, name in enumerate(wholes):
            call(on_step, f"{name}, whole", sum(len(visits.get(n, ())) for n in light), VISITS * len(light))
            visits.setdefault(name, []).append(visit(light[name], engine, clock, pause))
            for reference in references[j :: len(wholes)]:
                taken = visit(network(reference), engine, clock, pause, REFERENCE_S)
                truth.wholes.references.setdefault(reference.name, []).append(taken)
            if folder is not None:
                _WHOLES.save(folder / "wholes.json", truth.wholes)
        round_s = clock() - began
        wholes_s -= round_s
        # What the rounds to come will take, if there is time for them.
        kept_s = min(max(0.0, wholes_s), (VISITS - 1 - k) * round_s)
        upto = -(-len(todo) * (k + 1) // (VISITS - 1))
        for name in todo[done:upto]:
            call(on_step, f"{name}, its cuts", done, len(todo))
            left_s = max((end - kept_s - clock()) / (len(todo) - done), 1.0)
            truth.profiles[name] = profiler(light[name], engine, budget_s=left_s)
            done += 1
            if folder is not None:
                save_profile(folder / f"{name}.profile.json", truth.profiles[name])


def keep(model: Model, name: str, folder: Path) -> None:
    """Writes the graph of `model`, so that it need not be exported again. StorageError if it cannot."""
    make_folder(folder)
    write_atomic(folder / f"{name}.graph", model.graph_bytes())


def kept(folder: Path, name: str) -> Model | None:
    """The network of that name as an earlier run kept it, without its weights; None if it did not."""
    path = folder / f"{name}.graph"
    if not path.is_file():
        return None
    skeleton = parse_skeleton(read_file(path, _MOST_GRAPH, "a graph", "splitpoint predict evaluate --data"))
    return build(skeleton, StandIn(skeleton), name)


def names(folder: Path) -> Sequence[str]:
    """The networks that are kept in `folder`."""
    return sorted(path.stem for path in folder.glob("*.graph"))


def load(folder: Path, models: Mapping[str, Model]) -> Truth | None:
    """What an earlier run measured of `models`; None if nothing. InputError for what makes no sense."""
    path = folder / "wholes.json"
    if not path.is_file():
        return None
    # It has visits to other networks as well: the file is written anew.
    truth = Truth(dict(models), msgspec.structs.replace(_WHOLES.load(path), versions=versions()))
    for name, model in models.items():
        place = folder / f"{name}.profile.json"
        if place.is_file():
            profile = load_profile(place)
            profile.require(model.fingerprint, name)
            for what in ("engine", "device", "threads"):
                if (ours := getattr(truth.wholes, what)) != (theirs := getattr(profile, what)):
                    raise InputError(
                        f"{place} was measured with {what} {theirs}, the wholes beside it with {ours}: "
                        "use another folder for each"
                    )
            truth.profiles[name] = profile
    return truth
