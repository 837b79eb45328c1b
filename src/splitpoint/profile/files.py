"""Profiles ↔ JSON. What comes from a file or a server is looked at before anything trusts it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import pairwise

import msgspec

from splitpoint.documents import Documents, readable
from splitpoint.graph import Graph
from splitpoint.profile.limits import check_size
from splitpoint.profile.profiles import FORMAT, Profile, Stat
from splitpoint.tensors import ITEM_SIZES, TensorSpec
from splitpoint.text import HIDDEN
from splitpoint.units import counted

#: Of a name in the graph (exporters nest scopes): characters. Of what a node counts; of one tensor: bytes, dimensions.
_MOST_NAME, _MOST_COUNT, _MOST_TENSOR, _MOST_RANK = 1000, 1 << 60, 1 << 40, 64


def profile_bytes(profile: Profile) -> bytes:
    """`profile` as readable JSON."""
    # A copy of the graph: what it has worked out and kept for itself would be written, too.
    return readable(msgspec.structs.replace(profile, graph=dataclasses.replace(profile.graph)))


def _check(profile: Profile) -> None:
    """ValueError if what it says does not fit together, or its graph makes no sense."""
    for text in _names(profile.graph):
        if HIDDEN.search(text):
            raise ValueError(f"a name in it has hidden or control characters: {text[:80]!r}")
        if len(text) > _MOST_NAME:
            raise ValueError(f"a name in it has {len(text)} characters, more than {_MOST_NAME}: {text[:40]}…")
    _check_graph(profile.graph)
    wanted = len(profile.graph.nodes)
    if len(profile.nodes) != wanted:
        raise ValueError(
            f"its graph has {counted(wanted, 'node')}, but there are times of {len(profile.nodes)} (at $.nodes)"
        )
    _check_stat(profile.whole, "$.whole")
    last, seen = len(profile.graph.order), set()
    for k, segment in enumerate(profile.segments):
        at = f"$.segments[{k}]"
        if not 0 <= segment.prefix <= last or segment.prefix in seen:
            raise ValueError(f"prefix {segment.prefix} is there twice, or not one of 0…{last} (at {at})")
        seen.add(segment.prefix)
        for stat, name in ((segment.head, "head"), (segment.tail, "tail")):
            if stat is not None:
                _check_stat(stat, f"{at}.{name}")


def _check_stat(stat: Stat, at: str) -> None:
    if not all(a <= b * (1 + 1e-9) for a, b in pairwise((stat.p10, stat.median, stat.p90))):
        raise ValueError(f"its 10th percentile, median and 90th percentile are not in order (at {at})")


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
    outputs = {t for n in graph.nodes for t in n.outputs}
    for k, node in enumerate(graph.nodes):
        at = f"$.graph.nodes[{k}]"
        late = next((t for t in node.inputs if t in outputs and t not in known), None)
        if late is not None:
            raise ValueError(f"node {node.name[:80]} reads {late[:80]} before it is made (at {at})")
        if known.intersection(node.outputs):
            raise ValueError(f"node {node.name[:80]} makes a tensor that is there already (at {at})")
        for number in (node.flops, node.params):
            if not 0 <= number <= _MOST_COUNT:
                raise ValueError(f"{str(number)[:40]} is no number of operations or weights (at {at})")
        known.update(node.outputs)
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


def _names(graph: Graph) -> Iterator[str]:
    """What comes from the model."""
    yield graph.name
    for node in graph.nodes:
        yield from (node.name, node.op, node.layer, *node.inputs, *node.outputs)
    for spec in (*graph.inputs, *graph.outputs, *graph.tensors.values()):
        yield from (spec.name, *(d for d in spec.shape if isinstance(d, str)))
    for path, node_name in graph.aliases.items():
        yield from (path, node_name)
    yield from (*graph.assumed, *graph.unused)


_PROFILES = Documents(
    what="a profile", holds=Profile, format=FORMAT, made_by="splitpoint profile MODEL -o",
    most_bytes=256 << 20,  # one of 5,000 nodes has 3 MB
    marks=("fingerprint", "segments", "whole"), check=_check, write=profile_bytes,
)  # fmt: skip
save_profile, load_profile, parse_profile = _PROFILES.save, _PROFILES.load, _PROFILES.parse
