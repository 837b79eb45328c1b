"""Weights on the device: fetched once, and again where they have rotted."""

from __future__ import annotations

import errno
import hashlib
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from serving import affine, evaluate

from splitpoint import wire
from splitpoint.cli import main
from splitpoint.engines import open_engine
from splitpoint.errors import (
    ProtocolError,
    RefusedError,
)
from splitpoint.models import load
from splitpoint.models.model import Model
from splitpoint.runtime.client import held_weights
from splitpoint.runtime.client.blob_cache import BlobCache
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.held_weights import Background, fetch
from splitpoint.runtime.events import Event
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


def ort() -> object:
    return open_engine(threads=1)


def test_only_the_heads_weights_are_fetched_and_only_once(model: Model, cache: Path) -> None:
    told: list[Event] = []
    with Server([model], engine=ort(), port=0) as server:
        with Edge(server.address, at="add1", cache=cache, on_event=told.append) as edge:
            head = model.head(edge.cut)
            store = BlobCache(cache)
            assert [h for h in model.blobs if h in store] == [h for h in model.blobs if h in set(head.blobs)]
            assert 0 < len(head.blobs) < len(model.blobs)
        with Edge(server.address, at="add1", cache=cache, on_event=told.append) as edge:
            x = inputs()[0]
            np.testing.assert_allclose(edge.infer(x).outputs["y3"], evaluate(model, x), rtol=1e-5)
            assert edge.pull() > 0
            assert edge.pull() == 0
        assert [e.kind for e in told] == ["fetched", "fetched", "fetched"]


def test_an_input_spec_given_to_the_server_reaches_the_device(cache: Path) -> None:
    model = load("zoo:lenet5")
    assert model.input_spec is not None
    import msgspec

    mine = model.with_input_spec(msgspec.structs.replace(model.input_spec, labels=tuple("abcdefghij")))
    for served in (model, mine):
        with Server([served], engine=ort(), port=0) as server, Edge(server.address, cache=cache, at="input") as edge:
            assert edge.input_spec == served.input_spec


def test_sharing_a_head_gives_its_weights_only(model: Model, cache: Path) -> None:
    with (
        Server([model], engine=ort(), port=0, share="head:add2") as server,
        Edge(server.address, at="add1", cache=cache) as edge,
    ):
        x = inputs()[0]
        np.testing.assert_allclose(edge.infer(x).outputs["y3"], evaluate(model, x), rtol=1e-5)
        assert {h for h in model.blobs if h in BlobCache(cache)} == set(model.head(edge.cut).blobs)
        deepest = model.head(model.graph.cut("add2")).blobs
        assert edge.pull("add2") > 0
        assert edge.pull("add2") == 0
        with pytest.raises(RefusedError, match=r"head up to add2, and output is deeper"):
            edge.switch("output")
        np.testing.assert_allclose(edge.infer(x).outputs["y3"], evaluate(model, x), rtol=1e-5)
        assert {h for h in model.blobs if h in BlobCache(cache)} == set(deepest)


def test_a_rotted_blob_is_fetched_again_and_said(model: Model, cache: Path) -> None:
    told: list[Event] = []
    with Server([model], engine=ort(), port=0) as server:
        with Edge(server.address, at="add1", cache=cache):
            pass
        victim = next(p for p in (cache / "blobs").rglob("*") if p.is_file())
        data = bytearray(victim.read_bytes())
        data[100] ^= 1
        victim.write_bytes(data)
        with Edge(server.address, at="add1", cache=cache, on_event=told.append) as edge:
            x = inputs()[0]
            np.testing.assert_allclose(edge.infer(x).outputs["y3"], evaluate(model, x), rtol=1e-5)
        assert any(e.kind == "notice" and "rotted" in e.sentence for e in told)
        data[100] ^= 1
        assert victim.read_bytes() == bytes(data)


def test_a_rotted_graph_is_fetched_again_and_said(model: Model, cache: Path) -> None:
    told: list[Event] = []
    with Server([model], engine=ort(), port=0) as server:
        with Edge(server.address, at="add1", cache=cache):
            pass
        path = cache / "graphs" / model.fingerprint
        for rotten in (b"not onnx", path.read_bytes().replace(b"Mul", b"Div")):
            path.write_bytes(rotten)
            with Edge(server.address, at="add1", cache=cache, on_event=told.append) as edge:
                edge.infer(inputs()[0])
        assert sum(e.kind == "notice" for e in told) == 2


@pytest.mark.parametrize(("code", "words"), [(errno.ENOSPC, "no space is left"), (errno.EROFS, "cannot be written")])
def test_what_cannot_be_kept_is_used_all_the_same_and_said_once(
    model: Model, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int,
    words: str,
) -> None:  # fmt: skip
    real, told = Path.replace, list[Event]()

    def full(self: Path, target: Path) -> Path:
        if "blobs" in self.parts or "graphs" in self.parts:
            raise OSError(code, os.strerror(code))
        return real(self, target)

    monkeypatch.setattr(Path, "replace", full)
    x = inputs()[0]
    with Server([model], engine=ort(), port=0) as server:
        with Edge(server.address, at="add1", cache=cache, on_event=told.append) as edge:
            np.testing.assert_allclose(edge.infer(x).outputs["y3"], evaluate(model, x), rtol=1e-5)
            edge.switch("output")
            np.testing.assert_allclose(edge.infer(x).outputs["y3"], evaluate(model, x), rtol=1e-5)
            assert words in str(edge.cache.unkept)
        # What is fetched for nothing but the next time is another matter.
        assert main(["pull", "affine", "--cloud", server.address, "--cache", str(cache)]) == 7
    assert sum("not kept for the next time" in e.sentence for e in told) == 1
    assert words in capsys.readouterr().err
    assert not [p for p in cache.rglob("*") if p.is_file()]


def test_a_cache_that_cannot_even_be_made_ends_no_run(model: Model, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    x = inputs()[0]
    with (
        Server([model], engine=ort(), port=0) as server,
        Edge(server.address, at="add1", cache=tmp_path / "file" / "cache") as edge,
    ):
        np.testing.assert_allclose(edge.infer(x).outputs["y3"], evaluate(model, x), rtol=1e-5)


def test_a_weight_that_rotted_on_a_disk_that_cannot_be_written_is_fetched_again(
    model: Model, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = inputs()[0]
    with Server([model], engine=ort(), port=0) as server:
        with Edge(server.address, at="add1", cache=cache) as edge:
            head = tuple(model.head(edge.cut).blobs)
        for hash in head:
            path = BlobCache(cache).path(hash)
            path.write_bytes(b"x" * path.stat().st_size)

        def read_only(*_: object, **__: object) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        monkeypatch.setattr(Path, "unlink", read_only)
        monkeypatch.setattr(Path, "replace", read_only)
        with Edge(server.address, at="add1", cache=cache) as edge:
            np.testing.assert_allclose(edge.infer(x).outputs["y3"], evaluate(model, x), rtol=1e-5)


BLOBS = {hashlib.sha256(data).hexdigest(): data for data in (bytes(range(250)) * 40, b"short", b"x" * 3000)}
WANTED = [(hash, len(data)) for hash, data in BLOBS.items()]


class Link:
    """Answers when it is waited for; `short` pieces lack a byte."""

    def __init__(self, short: int = -1) -> None:
        self.sent: deque[tuple[int, wire.BlobRequest]] = deque()
        self.asked: list[wire.BlobRequest] = []
        self.reserved: list[int] = []
        self.abandoned: list[int] = []
        self.most_under_way = 0
        self._short = short

    def reserve(self, *, most: int = 0) -> int:
        self.reserved.append(most)
        return len(self.reserved)

    def send(self, id: int, packet: wire.Packet) -> None:
        frame = b"".join(bytes(part) for part in packet.buffers)
        prefix = wire.parse_prefix(frame[: wire.PREFIX_BYTES], wire.Limits())
        request = wire.parse_header(prefix, frame[wire.PREFIX_BYTES :])
        assert isinstance(request, wire.BlobRequest)
        self.sent.append((id, request))
        self.asked.append(request)
        self.most_under_way = max(self.most_under_way, len(self.sent))

    def expect(self, id: int, answer: type) -> tuple[Any, Any]:
        number, request = self.sent.popleft()
        assert number == id, "in the order in which they were asked for"
        length = request.length - (id == self._short)
        data = BLOBS[request.hash][request.offset : request.offset + length]
        return None, SimpleNamespace(tensors=[SimpleNamespace(data=memoryview(data))])

    def abandon(self, id: int) -> None:
        self.abandoned.append(id)


def test_pieces_are_asked_for_ahead_and_come_together(tmp_path: Path) -> None:
    link, cache, told = Link(), BlobCache(tmp_path), list[tuple[int, int]]()
    total = sum(nbytes for _, nbytes in WANTED)
    assert fetch(link, "f", WANTED, cache, 500, lambda *done: told.append(done)) == total  # type: ignore[arg-type]
    for hash, data in BLOBS.items():
        assert bytes(cache.open(hash, len(data))) == data
    assert link.most_under_way == 16, "the link is never idle"
    assert link.reserved == [request.length for request in link.asked], "an answer may be no larger than was asked"
    assert max(link.reserved) == 500
    assert told[-1] == (total, total)
    assert told == sorted(told)


def test_a_piece_that_is_too_short_gives_up_all_that_are_under_way(tmp_path: Path) -> None:
    link, cache = Link(short=3), BlobCache(tmp_path)
    with pytest.raises(ProtocolError, match=r"asked for 500 bytes of weight .*, 499 came"):
        fetch(link, "f", WANTED, cache, 500)  # type: ignore[arg-type]
    assert link.abandoned == [id for id, _ in link.sent]
    assert not any(hash in cache for hash in BLOBS)


class Behind:
    """A link, a clock and requests to fetch beside: a piece takes 10 ms, `busy` says what requests do meanwhile."""

    class Stop:
        def __init__(self) -> None:
            self.waits: list[float] = []

        def is_set(self) -> bool:
            return False

        def wait(self, seconds: float) -> bool:
            self.waits.append(seconds)
            return False

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, busy: Callable[[Behind], None]) -> None:
        self.begun = self.under_way = 0
        self.asked: list[str] = []
        self.now_s = 0.0
        self._busy = busy
        self.timeout_s, self.clock = 1.0, SimpleNamespace(round_trip_s=0.0)
        self.welcome = wire.Welcome()
        monkeypatch.setattr(held_weights, "perf_counter", lambda: self.now_s)
        holding = SimpleNamespace(
            amount=lambda: (0, 0), missing=lambda hashes: list(WANTED), check_room=lambda wanted: None,
            channel=lambda: self, cache=BlobCache(folder), info=SimpleNamespace(name="m", fingerprint="f"),
            model=SimpleNamespace(blobs=BLOBS),
        )  # fmt: skip
        self.background = Background(holding, lambda: None, lambda event: None, self)  # type: ignore[arg-type]
        self.background._stop = self.stop = self.Stop()  # type: ignore[assignment]

    def ask(self, kind: object, request: wire.BlobRequest, answer: object, *, most: int) -> tuple[None, Any]:
        self.now_s += 0.01
        self.asked.append(request.hash)
        self._busy(self)
        data = BLOBS[request.hash][request.offset : request.offset + request.length]
        tensors, came_s = [SimpleNamespace(data=memoryview(data))], len(data) * 1e-6
        return None, SimpleNamespace(tensors=tensors, started=self.now_s - came_s, received=self.now_s)


def comes(behind: Behind) -> None:
    behind.begun += 1


def stays(behind: Behind) -> None:
    behind.under_way = 1


@pytest.mark.parametrize(("busy", "beside"), [(lambda behind: None, False), (comes, True), (stays, True)])
def test_weights_take_a_tenth_of_the_link_beside_requests_and_all_of_it_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, busy: Callable[[Behind], None], beside: bool
) -> None:
    behind = Behind(tmp_path, monkeypatch, busy)
    behind.background._run()
    assert behind.stop.waits == (pytest.approx([0.09, 4.5e-5, 0.027]) if beside else [0.0] * 3), "9 µs a byte"


def test_a_piece_that_is_asked_for_behind_a_request_is_no_slow_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each but the first waits for the 0.24 s of a photo on its way up, and comes as quickly as the first."""

    def behind_a_photo(behind: Behind) -> None:
        behind.begun += 1
        behind.now_s += 0.24 * (len(behind.asked) > 1)

    behind = Behind(tmp_path, monkeypatch, behind_a_photo)
    behind.background._run()
    assert behind.stop.waits == pytest.approx([0.09, 4.5e-5, 0.027])


def test_weights_that_are_waited_for_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    behind = Behind(tmp_path, monkeypatch, lambda behind: behind.background.first([WANTED[2][0]]))
    behind.background._run()
    assert list(dict.fromkeys(behind.asked)) == [WANTED[k][0] for k in (0, 2, 1)]


def test_nothing_is_asked_for_where_nothing_is_wanted(tmp_path: Path) -> None:
    link = Link()
    assert fetch(link, "f", [], BlobCache(tmp_path), 500) == 0  # type: ignore[arg-type]
    assert link.asked == []
