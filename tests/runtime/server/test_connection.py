"""One client's conversation with the server."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from serving import Gate, affine, until

from splitpoint import wire
from splitpoint.errors import BusyError, InputError, ModelError, RefusedError
from splitpoint.models.model import Model
from splitpoint.runtime.client.channel import Channel
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.events import Event
from splitpoint.runtime.probe.link_probe import MOST_NBYTES
from splitpoint.runtime.server.server import Server
from splitpoint.tensors import Array
from splitpoint.transports import connect
from splitpoint.wire import Kind

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return affine(tmp_path)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def inputs(count: int = 1, size: int = 1024, seed: int = 0) -> list[Array]:
    return list(np.random.default_rng(seed).normal(size=(count, 1, size)).astype(np.float32))


def test_a_connection_is_reported_when_it_comes_and_goes(model: Model, cache: Path) -> None:
    told: list[Event] = []
    with Server([model], engine=Gate(), port=0, on_event=told.append) as server:
        with Edge(server.address, at="input", cache=cache) as edge:
            edge.infer(inputs()[0])
        assert until(lambda: told[-1].kind == "left")
    assert [e.kind for e in told] == ["listening", "connected", "opened", "left"]
    assert "left: 1 request, " in str(told[-1])


@pytest.fixture
def channel(model: Model, tmp_path: Path) -> Iterator[Channel]:
    with Server([model], engine=Gate(), host=f"memory://{tmp_path.name}") as server:
        channel = Channel(connect(server.address), software="test", timeout_s=5.0)
        yield channel
        channel.close()


def test_a_weight_comes_in_pieces_that_make_it(channel: Channel, model: Model) -> None:
    header, frame = channel.ask(Kind.GRAPH, wire.GraphRequest(model.fingerprint), wire.GraphData)
    assert dict(header.blobs) == {blob.hash: blob.nbytes for blob in model.blobs.values()}
    assert bytes(frame.tensors[0]) == model.graph_bytes()
    hash, nbytes = header.blobs[0]
    data = b""
    while len(data) < nbytes:
        part, frame = channel.ask(Kind.BLOB, wire.BlobRequest(model.fingerprint, hash, len(data), 1000), wire.BlobData)
        assert (part.offset, part.nbytes) == (len(data), nbytes)
        data += bytes(frame.tensors[0])
    assert hashlib.sha256(data).hexdigest() == hash
    end, frame = channel.ask(Kind.BLOB, wire.BlobRequest(model.fingerprint, hash, nbytes), wire.BlobData)
    assert (end.offset, frame.tensors) == (nbytes, [])
    with pytest.raises(InputError, match="is past its end"):
        channel.ask(Kind.BLOB, wire.BlobRequest(model.fingerprint, hash, nbytes + 1), wire.BlobData)


def test_what_there_is_not_is_said(channel: Channel, model: Model) -> None:
    with pytest.raises(ModelError, match="it has affine"):
        channel.ask(Kind.GRAPH, wire.GraphRequest("0" * 64), wire.GraphData)
    with pytest.raises(ModelError, match="no weight"):
        channel.ask(Kind.BLOB, wire.BlobRequest(model.fingerprint, "0" * 64), wire.BlobData)


def test_a_probe_brings_as_much_as_is_asked_for_and_no_more_than_is_right(channel: Channel) -> None:
    _, frame = channel.ask(Kind.PROBE, wire.Probe(5000), wire.Probed)
    assert frame.tensors[0].nbytes == 5000
    _, frame = channel.ask(Kind.PROBE, wire.Probe(0), wire.Probed)
    assert frame.tensors == []
    with pytest.raises(InputError, match="over the limit"):
        channel.ask(Kind.PROBE, wire.Probe(MOST_NBYTES + 1), wire.Probed)


def test_nothing_leaves_where_nothing_is_shared(model: Model, tmp_path: Path) -> None:
    with Server([model], engine=Gate(), host=f"memory://{tmp_path.name}", share="none") as server:
        channel = Channel(connect(server.address), software="test", timeout_s=5.0)
        for kind, asked in (
            (Kind.GRAPH, wire.GraphRequest(model.fingerprint)),
            (Kind.BLOB, wire.BlobRequest(model.fingerprint, next(iter(model.blobs)))),
            (Kind.PROFILE, wire.ProfileRequest(model.fingerprint)),
        ):
            with pytest.raises(RefusedError):
                channel.ask(kind, asked, wire.GraphData)
        channel.close()


def test_an_address_that_has_had_its_probes_waits(
    model: Model, tmp_path: Path, channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from splitpoint.runtime.server.accounts import Account

    monkeypatch.setattr(Account, "may_probe", lambda account, nbytes: 7.5)
    with pytest.raises(BusyError) as caught:
        channel.ask(Kind.PROBE, wire.Probe(100), wire.Probed)
    assert caught.value.retry_after_s == 7.5
