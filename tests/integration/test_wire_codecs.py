"""Crossing tensors that travel encoded: real sockets, and the whole model as the oracle wherever there is one."""

from __future__ import annotations

import csv
import json
import re
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from commands import ok
from onnx import TensorProto
from places import DOCS
from serving import Gate, affine, evaluate, until

import nets
from splitpoint import wire
from splitpoint.cli import main
from splitpoint.codecs import Codec, open_codec
from splitpoint.engines import Engine, open_engine
from splitpoint.errors import InputError, ProtocolError, ServerError, UsageError
from splitpoint.inputs import read_inputs
from splitpoint.measured_cuts import sweep
from splitpoint.models import load
from splitpoint.models.model import Model
from splitpoint.models.zoo import digits, photos
from splitpoint.report.sweep_table import COLUMNS, read_rows
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.server.server import Server
from splitpoint.segments import Halves
from splitpoint.tensors import Array, TensorSpec, spec_of
from splitpoint.transports import memory
from splitpoint.transports.framed import flat
from splitpoint.wire import Kind, Limits, Packer, Packet

DOC = DOCS / "wire-format.md"
ENGINE = open_engine(threads=1)


pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return affine(tmp_path)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPLITPOINT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def round_trip(codec: str, array: Array) -> Array:
    """What is left of `array` after encoding and decoding."""
    opened = open_codec(codec)
    return opened.decode(opened.encode(array), spec_of("t", array))


@contextmanager
def served(model: Model, at: object, codec: object = "raw", engine: Engine = ENGINE, **more: object) -> Iterator[Edge]:
    """An edge with the model's own file, connected to a server of it."""
    with (
        Server([model], engine=engine, port=0, **more) as server,  # type: ignore[arg-type]
        Edge(server.address, model, at=at, codec=codec, engine=engine) as edge,  # type: ignore[arg-type]
    ):
        yield edge


def here(model: Model, at: object, codecs: Mapping[str, str], inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The model's outputs by its two halves in this process, with what crosses encoded and decoded in between."""
    cut = at if not isinstance(at, (str, int)) else model.graph.cut(at)
    both = Halves(model, cut, ENGINE)  # type: ignore[arg-type]
    try:
        known = {**inputs, **(both.head.run(inputs) if both.head else {})}
        known |= {name: round_trip(codec, known[name]) for name, codec in codecs.items()}
        outputs = {name: known[name] for name in cut.results}  # type: ignore[union-attr]
        return outputs | (both.tail.run({n: known[n] for n in cut.boundary}) if both.tail else {})  # type: ignore[union-attr]
    finally:
        both.close()


# --- right answers ----------------------------------------------------------------------------------------------------


def test_a_lossless_codec_changes_no_bit_at_any_cut_of_a_real_model() -> None:
    model = load("zoo:lenet5")
    digit = {"image": np.random.default_rng(0).integers(0, 255, (1, 32, 32, 1), np.uint8)}
    with served(model, "input") as edge:
        for cut in model.graph.chain():
            edge.switch(cut, "raw")
            raw = edge.infer(digit)
            assert raw.codecs == edge.codecs == {}
            edge.switch(cut, "raw+zstd")
            packed = edge.infer(digit)
            np.testing.assert_array_equal(packed.outputs["logits"], raw.outputs["logits"])
            assert packed.codecs == edge.codecs == {t.name: "raw+zstd" for t in cut.crossing}


@pytest.mark.parametrize("codec", ["fp16", "int8", "int4", "fp16+zstd", "int8+zstd", "int4+zstd"])
def test_a_lossy_codec_gives_what_its_own_error_gives_here(codec: str) -> None:
    model = load("zoo:lenet5")
    raws = []
    with served(model, "pool1", codec) as edge:
        (name,) = (t.name for t in edge.cut.crossing)
        for path in digits():
            inputs = read_inputs(model, path)
            result = edge.infer(inputs)
            np.testing.assert_array_equal(
                result.outputs["logits"], here(model, "pool1", {name: codec}, inputs)["logits"]
            )
            raws.append(here(model, "pool1", {}, inputs)["logits"])
            assert result.codecs == {name: codec}
            # The digit is still the digit, and the codec has left its mark: it was used.
            assert result.outputs["logits"].argmax() == raws[-1].argmax() == int(path.stem)
            assert np.abs(result.outputs["logits"] - raws[-1]).max() > 0
            assert 0 < result.up_nbytes < 0.6 * edge.cut.nbytes


def test_a_photo_as_jpeg_is_the_whole_model_on_the_decoded_photo_bit_for_bit() -> None:
    model = load("zoo:efficientnet_lite0")
    name = model.inputs[0].name
    whole = ENGINE.compile(model.whole())
    with served(model, "input", "jpeg:90") as edge:
        for photo in photos()[:2]:
            inputs = read_inputs(model, photo)
            result = edge.infer(inputs)
            expected = whole.run({name: round_trip("jpeg:90", inputs[name])})
            for output, value in expected.items():
                np.testing.assert_array_equal(result.outputs[output], value)
                assert not np.array_equal(whole.run(inputs)[output], value)
            assert result.codecs == edge.codecs == {name: "jpeg:90"}
            assert result.up_nbytes < inputs[name].nbytes / 4
    whole.close()


def mixed() -> Model:
    """x → m → r (float32) and k (int32) → y: at `k` both cross."""
    return nets.load(
        nets.proto(
            [
                nets.node("Mul", ["x", "w"], ["m"], name="mul"),
                nets.node("Relu", ["m"], ["r"], name="relu"),
                nets.node("Cast", ["m"], ["k"], name="k", to=TensorProto.INT32),
                nets.node("Cast", ["k"], ["f"], name="back", to=TensorProto.FLOAT),
                nets.node("Add", ["r", "f"], ["y"], name="add"),
            ],
            [nets.value("x", ["batch", 512])],
            [nets.value("y", ["batch", 512])],
            [nets.weight("w", 3 * normal(512))],
        )
    )


def both_cross(model: Model) -> object:
    """The cut at which r and k cross."""
    (found,) = [c for c in model.graph.prefixes() if {t.name for t in c.crossing} == {"r", "k"}]
    return found


@pytest.mark.parametrize(
    ("asked", "used"),
    [
        ("int8", {"r": "int8"}),  # integers are never quantised
        ("fp16+zstd", {"r": "fp16+zstd"}),
        ("raw+zstd", {"r": "raw+zstd", "k": "raw+zstd"}),
        ("jpeg:90", {}),
        ({"r": "fp16", "k": "raw+zstd"}, {"r": "fp16", "k": "raw+zstd"}),
        ({"r": "int4"}, {"r": "int4"}),
        ({"k": "raw", "r": ""}, {}),
        ({}, {}),
    ],
)
def test_every_tensor_of_a_cut_has_a_codec_of_its_own(asked: object, used: Mapping[str, str]) -> None:
    model = mixed()
    cut = both_cross(model)
    inputs = {"x": normal(1, 512, seed=1)}
    with served(model, cut, asked) as edge:
        assert edge.codecs == used
        result = edge.infer(inputs)
        assert result.codecs == used
        np.testing.assert_array_equal(result.outputs["y"], here(model, cut, used, inputs)["y"])


def test_a_stream_of_encoded_requests_keeps_order(model: Model) -> None:
    inputs = [normal(1, 1024, seed=k) for k in range(20)]
    used = []
    with served(model, "add1", "raw+zstd") as edge:
        for k, (x, result) in enumerate(zip(inputs, edge.stream(inputs, window=4), strict=True)):
            used.append(result.codecs["y1"])
            error = np.abs(result.outputs["y3"] - evaluate(model, x)).max()
            assert error < 1e-4 if used[-1] == "raw+zstd" else 0 < error < 0.5
            if k == 9:
                edge.switch("add1", "int8")  # what is on its way goes on as it is
    assert used[:10] == ["raw+zstd"] * 10
    assert used[-5:] == ["int8"] * 5


def test_threads_may_share_an_edge_and_its_codecs(model: Model) -> None:
    inputs = [normal(1 + k % 3, 1024, seed=k) for k in range(40)]
    with served(model, "add1", "raw+zstd") as edge, ThreadPoolExecutor(6) as pool:
        for x, result in zip(inputs, pool.map(edge.infer, inputs), strict=True):
            np.testing.assert_allclose(result.outputs["y3"], evaluate(model, x), rtol=1e-4, atol=1e-4)
            assert result.codecs == {"y1": "raw+zstd"}


def test_an_empty_batch_travels_encoded(model: Model) -> None:
    with served(model, "add1", "int8") as edge:
        assert edge.infer(normal(0, 1024)).outputs["y3"].shape == (0, 1024)


# --- which codec, and switching ---------------------------------------------------------------------------------------


def test_another_codec_compiles_nothing_and_opens_nothing(model: Model) -> None:
    gate = Gate()
    with Server([model], engine=gate, port=0) as server, Edge(server.address, model, at="add1", engine=gate) as edge:
        compiled = list(gate.compiled)
        x = normal(1, 1024)
        for codec in ("int8", {"y1": "fp16"}, "raw+zstd", "raw", "int8"):
            edge.warm("add1", codec)
            edge.switch("add1", codec)
            edge.infer(x)
        assert gate.compiled == compiled
        (peer,) = server._peers
        assert len(peer.requests.tails) == 1
        edge.switch("add2")
        assert edge.codecs == {"y2": "int8"}  # the codec stays
        edge.forget("add1")
        assert until(lambda: len(peer.requests.tails) == 1)
        assert len(gate.closed) == 2  # head and tail, each once, however many codecs they had
        with pytest.raises(UsageError, match="in use"):
            edge.forget("add2")
        edge.switch("add2", "raw")
        with pytest.raises(UsageError, match="in use"):
            edge.forget("add2")


def test_codecs_by_name_stay_with_their_tensors(model: Model) -> None:
    with served(model, "add1", {"y1": "int8"}) as edge:
        edge.switch("add2")
        assert edge.codecs == {}
        edge.switch("add1")
        assert edge.codecs == {"y1": "int8"}
        edge.switch("add1", {})
        assert edge.codecs == {}
        edge.switch("output", "int8")
        assert edge.codecs == {}
        assert edge.infer(normal(1, 1024)).codecs == {}


@pytest.mark.parametrize(
    ("codec", "words"),
    [
        ("int9", "int9"),
        ("jpeg:0", "jpeg"),
        ("jpeg:101", "jpeg"),
        ({"y2": "int8"}, "tensor y2 does not cross at add1; did you mean y1? (what does: y1)"),
        ({"y1": "jpeg:90"}, "codec jpeg:90 does not take tensor y1: float32[1,1024]"),
        ({"y1": "zip"}, "zip"),
    ],
)
def test_a_codec_that_makes_no_sense_is_one_sentence(model: Model, codec: object, words: str) -> None:
    with served(model, "add1") as edge:
        with pytest.raises(UsageError) as caught:
            edge.switch("add1", codec)  # type: ignore[arg-type]
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
        assert edge.codecs == {}
        assert edge.infer(normal(1, 1024)).codecs == {}
        with pytest.raises(UsageError):
            Edge(edge._channel._connection.peer, model, at="add1", codec=codec)  # type: ignore[arg-type]


def test_a_shape_that_a_codec_does_not_take_travels_raw_unless_it_was_named() -> None:
    model = load("zoo:lenet5")
    two = {"image": np.random.default_rng(0).integers(0, 255, (2, 32, 32, 1), np.uint8)}
    one = {"image": two["image"][:1]}
    with served(model, "input", "jpeg:90") as edge:
        assert edge.infer(one).codecs == {"image": "jpeg:90"}
        result = edge.infer(two)
        assert result.codecs == {}
        np.testing.assert_array_equal(result.outputs["logits"], here(model, "input", {}, two)["logits"])
        assert edge.infer(one).codecs == {"image": "jpeg:90"}
        edge.switch("input", {"image": "jpeg:90"})
        with pytest.raises(InputError, match=r"does not take tensor image: uint8\[2,32,32,1\]"):
            edge.infer(two)
        assert edge.infer(one).codecs == {"image": "jpeg:90"}
        assert edge._channel.in_flight == 0


def test_a_server_that_cannot_decode_it_is_told_apart_before_anything_is_sent(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "features", lambda: ("codec:fp16",))
    with served(model, "add1") as edge:
        with pytest.raises(ServerError, match=r"the server cannot decode int8 \(it knows fp16\): use another codec"):
            edge.switch("add1", "int8")
        edge.switch("add1", "fp16")
        assert edge.infer(normal(1, 1024)).codecs == {"y1": "fp16"}
    monkeypatch.setattr(wire, "features", lambda: ())
    with served(model, "add1") as edge:  # a server of 1.0
        with pytest.raises(ServerError, match="it knows no codec"):
            edge.warm("add1", {"y1": "raw+zstd"})
        assert edge.infer(normal(1, 1024)).codecs == {}


def test_features_are_those_of_both_sides() -> None:
    assert {"codec:fp16", "codec:int8", "codec:int4", "codec:raw+zstd", "codec:int8+zstd", "codec:jpeg"} <= set(
        wire.features()
    )
    assert "codec:raw" not in wire.features()
    for name in ("fp16", "int8+zstd", "jpeg:75"):
        assert wire.codec_feature(open_codec(name).name) in wire.features()


# --- time and memory --------------------------------------------------------------------------------------------------


class Slow:
    """fp16, but each way takes 30 ms, and it notes which threads decode."""

    name, sent_as, exact, sized = "fp16", "fp16", False, True

    def __init__(self) -> None:
        self.inner: Codec = open_codec("fp16")
        self.threads: list[str] = []
        self.accepts, self.nbytes, self.most = self.inner.accepts, self.inner.nbytes, self.inner.most

    def encode(self, array: Array) -> Array:
        time.sleep(0.03)  # the work
        return self.inner.encode(array)

    def decode(self, data: Array, spec: TensorSpec) -> Array:
        time.sleep(0.03)  # the work
        self.threads.append(threading.current_thread().name)
        return self.inner.decode(data, spec)


def test_encoding_and_decoding_are_stages_and_a_worker_decodes(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow()
    for module in ("runtime.server.requests", "runtime.codec_choice"):
        monkeypatch.setattr(f"splitpoint.{module}.open_codec", lambda name: slow)
    with served(model, "add1", "fp16") as edge:
        result = edge.infer(normal(1, 1024))
        stages = result.trace.stages()
        assert stages["encode"] >= 30
        assert stages["decode"] >= 30
        assert result.total_ms == pytest.approx(sum(stages.values()), abs=1e-6)
        assert result.times.decode_s >= 0.03
        # One that waits for its answer is run by the thread that received it; one with others behind it is not.
        assert slow.threads[0].startswith("peer ")
        del slow.threads[:]
        list(edge.stream([normal(1, 1024)] * 3, window=3))
        assert len(slow.threads) == 3
        assert all(name.startswith("compute ") for name in slow.threads)


def test_what_is_decoded_counts_as_memory_of_the_request(model: Model) -> None:
    gate = Gate(is_open=False)
    x = normal(1, 1024)
    with Server([model], engine=gate, port=0) as server, Edge(server.address, model, at="input", engine=gate) as edge:
        for codec, extra in (("raw", 0), ("int8", x.nbytes)):
            edge.switch("input", codec)
            with ThreadPoolExecutor(1) as pool:
                answer = pool.submit(edge.infer, x)
                assert gate.entered.acquire(timeout=5)
                held = server.ledger.held_nbytes
                gate.open.set()
                assert held == answer.result().up_nbytes + extra
            assert until(lambda: server.ledger.held_nbytes == 0)
            gate.open.clear()
        gate.open.set()


def test_a_request_whose_decoding_has_no_room_is_busy(model: Model) -> None:
    limits = Limits(memory_bytes=1 << 20)
    gate = Gate(is_open=False)
    with (
        Server([model], engine=gate, port=0, limits=limits) as server,
        Edge(server.address, model, at="input", engine=gate, codec="raw+zstd") as other,
        Edge(server.address, model, at="input", engine=gate, codec="raw+zstd") as edge,
        ThreadPoolExecutor(1) as pool,
    ):
        first = pool.submit(other.infer, np.zeros((200, 1024), np.float32))  # few bytes, 800 KiB decoded
        assert gate.entered.acquire(timeout=5)
        with pytest.raises(ServerError, match="no room"):
            edge.infer(np.zeros((100, 1024), np.float32))
        gate.open.set()
        first.result()
        assert until(lambda: not server.ledger.held_nbytes), "its room is free a moment after its answer is sent"
        assert edge.infer(np.zeros((100, 1024), np.float32)).up_nbytes < 10_000


# --- frames -----------------------------------------------------------------------------------------------------------


def joined(packet: Packet) -> bytes:
    data = b"".join(bytes(flat(b)) for b in packet.buffers)
    assert len(data) == packet.nbytes
    return data


def packer(*codecs: str) -> Packer:
    chosen = [open_codec(c) if c else None for c in codecs]
    return Packer(Kind.INFER, lambda tensors: wire.Infer(3, tensors), lambda arrays: chosen)


def test_encoded_and_raw_tensors_share_a_frame() -> None:
    arrays = [normal(2, 3, 4), np.arange(6, dtype=">i4").reshape(2, 3), normal(4)[::2]]
    data = joined(packer("int8", "", "raw+zstd").pack(7, arrays, flags=1))
    near, far = memory.pair()
    near.send(Packet((data,), len(data)))
    frame = far.receive(timeout_s=1)
    assert (frame.id, frame.flags) == (7, 1)
    tensors = frame.header.tensors  # type: ignore[union-attr]
    assert [t.codec for t in tensors] == ["int8", "", "raw+zstd"]
    assert [(t.dtype, t.shape) for t in tensors] == [("float32", (2, 3, 4)), ("int32", (2, 3)), ("float32", (2,))]
    for array, tensor, got in zip(arrays, tensors, frame.tensors, strict=True):
        assert got.nbytes == tensor.nbytes
        codec = open_codec(tensor.codec) if tensor.codec else None
        left = codec.decode(got, TensorSpec("t", tensor.dtype, tensor.shape)) if codec else got
        np.testing.assert_array_equal(left, round_trip("int8", array) if tensor.codec == "int8" else array)


def test_headers_repeat_where_the_size_does() -> None:
    sized, other = packer("int8"), packer("raw+zstd")
    headers = {}
    for name, made in (("int8", sized), ("raw+zstd", other)):
        packets = [made.pack(1, [normal(8, 64, seed=k) * (k % 2)]) for k in range(4)]
        headers[name] = [bytes(p.buffers[0]) for p in packets]
        for k, packet in enumerate(packets):
            near, far = memory.pair()
            near.send(packet)
            frame = far.receive(timeout_s=1)
            got = open_codec(name).decode(frame.tensors[0], TensorSpec("t", "float32", (8, 64)))
            assert np.allclose(got, normal(8, 64, seed=k) * (k % 2), atol=0.1)
    assert len(set(headers["int8"])) == 1
    assert len(set(headers["raw+zstd"])) > 1  # zeros take less
    memo = sized._memo
    sized.pack(2, [normal(8, 64)])
    assert sized._memo is memo  # nothing was made anew
    sized.pack(3, [normal(9, 64)])
    assert sized._memo is not memo


def test_frames_that_decode_to_too_much_are_refused() -> None:
    limits = Limits(tensor_bytes=1 << 20, frame_bytes=2 << 20)
    big = wire.Tensor("float32", (1 << 18,), 100, "int8")
    wire.check_tensors([big, big], 200, limits)
    with pytest.raises(ProtocolError, match="decode to 3145728 bytes, over the limit, 2097152"):
        wire.check_tensors([big, big, big], 300, limits)
    with pytest.raises(ProtocolError, match="over the limit, 1048576"):
        wire.check_tensors([wire.Tensor("float32", (1 << 19,), 100, "int8")], 100, limits)


def test_an_encoded_answer_is_refused() -> None:
    near, far = memory.pair()
    header = wire.ResultData((wire.Tensor("float32", (4,), 8, "fp16"),))
    near.send(wire.encode(Kind.RESULT, 1, header, (bytes(64 + 8),), 64 + 8))
    with pytest.raises(ProtocolError, match="answers travel raw"):
        far.receive(timeout_s=1)


def test_the_encoded_example_in_the_document_is_what_this_code_writes() -> None:
    (block,) = re.findall(r"<!-- encoded frame: INFER -->\n```text\n(.*?)\n```", DOC.read_text(), re.DOTALL)
    written = bytes.fromhex("".join(line[:47] for line in block.splitlines()))
    chosen = [open_codec("fp16")]
    chosen_for = Packer(Kind.INFER, lambda t: wire.Infer(1, t), lambda arrays: chosen)
    made = chosen_for.pack(3, [np.array([[1.0, -2.0]], "f4")])
    assert joined(made) == written


def test_the_document_names_every_codec() -> None:
    text = DOC.read_text()
    for feature in wire.features():
        name, _, more = feature.removeprefix("codec:").partition("+")
        assert any(f"`{known}" in text for known in (f"{name}`", f"{name}:", f"{name}+{more}`")), name
        assert not more or f"`+{more}`" in text


# --- sweep and the command line ---------------------------------------------------------------------------------------


def fails(capsys: pytest.CaptureFixture[str], status: int, *args: object) -> str:
    assert main([str(a) for a in args]) == status
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


@pytest.fixture
def lenet() -> Iterator[str]:
    with Server([load("zoo:lenet5")], engine=ENGINE, port=0) as server:
        yield server.address


def test_a_sweep_says_what_every_tensor_travelled_with() -> None:
    model = mixed()
    inputs = [{"x": normal(1, 512, seed=k)} for k in range(2)]
    cuts = [model.graph.cut("input"), both_cross(model), model.graph.cut("output")]
    with served(model, "input") as edge:
        rows = list(sweep(edge, cuts, inputs, codec="int8"))  # type: ignore[arg-type]
        middle = " ".join({"r": "int8", "k": "raw"}[name] for name in rows[1].crossing.split())
        assert [r.codec for r in rows] == ["int8", middle, ""]
        rows = list(sweep(edge, cuts, inputs, codec={"k": "raw+zstd"}))  # type: ignore[arg-type]
        assert [sorted(r.codec.split()) for r in rows] == [["raw"], ["raw", "raw+zstd"], []]
        with pytest.raises(UsageError, match="has no tensor kk"):
            next(sweep(edge, cuts, inputs, codec={"kk": "int8"}))  # type: ignore[arg-type]


def test_run_sends_with_a_codec_and_says_so(lenet: str, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["run", "lenet5", "--cloud", lenet, "--at", "pool1"]
    digit = digits()[0]
    text = ok(capsys, *run, "--codec", "int8", digit)
    assert " float32[1,6,14,14] as int8 crosses (" in text
    assert next(line for line in text.splitlines() if line.startswith(digit.name)).split()[1] == digit.stem
    (name,) = (t.name for t in load("zoo:lenet5").graph.cut("pool1").crossing)
    raw = json.loads(ok(capsys, *run, "--json", digit))
    row = json.loads(ok(capsys, *run, "--codec", f"{name}=fp16", "--json", digit))
    assert (raw["codecs"], row["codecs"]) == ({}, {name: "fp16"})
    assert raw["up_nbytes"] - row["up_nbytes"] >= 6 * 14 * 14 * 2 - 16
    assert " as raw+zstd crosses (about " in ok(capsys, *run, "--codec", "raw+zstd", digit)


def test_run_refuses_codecs_that_make_no_sense(lenet: str, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["run", "lenet5", "--cloud", lenet, "--at", "pool1", digits()[0]]
    assert "did you mean int8" in fails(capsys, 2, *run, "--codec", "int9")
    assert "one codec for all, or TENSOR=CODEC" in fails(capsys, 2, *run, "--codec", "int8", "--codec", "fp16")
    assert "one codec for all, or TENSOR=CODEC" in fails(capsys, 2, *run, "--codec", "x=")
    assert "twice" in fails(capsys, 2, *run, "--codec", "x=int8", "--codec", "x=fp16")
    assert "tensor x does not cross at pool1" in fails(capsys, 2, *run, "--codec", "x=int8")
    assert "add --cloud HOST" in fails(capsys, 2, "run", "zoo:lenet5", "--codec", "int8", digits()[0])


def test_sweep_with_a_codec_keeps_the_seeds_columns_and_resumes(
    lenet: str, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "s.csv"
    command = ["sweep", "lenet5", "--cloud", lenet, "--repeat", "1", "--images", digits()[0], "--csv", path]
    ok(capsys, *command, "--cuts", "3", "--codec", "raw+zstd")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:5] == list(COLUMNS[:5])
    assert [r["codec"] for r in rows] == ["raw+zstd", "raw+zstd", ""]
    assert all(r["setup"].endswith("; codec raw+zstd") for r in rows)
    before = path.read_text()
    ok(capsys, *command, "--cuts", "3", "--codec", "raw+zstd")
    assert path.read_text() == before
    assert "was measured otherwise" in fails(capsys, 2, *command, "--cuts", "3", "--codec", "int8")
    assert path.read_text() == before
    old = tmp_path / "old.csv"  # as earlier versions wrote it
    with old.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(
            line[: COLUMNS.index("codec")] for line in csv.reader(before.splitlines())
        )
    assert [(r.split_layer, r.codec) for r in read_rows(old)] == [(r["split_layer"], "") for r in rows]
