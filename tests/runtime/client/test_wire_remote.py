"""Our own server as a `Remote`: tails that are opened in frames, asked once or many times, and left."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from serving import Gate, affine, evaluate, until

from splitpoint import wire
from splitpoint.codecs import open_codec
from splitpoint.engines import open_engine
from splitpoint.errors import ServerError, SplitpointError, UnreachableError
from splitpoint.graph import Cut
from splitpoint.models.model import Model
from splitpoint.runtime.client import Encoding, RemoteProvider, TailAnswer
from splitpoint.runtime.client.wire_remote import WireProvider, WireRemote, WireSettings
from splitpoint.runtime.server.server import Server
from splitpoint.security import OPEN
from splitpoint.tensors import Array

RAW = Encoding({}, strict=False)


pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return affine(tmp_path)


def provider(address: str, *, checksum: bool = False) -> WireProvider:
    return WireProvider(address, OPEN, WireSettings(checksum), answer_s=10.0)


def wanted(model: Model, at: str = "input") -> tuple[str, Cut, tuple[str, ...]]:
    return model.fingerprint, model.graph.cut(at), ("y3",)


def x() -> Array:
    return np.random.default_rng(0).normal(size=(1, 1024)).astype(np.float32)


@pytest.mark.parametrize("checksum", [False, True])
def test_a_tail_takes_tensors_and_gives_tensors_and_times(model: Model, checksum: bool) -> None:
    with Server([model], engine=open_engine(threads=1), port=0) as server:
        place = provider(server.address, checksum=checksum)
        assert isinstance(place, RemoteProvider)
        assert place.address == server.address
        remote = place.connect(5.0)
        assert remote.offer.models[0].fingerprint == model.fingerprint
        assert "int8" in remote.offer.codecs
        assert remote.channel() is remote
        tail = remote.open(*wanted(model))
        tail.ready(10.0)
        for encoding, sent in ((RAW, {}), (Encoding({"x": open_codec("fp16")}, strict=True), {"x": "fp16"})):
            call = tail.begin({"x": x(), "what nobody asked for": x()}, encoding, 1 << 20)
            assert call.codecs == sent
            call.send()
            answer = call.answer(10.0)
            assert answer is not None
            np.testing.assert_allclose(answer.tensors[0], evaluate(model, x()), rtol=0.05, atol=0.05)
            assert call.packed <= answer.received
            assert answer.nbytes > 4096
            assert answer.offset is not None
            assert isinstance(answer.times, bytes)
            assert wire.parse_times(answer.times) is not None
        tail.close()
        remote.close()
        with pytest.raises(ServerError, match="closed"):
            remote.open(*wanted(model))


def test_an_answer_that_is_late_can_be_waited_for_again_or_left(model: Model) -> None:
    gate = Gate(is_open=False)
    came: list[TailAnswer | SplitpointError] = []
    with Server([model], engine=gate, port=0) as server:
        remote = provider(server.address).connect(5.0)
        remote.keep_reading()
        tail = remote.open(*wanted(model))
        tail.ready(10.0)
        one, two, three = (tail.begin({"x": x()}, RAW, 1 << 20) for _ in range(3))
        one.send()
        two.send()
        assert one.answer(0.02) is None
        assert "did not answer in time" in str(remote.late())
        two.leave(came.append)
        three.leave(came.append)  # it was not even sent
        assert remote.in_flight == 2
        gate.open.set()
        assert one.answer(10.0) is not None
        assert until(lambda: len(came) == 1), "what was left comes by itself"
        assert isinstance(came[0], TailAnswer)
        assert remote.in_flight == 0
        remote.close()


def test_the_end_of_the_connection_is_told_to_who_left(model: Model) -> None:
    gate = Gate(is_open=False)
    came: list[TailAnswer | SplitpointError] = []
    ended: list[SplitpointError] = []
    with Server([model], engine=gate, port=0) as server:
        remote = provider(server.address).connect(5.0)
        remote.keep_reading(ended.append)
        tail = remote.open(*wanted(model))
        tail.ready(10.0)
        call = tail.begin({"x": x()}, RAW, 1 << 20)
        call.send()
        call.leave(came.append)
        remote.abort("is not wanted")
        assert until(lambda: bool(came))
        assert isinstance(came[0], ServerError)
        assert len(ended) == 1
        with pytest.raises(ServerError, match="is not wanted"):
            tail.begin({"x": x()}, RAW, 1 << 20)
        late: list[TailAnswer | SplitpointError] = []
        call.leave(late.append)
        assert isinstance(late[0], ServerError)
        gate.open.set()
        remote.close()


def test_a_tail_is_opened_as_long_as_the_server_lives(model: Model) -> None:
    gate = Gate()
    gate.compile_gate.clear()
    with Server([model], engine=gate, port=0) as server:
        remote = provider(server.address).connect(5.0)
        tail = remote.open(*wanted(model))
        with pytest.raises(ServerError, match="did not answer in time"):
            tail.ready(0.05)
        tail.close()
        assert remote.in_flight == 0
        patient = remote.open(*wanted(model))
        threading.Timer(0.1, gate.compile_gate.set).start()
        patient.ready(10.0, alive_s=0.02)  # pings are answered meanwhile
        remote.close()


def test_where_nobody_is_nothing_is_left_behind(model: Model) -> None:
    with Server([model], engine=open_engine(threads=1), port=0) as server:
        address = server.address
    with pytest.raises(UnreachableError):
        provider(address).connect(0.5)
    with Server([model], engine=open_engine(threads=1), port=0) as server:
        aborted: list[object] = []
        remote = provider(server.address).connect(5.0, aborted.append)
        assert len(aborted) == 1, "who is greeted can be ended"
        assert isinstance(remote, WireRemote)
        remote.close()
