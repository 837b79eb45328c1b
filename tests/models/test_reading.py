"""Files: every way ONNX has to store a graph and its weights, and every way a file can be broken."""

from __future__ import annotations

import os
import random
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_files import W, all_equal, linear, outside, raw, run

import nets
from nets import node, value, weight
from splitpoint.errors import EngineError, ModelError, SplitpointError
from splitpoint.models import load, reading
from splitpoint.models.model import Model
from splitpoint.models.weights import give_weights
from splitpoint.segments import verify


def same(a: Model, b: Model) -> bool:
    left, right = run(a), run(b)
    return left.keys() == right.keys() and all(np.array_equal(left[k], right[k]) for k in left)


def typed() -> Any:
    return helper.make_tensor("w", TensorProto.FLOAT, W.shape, W.ravel().tolist())


def test_where_a_weight_is_stored_changes_nothing(tmp_path: Path) -> None:
    plain = nets.load(linear(raw()))
    assert [b.nbytes for b in plain.blobs.values()] == [W.nbytes]
    assert bytes(plain.blob(next(iter(plain.blobs)))) == W.tobytes()
    assert len(plain.graph_bytes()) < 2000
    for store in (
        typed,
        lambda: outside(tmp_path),
        lambda: outside(tmp_path, offset=4096),
        lambda: outside(tmp_path, length=False),
    ):
        other = load(nets.saved(linear(store()), tmp_path / "net.onnx"))
        assert other.fingerprint == plain.fingerprint
        assert other.whole().key == plain.whole().key
        assert same(other, plain)


def test_an_unaligned_weight_is_read_right(tmp_path: Path) -> None:
    model = load(nets.saved(linear(outside(tmp_path, offset=3)), tmp_path / "net.onnx"))
    assert same(model, nets.load(linear(raw())))
    (held,) = give_weights(ort.SessionOptions(), model.skeleton, model.weights).values()
    assert held.data_ptr() % 4 == 0  # not every processor reads a float from anywhere


def test_a_constant_node_is_a_weight(tmp_path: Path) -> None:
    nodes = [node("Constant", [], ["w"], value=weight("", W)), *linear(raw()).graph.node]
    model = nets.load(nets.proto(nodes, [value("x", [1, 64])], [value("y", [1, 32])]))
    assert model.fingerprint == nets.load(linear(raw())).fingerprint
    assert [n.op for n in model.graph.nodes] == ["MatMul", "Tanh"]
    external = nets.proto(
        [node("Constant", [], ["w"], value=outside(tmp_path)), *linear(raw()).graph.node],
        [value("x", [1, 64])],
        [value("y", [1, 32])],
    )
    assert load(nets.saved(external, tmp_path / "net.onnx")).fingerprint == model.fingerprint


def test_ir_3_files_list_weights_as_inputs() -> None:
    old = linear(raw(), opset=9, ir=3)
    old.graph.input.append(value("w", [64, 32]))
    model = nets.load(old)
    assert [t.name for t in model.inputs] == ["x"]
    assert model.fingerprint == nets.load(linear(raw(), opset=9, ir=8)).fingerprint
    all_equal(model)


def test_opset_7_is_read_and_6_is_not() -> None:
    old = nets.proto(
        [
            node("Conv", ["x", "w"], ["c"], name="conv", kernel_shape=[3, 3]),
            node("BatchNormalization", ["c", "s", "b", "m", "v"], ["n"], name="bn"),
            node("Dropout", ["n"], ["d", "mask"], name="drop", ratio=0.5),
            node("Flatten", ["d"], ["f"], name="flatten"),
            node("Gemm", ["f", "w2", "b2"], ["y"], name="fc", transB=1),
        ],
        [value("x", [1, 2, 5, 5])],
        [value("y", [1, 3])],
        [
            nets.normal("w", 4, 2, 3, 3), weight("s", np.ones(4, np.float32)), weight("b", np.ones(4, np.float32)),
            weight("m", np.zeros(4, np.float32)), weight("v", np.ones(4, np.float32)), nets.normal("w2", 3, 36),
            nets.normal("b2", 3),
        ],
        opset=7,
        ir=3,
    )  # fmt: skip
    all_equal(nets.load(old))
    old.opset_import[0].version = 6
    with pytest.raises(ModelError, match=r"uses opset 6, older than 7: convert it with onnx.version_converter"):
        nets.load(old)


@pytest.mark.parametrize("dtype", ["int4", "uint4", "bfloat16", "float8_e4m3fn", "float16", "int8", "float64"])
def test_weights_of_every_type_become_blobs(dtype: str) -> None:
    """Large enough to be blobs; types numpy has not travel as their bytes, 4-bit ones packed."""
    numbers = np.random.default_rng(0).integers(0, 7, (64, 48)).astype(getattr(ml_dtypes, dtype, None) or dtype)
    w = numpy_helper.from_array(numbers, "w16")
    quantised = dtype in ("int4", "uint4", "int8")
    widen = (
        node("DequantizeLinear", ["w16", "s"], ["w"], name="widen")
        if quantised
        else node("Cast", ["w16"], ["w"], name="widen", to=TensorProto.FLOAT)
    )
    proto = nets.proto(
        [node("Relu", ["x"], ["r"], name="relu"), widen, node("MatMul", ["r", "w"], ["y"], name="fc")],
        [value("x", [1, 64])],
        [value("y", [1, 48])],
        [w, weight("s", 1.0, np.float32)],
        opset=21,
        ir=10,
    )
    model = nets.load(proto)
    (blob,) = model.blobs.values()
    assert blob.nbytes == len(w.raw_data)
    assert model.nbytes == blob.nbytes + 4  # the scale stays in the skeleton
    assert model.graph.nodes[-1].params >= 64 * 48
    assert not model.graph.nodes[1].placed
    all_equal(model)
    x = np.random.default_rng(3).standard_normal((1, 64)).astype(np.float32)
    got = nets.ENGINE.compile(model.whole()).run({"x": x})["y"]
    # ONNX Runtime multiplies quantised weights in 8 bits (MatMulNBits), hence the tolerance there.
    np.testing.assert_allclose(got, np.maximum(x, 0) @ numbers.astype(np.float32), rtol=0.01 if quantised else 1e-4)
    # The same weight in the typed field.
    fields = numbers.astype(np.float32) if dtype != "float64" else numbers
    alike = type(proto).FromString(proto.SerializeToString())
    alike.graph.initializer[0].CopyFrom(helper.make_tensor("w16", w.data_type, numbers.shape, fields.ravel().tolist()))
    if not alike.graph.initializer[0].HasField("raw_data"):
        assert nets.load(alike).fingerprint == model.fingerprint


def test_sparse_weights_are_written_out() -> None:
    dense = np.zeros((8, 4), np.float32)
    dense[[1, 5, 7], [0, 3, 2]] = [1, -2, 3]
    flat = np.flatnonzero(dense)
    proto = linear(weight("w", dense))
    del proto.graph.initializer[:]
    proto.graph.sparse_initializer.append(
        helper.make_sparse_tensor(weight("w", dense.ravel()[flat]), weight("", flat, np.int64), [8, 4])
    )
    model = nets.load(proto)
    assert model.fingerprint == nets.load(linear(weight("w", dense))).fingerprint
    all_equal(model)


@pytest.mark.parametrize(
    ("ours", "theirs", "op"),
    [(17, 18, "Sigmoid"), (18, 17, "Sigmoid"), (17, 20, "Gelu"), (17, 15, "Relu"), (17, 17, "Sigmoid")],
)
def test_a_function_of_another_opset_is_inlined_where_its_operators_mean_the_same(
    ours: int, theirs: int, op: str
) -> None:
    function = helper.make_function("d", "F", ["a"], ["b"], [node(op, ["a"], ["b"])], [helper.make_opsetid("", theirs)])
    outer = helper.make_function("d", "G", ["a"], ["b"], [node("F", ["a"], ["b"], domain="d")],
                                 [helper.make_opsetid("", ours), helper.make_opsetid("d", 1)])  # fmt: skip
    net = nets.proto(
        [node("G", ["x"], ["h"], domain="d"), node("Tanh", ["h"], ["y"])], [value("x", ["N", 4])],
        [value("y", ["N", 4])], opset=ours, domains={"d": 1}, functions=[function, outer],
    )  # fmt: skip
    model = nets.load(net)
    assert [n.op for n in model.graph.nodes] == [op, "Tanh"]
    assert all(c.ok for c in verify(model, nets.ENGINE, model.graph.prefixes()))


def test_a_function_whose_operators_mean_something_else_is_refused() -> None:
    inner = node("ReduceSum", ["a"], ["b"], axes=[1])
    function = helper.make_function("d", "F", ["a"], ["b"], [inner], [helper.make_opsetid("", 11)])
    net = nets.proto(
        [node("F", ["x"], ["h"], domain="d"), node("Relu", ["h"], ["y"])], [value("x", ["N", 4])],
        [value("y", ["N", 1])], opset=18,
        domains={"d": 1}, functions=[function],
    )  # fmt: skip
    with pytest.raises(
        ModelError, match=r"uses opset 18, and its function d.F opset 11, which mean different operators"
    ):
        nets.load(net)


def test_a_newer_ir_version_is_lowered() -> None:
    net = nets.residual()
    net.ir_version = 15
    model = nets.load(net)
    assert model.skeleton.ir_version == reading.NEWEST_IR
    assert model.fingerprint == nets.load(nets.residual()).fingerprint
    assert all(c.ok for c in verify(model, nets.ENGINE, model.graph.chain()))


def test_names_that_a_file_gives_stay() -> None:
    """A node without a name is not called what a later one is."""
    nodes = [node("Relu", ["x"], ["a"]), node("Tanh", ["a"], ["y"], name="Relu_0")]
    model = nets.load(nets.proto(nodes, [value("x", [1, 4])], [value("y", [1, 4])]))
    assert [n.name for n in model.graph.nodes] == ["Relu_0_", "Relu_0"]
    assert len(model.graph.cut("Relu_0").nodes) == 2


def test_functions_are_inlined() -> None:
    mish = helper.make_function(
        "local", "Twice", ["a"], ["b"],
        [node("Add", ["a", "a"], ["t"], name="sum"), node("Tanh", ["t"], ["b"], name="tanh")],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    proto = nets.proto(
        [
            node("Twice", ["x"], ["h"], name="first", domain="local"),
            node("Twice", ["h"], ["i"], name="second", domain="local"),
            node("MatMul", ["i", "w"], ["y"], name="fc"),
        ],
        [value("x", [1, 64])],
        [value("y", [1, 32])],
        [raw()],
        domains={"local": 1},
        functions=[mish],
    )
    model = nets.load(proto)
    assert [n.op for n in model.graph.nodes] == ["Add", "Tanh", "Add", "Tanh", "MatMul"]
    assert len({n.name for n in model.graph.nodes}) == 5
    all_equal(model)


def test_optional_inputs_that_are_left_out() -> None:
    model = nets.load(
        nets.proto(
            [
                node("Resize", ["x", "", "", "sizes"], ["r"], name="resize"),
                node("Clip", ["r", "", "top"], ["c"], name="clip"),
                node("LSTM", ["seq", "w", "r0", "", "", "c"], ["", "y"], name="lstm", hidden_size=2),
            ],
            [value("x", [1, 1, 1]), value("seq", [3, 1, 4])],
            [value("y", None)],
            [
                weight("sizes", [1, 1, 2], np.int64), weight("top", 0.7, np.float32),
                nets.normal("w", 1, 8, 4), nets.normal("r0", 1, 8, 2),
            ],
        )
    )  # fmt: skip
    assert model.graph.nodes[2].outputs == ("y",)
    assert model.graph.nodes[2].flops == 2 * 3 * 8 * (4 + 2)
    all_equal(model)


# --- files that are not ONNX --------------------------------------------------------------------------------------

PNG = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + bytes(13) + bytes(200)


@pytest.mark.parametrize(
    "data",
    [b"", PNG, b"hello, world\n", b"{}", b"\0" * 100, b"\x08\x08", b"PK\x03\x04" + bytes(100), bytes(range(256)) * 8],
    ids=["empty", "png", "text", "json", "zeros", "ir-only", "zip", "bytes"],
)
@pytest.mark.parametrize("name", ["net.onnx", "net.json", "net.textproto"])
def test_files_that_are_not_onnx(tmp_path: Path, data: bytes, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ModelError, match="is not an ONNX file"):
        reading.read(path)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        reading.read(tmp_path / "gone.onnx")
    with pytest.raises(ModelError, match="is a folder"):
        reading.read(tmp_path)
    with pytest.raises(ModelError, match="is not an ONNX file"):
        reading.read(Path("/dev/null"))
    with pytest.raises(ModelError, match="cannot be read"):
        reading.read(Path("a\0b.onnx"))
    with pytest.raises(ModelError, match="no such file"):
        reading.read(tmp_path / "gone.onnx" / "net.onnx")
    (tmp_path / "huge.onnx").touch()
    os.truncate(tmp_path / "huge.onnx", 3 << 30)
    with pytest.raises(ModelError, match=r"is not an ONNX file.*\b3221225472 bytes"):
        reading.read(tmp_path / "huge.onnx")


def test_a_truncated_file_never_breaks_the_reader(tmp_path: Path) -> None:
    """protobuf takes some prefixes for whole messages; whatever it makes of one must be refused or be a graph."""
    data = nets.residual().SerializeToString()
    path = tmp_path / "net.onnx"
    for size in range(0, len(data), 29):
        path.write_bytes(data[:size])
        with pytest.raises(ModelError) as caught:
            load(path)
        assert "\n" not in str(caught.value)


def test_a_damaged_file_never_breaks_the_reader(tmp_path: Path) -> None:
    rng = random.Random(0)
    path = tmp_path / "net.onnx"
    samples = [p().SerializeToString() for p in (nets.residual, nets.branching, nets.flattening, nets.sequences)]
    read, messages = 0, []
    for _ in range(400):
        data = bytearray(rng.choice(samples))
        for _ in range(rng.choice((1, 1, 2, 5))):
            data[rng.randrange(len(data))] = rng.choice((0, 255, 128, rng.randrange(256)))
        path.write_bytes(bytes(data))
        try:
            model = load(path)
            model.graph.prefixes()
            nets.ENGINE.compile(model.whole()).close()
            read += 1
        except SplitpointError as exc:
            messages.append(str(exc))
    assert [m for m in messages if "\n" in m] == []
    assert read > 40  # a flipped bit in a weight is a weight


def test_a_large_weight_of_the_wrong_size_is_refused() -> None:
    broken = raw()
    broken.dims[1] = 33
    with pytest.raises(ModelError, match=r"weight w has 8192 bytes, its dimensions \[64, 33\] need 8448: .* damaged"):
        nets.load(linear(broken))


def test_a_graph_that_is_too_large_to_be_one() -> None:
    with pytest.raises(ModelError, match="is not a network"):
        reading.parse_skeleton(bytes(reading.MAX_SKELETON_BYTES + 1))
    with pytest.raises(ModelError, match="is not ONNX"):
        reading.parse_skeleton(PNG)
    with pytest.raises(ModelError, match="declares no operator set"):
        reading.parse_skeleton(b"")


def test_engine_errors_are_not_model_errors() -> None:
    """A graph that reads well but does not run: the engine says so."""
    proto = nets.proto(
        [node("Conv", ["x", "w"], ["y"], name="conv")], [value("x", [1, 3, 4, 4])], [value("y", None)],
        [nets.normal("w", 2, 5, 3, 3)],
    )  # fmt: skip
    with pytest.raises((ModelError, EngineError)) as caught:
        nets.ENGINE.compile(nets.load(proto).whole()).run({"x": np.zeros((1, 3, 4, 4), np.float32)})
    assert "\n" not in str(caught.value)
