"""Which newer model may take the place of an older one, and what an edge has of one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from nearby import Nearby
from serving import Gate, affine, evaluate, nothing_leaks, until

from splitpoint.engines import open_engine
from splitpoint.errors import ModelError, UsageError
from splitpoint.models.model import Model
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.edge_settings import ModelPolicy
from splitpoint.runtime.client.model_binding import same_ends
from splitpoint.runtime.client.timeouts import Patience
from splitpoint.runtime.events import Event
from splitpoint.runtime.server.server import Server
from splitpoint.tensors import Array
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


EAGER = Patience(first_s=20.0, least_s=20.0, pause_s=0.01, longest_pause_s=0.05, seed=1)


@pytest.fixture
def versions(tmp_path: Path) -> tuple[Model, Model]:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    one, two = (affine(folder, seed=k) for k, folder in enumerate(folders))
    return one, two


def x() -> Array:
    return np.random.default_rng(3).normal(size=(1, 1024)).astype(np.float32)


def serve(model: Model, port: int = 0) -> Server:
    return Server([model], engine=open_engine(threads=1), port=port)


def edge(address: str, cache: Path, **how: Any) -> Edge:
    how = {"at": "add1", "fallback": "wait", "patience": EAGER, "models": ModelPolicy(follow=True), **how}
    return Edge(address, "affine", engine=open_engine(threads=1), cache=cache, **how)


def test_inputs_are_made_for_the_newer_one_as_for_the_old(versions: tuple[Model, Model], tmp_path: Path) -> None:
    old, new = versions
    told: list[Event] = []
    prepared: list[str] = []

    def prepare(model: Model) -> Model:
        prepared.append(model.fingerprint)
        return model

    with serve(old) as server, edge(server.address, tmp_path / "cache", on_event=told.append) as made:
        port = int(server.address.rpartition(":")[2])
        made.prepare(prepare)
        np.testing.assert_allclose(made.infer(x()).outputs["y3"], evaluate(old, x()), rtol=1e-4, atol=1e-5)
        server.close()
        with serve(new, port):
            assert until(lambda: made.info.fingerprint == new.fingerprint, 20)
            np.testing.assert_allclose(made.infer(x()).outputs["y3"], evaluate(new, x()), rtol=1e-4, atol=1e-5)
            assert made.cut.name == "add1"
            assert prepared == [old.fingerprint, new.fingerprint]
            assert until(lambda: any("following" in str(e) for e in told)), "told when it has gone over"
            assert [str(e) for e in told if "following" in str(e)] == [
                f"following affine: {new.fingerprint[:12]} instead of {old.fingerprint[:12]} from now on, cut at add1"
            ]
            counts = made.stats().requests
            assert (counts.asked, counts.in_flight) == (2, 0)


def test_a_request_that_waits_is_asked_of_the_newer_one(versions: tuple[Model, Model], tmp_path: Path) -> None:
    old, new = versions
    results: list[Array] = []
    with serve(old) as server, edge(server.address, tmp_path / "cache") as made:
        port = int(server.address.rpartition(":")[2])
        made.infer(x())
        server.close()
        assert until(lambda: made.link_state == "down", 20)
        thread = threading.Thread(target=lambda: results.append(made.infer(x()).outputs["y3"]))
        thread.start()
        assert until(lambda: made.stats().requests.in_flight == 1)
        with serve(new, port):
            thread.join(20)
            np.testing.assert_allclose(results[0], evaluate(new, x()), rtol=1e-4, atol=1e-5)
            assert made.stats().requests.asked == 2


def test_what_makes_no_sense_is_said_at_once(versions: tuple[Model, Model], tmp_path: Path) -> None:
    old, _ = versions
    with serve(old) as server:
        with pytest.raises(UsageError, match="followed over a new connection"):
            edge(server.address, tmp_path, fallback="error")
        with pytest.raises(ModelError, match="not the pinned one"):
            edge(server.address, tmp_path, models=ModelPolicy(pinned="0" * 12))


def test_codecs_by_name_go_on_while_their_tensors_cross(versions: tuple[Model, Model], tmp_path: Path) -> None:
    old, _ = versions
    with serve(old) as server, edge(server.address, tmp_path, codec={"y1": "fp16"}) as made:
        assert made.codecs == {"y1": "fp16"}
        made.switch("add2")
        assert made.codecs == {}
        made.switch("add1")
        assert made.codecs == {"y1": "fp16"}
        made.switch("add2", "int8")
        made.switch("add1")
        assert made.codecs == {"y1": "int8"}, "what was said last is for all"
        assert made.infer(x(), at="add0", codec="raw").codecs == {}
