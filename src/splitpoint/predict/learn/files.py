"""Latency files ↔ JSON. What comes from a file is looked at before anything trusts it: numbers only, no code."""

from __future__ import annotations

from pathlib import Path

import msgspec

from splitpoint.documents import Documents
from splitpoint.errors import InputError, nearest
from splitpoint.predict.kernels.kernel_kinds import KINDS
from splitpoint.predict.learn.features import feature_names, term_names
from splitpoint.predict.learn.latency_model import FORMAT, SEED, TWO_PER_MAC, KindModel, Latency

#: The shipped ones: trained on what the Neurosurgeon replica published, so they describe its two machines.
SHIPPED = ("neurosurgeon-edge", "neurosurgeon-cloud")
_FOLDER = Path(__file__).parent / "shipped"


def load_latency(name: Path | str) -> Latency:
    """The latency file at this path, or the shipped one of this name. InputError names the file and what is wrong."""
    path = Path(name)
    if str(name) in SHIPPED and not path.exists():
        path = _FOLDER / f"{name}.latency.json"
    elif not path.exists():
        raise InputError(
            f"there is no latency file {name}{nearest(str(name), SHIPPED)}: splitpoint calibrate-kernels writes one, "
            f"and {' and '.join(SHIPPED)} come with splitpoint"
        )
    return LATENCIES.load(path)


def latency_bytes(latency: Latency) -> bytes:
    """`latency` as readable JSON: a line for each list of numbers."""
    return (_lines(msgspec.to_builtins(latency), 0) + "\n").encode()


def _lines(value: object, depth: int) -> str:
    """JSON in which objects have a line for each member, and lists are on one."""
    if not isinstance(value, dict) or not value:
        return msgspec.json.encode(value).decode()
    pad = " " * (depth + 1)
    members = (f"{pad}{msgspec.json.encode(str(k)).decode()}: {_lines(v, depth + 1)}" for k, v in value.items())
    return "{\n" + ",\n".join(members) + "\n" + " " * depth + "}"


def _check(latency: Latency) -> None:
    """ValueError for what no single field can say."""
    if latency.convention not in (SEED, TWO_PER_MAC):
        raise ValueError(f"it counts FLOPs in an unknown way: {latency.convention[:80]!r} - at `$.convention`")
    if len({r.name for r in latency.reference}) < len(latency.reference):
        raise ValueError("a reference network is there twice - at `$.reference`")
    for kind, model in latency.kinds.items():
        if kind not in KINDS:
            raise ValueError(f"it has a kind that is none{nearest(kind[:80], KINDS)}: {kind[:80]!r} - at `$.kinds`")
        try:
            _check_kind(kind, model)
        except ValueError as exc:
            raise ValueError(f"{exc} - at `$.kinds.{kind}`") from exc


def _check_kind(kind: str, model: KindModel) -> None:
    known, terms = feature_names(kind), term_names(kind)
    unknown = [f for f in model.features if f not in known]
    unknown += [t for base in model.base.values() for t in base if t not in terms]
    if unknown:
        raise ValueError(f"it asks for {unknown[0][:80]!r}, which this version does not know")
    if "" not in model.base or not {"1"} <= set(model.linear) <= {"1", *KINDS[kind].columns}:
        raise ValueError("it has no base, or a linear model of other columns")
    if len(model.ranges) != len(model.features):
        raise ValueError(f"{len(model.ranges)} ranges for {len(model.features)} features")
    for least, most in model.ranges:
        if least > most:
            raise ValueError(f"a range in it ends before it begins: {least:g}…{most:g}")
    model.forest.check(len(model.features))
    model.width.check(len(model.features))


LATENCIES = Documents(
    what="a latency file", holds=Latency, format=FORMAT, made_by="splitpoint calibrate-kernels -o",
    most_bytes=128 << 20,  # a file trained on 20,000 rows has 3 MB
    marks=("kinds", "roofline"), check=_check, write=latency_bytes,
)  # fmt: skip
save_latency, parse_latency = LATENCIES.save, LATENCIES.parse
