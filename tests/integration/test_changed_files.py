"""Files that change while they are used: never a wrong answer under a fingerprint, and nobody dies of it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from serving import affine, evaluate, until

from splitpoint.engines import open_engine
from splitpoint.errors import ChangedError, ModelError, RefusedError, StorageError
from splitpoint.lab.process import PIPES, Process
from splitpoint.models import load, weights
from splitpoint.models.model import Model
from splitpoint.profile.measure import profile_model
from splitpoint.runtime.client.blob_cache import BlobCache
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.events import Event
from splitpoint.runtime.server.server import Server
from splitpoint.segments import split, verify
from splitpoint.tensors import Array

ENGINE = open_engine(threads=1)
LAYERS = 6
X = np.random.default_rng(1).normal(size=(1, 1024)).astype(np.float32)


def cut_short(path: Path) -> None:
    os.truncate(path, 0)


def half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2 + 1)


def overwritten(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(np.random.default_rng(0).bytes(path.stat().st_size))


def a_bit_each(path: Path) -> None:
    """One bit of every KiB, and the time of the last change as it was: `cp -p`, a disk that rots."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[::1024] = bytes(b ^ 1 for b in data[::1024])
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def appended(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more" * 1000)


def replaced(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size))
    other.replace(path)


def deleted(path: Path) -> None:
    path.unlink()


#: What is done to a file, and whether what was in it can still be had: another file of the same name is not this one.
CHANGES = [
    (cut_short, False), (half, False), (overwritten, False), (a_bit_each, False),
    (appended, True), (replaced, True), (deleted, True),
]  # fmt: skip
changes = pytest.mark.parametrize(("change", "is_there"), CHANGES, ids=[c.__name__ for c, _ in CHANGES])
Change = Callable[[Path], None]


pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def model(tmp_path: Path) -> Model:
    """Its weights lie in one file beside it, net.data."""
    affine(tmp_path, layers=LAYERS)
    onnx.save_model(
        onnx.load(tmp_path / "affine.onnx"), tmp_path / "net.onnx",
        save_as_external_data=True, location="net.data", size_threshold=1024,
    )  # fmt: skip
    return load(tmp_path / "net.onnx")


@pytest.fixture
def expected(tmp_path: Path, model: Model) -> Array:
    """What the model answers, by weights that are inside another file and stay in memory."""
    return evaluate(load(tmp_path / "affine.onnx"), X)


# --- a model in this process ----------------------------------------------------------------------------------------


@changes
@pytest.mark.parametrize("stays_open", [True, False])
def test_a_model_computes_with_what_was_loaded_or_not_at_all(
    tmp_path: Path, model: Model, expected: Array, change: Change, is_there: bool, stays_open: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if not stays_open:  # as the seventeenth file of a model
        monkeypatch.setattr(weights, "_MOST_OPEN", 0)
        model = load(tmp_path / "net.onnx")
        is_there = change is appended
    compiled = ENGINE.compile(model.whole())
    compiled.close()
    monkeypatch.setattr(weights, "_KEPT_NBYTES", 0)  # as a large one
    model = load(tmp_path / "net.onnx")
    session = ENGINE.compile(model.tail(model.graph.cut("y2")))
    change(tmp_path / "net.data")
    if is_there:
        again = ENGINE.compile(model.whole())
        np.testing.assert_allclose(again.run({"x": X})["y5"], expected, rtol=1e-5)
        again.close()
    else:
        with pytest.raises(ChangedError, match=r"net\.data has changed since it was loaded"):
            ENGINE.compile(model.whole())
    head = evaluate_to(tmp_path, 2)
    np.testing.assert_allclose(session.run({"y2": head})["y5"], expected, rtol=1e-5)
    session.close()


def evaluate_to(folder: Path, layer: int) -> Array:
    whole = load(folder / "affine.onnx")
    session = ENGINE.compile(whole.segment(["x"], [f"y{layer}"]))
    try:
        return session.run({"x": X})[f"y{layer}"]
    finally:
        session.close()


def test_long_commands_notice_too(tmp_path: Path, model: Model) -> None:
    overwritten(tmp_path / "net.data")
    with pytest.raises(ChangedError, match=r"net\.data"):
        split(model, "y2", tmp_path / "parts")
    assert not (tmp_path / "parts" / "manifest.json").exists()
    with pytest.raises(ChangedError, match=r"net\.data"):
        list(verify(model, ENGINE, model.graph.chain()))
    with pytest.raises(ChangedError, match=r"net\.data"):
        profile_model(model, ENGINE, budget_s=1.0)


def test_weights_are_in_memory_once_and_only_while_they_are_used(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_KEPT_NBYTES", 0)
    model = load(tmp_path / "net.onnx")
    reads: list[str] = []
    real = weights.Part.read
    monkeypatch.setattr(weights.Part, "read", lambda part, hash: reads.append(hash) or real(part, hash))
    hash = next(iter(model.blobs))
    one, two = model.blob(hash), model.blob(hash)
    assert len(reads) == 1
    assert np.shares_memory(np.frombuffer(one, np.uint8), np.frombuffer(two, np.uint8))
    assert one.readonly
    del one, two
    session = ENGINE.compile(model.whole())
    assert reads.count(hash) == 2, "nobody held it any more"
    model.blob(hash)
    assert reads.count(hash) == 3, "and the session has a copy of its own"
    session.close()


def test_a_fifo_is_no_weights_file(tmp_path: Path, model: Model) -> None:
    (tmp_path / "net.data").unlink()
    os.mkfifo(tmp_path / "net.data")
    with pytest.raises(Exception, match="regular file"):
        load(tmp_path / "net.onnx")


def test_a_broken_export_in_the_cache_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "exports" / ("a" * 24) / "net.onnx"
    path.parent.mkdir(parents=True)
    affine(path.parent, name="net")
    os.truncate(path, path.stat().st_size // 2)
    monkeypatch.setenv("SPLITPOINT_CACHE", str(tmp_path))
    monkeypatch.setattr("splitpoint.models.torch.exported", lambda *_, **__: path)
    with pytest.raises(ModelError, match=rf"cut short: delete the folder {path.parent}, and timm:net is exported anew"):
        load("timm:net")


# --- a server -------------------------------------------------------------------------------------------------------


@changes
def test_a_server_lives_and_never_answers_wrongly(
    tmp_path: Path, model: Model, expected: Array, change: Change, is_there: bool
) -> None:
    command = [sys.executable, "-u", "-m", "splitpoint", "serve", str(tmp_path / "net.onnx"), "--threads", "1"]
    server = Process(subprocess.Popen([*command, "--port", "0", "--until-stdin-ends"], **PIPES), "server")
    failures: list[BaseException] = []
    answered, enough = threading.Semaphore(0), threading.Event()

    def ask(edge: Edge) -> None:
        try:
            while not enough.is_set():
                np.testing.assert_allclose(edge.infer(X).outputs["y5"], expected, rtol=1e-5)
                answered.release()
        except BaseException as exc:
            failures.append(exc)
            answered.release()

    try:
        address = server.expect("serving on ").split()[2]
        own = load(tmp_path / "affine.onnx")  # what the server hands out, it has read, and keeps if it is small
        with Edge(address, own, at="y3", engine=ENGINE) as edge:
            thread = threading.Thread(target=ask, args=(edge,))
            thread.start()
            assert answered.acquire(timeout=30)
            change(tmp_path / "net.data")
            for _ in range(2):
                if is_there:
                    with Edge(address, own, at="input") as other:
                        np.testing.assert_allclose(other.infer(X).outputs["y5"], expected, rtol=1e-5)
                else:
                    with pytest.raises(RefusedError, match=r"net\.data, the server's file of net, has changed"):
                        Edge(address, own, at="input")
            for _ in range(5):
                assert answered.acquire(timeout=30)
            enough.set()
            thread.join()
        assert not failures
        assert server.process.poll() is None
    finally:
        enough.set()
        server.close()
    assert server.process.returncode == 0


def test_whoever_runs_the_server_is_told_once(tmp_path: Path, model: Model) -> None:
    told: list[Event] = []
    with Server([model], engine=ENGINE, port=0, on_event=told.append) as server:
        overwritten(tmp_path / "net.data")
        for at in ("y1", "y2", "y1"):
            with pytest.raises(RefusedError, match=r"net\.data"):
                Edge(server.address, load(tmp_path / "affine.onnx"), at=at, engine=ENGINE)
        with (
            Edge(server.address, load(tmp_path / "affine.onnx"), at="output", engine=ENGINE) as edge,
            pytest.raises(RefusedError, match=r"net\.data"),
        ):
            edge.profile_server(0.5)
        with pytest.raises(RefusedError, match=r"net\.data"):
            Edge(server.address, at="output", cache=tmp_path / "cache", engine=ENGINE)
    (event,) = [e for e in told if "has changed" in e.sentence]
    assert event.kind == "failed"
    assert str(tmp_path / "net.data") in event.sentence


def test_nobody_waits_for_a_server_whose_file_has_changed(
    tmp_path: Path, model: Model, expected: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the fallback wait and no deadline: what is compiled no longer would never be compiled again."""
    monkeypatch.setattr(weights, "_KEPT_NBYTES", 0)
    own = load(tmp_path / "affine.onnx")
    with (
        Server([load(tmp_path / "net.onnx")], engine=ENGINE, port=0, tail_cache_bytes=1) as server,
        Edge(server.address, own, at="input", fallback="wait", engine=ENGINE) as edge,
    ):
        np.testing.assert_allclose(edge.infer(X).outputs["y5"], expected, rtol=1e-5)
        with Edge(server.address, own, at="y3", engine=ENGINE) as other:  # its tail takes the other's place
            other.infer(X)
        overwritten(tmp_path / "net.data")
        for _ in range(6):
            with pytest.raises(RefusedError, match=r"net\.data, the server's file of net, has changed"):
                edge.infer(X)
        assert edge.link_state == "down"


def test_a_weight_that_is_fetched_in_pieces_is_read_once(
    tmp_path: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    from splitpoint.wire import Limits

    monkeypatch.setattr(weights, "_KEPT_NBYTES", 0)
    model = load(tmp_path / "net.onnx")
    reads: list[str] = []
    real = weights.Part.read
    monkeypatch.setattr(weights.Part, "read", lambda part, hash: reads.append(hash) or real(part, hash))
    with Server([model], engine=ENGINE, port=0, limits=Limits(blob_chunk=1000)) as server:
        with Edge(server.address, at="input", cache=tmp_path / "cache") as edge:
            reads.clear()
            edge.pull()
        assert sorted(reads) == sorted(model.blobs)


# --- a device -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [cut_short, half, overwritten, a_bit_each, deleted])
def test_cached_weights_that_change_under_a_device_are_fetched_again(
    tmp_path: Path, model: Model, expected: Array, change: Change
) -> None:
    told: list[Event] = []
    cache = tmp_path / "cache"
    with (
        Server([model], engine=ENGINE, port=0) as server,
        Edge(server.address, at="y3", cache=cache, engine=ENGINE, on_event=told.append) as edge,
    ):
        np.testing.assert_allclose(edge.infer(X).outputs["y5"], expected, rtol=1e-5)
        for path in [p for p in (cache / "blobs").rglob("*") if p.is_file()]:
            change(path)
        np.testing.assert_allclose(edge.infer(X).outputs["y5"], expected, rtol=1e-5)
        np.testing.assert_allclose(edge.infer(X, at="y2").outputs["y5"], expected, rtol=1e-5)
    if change is not deleted:
        assert any("rotted" in e.sentence for e in told)


def test_a_fallback_compiled_late_from_a_changed_cache_is_an_error_and_no_wrong_answer(
    tmp_path: Path, model: Model, expected: Array
) -> None:
    cache = tmp_path / "cache"
    server = Server([model], engine=ENGINE, port=0)
    server.start()
    with Edge(server.address, at="y3", cache=cache, engine=ENGINE, fallback="local") as edge:
        edge.pull()
        assert until(lambda: edge.local_ready)
        np.testing.assert_allclose(edge.infer(X).outputs["y5"], expected, rtol=1e-5)
        server.close()
        # What is compiled here goes on, whatever becomes of the file.
        for path in [p for p in (cache / "blobs").rglob("*") if p.is_file()]:
            overwritten(path)
        np.testing.assert_allclose(edge.infer(X).outputs["y5"], expected, rtol=1e-5)
    store = BlobCache(cache)
    hash = next(iter(model.blobs))
    with pytest.raises(StorageError, match="rotted"):
        store.open(hash)
    assert hash not in store


@changes
def test_a_device_with_the_model_s_own_file(
    tmp_path: Path, model: Model, expected: Array, change: Change, is_there: bool
) -> None:
    served = load(tmp_path / "affine.onnx")
    with (
        Server([served], engine=ENGINE, port=0) as server,
        Edge(server.address, model, at="y1", engine=ENGINE) as edge,
    ):
        np.testing.assert_allclose(edge.infer(X).outputs["y5"], expected, rtol=1e-5)
        change(tmp_path / "net.data")
        if is_there:
            np.testing.assert_allclose(edge.infer(X, at="y4").outputs["y5"], expected, rtol=1e-5)
        else:
            with pytest.raises(ChangedError, match=r"net\.data"):
                edge.infer(X, at="y4")
        np.testing.assert_allclose(edge.infer(X).outputs["y5"], expected, rtol=1e-5)
