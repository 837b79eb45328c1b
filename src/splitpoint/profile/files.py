"""Profiles ↔ JSON. What comes from a file or a server is looked at before anything trusts it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import pairwise
from math import isfinite
from pathlib import Path

import msgspec

from splitpoint.errors import InputError
from splitpoint.files import check_writable, write_atomic
from splitpoint.graph import Graph
from splitpoint.profile.values import FORMAT, Profile, Stat
from splitpoint.tensors import CONTROL, ITEM_SIZES, TensorSpec
from splitpoint.units import counted

#: A profile of 5,000 nodes has 3 MB.
_MOST_BYTES = 256 << 20


def save_profile(path: Path | str, profile: Profile) -> None:
    """Write `profile` to `path`, whole or not at all. StorageError says why not."""
    path = Path(path)
    check_writable(path)
    write_atomic(path, profile_bytes(profile))


def load_profile(path: Path | str) -> Profile:
    """The profile in `path`. InputError names the file and what is wrong in it."""
    path = Path(path)
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InputError(f"{path} is larger than {_MOST_BYTES >> 20} MiB: it is no profile")
        data = path.read_bytes()
    except OSError as exc:
        raise InputError(f"{path} cannot be read: {exc.strerror or exc}") from exc
    return parse_profile(data, str(path))


def profile_bytes(profile: Profile) -> bytes:
    """`profile` as readable JSON."""
    # A copy of the graph: what it has worked out and kept for itself would be written, too.
    bare = msgspec.structs.replace(profile, graph=dataclasses.replace(profile.graph))
    return msgspec.json.format(msgspec.json.encode(bare), indent=1) + b"\n"


class _Head(msgspec.Struct):
    """What tells a profile from other JSON files, and from one of another version."""

    format: int | None = None
    fingerprint: str | None = None
    segments: object = None
    whole: object = None


def parse_profile(data: bytes, where: str) -> Profile:
    """The profile in `data`, which came from `where` (a file or a server). InputError says what is wrong there."""
    try:
        head = msgspec.json.decode(data, type=_Head)
        if head.fingerprint is None or head.segments is None or head.whole is None:
            raise InputError(f"{where} is not a profile: make one with splitpoint profile MODEL -o FILE")
        if head.format != FORMAT:
            raise InputError(
                f"{where} is a profile of format {head.format}, and this version reads format {FORMAT}: "
                "measure anew with splitpoint profile"
            )
        profile = msgspec.json.decode(data, type=Profile)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise InputError(f"{where} is not a profile, or it is damaged: {exc}") from exc
    try:
        _check(profile)
    except (ValueError, KeyError, IndexError, TypeError, InputError) as exc:
        raise InputError(f"{where} is a damaged profile: {exc}") from exc
    return profile


def _check(profile: Profile) -> None:
    """ValueError if a number or a name in it makes no sense."""
    for text in _texts(profile):
        if CONTROL.search(text):
            raise ValueError(f"a name in it has control characters: {text[:80]!r}")
    _check_graph(profile.graph)
    wanted = len(profile.graph.nodes)
    if len(profile.nodes) != wanted:
        raise ValueError(
            f"its graph has {counted(wanted, 'node')}, but there are times of {len(profile.nodes)} (at $.nodes)"
        )
    _check_numbers(profile.nodes, "$.nodes")
    _check_stat(profile.whole, "$.whole")
    if profile.threads < 0:
        raise ValueError(f"{profile.threads} threads (at $.threads)")
    last, seen = len(profile.graph.order), set()
    for k, segment in enumerate(profile.segments):
        at = f"$.segments[{k}]"
        if not 0 <= segment.prefix <= last or segment.prefix in seen:
            raise ValueError(f"prefix {segment.prefix} is there twice, or not one of 0…{last} (at {at})")
        seen.add(segment.prefix)
        for stat, name in ((segment.head, "head"), (segment.tail, "tail")):
            if stat is not None:
                _check_stat(stat, f"{at}.{name}")
        _check_numbers((segment.head_nbytes, segment.tail_nbytes), at)
    for name, cost in profile.codecs.items():
        _check_numbers(msgspec.structs.astuple(cost), f"$.codecs.{name}")
    if profile.watts is not None:
        _check_numbers((profile.watts.compute, profile.watts.tx, profile.watts.idle), "$.watts")


def _check_stat(stat: Stat, at: str) -> None:
    _check_numbers(msgspec.structs.astuple(stat), at)
    if not all(a <= b * (1 + 1e-9) for a, b in pairwise((stat.p10, stat.median, stat.p90))):
        raise ValueError(f"its 10th percentile, median and 90th percentile are not in order (at {at})")


def _check_numbers(numbers: tuple[float, ...], at: str) -> None:
    for number in numbers:
        if not isfinite(number) or number < 0:
            raise ValueError(f"{number} is no duration, size or power (at {at})")


def _check_graph(graph: Graph) -> None:
    """ValueError unless nodes are in order, each tensor is made once, and every data tensor has a known size."""
    known: set[str] = set()
    for spec in (*graph.inputs, *graph.outputs, *graph.tensors.values()):
        _check_spec(spec)
    for name, spec in graph.tensors.items():
        if name != spec.name or not spec.is_static:
            raise ValueError(f"tensor {name[:80]} has no size of its own (at $.graph.tensors)")
    known.update(t.name for t in graph.inputs)
    made = {t for n in graph.nodes for t in n.outputs}
    groups: set[int] = set()
    for k, node in enumerate(graph.nodes):
        at = f"$.graph.nodes[{k}]"
        late = next((t for t in node.inputs if t in made and t not in known), None)
        if late is not None:
            raise ValueError(f"node {node.name[:80]} reads {late[:80]} before it is made (at {at})")
        if known.intersection(node.outputs):
            raise ValueError(f"node {node.name[:80]} makes a tensor that is there already (at {at})")
        _check_numbers((node.flops, node.params), at)
        known.update(node.outputs)
        groups.add(node.group)
    missing = next((t.name for t in graph.outputs if t.name not in known), None)
    if missing is not None:
        raise ValueError(f"nothing makes the output {missing[:80]} (at $.graph.outputs)")
    graph.prefixes()  # every tensor that can cross has a spec: KeyError otherwise


def _check_spec(spec: TensorSpec) -> None:
    if spec.dtype not in ITEM_SIZES or any(isinstance(d, int) and d < 0 for d in spec.shape):
        raise ValueError(f"tensor {spec.name[:80]} cannot be {spec.type[:80]} (at $.graph)")


def _texts(profile: Profile) -> Iterator[str]:
    """Everything in it that is shown to people."""
    yield from (profile.fingerprint, profile.engine, profile.device, profile.created, profile.note)
    machine, graph = profile.machine, profile.graph
    yield from (machine.system, machine.processor, machine.governor, machine.python)
    for name, version in profile.versions.items():
        yield from (name, version)
    yield from profile.codecs
    if profile.watts is not None:
        yield profile.watts.source
    yield graph.name
    for node in graph.nodes:
        yield from (node.name, node.op, node.layer, *node.outputs)
    for spec in (*graph.inputs, *graph.outputs):
        yield spec.name
