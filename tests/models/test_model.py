"""Models and their graphs: what is measured goes with a graph, and what came must be what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_files import all_equal, linear, raw

import nets
from nets import node, value, weight
from splitpoint.errors import ModelError, StorageError
from splitpoint.models import reading
from splitpoint.models.model import Model, Segment, from_graph
from splitpoint.models.weights import ModelWeights
from splitpoint.segments import verify

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


def test_a_blob_of_the_wrong_length_is_refused() -> None:
    model = nets.load(linear(raw()))

    class Short:
        def open(self, hash: str) -> memoryview:
            return model.blob(hash)[:-4]

    far = from_graph(model.graph_bytes(), Short(), name="net")
    with pytest.raises(StorageError, match=r"blob .* has 8188 bytes, weight w needs 8192"):
        nets.ENGINE.compile(far.whole())


# --- the knife: what a segment takes along, what it leaves, what it refuses ----------------------------------------


def ops(segment: Segment) -> list[str]:
    return [n.op_type for n in segment.proto.graph.node]


def names(values: object) -> list[str]:
    return [v.name for v in values]  # type: ignore[attr-defined]


def weights(segment: Segment) -> set[str]:
    return {t.name for t in segment.proto.graph.initializer}


def test_a_segment_takes_exactly_what_it_needs() -> None:
    model = nets.load(nets.residual())
    segment = model.segment(["r1"], ["sum"])
    assert ops(segment) == ["Conv", "Relu", "Add"]
    assert weights(segment) == {"w2"}
    assert names(segment.inputs) == names(segment.proto.graph.input) == ["r1"]
    assert names(segment.outputs) == names(segment.proto.graph.output) == ["sum"]
    assert segment.nbytes == 6 * 6 * 9 * 4
    onnx.checker.check_model(onnx.ModelProto.FromString(segment.to_bytes()), full_check=True)


def test_heads_take_no_weights_of_constants_they_do_not_use() -> None:
    """A naive prefix of onnx's light SqueezeNet ships 35 weights."""
    model = nets.load(nets.light("squeezenet"))
    first = model.graph.chain()[1]
    assert len(weights(model.head(first))) <= 2
    whole = {t.name for t in model.skeleton.graph.initializer}
    for cut in model.graph.prefixes():
        head, tail = weights(model.head(cut)), weights(model.tail(cut))
        assert head | tail <= whole
        assert not head & tail


def test_head_and_tail_share_no_placed_node() -> None:
    for net in (nets.residual, nets.flattening, nets.wide_shapes, nets.branching, nets.passing):
        model = nets.load(net())
        placed = {model.graph.nodes[i].name for i in model.graph.placed}
        for cut in model.graph.prefixes():
            sides = [{n.name for n in s.proto.graph.node} & placed for s in (model.head(cut), model.tail(cut))]
            assert not sides[0] & sides[1]
            assert sides[0] <= {model.graph.nodes[i].name for i in cut.nodes}


def test_what_is_missing_is_named() -> None:
    model = nets.load(nets.passing())
    with pytest.raises(ModelError, match="the segment that makes y also needs the model input b"):
        model.segment(["a"], ["y"])
    with pytest.raises(ModelError, match="has no tensor zz that can travel"):
        model.segment(["a"], ["zz"])
    with pytest.raises(ModelError, match="has no tensor zz that can travel"):
        model.segment(["zz"], ["y"])
    with pytest.raises(ModelError, match="has no tensor parts that can travel"):
        nets.load(nets.sequences()).segment(["x"], ["parts"])


def test_inputs_that_are_not_read_are_left_out() -> None:
    model = nets.load(nets.passing())
    assert names(model.whole().inputs) == ["a", "b"]  # and not "unused"
    assert names(model.segment(["a", "b", "r"], ["y"]).inputs) == ["r"]


def test_a_tensor_that_is_given_is_not_made_again() -> None:
    """A Split of which one half is given and the other wanted."""
    model = nets.load(
        nets.proto(
            [node("Split", ["x"], ["l", "r"], name="split", axis=1), node("Sub", ["l", "r"], ["y"], name="sub")],
            [value("x", [1, 8])],
            [value("y", None)],
        )
    )
    segment = model.segment(["x", "l"], ["y"])
    x, left = np.arange(8, dtype=np.float32)[None], np.full((1, 4), 100, np.float32)
    got = nets.ENGINE.compile(segment).run({"x": x, "l": left})["y"]
    np.testing.assert_array_equal(got, 100 - x[:, 4:])


def test_an_output_asked_for_twice_is_made_once() -> None:
    model = nets.load(nets.residual())
    assert names(model.segment(["x"], ["r1", "sum", "r1", "x"]).outputs) == ["r1", "sum"]


def test_bodies_bring_the_weights_they_capture() -> None:
    model = nets.load(nets.branching())
    assert weights(model.segment(["cond", "mean", "h", "x", "late"], ["o"])) == {"w", "scale"}
    assert weights(model.head(model.graph.cut("late"))) == set()
    loop = nets.load(nets.looping())
    assert weights(loop.segment(["h", "x"], ["last"])) == {"w", "trips", "yes"}


def test_constants_may_be_outputs() -> None:
    model = nets.load(nets.passing())
    segment = model.segment([], ["w", "seven"])
    got = nets.ENGINE.compile(segment).run({})
    assert got["seven"].tolist() == [7, 7]
    assert got["w"].shape == (4, 3)


def test_keys_name_the_fingerprint_and_the_boundary() -> None:
    model = nets.load(nets.residual())
    again = nets.load(nets.residual())
    other = nets.load(nets.residual(), shapes={"x": (1, 3, 8, 8)})
    segments = [
        model.whole(), model.segment(["x"], ["r1"]), model.segment(["r1"], ["y"]), model.segment(["x"], ["r1", "y"]),
        other.whole(),
    ]  # fmt: skip
    assert len({s.key for s in segments}) == len(segments)
    assert again.segment(["x"], ["r1"]).key == segments[1].key
    assert all(len(s.key) == 16 for s in segments)


def test_a_segment_is_light() -> None:
    model = nets.load(nets.measured())
    segment = model.whole()
    (digest,) = segment.blobs
    assert nets.blob_hashes(segment) == {"w": digest}
    assert segment.proto.ByteSize() < 1500
    assert len(segment.to_bytes()) > segment.nbytes == 6 * 64 * 4
    assert "proto" not in repr(segment)


def test_specs_of_a_segment_keep_free_dimensions() -> None:
    model = nets.load(nets.residual())
    segment = model.segment(["r1"], ["y"])
    assert [t.type for t in (*segment.inputs, *segment.outputs)] == ["float32[batch,6,8,8]", "float32[batch,5]"]
    assert segment.proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_other_domains_and_old_opsets_are_kept() -> None:
    proto = nets.proto(
        [node("Relu", ["x"], ["r"]), node("Gelu", ["r"], ["y"], domain="com.microsoft")],
        [value("x", [4])],
        [value("y", None)],
        opset=9,
        ir=3,
        domains={"com.microsoft": 1},
    )
    segment = nets.load(proto).segment(["r"], ["y"])
    assert {(o.domain, o.version) for o in segment.proto.opset_import} == {("", 9), ("com.microsoft", 1)}
    assert segment.proto.ir_version >= 4


def test_quantisation_annotations_follow_their_tensors() -> None:
    proto = nets.residual()
    for tensor in ("r1", "y"):
        note = proto.graph.quantization_annotation.add(tensor_name=tensor)
        note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="s")
    segment = nets.load(proto).segment(["x"], ["c2"])
    assert [q.tensor_name for q in segment.proto.graph.quantization_annotation] == ["r1"]


# --- writing ------------------------------------------------------------------------------------------------------


def shared() -> Model:
    """Two weights with the same bytes: one blob."""
    w = np.random.default_rng(0).standard_normal((32, 32)).astype(np.float32)
    return nets.load(
        nets.proto(
            [node("MatMul", ["x", "w1"], ["h"]), node("Tanh", ["h"], ["t"]), node("MatMul", ["t", "w2"], ["y"])],
            [value("x", [1, 32])],
            [value("y", [1, 32])],
            [weight("w1", w), weight("w2", w)],
        )
    )


def test_equal_weights_are_one_blob_and_two_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    segment = shared().whole()
    assert len(segment.blobs) == 1
    assert segment.nbytes == 4096
    assert len(segment.to_bytes()) > 8192
    monkeypatch.setattr("splitpoint.models.model.MAX_PROTO_BYTES", 8000)
    with pytest.raises(ModelError, match="do not fit one ONNX file: save it to a folder"):
        segment.to_bytes()


@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_a_saved_segment_runs_in_plain_onnx_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    import onnxruntime as ort

    monkeypatch.setattr("splitpoint.models.model.MAX_PROTO_BYTES", limit)
    segment = shared().whole()
    path = tmp_path / "whole.onnx"
    segment.save(path)
    assert (tmp_path / "whole.onnx.data").exists() == (limit == 0)
    if not limit:
        assert (tmp_path / "whole.onnx.data").stat().st_size == 4096  # the blob, once
    x = np.random.default_rng(1).standard_normal((1, 32)).astype(np.float32)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    expected = nets.ENGINE.compile(segment).run({"x": x})["y"]
    np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, rtol=1e-6)
    onnx.checker.check_model(str(path), full_check=True)


def test_a_strange_capture_is_not_lost() -> None:
    """A body whose output is a tensor of the outer graph, without a node between."""
    then = helper.make_graph([], "then", [], [value("a", [4])])
    other = helper.make_graph([], "else", [], [value("b", [4])])
    proto = nets.proto(
        [
            node("Neg", ["x"], ["a"], name="a"),
            node("Exp", ["x"], ["b"], name="b"),
            node("ReduceSum", ["x"], ["s"], name="s", keepdims=0),
            node("Cast", ["s"], ["c"], name="c", to=TensorProto.BOOL),
            node("If", ["c"], ["y"], name="if", then_branch=then, else_branch=other),
        ],
        [value("x", [4])],
        [value("y", [4])],
    )
    model = nets.load(proto)
    assert set(model.graph.nodes[-1].inputs) == {"c", "a", "b"}
    assert {t.name for t in model.graph.cut_of([0, 1, 2, 3]).crossing} == {"a", "b", "c"}
