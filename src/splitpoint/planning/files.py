"""Plans as readable JSON files. What comes from a file is checked before it is believed."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite
from pathlib import Path

import msgspec

from splitpoint.errors import InputError, SplitpointError
from splitpoint.files import read_file, write_atomic
from splitpoint.parsing import MalformedError, parse_json
from splitpoint.planning.objectives import NAMES
from splitpoint.planning.plans import FORMAT, KINDS, STAGES, Band, Option, Plan

#: A plan has a handful of rows: a file much larger is something else.
MAX_BYTES = 64 << 20


def plan_bytes(plan: Plan) -> bytes:
    """`plan` as readable JSON."""
    return msgspec.json.format(msgspec.json.encode(plan), indent=1) + b"\n"


def save_plan(path: Path, plan: Plan) -> None:
    """Write `plan`; StorageError if that is not possible, and nothing is half-written."""
    write_atomic(path, plan_bytes(plan))


def load_plan(path: Path) -> Plan:
    """The plan in a file. InputError names the file and what is wrong in it."""
    return parse_plan(read_file(path, MAX_BYTES, "a plan", "splitpoint plan -o"), str(path))


def parse_plan(data: bytes, where: str = "the plan") -> Plan:
    """The plan in JSON bytes; InputError as `load_plan`."""
    try:
        found = parse_json(data, _Any)
    except MalformedError as exc:
        raise InputError(f"{where} is not a plan: {exc}") from exc
    if found.format != FORMAT:
        raise InputError(
            f"{where} has the plan format {found.format} and this version reads {FORMAT}: "
            "make it again with splitpoint plan"
        )
    try:
        plan = parse_json(data, Plan)
    except (MalformedError, SplitpointError) as exc:
        raise InputError(f"{where} is not a plan: {exc}") from exc
    for problem in _problems(plan):
        raise InputError(f"{where} is not a plan: {problem}")
    return plan


class _Any(msgspec.Struct):
    format: int


def _problems(plan: Plan) -> Iterator[str]:
    if plan.objective not in NAMES:
        yield f"objective is {plan.objective!r} - at `$.objective`"
    if not plan.options or plan.best not in plan.options:
        yield "best is not one of options - at `$.best`"
    for name in ("bound", "gap"):
        if not _sound(getattr(plan, name)):
            yield f"{name} must be a number from 0 - at `$.{name}`"
    for k, option in enumerate(plan.options):
        yield from (f"{problem} - at `$.options[{k}]`" for problem in _option_problems(option))
    for k, stretch in enumerate(plan.sensitivity):
        if not (0 < stretch.up_mbps_from <= stretch.up_mbps_to and isfinite(stretch.up_mbps_to)):
            yield f"its rates are out of order - at `$.sensitivity[{k}]`"
        if stretch.kind not in (*KINDS, "none"):
            yield f"kind is {stretch.kind!r} - at `$.sensitivity[{k}]`"


def _option_problems(option: Option) -> Iterator[str]:
    if option.kind not in KINDS:
        yield f"kind is {option.kind!r}"
    if any(i < 0 for i in option.on_edge) or list(option.on_edge) != sorted(set(option.on_edge)):
        yield "on_edge must be node numbers in order, each once"
    if set(option.stages) != set(STAGES):
        yield f"stages must be {', '.join(STAGES)}"
    for band in (option.total, *option.stages.values()):
        if not _is_band(band):
            yield "milliseconds must be finite, from 0, and in the order low ≤ ms ≤ high"
    if option.up_nbytes < 0 or option.down_nbytes < 0 or any(c.nbytes < 0 for c in option.crossing):
        yield "bytes must be from 0"
    if not _sound(option.throughput) or not _sound(option.energy_mj or 0.0) or option.edge_memory < 0:
        yield "throughput, energy_mj and edge_memory must be from 0"


def _is_band(band: Band) -> bool:
    # Sums of float64 may be off by a hair.
    hair = 1e-9 * max(1.0, band.ms)
    return _sound(band.ms) and isfinite(band.low) and isfinite(band.high) and (
        band.low <= band.ms + hair and band.ms <= band.high + hair
    )  # fmt: skip


def _sound(number: float) -> bool:
    return isfinite(number) and number >= 0
