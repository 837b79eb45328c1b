"""Profiles ↔ JSON. What comes from a file or a server is looked at before anything trusts it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import msgspec

from splitpoint.errors import InputError
from splitpoint.files import check_writable, read_file, write_atomic
from splitpoint.graph import Graph
from splitpoint.parsing import MalformedError, parse_json
from splitpoint.profile.limits import check_size
from splitpoint.profile.profiles import FORMAT, Profile, Stat
from splitpoint.tensors import ITEM_SIZES, TensorSpec
from splitpoint.text import HIDDEN
from splitpoint.units import counted

#: A profile of 5,000 nodes has 3 MB.
_MOST_BYTES = 256 << 20
#: Of a label and of a name in the graph (exporters nest scopes): characters.
_MOST_LABEL, _MOST_NAME = 200, 1000
#: A day in ms, which no run takes; watts, bytes and counts that no device has.
_MOST_MS, _MOST_WATTS, _MOST_HELD, _MOST_COUNT, _MOST_THREADS = 86_400_000.0, 1e6, 1 << 50, 1 << 60, 1 << 16
#: Bytes of one tensor, and its dimensions.
_MOST_TENSOR, _MOST_RANK = 1 << 40, 64


def save_profile(path: Path | str, profile: Profile) -> None:
    """Write `profile` to `path`, whole or not at all. StorageError says why not."""
    path = Path(path)
    check_writable(path)
    write_atomic(path, profile_bytes(profile))


def load_profile(path: Path | str) -> Profile:
    """The profile in `path`. InputError names the file and what is wrong in it."""
    path = Path(path)
    return parse_profile(read_file(path, _MOST_BYTES, "a profile", "splitpoint profile MODEL -o"), str(path))


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
        head = parse_json(data, _Head)
        if head.fingerprint is None or head.segments is None or head.whole is None:
            raise InputError(f"{where} is not a profile: make one with splitpoint profile MODEL -o FILE")
        if head.format != FORMAT:
            raise InputError(
                f"{where} is a profile of format {head.format}, and this version reads format {FORMAT}: "
                "measure anew with splitpoint profile"
            )
        profile = parse_json(data, Profile)
    except MalformedError as exc:
        raise InputError(f"{where} is not a profile, or it is damaged: {exc}") from exc
    try:
        _check(profile)
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, InputError) as exc:
        raise InputError(f"{where} is a damaged profile: {exc}") from exc
    return profile


def _check(profile: Profile) -> None:
    """ValueError if a number or a name in it makes no sense."""
    for text in _labels(profile):
        _check_text(text, _MOST_LABEL)
    for text in _names(profile):
        _check_text(text, _MOST_NAME)
    _check_graph(profile.graph)
    wanted = len(profile.graph.nodes)
    if len(profile.nodes) != wanted:
        raise ValueError(
            f"its graph has {counted(wanted, 'node')}, but there are times of {len(profile.nodes)} (at $.nodes)"
        )
    _check_numbers(profile.nodes, "$.nodes", _MOST_MS)
    _check_stat(profile.whole, "$.whole")
    _check_machine(profile)
    last, seen = len(profile.graph.order), set()
    for k, segment in enumerate(profile.segments):
        at = f"$.segments[{k}]"
        if not 0 <= segment.prefix <= last or segment.prefix in seen:
            raise ValueError(f"prefix {segment.prefix} is there twice, or not one of 0…{last} (at {at})")
        seen.add(segment.prefix)
        for stat, name in ((segment.head, "head"), (segment.tail, "tail")):
            if stat is not None:
                _check_stat(stat, f"{at}.{name}")
        _check_numbers((segment.head_nbytes, segment.tail_nbytes), at, _MOST_HELD)
    for name, cost in profile.codecs.items():
        _check_numbers(msgspec.structs.astuple(cost), f"$.codecs.{name}", _MOST_MS)
    if profile.watts is not None:
        _check_numbers((profile.watts.compute, profile.watts.tx, profile.watts.idle), "$.watts", _MOST_WATTS)


def _check_text(text: str, most: int) -> None:
    if HIDDEN.search(text):
        raise ValueError(f"a name in it has hidden or control characters: {text[:80]!r}")
    if len(text) > most:
        raise ValueError(f"a text in it has {len(text)} characters, more than {most}: {text[:40]}…")


def _check_machine(profile: Profile) -> None:
    if not 0 <= profile.threads <= _MOST_THREADS:
        raise ValueError(f"{profile.threads} threads (at $.threads)")
    if not 0 <= profile.machine.cores <= _MOST_THREADS:
        raise ValueError(f"{profile.machine.cores} cores (at $.machine.cores)")
    _check_numbers((profile.machine.memory_bytes,), "$.machine.memory_bytes", _MOST_HELD)
    _check_numbers((profile.machine.cpus,), "$.machine.cpus", _MOST_THREADS)


def _check_stat(stat: Stat, at: str) -> None:
    _check_numbers((stat.median, stat.p10, stat.p90), at, _MOST_MS)
    _check_numbers((stat.count,), at, _MOST_COUNT)
    if not all(a <= b * (1 + 1e-9) for a, b in pairwise((stat.p10, stat.median, stat.p90))):
        raise ValueError(f"its 10th percentile, median and 90th percentile are not in order (at {at})")


def _check_numbers(numbers: tuple[float, ...], at: str, most: float) -> None:
    for number in numbers:
        if not 0 <= number <= most:  # NaN is neither
            raise ValueError(f"{str(number)[:40]} is no duration, size or power (at {at})")


def _check_graph(graph: Graph) -> None:
    """ValueError unless nodes are in order, each tensor is made once, and every data tensor has a known size."""
    check_size(graph)
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
        _check_numbers((node.flops, node.params), at, _MOST_COUNT)
        known.update(node.outputs)
        groups.add(node.group)
    missing = next((t.name for t in graph.outputs if t.name not in known and t.name not in graph.tensors), None)
    if missing is not None:  # a weight that is an output is made by no node either, but has its size
        raise ValueError(f"nothing makes the output {missing[:80]} (at $.graph.outputs)")
    graph.prefixes()  # every tensor that can cross has a spec: KeyError otherwise


def _check_spec(spec: TensorSpec) -> None:
    if spec.dtype not in ITEM_SIZES or any(isinstance(d, int) and d < 0 for d in spec.shape):
        raise ValueError(f"tensor {spec.name[:80]} cannot be {spec.type[:80]} (at $.graph)")
    nbytes = ITEM_SIZES[spec.dtype]
    for dim in spec.shape:
        nbytes *= max(1, dim) if isinstance(dim, int) else 1
        if nbytes > _MOST_TENSOR or len(spec.shape) > _MOST_RANK:
            raise ValueError(f"tensor {spec.name[:80]} would be larger than {_MOST_TENSOR >> 40} TiB (at $.graph)")


def _labels(profile: Profile) -> Iterator[str]:
    """What people read about the machine and the measurement."""
    machine = profile.machine
    yield from (profile.fingerprint, profile.engine, profile.device, profile.created)
    yield from (machine.system, machine.processor, machine.governor, machine.python)
    for name, version in profile.versions.items():
        yield from (name, version)
    yield from profile.codecs
    if profile.watts is not None:
        yield profile.watts.source


def _names(profile: Profile) -> Iterator[str]:
    """What comes from the model, and the note, which may name a part of it."""
    graph = profile.graph
    yield from (profile.note, graph.name)
    for node in graph.nodes:
        yield from (node.name, node.op, node.layer, *node.inputs, *node.outputs)
    for spec in (*graph.inputs, *graph.outputs, *graph.tensors.values()):
        yield from (spec.name, *(d for d in spec.shape if isinstance(d, str)))
    for path, node_name in graph.aliases.items():
        yield from (path, node_name)
    yield from (*graph.assumed, *graph.unused)
