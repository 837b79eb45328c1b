"""Which newer model may take the place of an older one, and what an edge has of one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from nearby import Nearby
from serving import Gate, affine, evaluate, nothing_leaks, until

from splitpoint.engines import open_engine
from splitpoint.errors import AccessError, ModelError, ServerError, UnreachableError, UsageError
from splitpoint.models.model import Model
from splitpoint.runtime.client import Abortable, Remote
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.edge_settings import ModelPolicy
from splitpoint.runtime.client.model_binding import first_remote, same_ends
from splitpoint.runtime.client.request import Fallback
from splitpoint.runtime.client.timeouts import Patience
from splitpoint.runtime.events import Event
from splitpoint.runtime.server.server import Server
from splitpoint.tensors import Array
from splitpoint.wire import ModelInfo, TensorInfo

pytestmark = pytest.mark.usefixtures("no_leaks")


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


QUICK = Patience(connect_s=0.2, pause_s=0.001, longest_pause_s=0.01, seed=1)


@pytest.fixture
def place(tmp_path: Path) -> Nearby:
    return Nearby(affine(tmp_path), Gate())


def contact(
    place: Any, fallback: Fallback, local: Model | None = None, *, deadline_s: float = 0.0, patience: Patience = QUICK,
    pause: Callable[[float], bool] = lambda seconds: False, told: list[Event] | None = None,
) -> tuple[Remote, str]:  # fmt: skip
    tell = [].append if told is None else told.append
    return first_remote(place, fallback, patience, local, tell, deadline_s=deadline_s, pause=pause, untold=told is None)


@pytest.mark.parametrize("fallback", ["error", "wait", "local"])
def test_one_that_is_there_is_taken(place: Nearby, fallback: Fallback) -> None:
    with nothing_leaks():
        assert contact(place, fallback, place.model) == (place.connections[0], "")


def test_one_that_is_not_is_an_error_waited_for_or_done_without(place: Nearby) -> None:
    place.there = False
    told: list[Event] = []
    with pytest.raises(UnreachableError):
        contact(place, "error")
    with pytest.raises(UnreachableError):
        contact(place, "local", place.model, patience=Patience(connect_s=0.2, need_server=True))
    with pytest.raises(ServerError, match="nothing can be answered here without the model's own file"):
        contact(place, "local")
    absent, why = contact(place, "local", place.model, told=told)
    assert absent.ended
    assert why == "the server is not there: nobody is nearby"
    assert str(told[0]) == "nobody is nearby; until it is there, requests are answered here"
    told.clear()
    with pytest.raises(UnreachableError):
        contact(place, "wait", deadline_s=0.01, told=told)
    assert [str(e) for e in told] == ["nobody is nearby; waiting for it"], "once"

    def comes(seconds: float) -> bool:
        place.there = True
        return False

    assert contact(place, "wait", pause=comes) == (place.connections[0], "")
    place.there = False
    with pytest.raises(ServerError, match="closed"):
        contact(place, "wait", pause=lambda seconds: True)


def test_a_refusal_is_an_error_unless_the_model_is_here_to_do_without(
    place: Nearby, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(timeout_s: float, greeting: Callable[[Abortable], None] | None = None) -> Remote:
        raise AccessError("no token")

    monkeypatch.setattr(place, "connect", refuses)
    for fallback in ("error", "wait"):
        with pytest.raises(AccessError, match="no token"):
            contact(place, fallback, place.model)  # type: ignore[arg-type]
    with pytest.raises(AccessError, match="no token"):
        contact(place, "local")
    told: list[Event] = []
    absent, why = contact(place, "local", place.model, told=told)
    assert absent.ended
    assert why == "no token"
    assert [str(e) for e in told] == ["no token; until that is mended, requests are answered here"]
    with pytest.warns(RuntimeWarning, match="no token; until that is mended"):
        contact(place, "local", place.model)


def test_one_that_has_other_models_is_done_without_and_closed(place: Nearby, tmp_path: Path) -> None:
    told: list[Event] = []
    (tmp_path / "other").mkdir()
    with nothing_leaks():
        absent, why = contact(place, "local", affine(tmp_path / "other", name="other", seed=5), told=told)
        assert absent.ended
        assert "does not have this other" in why
        assert why in str(told[0])
        assert place.connections[0].ended


def test_one_that_takes_too_long_is_not_there_and_is_closed_when_it_comes(
    place: Nearby, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect, go, closed = place.connect, threading.Event(), threading.Event()

    def late(timeout_s: float, greeting: Callable[[Abortable], None] | None = None) -> Remote:
        assert go.wait(10)
        remote = connect(timeout_s)
        monkeypatch.setattr(remote, "close", lambda why="": closed.set())
        return remote

    monkeypatch.setattr(place, "connect", late)
    with nothing_leaks():
        absent, why = contact(place, "local", place.model)
        assert absent.ended
        assert why == "the server is not there: no answer from nearby in 0.2 s"
        go.set()
        assert closed.wait(10)
