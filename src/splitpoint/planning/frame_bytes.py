"""Bytes of a request and of its answer on the wire: tensors and the frame around them (docs/wire-format.md)."""

from __future__ import annotations

from functools import lru_cache

from splitpoint.graph import Cut, Graph
from splitpoint.link.transfer import ANSWER_NBYTES, entry_nbytes
from splitpoint.planning.hosts import RAW
from splitpoint.tensors import TensorSpec

#: A shape vector of four numbers in a request's header.
VECTOR_NBYTES = 9


def answer_nbytes(graph: Graph, cut: Cut) -> int:
    """Bytes of the answer's frame, its outputs raw; 0 if the server has nothing to compute."""
    if len(cut.nodes) == len(graph.placed):
        return 0
    outputs = [graph.tensors[t.name] for t in graph.outputs if t.name not in cut.results]
    return ANSWER_NBYTES + sum(t.nbytes + frame_entry(t, RAW, t.nbytes) for t in outputs)


@lru_cache(maxsize=65536)
def frame_entry(spec: TensorSpec, codec: str, nbytes: int) -> int:
    """Bytes of a tensor's entry in the header, of one that takes `nbytes` with `codec`."""
    return entry_nbytes(spec.dtype, [int(d) for d in spec.shape], nbytes, "" if codec == RAW else codec)
