"""Sizes that onnx's inference and ONNX Runtime reckon differently, and which dimensions values decide."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, defs, helper

import nets
from nets import node, value, weight
from splitpoint.errors import ModelError
from splitpoint.models import inference, operators
from splitpoint.models.model import Model
from splitpoint.report.layer_table import layer_rows
from splitpoint.segments import split, verify
from splitpoint.tensors import ANY_RANK, Array, TensorSpec

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def plain(proto: Any, feed: Mapping[str, Array]) -> Array:
    """What plain ONNX Runtime makes of the first output."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, dict(feed))[0])


# --- sizes ----------------------------------------------------------------------------------------------------------

SCALES = [weight("scales", [1, 1, 0.7, 1.4], np.float32)]
SIZES: Mapping[str, tuple[Any, list[Any], int]] = {
    "resize": (node("Resize", ["c", "", "scales"], ["p"], name="odd", mode="nearest"), SCALES, 17),
    "upsample": (
        node("Upsample", ["c", "scales"], ["p"], name="odd"), [weight("scales", [1, 1, 1.4, 2.6], np.float32)], 9
    ),
    "max": (node("MaxPool", ["c"], ["p"], name="odd", kernel_shape=[2, 2], strides=[2, 2], pads=[1, 1, 1, 1],
                 ceil_mode=1), [], 17),
    "max, same": (node("MaxPool", ["c"], ["p"], name="odd", kernel_shape=[4, 3], strides=[2, 3], dilations=[2, 1],
                       auto_pad="SAME_UPPER"), [], 17),
    "average": (node("AveragePool", ["c"], ["p"], name="odd", kernel_shape=[1, 1], strides=[3, 3],
                     ceil_mode=1), [], 19),
    "lp": (node("LpPool", ["c"], ["p"], name="odd", kernel_shape=[1, 4], strides=[3, 1], ceil_mode=1,
                pads=[0, 3, 0, 3]), [], 18),
    "transposed": (node("ConvTranspose", ["c", "w2"], ["p"], name="odd", strides=[3, 2], auto_pad="SAME_UPPER",
                        output_padding=[1, 0]), [nets.normal("w2", 4, 4, 4, 4)], 17),
    "slice": (node("Slice", ["c", "from", "to", "axes", "steps"], ["p"], name="odd"),
              [weight("from", [-1, 1]), weight("to", [-99, 99]), weight("axes", [2, 3]), weight("steps", [-2, 3])], 17),
    "pad": (node("Pad", ["c", "pads"], ["p"], name="odd"), [weight("pads", [0, 0, -2, 3, 0, 0, 1, -1])], 17),
}  # fmt: skip


def odd(name: str, batch: int | str = "batch") -> Any:
    """Conv → an operator whose size is rounded → Conv. What the file declares is nonsense."""
    middle, constants, opset = SIZES[name]
    declared = [value("c", [1, 4, 2, 2]), value("p", [1, 4, 1, 1])]
    proto = nets.proto(
        [node("Conv", ["x", "w"], ["c"], name="first", pads=[1, 1, 1, 1]), middle,
         node("Conv", ["p", "w1"], ["y"], name="last")],
        [value("x", [batch, 3, 13, 17])],
        [value("y", [1, 9, 9, 9])],
        [nets.normal("w", 4, 3, 3, 3), nets.normal("w1", 2, 4, 1, 1), *constants],
        opset=opset,
    )  # fmt: skip
    proto.graph.value_info.extend(declared)
    return proto


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_those_of_the_runtime(name: str, tmp_path: Path) -> None:
    proto = odd(name)
    model = nets.load(proto)
    rng = np.random.default_rng(0)
    for batch in (1, 2):
        x = rng.standard_normal((batch, 3, 13, 17)).astype(np.float32)
        del proto.graph.output[0].type.tensor_type.shape.dim[:]
        expected = plain(proto, {"x": x})
        made = model.specs["y"].bind({"batch": batch})
        assert made.shape == expected.shape
        assert all(c.ok for c in verify(model, nets.ENGINE, model.graph.prefixes(), [{"x": x}, {"x": x[..., ::-1]}]))
    assert model.graph.tensors["y"].shape == (1, *expected.shape[1:])
    manifest = split(model, "odd", tmp_path)
    head, tail = (onnx.load(tmp_path / f"{side}.onnx") for side in ("head", "tail"))
    crossing = plain(head, {"x": x})
    assert manifest.crossing[0].shape == (1, *crossing.shape[1:])
    np.testing.assert_allclose(plain(tail, {"p": crossing}), expected, rtol=1e-4, atol=1e-5)
    fixed = nets.load(odd(name, 1))
    assert fixed.outputs[0].shape == model.graph.tensors["y"].shape


@pytest.mark.parametrize("name", ["resize", "max"])
def test_the_optimiser_makes_no_constant_of_a_wrong_size(name: str) -> None:
    """ONNX Runtime has the same inference: with fixed inputs it folds the Shape of what was rounded, and fails."""
    middle, constants, opset = SIZES[name]
    nodes = [
        node("Conv", ["x", "w"], ["c"], name="first", pads=[1, 1, 1, 1]), middle,
        node("Relu", ["p"], ["r"], name="relu"), node("Shape", ["r"], ["s"]), node("Gather", ["s", "sides"], ["hw"]),
        node("ReduceProd", ["hw"], ["size"], keepdims=1), node("Concat", ["head", "size"], ["to"], axis=0),
        node("Reshape", ["r", "to"], ["v"], name="view"), node("MatMul", ["w1", "v"], ["y"], name="fc"),
    ]  # fmt: skip
    constants = [*constants, weight("sides", [2, 3], np.int64), weight("head", [0, 4], np.int64)]
    constants += [nets.normal("w", 4, 3, 3, 3), nets.normal("w1", 2, 4)]
    proto = nets.proto(nodes, [value("x", ["N", 3, "?", "?"])], [value("y", None)], constants, opset=opset)
    model = nets.load(proto, shapes={"x": (1, 3, 13, 17)})
    assert all(c.ok for c in verify(model, nets.ENGINE, model.graph.prefixes()))


def test_only_what_may_be_rounded_is_run() -> None:
    """A large network of plain layers must not be run to be opened."""
    network = [node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]), node("MaxPool", ["c"], ["y"], kernel_shape=[2, 2])]
    assert inference.alike(network)
    for changed in (
        node("MaxPool", ["c"], ["y"], kernel_shape=[2, 2], ceil_mode=1),
        node("Conv", ["x", "w"], ["c"], auto_pad="SAME_LOWER"),
        node("Relu", ["x"], ["y"], domain="com.microsoft"),
        node("SomethingNew", ["x"], ["y"]),
    ):
        assert not inference.alike([*network, changed])
    body = helper.make_graph([node("Upsample", ["a"], ["b"])], "body", [], [value("b", None)])
    assert not inference.alike([node("If", ["c"], ["y"], then_branch=body, else_branch=body)])


#: Operators that make sizes in ways of their own: a model with one is run to see them.
RUN_TO_SEE = frozenset(
    {"AffineGrid", "Bernoulli", "BitCast", "BlackmanWindow", "CausalConvWithState", "CenterCropPad", "Col2Im",
     "Compress", "ConcatFromSequence", "DFT", "DeformConv", "Det", "EyeLike", "GridSample", "HammingWindow",
     "HannWindow", "If", "ImageDecoder", "LinearAttention", "Loop", "MaxRoiPool", "MaxUnpool",
     "MeanVarianceNormalization", "MelWeightMatrix", "Multinomial", "NegativeLogLikelihoodLoss", "NonMaxSuppression",
     "NonZero", "OneHot", "Optional", "OptionalGetElement", "OptionalHasElement", "RandomNormal", "RandomNormalLike",
     "RandomUniform", "RandomUniformLike", "RegexFullMatch", "Resize", "ReverseSequence", "RoiAlign", "STFT", "Scan",
     "Scatter", "SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert",
     "SequenceLength", "SequenceMap", "SoftmaxCrossEntropyLoss", "SplitToSequence", "StringConcat",
     "StringNormalizer", "StringSplit", "SwiGLU", "TensorScatter", "TfIdfVectorizer", "TopK", "Unique", "Upsample"}
)  # fmt: skip


def test_somebody_has_looked_at_every_operator() -> None:
    """A new onnx has new operators. They are handled with care until somebody has looked: does inference say their
    sizes (then add it to `RUN_TO_SEE`), and as ONNX Runtime does, without rounding (then to `operators.BY_SHAPE`)? May
    it have another number of dimensions for other values (then to `shapes._RANKED_BY_VALUES`)?"""
    known = inference._ALIKE | operators.WINDOWS | RUN_TO_SEE
    new = {s.name for s in defs.get_all_schemas() if s.domain == ""} - known
    assert not new, f"look at {', '.join(sorted(new))}"
    assert not inference._ALIKE & RUN_TO_SEE
    unseen = {s.name for s in defs.get_all_schemas_with_history() if s.domain == "" and s.since_version >= 7} - known
    assert not unseen


# --- what values decide ---------------------------------------------------------------------------------------------


def by_value(middle: Any, constants: Any = (), opset: int = 20, **inputs: tuple[int, Any]) -> Model:
    """A model whose output `y` is `middle`'s `m`, as floats; `inputs` by name: element type and shape."""
    given = [value(name, shape, kind) for name, (kind, shape) in inputs.items()]
    nodes = [*([middle] if not isinstance(middle, list) else middle), node("Cast", ["m"], ["y"], to=FLOAT)]
    return nets.load(nets.proto(nodes, given, [value("y", None)], constants, opset=opset))


X = {"x": (FLOAT, [3, 4])}
SIZE = {"n": (INT64, [])}
VECTOR = {"x": (FLOAT, [3, 4]), "v": (INT64, [1])}
DECIDED: Mapping[str, tuple[Any, Any, str]] = {
    "hann": (node("HannWindow", ["n"], ["m"]), SIZE, "y.0"),
    "hamming": (node("HammingWindow", ["n"], ["m"]), SIZE, "y.0"),
    "blackman": (node("BlackmanWindow", ["n"], ["m"]), SIZE, "y.0"),
    "range": (node("Range", ["i0", "n", "i1"], ["m"]), SIZE, "y.0"),
    "reduce": (node("ReduceMean", ["x", "v"], ["m"]), VECTOR, "y.0,y.1"),
    "reduce, fewer": (node("ReduceMax", ["x", "v"], ["m"], keepdims=0), VECTOR, "..."),
    "squeeze": (node("Squeeze", ["x", "v"], ["m"]), {"x": (FLOAT, [1, 1, 4]), "v": (INT64, [1])}, "..."),
    "unsqueeze": (node("Unsqueeze", ["x", "v"], ["m"]), VECTOR, "y.0,y.1,y.2"),
    "top": (node("TopK", ["x", "v"], ["m", "i"]), VECTOR, "y.0,y.1"),
    "one hot": (node("OneHot", ["v", "n", "pair"], ["m"]), {"v": (INT64, [2]), "n": (INT64, [])}, "2,y.1"),
    "tile": (node("Tile", ["x", "v"], ["m"]), {"x": (FLOAT, [3, 4]), "v": (INT64, [2])}, "y.0,y.1"),
    "nonzero": (node("NonZero", ["x"], ["m"]), X, "2,y.1"),
    "unique": (node("Unique", ["x"], ["m"]), X, "y.0"),
    "compress": (node("Compress", ["x", "b"], ["m"], axis=0), {**X, "b": (TensorProto.BOOL, [3])}, "y.0,4"),
    "all dims of 1": ([node("NonZero", ["x"], ["k"]), node("Squeeze", ["k"], ["m"])], X, "..."),
    # The shape of what values decide is no constant either.
    "shape of": (
        [node("NonZero", ["x"], ["k"]), node("Shape", ["k"], ["s"]), node("ConstantOfShape", ["s"], ["m"])], X,
        "2,y.1",
    ),
    # What does not follow values keeps its size, though inference cannot say it.
    "steady": (
        [node("Shape", ["x"], ["s"]), node("Greater", ["s", "three"], ["g"]), node("Where", ["g", "s", "one"], ["t"]),
         node("Expand", ["i1", "t"], ["e"]), node("Add", ["x", "f"], ["m0"]), node("Cast", ["e"], ["f"], to=FLOAT),
         node("Identity", ["m0"], ["m"])], X, "3,4",
    ),
}  # fmt: skip
CONSTANTS = [
    weight("i0", 0, np.int64), weight("i1", 1, np.int64), weight("pair", [0, 1], np.float32),
    weight("three", [3], np.int64), weight("one", [1], np.int64),
]  # fmt: skip


@pytest.mark.parametrize("name", DECIDED)
def test_sizes_that_values_decide_are_free(name: str) -> None:
    middle, inputs, expected = DECIDED[name]
    if name == "unsqueeze":  # made-up axes may be any: three dimensions come of it, wherever
        expected = "..."
    model = by_value(middle, CONSTANTS, **inputs)
    assert model.outputs[0].type == f"float32[{expected}]"


def branches(*shapes: list[int]) -> list[Any]:
    """An If between Reshapes to these shapes, by the sign of the sum of x."""
    bodies = [
        helper.make_graph([node("Reshape", ["x", f"s{k}"], [f"r{k}"])], f"b{k}", [], [value(f"r{k}", None)],
                          [weight(f"s{k}", s, np.int64)])
        for k, s in enumerate(shapes)
    ]  # fmt: skip
    return [
        node("ReduceSum", ["x"], ["sum"], keepdims=0), node("Greater", ["sum", "zero"], ["c"]),
        node("If", ["c"], ["q"], name="if", then_branch=bodies[0], else_branch=bodies[1]), node("Exp", ["q"], ["y"]),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [(([2, 6], [4, 3]), "y.0,y.1"), (([2, 6], [2, 6]), "2,6"), (([12], [2, 6]), "..."), (([3, 4], [12, 1, 1]), "...")],
)
def test_branches_of_other_shapes(shapes: Any, expected: str, tmp_path: Path) -> None:
    zero = [weight("zero", 0, np.float32)]
    model = nets.load(nets.proto(branches(*shapes), [value("x", [3, 4])], [value("y", None)], zero))
    assert model.outputs[0].type == f"float32[{expected}]"
    samples = [{"x": np.full((3, 4), s, np.float32)} for s in (1, -1)]
    for cut in model.graph.prefixes():
        assert all(c.ok for c in verify(model, nets.ENGINE, [cut], samples))
    split(model, "if", tmp_path)
    for sample, shape in zip(samples, shapes, strict=True):
        (q,) = ort.InferenceSession(tmp_path / "head.onnx").run(None, sample)
        (y,) = ort.InferenceSession(tmp_path / "tail.onnx").run(None, {"q": q})
        assert q.shape == y.shape == tuple(shape)


@pytest.mark.parametrize(
    ("step", "expected"), [("Tanh", "3,4"), ("Unsqueeze", "...")], ids=["the same rank", "one more each trip"]
)
def test_the_rank_of_a_loop(step: str, expected: str) -> None:
    made = node(step, ["state", "i0"] if step == "Unsqueeze" else ["state"], ["next"])
    body = helper.make_graph(
        [made, node("Identity", ["on"], ["go"])], "body",
        [value("i", [], INT64), value("on", [], TensorProto.BOOL), value("state", [3, 4])],
        [value("go", [], TensorProto.BOOL), value("next", [3, 4])],
    )  # fmt: skip
    nodes = [node("Loop", ["n", "", "x"], ["y"], name="loop", body=body)]
    model = nets.load(
        nets.proto(
            nodes, [value("x", [3, 4]), value("n", [], INT64)], [value("y", None)], [weight("i0", [0], np.int64)]
        )
    )
    free = model.outputs[0]
    assert (free.shape == ANY_RANK) == (expected == "...")
    assert len(free.shape) == (1 if expected == "..." else 2)


def test_a_loop_without_a_trip_stacks_nothing(tmp_path: Path) -> None:
    """What it would have stacked then has one dimension, unless the body declares more."""
    body = helper.make_graph(
        [node("Identity", ["on"], ["go"]), node("Tanh", ["state"], ["next"]), node("Exp", ["next"], ["each"])], "body",
        [value("i", [], INT64), value("on", [], TensorProto.BOOL), value("state", None)],
        [value("go", [], TensorProto.BOOL), value("next", None), value("each", None)],
    )  # fmt: skip
    nodes = [node("Loop", ["n", "", "x"], ["last", "all"], name="loop", body=body), node("Neg", ["all"], ["y"])]
    proto = nets.proto(nodes, [value("x", [1, 4]), value("n", [1], INT64)], [value("y", None)])
    model = nets.load(proto)
    assert len(model.graph.tensors["all"].shape) == 3  # there was a trip when it was measured
    assert model.specs["all"].shape == model.outputs[0].shape == ANY_RANK
    split(model, "loop", tmp_path)
    for trips, shape in ((2, (2, 1, 4)), (0, (0,))):
        sample = {"x": np.ones((1, 4), np.float32), "n": np.array([trips])}
        (made,) = ort.InferenceSession(tmp_path / "head.onnx").run(None, sample)
        (y,) = ort.InferenceSession(tmp_path / "tail.onnx").run(None, {"all": made})
        assert made.shape == y.shape == shape


def test_the_shape_of_what_has_no_fixed_rank_crosses() -> None:
    """Its length is open; what is shown are the sizes of the sample."""
    nodes = [*branches([12], [2, 6])[:-1], node("Shape", ["q"], ["sizes"]), node("Cast", ["sizes"], ["s"], to=FLOAT),
             node("ReduceMax", ["s"], ["most"], keepdims=0), node("Mul", ["most", "sum"], ["y"])]  # fmt: skip
    zero = [weight("zero", 0, np.float32)]
    model = nets.load(nets.proto(nodes, [value("x", [3, 4])], [value("y", None)], zero))
    rows = {row.at: row for row in layer_rows(model)}
    assert model.graph.cut("if").shapes == ("sizes",)
    assert rows["if"].crossing_wire_bytes > rows["if"].crossing_bytes == 4
    samples = [{"x": np.full((3, 4), s, np.float32)} for s in (1, -1)]
    assert all(c.ok for c in verify(model, nets.ENGINE, model.graph.prefixes(), samples))


# --- names of free dimensions ---------------------------------------------------------------------------------------


def test_two_free_dimensions_have_their_own_names() -> None:
    nodes = [node("Transpose", ["b"], ["t"]), node("MatMul", ["a", "t"], ["y"]), node("Tanh", ["b"], ["z"])]
    model = nets.load(
        nets.proto(nodes, [value("a", ["N", 4]), value("b", ["M", 4])], [value("y", None), value("z", None)])
    )
    assert [t.type for t in model.outputs] == ["float32[N,M]", "float32[M,4]"]


def test_two_names_of_one_dimension() -> None:
    """Two inputs that are added have one batch, whatever their file calls it."""
    nodes = [node("Add", ["a", "b"], ["s"]), node("Tanh", ["s"], ["y"])]
    model = nets.load(nets.proto(nodes, [value("a", ["N", 4]), value("b", ["M", 4])], [value("y", None)]))
    assert model.outputs[0].type == "float32[N,4]"
    odd_sum = [node("Add", ["a", "b"], ["s"]), node("LpPool", ["s"], ["y"], kernel_shape=[2], ceil_mode=1, strides=[3])]
    shaped = [value("a", ["N", 4, 9]), value("b", ["M", 4, 9])]
    assert nets.load(nets.proto(odd_sum, shaped, [value("y", None)], opset=18)).outputs[0].shape[:2] == ("N", 4)


@pytest.mark.parametrize("name", ["?", "", "-1", "None", "unk", "dynamic", "*"])
def test_a_placeholder_is_no_name(name: str) -> None:
    x = value("x", ["N", 3, name, name])
    proto = nets.proto([node("GlobalAveragePool", ["x"], ["y"])], [x], [value("y", None)])
    assert nets.load(proto, shapes={"x": (1, 3, 48, 192)}).graph.tensors["x"].shape == (1, 3, 48, 192)
    with pytest.raises(ModelError, match=r"has free dimensions \(x.2, x.3\): fix them with --shape x=1,3,N,N"):
        nets.load(proto)
    two = nets.proto(
        [node("Concat", ["a", "b"], ["y"], axis=0)], [value("a", [name, 4]), value("b", [name, 4])], [value("y", None)]
    )
    fixed = nets.load(two, shapes={"a": (2, 4), "b": (3, 4)})  # one may be fixed without the other
    assert fixed.outputs[0].shape == (5, 4)


def test_a_name_is_one_size() -> None:
    proto = nets.proto([node("Relu", ["x"], ["y"])], [value("x", ["N", 3, "side", "side"])], [value("y", None)])
    with pytest.raises(ModelError, match="gives dimension side two sizes, 48 and 192"):
        nets.load(proto, shapes={"x": (1, 3, 48, 192)})


# --- scalars, weights that nobody reads -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [FLOAT, TensorProto.UINT8, TensorProto.INT8, INT64, TensorProto.BOOL])
def test_scalars_are_inferred(kind: int) -> None:
    nodes = [
        node("Cast", ["k"], ["f"], to=FLOAT), node("Mul", ["x", "f"], ["m"]), node("NonZero", ["m"], ["n"]),
        node("Cast", ["n"], ["c"], to=FLOAT), node("ReduceSum", ["c"], ["s"], keepdims=0),
        node("Add", ["s", "f"], ["y"]),
    ]  # fmt: skip
    model = nets.load(nets.proto(nodes, [value("x", [1, 4]), value("k", [], kind)], [value("y", [])]))
    assert model.specs["f"].shape == model.outputs[0].shape == ()
    assert model.specs["m"].shape == (1, 4)
    samples = [
        {"x": np.full((1, 4), s, np.float32), "k": np.array(s, helper.tensor_dtype_to_np_dtype(kind))} for s in (0, 1)
    ]
    assert all(c.ok for c in verify(model, nets.ENGINE, model.graph.prefixes(), samples))


def test_an_input_that_is_an_output_keeps_its_shape() -> None:
    model = nets.load(
        nets.proto([node("Relu", ["x"], ["y"])], [value("x", ["N", 4])], [value("x", None), value("y", None)])
    )
    assert [t.type for t in model.outputs] == ["float32[N,4]", "float32[N,4]"]


def test_weights_that_nothing_reads_do_no_harm() -> None:
    unused = helper.make_graph(
        [node("Identity", ["h"], ["t"])], "body", [], [value("t", None)], [nets.normal("inner", 20, 20)]
    )
    nodes = [
        node("MatMul", ["x", "w"], ["h"]), node("ReduceSum", ["h"], ["s"], keepdims=0),
        node("Cast", ["s"], ["c"], to=TensorProto.BOOL),
        node("If", ["c"], ["i"], then_branch=unused, else_branch=unused), node("NonZero", ["i"], ["y"]),
    ]  # fmt: skip
    weights = [nets.normal("w", 8, 8), nets.normal("left_over", 20, 20)]
    proto = nets.proto(nodes, [value("x", ["N", 8])], [value("y", None, INT64)], weights)
    proto.graph.value_info.extend([value("left_over", [20, 20]), value("ghost", [3])])
    model = nets.load(proto)
    assert model.outputs[0].type == "int64[2,y.1]"
    nets.ENGINE.compile(model.whole()).close()


def test_what_fits_a_spec() -> None:
    spec = TensorSpec("x", "float32", ("batch", 3))
    assert spec.fits("float32", (7, 3))
    assert not any(spec.fits(*other) for other in (("float16", (7, 3)), ("float32", (7, 4)), ("float32", (3,))))
    anything = TensorSpec("x", "float32", ANY_RANK)
    assert anything.fits("float32", ())
    assert anything.fits("float32", (1, 2, 3))
    assert not anything.fits("int8", (1,))
    assert anything.type == "float32[...]"
