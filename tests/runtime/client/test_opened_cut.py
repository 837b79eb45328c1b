"""A cut on the device: what an answer may be, and that its halves are kept as long as someone uses them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from nearby import Nearby
from serving import Gate, affine

from splitpoint.codecs import open_codec
from splitpoint.errors import InputError, ProtocolError
from splitpoint.models.model import Model
from splitpoint.runtime.client import TailAnswer
from splitpoint.runtime.client.opened_cut import Placement, key_of
from splitpoint.runtime.client.timeouts import Patience
from splitpoint.tensors import Array


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return affine(tmp_path)


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
