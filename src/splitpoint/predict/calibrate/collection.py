"""What was measured on one device so far, as a value and as a file that measuring goes on with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from splitpoint.documents import Documents, Milliseconds
from splitpoint.engines import Engine
from splitpoint.errors import InputError
from splitpoint.machine import Machine, now, this_machine, versions
from splitpoint.predict.calibrate.random_networks import FAMILIES, random_network
from splitpoint.predict.calibrate.reference import network
from splitpoint.predict.kernels.kernel_kinds import KINDS
from splitpoint.predict.kernels.kernel_table import Table
from splitpoint.predict.learn.latency_model import Latency, Reference
from splitpoint.predict.price.prediction import predict_latency
from splitpoint.profile.profiles import Stat
from splitpoint.units import counted

FORMAT = 1
#: A visit that is so much slower than the best one was disturbed.
_DISTURBED = 1.15
#: No kernel takes less (ms): what an engine leaves out entirely has a row as well.
_LEAST_MS = 5e-4
#: Reference networks: so many, not the lightest and heaviest, of families that are like real networks.
_REFERENCES, _MOST_REFERENCE_MB = 24, 48.0
#: Of so many of them that were measured four in five lie in their ranges, or something is wrong.
_TELLING, _HOLDS = 5, 0.8
_NO_REFERENCE = frozenset({"odd", "mlp", "lenet", "text"})
_Seed = Annotated[int, Meta(ge=0, le=1 << 31)]
_Size = Annotated[float, Meta(ge=-1, le=1e18)]
RunMs = Annotated[float, Meta(gt=0, le=86_400_000)]


class NetworkVisit(msgspec.Struct, frozen=True):
    """One time that a strip was compiled and timed: ms of its runs, and of each of its kernels."""

    whole: Annotated[tuple[RunMs, ...], Meta(min_length=1)]
    kernels: tuple[Milliseconds, ...]


class MeasuredNetwork(msgspec.Struct, frozen=True):
    """A strip and its visits; `seed`, `family` and `work` make it again, `rows` has the columns of each kernel."""

    seed: _Seed
    family: str
    work: Annotated[float, Meta(gt=0, le=1e18)]
    weights_mb: Annotated[float, Meta(ge=0, le=1e18)]
    rows: Annotated[tuple[tuple[str, tuple[_Size, ...]], ...], Meta(min_length=1)]
    visits: Annotated[tuple[NetworkVisit, ...], Meta(min_length=1)]
    spent_s: Milliseconds

    @property
    def whole_ms(self) -> float:
        """Time of the whole network, with pauses as between requests: the median over undisturbed visits."""
        return float(
            np.median(
                [
                    ms
                    for v in _undisturbed(self.visits, [float(np.median(v.whole)) for v in self.visits])
                    for ms in v.whole
                ]
            )
        )

    def reference(self) -> Reference:
        """What it takes to measure it again another day, and to compare."""
        model = random_network(self.seed, self.family, self.work)
        flops = sum(node.flops for node in model.graph.nodes)
        return Reference(family=self.family, seed=self.seed, work=self.work, flops=flops, ms=self.whole_ms)

    def kernels_ms(self) -> NDArray[np.float64]:
        """Time of each kernel: the median over undisturbed visits."""
        kept = _undisturbed(self.visits, [sum(v.kernels) for v in self.visits])
        times: NDArray[np.float64] = np.median([v.kernels for v in kept], axis=0)
        return np.maximum(times, _LEAST_MS)


def _undisturbed(visits: Sequence[NetworkVisit], taken: Sequence[float]) -> list[NetworkVisit]:
    """The visits that are not much slower than the fastest; `taken` is what each took."""
    return [v for v, ms in zip(visits, taken, strict=True) if ms <= min(taken) * _DISTURBED]


class Collection(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured on one device so far; a file of it is gone on with where it stops."""

    format: int = FORMAT
    engine: str
    device: str
    threads: int
    machine: Machine
    versions: dict[str, str]
    created: str
    seed: _Seed
    columns: dict[str, tuple[str, ...]]
    spent_s: Milliseconds = 0.0
    strips: tuple[MeasuredNetwork, ...] = ()

    @property
    def rows(self) -> int:
        """Kernels measured."""
        return sum(len(s.rows) for s in self.strips)

    def left_s(self, budget_s: float) -> float:
        """Seconds of a budget that are left, less what nine of ten strips take: 0 or less where it is used up."""
        usual = float(np.quantile([s.spent_s / len(s.visits) for s in self.strips], 0.9)) if self.strips else 0.0
        return budget_s - self.spent_s - usual

    def tables(self) -> dict[str, Table]:
        """The rows of each kind, with the number of the strip that each comes from."""
        parts: dict[str, tuple[list[tuple[float, ...]], list[float], list[int]]] = {}
        for number, measured in enumerate(self.strips):
            for (kind, values), ms in zip(measured.rows, measured.kernels_ms().tolist(), strict=True):
                rows, latency, origin = parts.setdefault(kind, ([], [], []))
                rows.append(values)
                latency.append(ms)
                origin.append(number)
        return {
            kind: Table(
                kind,
                dict(zip(self.columns[kind], np.array(rows).T, strict=True)),
                np.array(latency),
                np.array(origin, np.int64),
            )
            for kind, (rows, latency, origin) in parts.items()
            if kind != "other"
        }

    def require(self, engine: Engine, seed: int) -> None:
        """InputError unless it was measured here, with this engine and these threads, and begun with this seed."""
        here = this_machine()
        for what, had, has in (
            ("engine", self.engine, engine.name), ("device", self.device, engine.device),
            ("number of threads", self.threads, engine.threads), ("processor", self.machine.processor, here.processor),
            ("seed", self.seed, seed),
        ):  # fmt: skip
            if had != has:
                raise InputError(
                    f"the measurements that are there were taken with another {what}: {had}, not {has}; "
                    "write to another file, or remove them to begin anew"
                )

    def references(self) -> tuple[Reference, ...]:
        """Some networks, spread over all the time that was measured, to tell another day's speed by; what each took."""
        if not self.strips:
            return ()
        low, high = np.quantile([s.whole_ms for s in self.strips], (0.1, 0.95)).tolist()
        fit = [
            s
            for s in self.strips
            if s.family not in _NO_REFERENCE
            and s.weights_mb <= _MOST_REFERENCE_MB
            and low <= s.whole_ms <= high
            and len(s.visits) == 1  # nothing was strange with it
        ]
        places = np.unique(np.linspace(0, len(fit) - 1, min(len(fit), _REFERENCES)).round().astype(int)).tolist()
        return tuple(fit[k].reference() for k in places)

    def learned(self, *, name: str = "", note: str = "") -> Latency:
        """The latency model learned from it. MissingExtraError without scikit-learn, InputError if nothing is in it."""
        from splitpoint.predict.learn.training import train

        latency = train(
            self.tables(), name=name or self.machine.processor, engine=self.engine, device=self.device,
            threads=self.threads, created=self.created, machine=self.machine, versions=self.versions, note=note,
            totals={number: s.whole_ms for number, s in enumerate(self.strips)}, seed=self.seed,
        )  # fmt: skip
        # What is learned of all of them is nearer to how fast the device was than the one time each was measured.
        priced = [(r, predict_latency(network(r), latency).whole) for r in self.references()]
        reference = tuple(msgspec.structs.replace(r, ms=p.median) for r, p in priced)
        return msgspec.structs.replace(_contradicted(latency, [(r.ms, p) for r, p in priced]), reference=reference)


def _contradicted(latency: Latency, priced: Sequence[tuple[float, Stat]]) -> Latency:
    """`latency` as it is where the networks of `priced` (ms measured, what it says) lie in their ranges four times in
    five; otherwise with a spread that holds them, and it says so.
    """
    off = np.abs([np.log(ms / said.median) for ms, said in priced])
    if len(off) < _TELLING or np.mean([said.p10 <= ms <= said.p90 for ms, said in priced]) >= _HOLDS:
        return latency
    spread = float(np.quantile(off, _HOLDS, method="higher"))
    return msgspec.structs.replace(
        latency, spread=min(max(latency.spread, spread), 10.0), contradicted=float(np.exp(spread))
    )


def started(engine: Engine, seed: int = 0) -> Collection:
    """A collection with nothing in it yet, for this device."""
    return Collection(
        engine=engine.name, device=engine.device, threads=engine.threads, machine=this_machine(), versions=versions(),
        created=now(), seed=seed,
        columns={kind.name: kind.columns for kind in KINDS.values()},
    )  # fmt: skip


def _check(collection: Collection) -> None:
    """ValueError if another version measured it, or its rows and visits do not fit together."""
    if collection.columns != {k.name: k.columns for k in KINDS.values()}:
        raise ValueError("another version of splitpoint measured it")
    for k, one in enumerate(collection.strips):
        at = f"- at `$.strips[{k}]`"
        if one.family not in FAMILIES:
            raise ValueError(f"a random network of no family: {one.family[:40]!r} {at}")
        for kind, values in one.rows:
            if len(values) != len(collection.columns.get(kind, ())):
                raise ValueError(f"a row of {kind[:40]} with {counted(len(values), 'column')} {at}")
        for visit in one.visits:
            if len(visit.kernels) != len(one.rows):
                raise ValueError(f"a visit with {counted(len(visit.kernels), 'kernel')} {at}")


_COLLECTIONS = Documents(
    what="a calibration under way", holds=Collection, format=FORMAT, made_by="splitpoint calibrate-kernels -o",
    most_bytes=256 << 20,  # an hour of a fast machine has 20 MB
    check=_check, write=lambda collection: msgspec.json.encode(collection) + b"\n",
)  # fmt: skip
save_collection = _COLLECTIONS.save


def load_collection(path: Path) -> Collection:
    """The collection in `path`. InputError names the file and what is wrong in it."""
    try:
        return _COLLECTIONS.load(path)
    except InputError as exc:
        raise InputError(f"{exc} (remove it to begin anew)") from exc
