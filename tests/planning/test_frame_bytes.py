"""Frames are as long as those that the wire packs."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plans import model_of

from splitpoint import wire
from splitpoint.planning.frame_bytes import (
    ANSWER_NBYTES,
    REQUEST_NBYTES,
    answer_nbytes,
    frame_entry,
)
from splitpoint.tensors import ITEM_SIZES, TensorSpec


def test_an_answer_is_as_long_as_the_frame_that_carries_it() -> None:
    graph = model_of("zoo:lenet5").graph
    [output] = graph.outputs
    array = np.zeros([int(d) for d in graph.tensors[output.name].shape], np.float32)
    packed = wire.Packer(wire.Kind.RESULT, wire.ResultData).pack(7, [array], (), wire.Times())
    assert answer_nbytes(graph, graph.prefixes()[0]) == packed.nbytes
    assert answer_nbytes(graph, graph.prefixes()[-1]) == 0


def test_a_request_is_as_long_as_its_tensors_and_their_entries() -> None:
    cut = model_of("zoo:lenet5").graph.prefixes()[0]
    [image] = cut.crossing
    array = np.zeros([int(d) for d in image.shape], image.dtype)
    pack = wire.Packer(wire.Kind.INFER, lambda tensors, vectors, s: wire.Infer(3, tensors, vectors, s)).pack
    nbytes = REQUEST_NBYTES + image.nbytes + frame_entry(image, "raw", image.nbytes)
    assert pack(7, [array], ((), 0.5)).nbytes == nbytes
    assert frame_entry(image, "int8", 100) > frame_entry(image, "raw", 100)  # the codec's name travels, too


SHAPES = st.lists(st.lists(st.integers(0, 300), max_size=5), min_size=1, max_size=4)


@given(SHAPES, st.sampled_from(sorted(ITEM_SIZES)))
def test_framing_is_what_the_wire_really_adds(shapes: Sequence[Sequence[int]], dtype: str) -> None:
    shapes = [s if np.prod(s, dtype=np.int64) < 1 << 20 else s[:2] for s in shapes]
    arrays = [np.zeros(s, dtype) for s in shapes]
    body = sum(a.nbytes for a in arrays)
    entries = sum(frame_entry(TensorSpec("t", dtype, a.shape), "raw", a.nbytes) for a in arrays)
    request = wire.Packer(wire.Kind.INFER, lambda tensors, vectors, s: wire.Infer(3, tensors, vectors, s))
    assert request.pack(7, arrays, ((), 0.5)).nbytes == REQUEST_NBYTES + entries + body
    answer = wire.Packer(wire.Kind.RESULT, wire.ResultData)
    assert answer.pack(7, arrays, (), wire.Times()).nbytes == ANSWER_NBYTES + entries + body


@pytest.mark.parametrize("nbytes", [1, 127, 128, 255, 256, 65535, 65536, 2**32 - 1, 2**32])
def test_framing_of_encoded_tensors(nbytes: int) -> None:
    tensor = wire.Tensor("float32", (1, nbytes, 200), nbytes, "int8+zstd")
    spec = TensorSpec("t", "float32", (1, nbytes, 200))
    assert frame_entry(spec, "int8+zstd", nbytes) == len(msgspec.msgpack.encode(tensor))
