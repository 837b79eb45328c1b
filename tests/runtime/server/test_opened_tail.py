"""What an INFER must be for its segment: known from its header alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from serving import affine

from splitpoint import wire
from splitpoint.codecs import open_codec
from splitpoint.errors import EngineError, InputError
from splitpoint.runtime.server.opened_tail import OpenedTail
from splitpoint.tensors import TensorSpec
from splitpoint.wire import Limits


@pytest.fixture
def opened(tmp_path: Path) -> OpenedTail:
    tail: Any = SimpleNamespace(
        segment=affine(tmp_path).whole(), kind_of=lambda dtypes, shapes, *, vectors: (dtypes, shapes, vectors)
    )
    return OpenedTail(tail, (), Limits(), batch=False)


def infer(*tensors: wire.Tensor, vectors: tuple[tuple[int, ...], ...] = ()) -> wire.Infer:
    return wire.Infer(1, tensors, vectors)


RAW = wire.Tensor("float32", (2, 1024), 8192)


def test_what_fits_is_remembered_with_what_its_runner_says(opened: OpenedTail) -> None:
    header = infer(RAW)
    assert opened.check(header) == 0
    assert opened.checked.header is header
    assert opened.checked.kind == (["float32"], [(2, 1024)], False)
    x = np.ones((2, 1024), np.float32)
    assert opened.feed(opened.checked, [x]) == {"x": x}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (infer(), "needs 1 tensors and 0 shape vectors, but 0 and 0 came"),
        (infer(RAW, vectors=((1,),)), "but 1 and 1 came"),
        (infer(wire.Tensor("float32", (1, 1023), 4092)), r"must be .*1024\], but float32\[1,1023\] came"),
        (infer(wire.Tensor("int8", (1, 1024), 1024)), "but int8"),
        (infer(wire.Tensor("float32", (1, 1024), 10, "zip-bomb")), "the codec zip-bomb, which is not known here"),
        (infer(wire.Tensor("float32", (1, 1024), 1 << 20, "fp16")), "takes at most 2048"),
    ],
)
def test_what_does_not_fit_is_refused_before_it_is_received(opened: OpenedTail, header: wire.Infer, words: str) -> None:
    opened.check(infer(RAW))
    before = opened.checked
    with pytest.raises(InputError, match=words):
        opened.check(header)
    assert opened.checked is before


def test_encoded_tensors_are_decoded_with_the_header_they_came_with(opened: OpenedTail) -> None:
    spec = TensorSpec("x", "float32", (1, 1024))
    x = np.linspace(-1, 1, 1024, dtype=np.float32).reshape(1, 1024)
    data = open_codec("fp16").encode(x)
    assert opened.check(infer(wire.Tensor("float32", (1, 1024), data.nbytes, "fp16"))) == spec.nbytes
    checked = opened.checked
    opened.check(infer(RAW))  # another one is received meanwhile
    np.testing.assert_allclose(opened.feed(checked, [data])["x"], x, atol=1e-3)


def test_a_codec_that_decodes_to_something_else_is_our_failure(
    opened: OpenedTail, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened.check(infer(wire.Tensor("float32", (1, 1024), 2048, "fp16")))
    ((codec, _),) = [decoder for decoder in opened.checked.decoders if decoder is not None]
    monkeypatch.setattr(type(codec), "decode", lambda self, data, spec: np.zeros(3, np.float32))
    with pytest.raises(EngineError, match="decoded tensor x to something else"):
        opened.feed(opened.checked, [np.zeros(2048, np.uint8)])


def test_a_shape_vector_is_bounded_by_what_it_could_allocate() -> None:
    sizes = TensorSpec("sizes", "int64", (2,))
    count = TensorSpec("count", "int64", ())
    segment = SimpleNamespace(inputs=(sizes, count), outputs=(TensorSpec("y", "float32", (1,)),))
    tail: Any = SimpleNamespace(segment=segment, kind_of=lambda dtypes, shapes, *, vectors: (shapes, vectors))
    opened = OpenedTail(tail, ("sizes", "count"), Limits(tensor_bytes=1 << 20), batch=False)
    opened.check(infer(vectors=((3, -1), (5,))))
    assert opened.checked.kind == ([(2,), ()], True)
    fed = opened.feed(opened.checked, [])
    np.testing.assert_array_equal(fed["sizes"], [3, -1])
    assert fed["count"].shape == ()
    with pytest.raises(InputError, match="must have 2 numbers, but 3 came"):
        opened.check(infer(vectors=((1, 2, 3), (5,))))
    with pytest.raises(InputError, match="asks for a tensor over the limit"):
        opened.check(infer(vectors=((1 << 20, 1 << 20), (5,))))
