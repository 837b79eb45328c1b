"""Latency files ↔ JSON. What comes from a file is looked at before anything trusts it: numbers only, no code."""

from __future__ import annotations

from itertools import chain
from math import isfinite
from pathlib import Path

import msgspec

from splitpoint.errors import InputError, nearest
from splitpoint.files import check_writable, read_file, write_atomic
from splitpoint.parsing import MalformedError, parse_json
from splitpoint.predict.kernels.kernel_kinds import KINDS
from splitpoint.predict.learn.features import feature_names, term_names
from splitpoint.predict.learn.latency_model import FORMAT, SEED, TWO_PER_MAC, KindModel, Latency, Reference
from splitpoint.text import HIDDEN

#: The shipped ones: trained on what the Neurosurgeon replica published, so they describe its two machines.
SHIPPED = ("neurosurgeon-edge", "neurosurgeon-cloud")
_FOLDER = Path(__file__).parent / "shipped"
#: A file trained on 20,000 rows has 3 MB.
MOST_BYTES = 128 << 20
_MOST_TEXT, _MOST_THREADS, _MOST_ROWS, _MOST_REFERENCES = 500, 1 << 10, 1 << 40, 256
#: Milliseconds of anything: a day.
_MOST_MS = 86_400_000.0


def save_latency(path: Path | str, latency: Latency) -> None:
    """Write `latency` to `path`, whole or not at all. StorageError says why not."""
    path = Path(path)
    check_writable(path)
    write_atomic(path, latency_bytes(latency))


def load_latency(name: Path | str) -> Latency:
    """The latency file at this path, or the shipped one of this name. InputError names the file and what is wrong."""
    path = Path(name)
    if str(name) in SHIPPED and not path.exists():
        path = _FOLDER / f"{name}.latency.json"
    elif not path.exists():
        raise InputError(
            f"there is no latency file {name}{nearest(str(name), SHIPPED)}: splitpoint calibrate-device writes one, "
            f"and {' and '.join(SHIPPED)} come with splitpoint"
        )
    return parse_latency(read_file(path, MOST_BYTES, "a latency file", "splitpoint calibrate-device -o"), str(path))


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


class _LatencyHead(msgspec.Struct):
    """What tells a latency file from other JSON files, and from one of another version."""

    format: int | None = None
    kinds: object = None
    roofline: object = None


def parse_latency(data: bytes, where: str) -> Latency:
    """The latency file in `data`, which came from `where`. InputError says what is wrong there."""
    try:
        head = parse_json(data, _LatencyHead)
        if head.kinds is None or head.roofline is None:
            raise InputError(f"{where} is not a latency file: make one with splitpoint calibrate-device -o FILE")
        if head.format != FORMAT:
            raise InputError(
                f"{where} is a latency file of format {head.format}, and this version reads format {FORMAT}: "
                "make it anew with splitpoint calibrate-device or splitpoint predict train"
            )
        latency = parse_json(data, Latency)
    except MalformedError as exc:
        raise InputError(f"{where} is not a latency file, or it is damaged: {exc}") from exc
    try:
        _check(latency)
    except (ValueError, KeyError, IndexError, TypeError, OverflowError) as exc:
        raise InputError(f"{where} is a damaged latency file: {exc}") from exc
    return latency


def _check(latency: Latency) -> None:
    """ValueError if a number or a name in it makes no sense."""
    versions = chain.from_iterable(latency.versions.items())
    machine = latency.machine
    of_machine = (machine.system, machine.processor, machine.governor, machine.python) if machine else ()
    texts = (latency.name, latency.created, latency.refreshed, latency.engine, latency.device, latency.note)
    for text in (*texts, *versions, *of_machine):
        if HIDDEN.search(text) or len(text) > _MOST_TEXT:
            raise ValueError(f"a text in it has hidden or control characters or is too long: {text[:80]!r}")
    if latency.convention not in (SEED, TWO_PER_MAC):
        raise ValueError(f"it counts FLOPs in an unknown way: {latency.convention[:80]!r} (at $.convention)")
    _check_numbers("$", (latency.threads,), 0, _MOST_THREADS)
    if machine:
        _check_numbers("$.machine", (machine.cores, machine.memory_bytes, machine.cpus), 0, 1 << 50)
    _check_numbers("$", (latency.rows,), 0, _MOST_ROWS)
    _check_numbers("$", (latency.fixed_ms,), -_MOST_MS, _MOST_MS)
    _check_numbers("$.cold_ms", (latency.cold_ms,), 1e-6, _MOST_MS)
    _check_numbers("$.scale", (latency.scale,), 1e-3, 1e3)
    _check_numbers("$.spread", (latency.spread,), 0, 10)
    line = latency.roofline
    _check_numbers("$.roofline", (line.flops_per_ms, line.bytes_per_ms), 1e-9, 1e18)
    _check_numbers("$.roofline", (line.fixed_ms,), 0, _MOST_MS)
    _check_numbers("$.roofline", (line.spread,), 1, 1e3)
    _check_numbers("$.slowdown", (latency.slowdown,), 1e-6, 1e6)
    if len(latency.reference) > _MOST_REFERENCES:
        raise ValueError(f"it has {len(latency.reference)} reference networks (at $.reference)")
    if len({r.name for r in latency.reference}) < len(latency.reference):
        raise ValueError("a reference network is there twice (at $.reference)")
    for k, reference in enumerate(latency.reference):
        _check_reference(f"$.reference[{k}]", reference)
    for kind, model in latency.kinds.items():
        if kind not in KINDS:
            raise ValueError(f"it has a kind that is none{nearest(kind[:80], KINDS)}: {kind[:80]!r} (at $.kinds)")
        try:
            _check_kind(kind, model)
        except ValueError as exc:
            raise ValueError(f"{exc} (at $.kinds.{kind})") from exc


def _check_reference(at: str, reference: Reference) -> None:
    if HIDDEN.search(reference.family) or len(reference.family) > _MOST_TEXT:
        raise ValueError(f"a reference network of no family: {reference.family[:80]!r} (at {at})")
    _check_numbers(at, (reference.seed,), 0, 1 << 31)
    _check_numbers(at, (reference.work, reference.flops), 1.0, 1e18)
    _check_numbers(at, (reference.ms,), 1e-6, _MOST_MS)


def _check_kind(kind: str, model: KindModel) -> None:
    known, terms = feature_names(kind), term_names(kind)
    unknown = next((f for f in model.features if f not in known), None) or next(
        (t for base in model.base.values() for t in base if t not in terms), None
    )
    if unknown is not None:
        raise ValueError(f"it asks for {unknown[:80]!r}, which this version does not know")
    columns = {"1", *KINDS[kind].columns}
    if not model.features or "" not in model.base or not {"1"} <= set(model.linear) <= columns:
        raise ValueError("it has no features, no base, or a linear model of other columns")
    if HIDDEN.search(model.method) or len(model.method) > _MOST_TEXT:
        raise ValueError("its method has hidden or control characters or is too long")
    for cell, base in model.base.items():
        if len(cell) > _MOST_TEXT or HIDDEN.search(cell) or not base:
            raise ValueError(f"a base of it is empty, or has no name: {cell[:80]!r}")
        _check_numbers("base", tuple(base.values()), 0, 1e18)
    _check_numbers("linear", tuple(model.linear.values()), -1e18, 1e18)
    if len(model.ranges) != len(model.features):
        raise ValueError(f"{len(model.ranges)} ranges for {len(model.features)} features")
    for least, most in model.ranges:
        _check_numbers("ranges", (least, most), -1.0, 1e30)
        if least > most:
            raise ValueError(f"a range in it ends before it begins: {least:g}…{most:g}")
    _check_numbers("low", (model.low,), -100, 0)
    _check_numbers("high", (model.high,), 0, 100)
    _check_numbers("rows", (model.rows, model.score.count), 0, _MOST_ROWS)
    score = model.score
    _check_numbers("score", (score.within5, score.within10, score.within20, score.covered), 0, 1)
    _check_numbers("score", (score.mape,), 0, 1e18)
    model.forest.check(len(model.features))
    model.width.check(len(model.features))


def _check_numbers(at: str, numbers: tuple[float, ...], least: float, most: float) -> None:
    for number in numbers:
        if not (isfinite(number) and least <= number <= most):
            raise ValueError(f"{str(number)[:40]} makes no sense there (at {at})")
