"""Which newer model may take the place of an older one, and what an edge has of one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from nearby import Nearby
from serving import Gate, affine, nothing_leaks

from splitpoint.errors import ModelError
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.model_binding import same_ends
from splitpoint.wire import ModelInfo, TensorInfo


@pytest.fixture(autouse=True)
def _no_leaks() -> Iterator[None]:
    with nothing_leaks():
        yield


def info(*inputs: TensorInfo, outputs: tuple[TensorInfo, ...] = ()) -> ModelInfo:
    return ModelInfo(name="net", fingerprint="f" * 64, inputs=inputs, outputs=outputs)


X, Y = TensorInfo("x", "float32", ("batch", 8)), TensorInfo("y", "float32", ("batch", 2))


def test_what_a_free_dimension_is_called_says_nothing() -> None:
    same_ends(info(X, outputs=(Y,)), info(msgspec.structs.replace(X, shape=("n", 8)), outputs=(Y,)))


@pytest.mark.parametrize(
    "other", [TensorInfo("z", "float32", ("batch", 8)), TensorInfo("x", "float64", ("batch", 8)),
              TensorInfo("x", "float32", ("batch", 9)), TensorInfo("x", "float32", (1, 8))],
)  # fmt: skip
def test_other_ends_are_refused_and_named(other: TensorInfo) -> None:
    with pytest.raises(ModelError, match="has other inputs"):
        same_ends(info(X, outputs=(Y,)), info(other, outputs=(Y,)))
    with pytest.raises(ModelError, match="has other outputs"):
        same_ends(info(X, outputs=(X,)), info(X, outputs=(other,)))


def test_it_is_left_to_another_and_closed_for_good(tmp_path: Path) -> None:
    place = Nearby(affine(tmp_path), Gate())
    with Edge(place, place.model, at="add1", fallback="local", engine=Gate()) as edge:
        binding = edge._binding
        assert binding.begin_following()
        assert not binding.begin_following(), "it is on its way"
        binding.stop_following(None)
        assert binding.begin_following(), "it could not be had, then"
        binding.stop_following(ModelError("has other inputs"))
        assert not binding.begin_following(), "it was refused"
        binding.leave()
        assert binding.requests.replaced
        assert binding.line.remote.ended
        assert edge._binding is binding
