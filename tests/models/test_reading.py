"""Files: every way ONNX has to store a graph and its weights, and every way a file can be broken."""

from __future__ import annotations

import os
import random
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, external_data_helper, helper, numpy_helper

import nets
from nets import node, value, weight
from splitpoint.errors import EngineError, ModelError, SplitpointError, StorageError
from splitpoint.models import load, reading, soundness
from splitpoint.models.model import Model, from_graph
from splitpoint.models.shape_probe import external_initializers
from splitpoint.models.weights import ModelWeights
from splitpoint.segments import verify


def linear(w: Any, **more: Any) -> Any:
    """x[1,n] @ w → tanh."""
    return nets.proto(
        [node("MatMul", ["x", "w"], ["m"], name="fc"), node("Tanh", ["m"], ["y"], name="tanh")],
        [value("x", [1, w.dims[0]])],
        [value("y", [1, w.dims[1]])],
        [w],
        **more,
    )


def run(model: Model, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    inputs = {
        t.name: rng.standard_normal(tuple(int(d) for d in t.bind({"batch": 1}).shape)).astype(t.dtype)
        for t in model.inputs
    }
    session = nets.ENGINE.compile(model.whole())
    try:
        return session.run(inputs)
    finally:
        session.close()


def same(a: Model, b: Model) -> bool:
    left, right = run(a), run(b)
    return left.keys() == right.keys() and all(np.array_equal(left[k], right[k]) for k in left)


def all_equal(model: Model) -> None:
    assert [str(c) for c in verify(model, nets.ENGINE, model.graph.prefixes()) if not c.ok] == []


# --- storage ------------------------------------------------------------------------------------------------------

W = np.random.default_rng(1).standard_normal((64, 32)).astype(np.float32)


def raw() -> Any:
    return weight("w", W)


def typed() -> Any:
    return helper.make_tensor("w", TensorProto.FLOAT, W.shape, W.ravel().tolist())


def outside(folder: Path, *, offset: int = 0, length: bool = True, location: str = "weights.bin") -> Any:
    (folder / "weights.bin").write_bytes(b"\0" * offset + W.tobytes())
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=W.shape)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    if offset:
        tensor.external_data.add(key="offset", value=str(offset))
    if length:
        tensor.external_data.add(key="length", value=str(W.nbytes))
    return tensor


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
    (held,) = external_initializers(model.skeleton, model.weights).values()
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


def test_operators_of_other_domains_run_and_their_shapes_are_measured() -> None:
    nodes = [
        node("Gelu", ["x"], ["g"], name="gelu", domain="com.microsoft"),
        node("MatMul", ["g", "w"], ["y"], name="fc"),
    ]
    proto = nets.proto(nodes, [value("x", ["batch", 64])], [value("y", None)], [raw()], domains={"com.microsoft": 1})
    model = nets.load(proto)
    assert model.graph.nodes[0].op == "com.microsoft.Gelu"
    assert [t.type for t in model.outputs] == ["float32[batch,32]"]
    assert model.specs["g"].type == "float32[batch,64]"
    all_equal(model)


def test_unknown_operators_are_named() -> None:
    nodes = [node("Frobnicate", ["x"], ["g"], domain="org.acme"), node("Relu", ["g"], ["y"])]
    proto = nets.proto(nodes, [value("x", [4])], [value("y", [4])], domains={"org.acme": 1})
    with pytest.raises(ModelError, match="Frobnicate"):
        nets.load(proto)
    standard = nets.proto([node("Frobnicate", ["x"], ["y"])], [value("x", [4])], [value("y", [4])])
    with pytest.raises(SplitpointError, match="Frobnicate"):
        nets.ENGINE.compile(nets.load(standard).whole())


# --- shapes that exist only at run time ---------------------------------------------------------------------------


def test_measured_shapes_go_with_the_graph() -> None:
    """A device that holds only its head's weights must know the shapes of the rest."""
    model = nets.load(nets.measured())
    assert model.specs["where"].type == "int64[2,where.1]"
    assert isinstance(model.graph.tensors["where"].shape[1], int)
    far = from_graph(model.graph_bytes(), ModelWeights(), name="net", expected=model.fingerprint)
    assert far.graph == model.graph
    assert far.specs == model.specs
    assert far.graph_bytes() == model.graph_bytes()
    with pytest.raises(StorageError, match="is not here"):
        nets.ENGINE.compile(far.whole())
    all_equal(model)


def detections() -> Any:
    return nets.proto(
        [
            node("Conv", ["x", "w"], ["c"], name="conv"),  # [1, 6, 8, 8]
            node("Reshape", ["c", "shape"], ["flat"], name="view"),  # [1, 6, 64]
            node("Transpose", ["flat"], ["rows"], name="rows", perm=[0, 2, 1]),  # [1, 64, 6]
            node("Slice", ["rows", "from0", "to4", "axis2"], ["boxes"], name="boxes"),
            node("Slice", ["flat", "from4", "to6", "axis1"], ["scores"], name="scores"),
            node("NonMaxSuppression", ["boxes", "scores", "most", "iou", "score"], ["picked"], name="nms"),
            node("Gather", ["picked", "two"], ["index"], name="index", axis=1),
            node("Gather", ["boxes", "index"], ["found"], name="found", axis=1),
        ],
        [value("x", [1, 3, 8, 8])],
        [value("found", None), value("picked", None, TensorProto.INT64)],
        [
            nets.normal("w", 6, 3, 1, 1), weight("shape", [1, 6, 64], np.int64),
            weight("from0", [0], np.int64), weight("to4", [4], np.int64), weight("axis2", [2], np.int64),
            weight("from4", [4], np.int64), weight("to6", [6], np.int64), weight("axis1", [1], np.int64),
            weight("most", [10], np.int64), weight("iou", [0.5], np.float32), weight("score", [0.1], np.float32),
            weight("two", 2, np.int64),
        ],
    )  # fmt: skip


def test_detections_of_another_number_pass_every_cut() -> None:
    """With no free dimension, too: what one run measured is no promise for the next."""
    model = nets.load(detections())
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 3, 8, 8)).astype(np.float32)
    samples = [{"x": x}, {"x": -np.abs(x)}, {"x": np.abs(x) * 3}]
    counts = {len(nets.ENGINE.compile(model.whole()).run(s)["picked"]) for s in samples}
    assert len(counts) > 1
    checks = list(verify(model, nets.ENGINE, model.graph.prefixes(), samples))
    assert [str(c) for c in checks if not c.ok] == []
    assert all(isinstance(d, int) for c in model.graph.prefixes() for t in c.crossing for d in t.shape)


@pytest.mark.parametrize(
    ("note", "message"),
    [
        ("{", "metadata is broken"),
        ('{"tensors": {}, "opaque": []}', "does not fit its tensor"),
        ('{"tensors": {"x": ["float32", [-1], null]}, "opaque": []}', "metadata is broken"),
        ('{"tensors": {"x": ["object", [1], null]}, "opaque": []}', "does not fit its tensor"),
    ],
)
def test_broken_shapes_from_a_server_are_refused(note: str, message: str) -> None:
    skeleton = reading.parse_skeleton(nets.load(nets.residual()).graph_bytes())
    (entry,) = (p for p in skeleton.metadata_props if p.key == "splitpoint.shapes")
    entry.value = note
    with pytest.raises(ModelError, match=message):
        from_graph(skeleton.SerializeToString(), ModelWeights(), name="net")


# --- a graph that came over a wire --------------------------------------------------------------------------------


def test_a_graph_that_came_must_have_its_fingerprint() -> None:
    model = nets.load(nets.residual())
    with pytest.raises(ModelError, match=r"fingerprint .* refused"):
        from_graph(model.graph_bytes(), model.weights, name="net", expected="0" * 64)


def tampered(change: Any) -> bytes:
    proto = reading.parse_skeleton(nets.load(linear(raw())).graph_bytes())
    change(proto)
    return bytes(proto.SerializeToString())


def _points_to_a_file(p: Any) -> None:
    p.graph.initializer[0].external_data[0].value = "/etc/passwd"


def _also_has_an_offset(p: Any) -> None:
    p.graph.initializer[0].external_data.add(key="offset", value="1")


def _hides_in_an_attribute(p: Any) -> None:
    bad = TensorProto(name="v", data_type=TensorProto.UINT8, dims=[4], data_location=TensorProto.EXTERNAL)
    bad.external_data.add(key="location", value="/etc/passwd")
    p.graph.node.insert(0, node("Constant", [], ["stolen"], name="thief", value=bad))


def _hides_in_a_sparse_attribute(p: Any) -> None:
    bad = TensorProto(name="v", data_type=TensorProto.UINT8, dims=[4], data_location=TensorProto.EXTERNAL)
    bad.external_data.add(key="location", value="/etc/passwd")
    sparse = onnx.SparseTensorProto(values=bad, indices=weight("", [0, 1, 2, 3], np.int64), dims=[4])
    p.graph.node.insert(0, node("Constant", [], ["stolen"], name="thief", sparse_value=sparse))


def _hides_in_a_body(p: Any) -> None:
    bad = TensorProto(name="b", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    bad.external_data.add(key="location", value="/etc/passwd")
    body = helper.make_graph([node("Identity", ["b"], ["o"])], "b", [], [value("o", None)], [bad])
    p.graph.initializer.append(weight("yes", True))
    p.graph.node.insert(0, node("If", ["yes"], ["s"], name="thief", then_branch=body, else_branch=body))


def _hides_in_a_node_of_a_body(p: Any) -> None:
    bad = TensorProto(name="b", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    bad.external_data.add(key="location", value="/etc/passwd")
    body = helper.make_graph([node("Constant", [], ["o"], value=bad)], "b", [], [value("o", None)])
    p.graph.initializer.append(weight("yes", True))
    p.graph.node.insert(0, node("If", ["yes"], ["s"], name="thief", then_branch=body, else_branch=body))


def _has_functions(p: Any) -> None:
    p.functions.append(helper.make_function("d", "F", [], [], [], [helper.make_opsetid("", 17)]))


def _is_unsorted(p: Any) -> None:
    p.graph.node.append(type(p.graph.node[0]).FromString(p.graph.node[0].SerializeToString()))
    del p.graph.node[0]


def _has_the_wrong_size(p: Any) -> None:
    p.graph.initializer.append(weight("more", [1.0, 2.0], np.float32))
    p.graph.initializer[-1].dims[0] = 1 << 40


def _has_negative_dimensions(p: Any) -> None:
    p.graph.initializer[0].dims[0] = -64


def _defines_twice(p: Any) -> None:
    p.graph.node[1].output[0] = "m"


def _has_an_unknown_type(p: Any) -> None:
    p.graph.initializer[0].data_type = 99


def _has_no_names(p: Any) -> None:
    p.graph.node[0].name = ""


def _has_sparse_weights(p: Any) -> None:
    p.graph.sparse_initializer.add()


def _writes_on_the_terminal(p: Any) -> None:
    p.graph.node[0].name = "\x1b[2J"


def _writes_on_the_terminal_as_a_layer(p: Any) -> None:
    p.graph.node[0].metadata_props.add(key="splitpoint.layer", value="a\nb")


def _has_no_output(p: Any) -> None:
    p.graph.output[0].name = "nowhere"


@pytest.mark.parametrize(
    "change",
    [
        _points_to_a_file, _also_has_an_offset, _hides_in_an_attribute, _hides_in_a_sparse_attribute, _hides_in_a_body,
        _hides_in_a_node_of_a_body,
        _has_functions, _is_unsorted, _has_the_wrong_size, _has_negative_dimensions, _defines_twice,
        _has_an_unknown_type, _has_no_names, _has_sparse_weights, _has_no_output,
        _writes_on_the_terminal, _writes_on_the_terminal_as_a_layer,
    ],
)  # fmt: skip
def test_a_tampered_graph_is_refused(change: Any) -> None:
    with pytest.raises(ModelError) as caught:
        from_graph(tampered(change), ModelWeights(), name="net")
    assert "\n" not in str(caught.value)


def test_a_blob_of_the_wrong_length_is_refused() -> None:
    model = nets.load(linear(raw()))

    class Short:
        def open(self, hash: str) -> memoryview:
            return model.blob(hash)[:-4]

    far = from_graph(model.graph_bytes(), Short(), name="net")
    with pytest.raises(StorageError, match=r"blob .* has 8188 bytes, weight w needs 8192"):
        nets.ENGINE.compile(far.whole())


# --- external data ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "location", ["../weights.bin", "/etc/hostname", "sub/../../weights.bin", "link.bin", "a\0b", ""]
)
def test_external_data_stays_in_the_model_s_folder(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    tensor = outside(folder, location=location)
    (folder / "weights.bin").rename(tmp_path / "weights.bin")
    os.symlink(tmp_path / "weights.bin", folder / "link.bin")
    path = nets.saved(linear(tensor), folder / "net.onnx")
    with pytest.raises(ModelError) as caught:
        load(path)
    if "weights.bin" in location or location == "link.bin":
        assert "outside its folder" in str(caught.value)


def hub(folder: Path, data: str = "blobs/bbb") -> Path:
    """The cache of a hub: model and data are links into one folder of blobs."""
    for name in ("blobs", "snapshots/r1/onnx", "secret"):
        (folder / name).mkdir(parents=True)
    path = nets.saved(linear(outside(folder, location="model.onnx_data")), folder / "blobs/aaa")
    (folder / "weights.bin").rename(folder / data)
    os.symlink("../../../blobs/aaa", folder / "snapshots/r1/onnx/model.onnx")
    os.symlink(f"../../../{data}", folder / "snapshots/r1/onnx/model.onnx_data")
    assert path.is_file()
    return folder / "snapshots/r1/onnx/model.onnx"


def test_a_hub_s_cache_of_links_opens(tmp_path: Path) -> None:
    path = hub(tmp_path)
    assert load(path).nbytes == W.nbytes
    assert load(path).name == "model"
    (tmp_path / "latest").symlink_to("snapshots/r1")
    assert load(tmp_path / "latest/onnx/model.onnx").nbytes == W.nbytes


def test_data_beside_the_file_that_a_link_leads_to(tmp_path: Path) -> None:
    """``ln -s models/net.onnx .``, and the same into a hub's cache, where the file is a link again."""
    (tmp_path / "models").mkdir()
    nets.saved(linear(outside(tmp_path / "models", location="weights.bin")), tmp_path / "models/net.onnx")
    (tmp_path / "net.onnx").symlink_to("models/net.onnx")
    assert load(tmp_path / "net.onnx").nbytes == W.nbytes
    (tmp_path / "hub.onnx").symlink_to(hub(tmp_path))
    assert load(tmp_path / "hub.onnx").nbytes == W.nbytes
    (tmp_path / "models/weights.bin").rename(tmp_path / "secret/weights.bin")
    (tmp_path / "models/weights.bin").symlink_to("../secret/weights.bin")
    with pytest.raises(ModelError, match="is a link that leads outside its folder"):
        load(tmp_path / "net.onnx")


def test_a_stranger_s_links_read_nothing_else(tmp_path: Path) -> None:
    # The data is a link to another folder than the model's.
    with pytest.raises(ModelError, match="is a link that leads outside its folder"):
        load(hub(tmp_path / "a", "secret/bbb"))
    # Only what is side by side with the model's blob counts.
    deeper = hub(tmp_path / "b")
    (tmp_path / "b/blobs/deeper").mkdir()
    (tmp_path / "b/blobs/bbb").rename(tmp_path / "b/blobs/deeper/bbb")
    deeper.with_name("model.onnx_data").unlink()
    os.symlink("../../../blobs/deeper/bbb", deeper.with_name("model.onnx_data"))
    with pytest.raises(ModelError, match="is a link that leads outside its folder"):
        load(deeper)
    # A model that is no link itself, in a folder with a link that leads out of it.
    plain = hub(tmp_path / "c")
    data = plain.read_bytes()
    plain.unlink()
    plain.write_bytes(data)
    with pytest.raises(ModelError, match="is a link that leads outside its folder"):
        load(plain)


def test_a_link_inside_the_folder_is_followed(tmp_path: Path) -> None:
    tensor = outside(tmp_path, location="link.bin")
    os.symlink("weights.bin", tmp_path / "link.bin")
    assert load(nets.saved(linear(tensor), tmp_path / "net.onnx")).nbytes == W.nbytes


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": "gone.bin"}, "cannot be read"),
        ({"location": "empty.bin"}, "too short: 0 bytes, 8192 needed"),
        ({"location": "weights.bin", "offset": "4"}, "too short: 8192 bytes, 8196 needed"),
        ({"location": "weights.bin", "offset": "-4", "length": "8192"}, "too short|offset"),
        ({"location": "weights.bin", "offset": "9" * 30}, "too short"),
        ({"location": "weights.bin", "length": "100"}, "has 100 bytes, its dimensions"),
        ({"location": "weights.bin", "length": "-8"}, "too short|length"),
        ({"location": "weights.bin", "offset": "many"}, "external data entry of weight w is broken"),
        ({"offset": "0"}, "external data entry of weight w is broken"),
        ({"location": "."}, "cannot be read"),
    ],
)
def test_broken_external_data(tmp_path: Path, entries: dict[str, str], message: str) -> None:
    tensor = outside(tmp_path)
    (tmp_path / "empty.bin").touch()
    del tensor.external_data[:]
    for key, text in entries.items():
        tensor.external_data.add(key=key, value=text)
    with pytest.raises(ModelError, match=message):
        load(nets.saved(linear(tensor), tmp_path / "net.onnx"))


def test_a_truncated_data_file(tmp_path: Path) -> None:
    path = nets.saved(linear(outside(tmp_path)), tmp_path / "net.onnx")
    with (tmp_path / "weights.bin").open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(ModelError, match=r"weights.bin is too short: 5000 bytes, 8192 needed"):
        load(path)


def test_external_data_as_onnx_writes_it(tmp_path: Path) -> None:
    proto = nets.flattening()
    external_data_helper.convert_model_to_external_data(proto, location="net.data", size_threshold=16)
    onnx.save_model(proto, tmp_path / "net.onnx")
    model = load(tmp_path / "net.onnx")
    assert model.fingerprint == nets.load(nets.flattening()).fingerprint
    all_equal(model)


def test_external_data_in_a_body(tmp_path: Path) -> None:
    body = helper.make_graph([node("MatMul", ["x", "w"], ["o"])], "b", [], [value("o", None)], [outside(tmp_path)])
    proto = nets.proto(
        [
            node("ReduceSum", ["x"], ["s"], keepdims=0),
            node("Cast", ["s"], ["c"], to=TensorProto.BOOL),
            node("If", ["c"], ["y"], then_branch=body, else_branch=body),
        ],
        [value("x", [1, 64])],
        [value("y", None)],
    )
    model = load(nets.saved(proto, tmp_path / "net.onnx"))
    (tmp_path / "weights.bin").unlink()
    assert run(model)["y"].shape == (1, 32)


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.ClearField("opset_import"), "declares no operator set"),
        (lambda p: p.graph.ClearField("output"), "has no outputs"),
        (lambda p: p.graph.initializer[0].dims.__setitem__(0, 7), r"648 bytes, its dimensions \[7, 3, 3, 3\] need 756"),
        (lambda p: p.graph.initializer[0].ClearField("raw_data"), "weight w1 is broken|has 0 bytes"),
        (lambda p: p.graph.node[1].input.__setitem__(0, "zz"), r"node act \(Relu\) reads tensor zz, which nothing"),
        (lambda p: p.graph.node.extend([node("Neg", ["x"], ["z"])] * 2), "tensor z is defined twice"),
        (lambda p: p.graph.node[1].output.__setitem__(0, "c1"), "cycle through node act"),
        (lambda p: p.graph.output[0].__setattr__("name", "zz"), "nothing makes its output zz"),
        (lambda p: p.graph.output.add().CopyFrom(p.graph.output[0]), "lists an output twice"),
        (lambda p: p.graph.input[0].__setattr__("name", ""), "an input without a name"),
    ],
)  # fmt: skip
def test_broken_graphs_say_what_is_wrong(change: Any, message: str) -> None:
    proto = nets.residual()
    change(proto)
    with pytest.raises(ModelError, match=message):
        nets.load(proto)


def test_a_large_weight_of_the_wrong_size_is_refused() -> None:
    broken = raw()
    broken.dims[1] = 33
    with pytest.raises(ModelError, match=r"weight w has 8192 bytes, its dimensions \[64, 33\] need 8448: .* damaged"):
        nets.load(linear(broken))


def test_a_duplicate_initializer_is_refused() -> None:
    proto = nets.residual()
    proto.graph.initializer.append(proto.graph.initializer[0])
    with pytest.raises(ModelError, match="tensor w1 is defined twice"):
        nets.load(proto)


def test_a_graph_that_is_too_large_to_be_one() -> None:
    with pytest.raises(ModelError, match="is not a network"):
        reading.parse_skeleton(bytes(reading.MAX_SKELETON_BYTES + 1))
    with pytest.raises(ModelError, match="is not ONNX"):
        reading.parse_skeleton(PNG)
    with pytest.raises(ModelError, match="declares no operator set"):
        reading.parse_skeleton(b"")


def test_soundness_knows_every_element_type() -> None:
    for name, number in TensorProto.DataType.items():
        tensor = TensorProto(name="t", data_type=number, dims=[3, 3])
        if name == "UNDEFINED":
            with pytest.raises(ModelError):
                soundness.nbytes(tensor)
        elif name == "STRING":
            assert soundness.nbytes(tensor) == 0
        else:
            assert soundness.nbytes(tensor) > 0


def test_engine_errors_are_not_model_errors() -> None:
    """A graph that reads well but does not run: the engine says so."""
    proto = nets.proto(
        [node("Conv", ["x", "w"], ["y"], name="conv")], [value("x", [1, 3, 4, 4])], [value("y", None)],
        [nets.normal("w", 2, 5, 3, 3)],
    )  # fmt: skip
    with pytest.raises((ModelError, EngineError)) as caught:
        nets.ENGINE.compile(nets.load(proto).whole()).run({"x": np.zeros((1, 3, 4, 4), np.float32)})
    assert "\n" not in str(caught.value)
