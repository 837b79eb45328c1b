"""Frames are as long as those that the wire packs."""

from __future__ import annotations

import numpy as np
from plans import model_of

from splitpoint import wire
from splitpoint.link.transfer import REQUEST_NBYTES
from splitpoint.planning.frame_bytes import answer_nbytes, frame_entry


def test_an_answer_is_as_long_as_the_frame_that_carries_it() -> None:
    graph = model_of("zoo:lenet5").graph
    [output] = graph.outputs
    array = np.zeros([int(d) for d in graph.tensors[output.name].shape], np.float32)
    packed = wire.Packer(wire.Kind.RESULT, wire.Result).pack(7, [array], (), wire.Times())
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
