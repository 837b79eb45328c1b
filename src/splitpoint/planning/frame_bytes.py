"""Bytes of a request and of its answer on the wire: tensors and the frame around them (docs/wire-format.md)."""

from __future__ import annotations

from functools import lru_cache

import msgspec

from splitpoint.graph import Cut, Graph
from splitpoint.planning.hosts import RAW
from splitpoint.tensors import TensorSpec

#: Bytes of an INFER and a RESULT frame around their tensors' entries and bytes: prefix, then the header's fixed part
#: (a segment's number below 128) or the server's times. Its test holds them to the frames that wire.Packer makes.
REQUEST_NBYTES = 24 + 13
ANSWER_NBYTES = 24 + 64 + 2
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
    """Bytes of a tensor's entry in a frame's header (MessagePack), of one that takes `nbytes` with `codec`.

    >>> frame_entry(TensorSpec("features", "float32", (1, 96, 28, 28)), "raw", 301_056)
    20
    """
    shape = [int(d) for d in spec.shape]
    return len(msgspec.msgpack.encode((spec.dtype, "" if codec == RAW else codec, shape, nbytes)))
