"""Cuts that are ready: compiled once, switched to at once, freed on both sides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from nearby import Nearby
from serving import Gate, affine, until

from splitpoint.codecs import open_codec
from splitpoint.errors import (
    CutError,
    InputError,
    ProtocolError,
    UsageError,
)
from splitpoint.models.model import Model
from splitpoint.runtime.client import TailAnswer
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.ready_cuts import Placement, key_of
from splitpoint.runtime.client.timeouts import Patience
from splitpoint.runtime.server.server import Server
from splitpoint.tensors import Array

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return affine(tmp_path)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def inputs(count: int = 1, size: int = 1024, seed: int = 0) -> list[Array]:
    return list(np.random.default_rng(seed).normal(size=(count, 1, size)).astype(np.float32))


def test_switching_to_a_warm_cut_asks_nobody_and_compiles_nothing(
    model: Model, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    with Server([model], engine=gate, port=0) as server, Edge(server.address, at="add0", cache=cache) as edge:
        edge.warm("add1")
        compiled = len(gate.compiled)
        with monkeypatch.context() as patched:
            patched.setattr(edge._channel, "send", lambda *_: pytest.fail("it asked the server"))
            for name in ("add1", "add0") * 2:
                edge.switch(name)
                assert edge.cut.name == name
        assert len(gate.compiled) == compiled == 2
        with pytest.raises(CutError, match="add7"):
            edge.switch("add7")
        assert edge.cut.name == "add0"


def test_forgetting_frees_both_halves(model: Model, cache: Path) -> None:
    there, here = Gate(), Gate()
    with Server([model], engine=there, port=0) as server:
        with Edge(server.address, at="add0", cache=cache, engine=here) as edge:
            edge.switch("add1")
            edge.forget()
            assert until(lambda: len(there.closed) == 1)
            assert len(here.closed) == 1
            assert edge.infer(inputs()[0]).cut == "add1"
            with pytest.raises(UsageError, match="in use"):
                edge.forget("add1")
            edge.switch("add0")
            assert len(there.compiled) == 3
        assert len(there.closed) == 1


def placed(model: Model, at: str, engine: Gate | None = None) -> Placement:
    cut = model.graph.cut(at)
    segment = model.head(cut)
    head = (engine or Gate()).compile(segment) if segment.outputs else None
    return Placement(model, cut, head, Patience())


def x(rows: int = 1, width: int = 1024) -> Array:
    return np.zeros((rows, width), np.float32)


def test_what_is_asked_for_is_what_the_device_does_not_have(model: Model) -> None:
    assert placed(model, "add1").remote == ["y3"]
    assert placed(model, "output").remote == []
    assert key_of(model.graph.cut("add1")) == key_of(model.graph.cut("add1")) != key_of(model.graph.cut("add2"))


def test_inputs_are_checked_once_a_shape(model: Model) -> None:
    placement = placed(model, "add1")
    given = placement.check(x())
    assert placement.check(given) is given
    assert placement.check({"x": x(3)})["x"].shape == (3, 1024)
    for wrong in (x(1, 7), {"z": x()}, x().astype(np.int8)):
        with pytest.raises(InputError):
            placement.check(wrong)


@pytest.mark.parametrize(
    "tensors", [[], [x(), x()], [x(2)], [x(1, 7)], [x().astype(np.float64)], [x().reshape(1, 1024, 1)]]
)
def test_an_answer_that_does_not_follow_from_what_was_asked_is_refused(model: Model, tensors: list[Array]) -> None:
    placement, known = placed(model, "add1"), {"x": x(), "y1": x()}
    layout = object()
    assert placement.answer(TailAnswer([x()], 0.0, layout), known)["y3"].shape == (1, 1024)
    with pytest.raises(ProtocolError):
        placement.answer(TailAnswer(tensors, 0.0, object()), known)
    with pytest.raises(ProtocolError):
        placement.answer(TailAnswer(tensors, 0.0), known)
    if tensors and len(tensors) == 1 and tensors[0].shape == (2, 1024):
        two = {"x": x(2), "y1": x(2)}
        assert placement.answer(TailAnswer(tensors, 0.0, layout), two)["y3"].shape == (2, 1024), "for twice the input"


def test_a_route_is_one_for_the_same_codecs(model: Model) -> None:
    placement = placed(model, "add1")
    raw = placement.route({}, strict=False)
    assert placement.route({}, strict=True) is raw, "nothing can be refused"
    one = placement.route({"y1": open_codec("int8")}, strict=True)
    assert placement.route({"y1": open_codec("int8")}, strict=True) is one
    assert placement.route({"y1": open_codec("int8")}, strict=False) is not one
    assert one.encoding.strict


def test_its_halves_are_freed_when_nobody_holds_them(model: Model) -> None:
    engine = Gate()
    placement = placed(model, "add1", engine)
    placement.compile_tail(engine.compile(model.tail(placement.cut)), 0.25)
    assert placement.times.here_s == 0.25
    assert placement.hold()
    placement.close()
    assert engine.closed == []
    assert placement.hold(), "whoever else has it may go on"
    placement.release()
    placement.release()
    assert len(engine.closed) == 2
    assert not placement.hold()


def test_it_is_open_at_one_remote_at_a_time(model: Model) -> None:
    place, placement = Nearby(model, Gate()), placed(model, "add1")
    one, two = place.connect(1.0), place.connect(1.0)
    assert not placement.is_open_at(one)
    placement.open_tail(one.open(model.fingerprint, placement.cut, ("y3",)))
    assert placement.is_open_at(one)
    assert not placement.is_open_at(two)
    one.close()
    assert not placement.is_open_at(one)
