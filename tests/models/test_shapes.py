"""Free dimensions, --shape, what is inferred and what is measured, made-up inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from onnx import TensorProto, helper

import nets
from nets import node, value, weight
from splitpoint.errors import ModelError
from splitpoint.models import shapes
from splitpoint.segments import Halves
from splitpoint.tensors import TensorSpec


def add(*inputs: Any) -> Any:
    """The sum of all inputs."""
    return nets.proto(
        [node("Sum", [i.name for i in inputs], ["y"], name="sum")], inputs, [value("y", None, TensorProto.FLOAT)]
    )


def refused(proto: Any, message: str, **shape: Any) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        nets.load(proto, shapes=shape)
    assert "\n" not in str(caught.value)


def test_a_free_batch_is_assumed_to_be_one() -> None:
    model = nets.load(nets.residual())
    assert model.graph.assumed == {"batch": 1}
    assert [str(t) for t in model.inputs] == ["x: float32[batch,3,8,8]"]
    assert model.graph.tensors["x"].shape == (1, 3, 8, 8)
    assert {t.shape[0] for t in model.graph.tensors.values()} == {1}
    assert {t.shape[0] for t in model.specs.values()} == {"batch"}


@pytest.mark.parametrize("batch", ["N", "", -1, 0])
def test_a_batch_is_free_however_it_is_written(batch: int | str) -> None:
    proto = nets.residual(batch or "batch")
    if batch in ("", 0, -1):
        dim = proto.graph.input[0].type.tensor_type.shape.dim[0]
        dim.Clear()
        if batch != "":
            dim.dim_value = int(batch)
    model = nets.load(proto)
    name = batch if batch == "N" else "batch"
    assert model.inputs[0].shape == (name, 3, 8, 8)
    assert model.outputs[0].shape == (name, 5)
    fixed = nets.load(proto, shapes={"x": (4, 3, 8, 8)})
    assert (fixed.inputs[0].shape, fixed.outputs[0].shape) == ((4, 3, 8, 8), (4, 5))
    assert fixed.graph.assumed == {}
    assert fixed.fingerprint != model.fingerprint


def test_other_free_dimensions_ask_for_shape() -> None:
    proto = add(value("x", ["N", 3, "H", "W"]))
    refused(proto, r"input x: float32\[N,3,H,W\] has free dimensions \(H, W\): fix them with --shape x=1,3,N,N$")
    model = nets.load(proto, shapes={"x": (1, 3, 32, 48)})
    assert model.outputs[0].type == "float32[1,3,32,48]"


def test_a_dimension_of_the_same_name_is_the_same_dimension() -> None:
    proto = add(value("ids", ["batch", "seq"]), value("mask", ["batch", "seq"]))
    model = nets.load(proto, shapes={"ids": (2, 7)})
    assert [t.shape for t in model.inputs] == [(2, 7), (2, 7)]
    refused(proto, "--shape gives dimension batch two sizes, 2 and 3", ids=(2, 7), mask=(3, 7))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"z": (1,)}, r"no input z \(its inputs: image\)"),
        ({"imag": (1, 3)}, "no input imag; did you mean image"),
        ({"image": (1, 3)}, r"image: float32\[batch,3,4\] has 3 dimensions, --shape image gives 2"),
        ({"image": (1, 5, 4)}, r"image: float32\[batch,3,4\] is fixed, --shape image asks for \[1, 5, 4\]"),
        ({"image": (0, 3, 4)}, "a dimension must be 1 or more, not 0"),
        ({"image": (-1, 3, 4)}, "a dimension must be 1 or more, not -1"),
    ],
)
def test_wrong_shapes_are_refused(shape: dict[str, Any], message: str) -> None:
    refused(add(value("image", ["batch", 3, 4])), message, **shape)


def test_an_input_without_a_shape_asks_for_one() -> None:
    proto = add(value("x", None))
    refused(proto, "input x declares no shape: give it with --shape x=1,…")
    assert nets.load(proto, shapes={"x": (1, 6)}).outputs[0].shape == (1, 6)


def test_a_scalar_is_not_an_input_without_a_shape() -> None:
    model = nets.load(add(value("x", [])))
    assert model.inputs[0].shape == ()
    refused(add(value("x", [])), "has 0 dimensions, --shape x gives 1", x=(3,))


def test_inputs_that_are_no_tensors_of_numbers() -> None:
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)
    proto = nets.proto([node("ConcatFromSequence", ["s"], ["y"], axis=0)], [sequence], [value("y", None)])
    refused(proto, "input s is a sequence, not a tensor")
    refused(proto, "input s is a sequence, not a tensor", s=(1,))
    text = nets.proto(
        [node("StringConcat", ["s", "s"], ["y"])],
        [value("s", [1], TensorProto.STRING)],
        [value("y", None, TensorProto.STRING)],
        opset=20,
    )
    refused(text, "input s is text, which splitpoint cannot carry")
    half = nets.proto([node("Cast", ["s"], ["y"], to=1)], [value("s", [1], TensorProto.BFLOAT16)], [value("y", None)])
    refused(half, "input s is bfloat16, which splitpoint cannot carry")


def test_declared_output_shapes_are_not_believed() -> None:
    proto = nets.residual()
    proto.graph.output[0].CopyFrom(value("y", [99, 98]))
    assert nets.load(proto).outputs[0].shape == ("batch", 5)


@pytest.mark.parametrize("declared", [[1, 4], ["n", 4], [1, 5], [4], None])
def test_a_declared_output_shape_refuses_no_other_one(declared: Any) -> None:
    """Inference knows nothing behind a Reshape to what an input says, and what a file declares holds for one value."""
    nodes = [
        node("Cast", ["x"], ["ints"], name="cast", to=TensorProto.INT64),
        node("Mul", ["ints", "zero"], ["none"], name="mul"),
        node("Add", ["none", "wanted"], ["size"], name="add"),
        node("Reshape", ["w", "size"], ["y"], name="reshape"),
    ]
    constants = [weight("zero", 0, np.int64), weight("wanted", [1, 4], np.int64), nets.normal("w", 4)]
    model = nets.load(nets.proto(nodes, [value("x", [2])], [value("y", declared)], constants))
    assert model.outputs[0].shape == ("y.0", "y.1")


@pytest.mark.parametrize("size", [[99999999999999999999, 3], [1 << 21, 1 << 20]])
def test_a_shape_that_no_machine_can_hold(size: list[int]) -> None:
    proto = nets.proto([node("Relu", ["x"], ["y"])], [value("x", ["n", "m"])], [value("y", None)])
    refused(proto, "--shape x: [0-9x]+ is more than any machine can hold", x=size)


def test_a_model_for_batch_one_only_claims_nothing_of_other_batches() -> None:
    """Its input says the batch is free, its Reshape says it is not."""
    proto = nets.proto(
        [
            node("Gelu", ["x"], ["g"], name="gelu", domain="com.microsoft"),
            node("Reshape", ["g", "shape"], ["r"], name="view"),
            node("MatMul", ["r", "w"], ["y"], name="fc"),
        ],
        [value("x", ["batch", 2, 3])],
        [value("y", None)],
        [weight("shape", [1, 6], np.int64), nets.normal("w", 6, 4)],
        domains={"com.microsoft": 1},
    )
    model = nets.load(proto)
    assert model.outputs[0].type == "float32[y.0,y.1]"
    assert model.graph.tensors["r"].shape == (1, 6)


def test_made_up_values_that_fit_one_batch_only_fix_no_other_shape() -> None:
    """Expand takes [1,6] to any size, and [3,6] not to the sizes that are made up: t is [N,6] all the same."""
    nodes = [node("Tanh", ["x"], ["t"], name="tanh"), node("Gelu", ["t"], ["g"], domain="com.microsoft"),
             node("Expand", ["g", "size"], ["y"], name="expand")]  # fmt: skip
    inputs = [value("x", ["N", 6]), value("size", [3], TensorProto.INT64)]
    model = nets.load(nets.proto(nodes, inputs, [value("y", None)], domains={"com.microsoft": 1}))
    sample = {"x": np.ones((2, 6), np.float32), "size": np.array([4, 1, 6])}
    for cut in model.graph.prefixes():
        both = Halves(model, cut, nets.ENGINE)
        assert both.run(sample)["y"].shape == (4, 2, 6)
        both.close()
        assert all(t.fits("float32", (2, 6)) for t in (model.specs[n] for n in ("x", "t", "g")))


def test_what_nobody_reads_is_not_measured() -> None:
    """Else the mask of a Dropout would make every load of an old AlexNet run the whole of it."""
    proto = nets.proto(
        [node("Relu", ["x"], ["r"]), node("Dropout", ["r"], ["y", "mask"])], [value("x", [4])], [value("y", None)],
        opset=7,
    )  # fmt: skip

    def probe(*_: object) -> Any:
        raise AssertionError("the model was run")

    found = shapes.shapes_of(proto, probe)
    assert found.bound["y"].shape == (4,)
    assert set(found.bound) == {"x", "r", "y"}
    # Noted with the graph, so that the next who reads it need not infer again.
    assert shapes.shapes_of(proto, probe) == found


def test_dimensions_that_depend_on_values_are_free() -> None:
    proto = nets.proto(
        [
            node("Gelu", ["x"], ["g"], domain="com.microsoft"),  # measured, and fixed
            node("NonZero", ["g"], ["nz"]),
            node("Gelu", ["g2"], ["h"], domain="com.microsoft"),  # behind a measured shape that is not fixed
            node("Compress", ["x", "keep"], ["g2"], axis=0),
            node("Greater", ["row", "zero"], ["keep"]),
            node("ReduceSum", ["x", "one"], ["row"], keepdims=0),
            node("ReduceMax", ["x"], ["top"], keepdims=0),
            node("Cast", ["top"], ["count"], to=TensorProto.INT64),
            node("Range", ["zero64", "count", "one64"], ["range"]),
            node("Tile", ["g", "repeats"], ["tiled"]),
            node("TopK", ["x", "k"], ["best", "where"]),
        ],
        [value("x", [3, 4])],
        [value(t, None, k) for t, k in (("g", 1), ("nz", 7), ("h", 1), ("range", 7), ("tiled", 1), ("best", 1))],
        [
            weight("zero", 0.0, np.float32), weight("one", [1], np.int64), weight("zero64", 0, np.int64),
            weight("one64", 1, np.int64), weight("repeats", [2, 1], np.int64), weight("k", [2], np.int64),
        ],
        domains={"com.microsoft": 1},
    )  # fmt: skip
    model = nets.load(proto)
    types = {t.name: t.type for t in model.outputs}
    assert types == {
        "g": "float32[3,4]",
        "nz": "int64[2,nz.1]",
        "h": "float32[h.0,h.1]",
        "range": "int64[range.0]",
        "tiled": "float32[6,4]",
        "best": "float32[3,2]",
    }
    assert all(t.is_static for t in model.graph.tensors.values())


def test_sequences_need_no_run() -> None:
    model = nets.load(nets.sequences())
    assert "parts" not in model.specs
    assert model.specs["joined"].type == "float32[batch,4]"


@settings(max_examples=40, deadline=None)
@given(nets.random_dags(most=12))
def test_shapes_of_random_graphs_are_the_true_ones(proto: object) -> None:
    model = nets.load(proto)
    names = [n for node in model.graph.nodes for n in node.outputs if n in model.specs and n not in ("h",)]
    if not names:
        return
    session = nets.ENGINE.compile(model.segment([t.name for t in model.inputs], names))
    for batch in (1, 3):
        for name, array in session.run(nets.whole_numbers(model, batch, 0)).items():
            free = model.specs[name]
            assert free.dtype == array.dtype.name
            assert len(free.shape) == array.ndim
            for want, got in zip(free.bind({"batch": batch}).shape, array.shape, strict=True):
                assert isinstance(want, str) or want == got
            if batch == 1:
                assert model.graph.tensors[name].shape == array.shape
    session.close()


@pytest.mark.parametrize(
    ("spec", "low", "high"),
    [
        (TensorSpec("x", "uint8", (50, 50)), 0, 255),
        (TensorSpec("x", "int8", (50, 50)), 0, 127),
        (TensorSpec("x", "int64", (50, 50)), 0, 1),
        (TensorSpec("x", "bool", (50, 50)), 0, 1),
        (TensorSpec("x", "float16", (50, 50)), -5, 5),
    ],
)
def test_made_up_inputs(spec: TensorSpec, low: int, high: int) -> None:
    made = shapes.sample_inputs([spec])["x"]
    assert (made.dtype.name, made.shape) == (spec.dtype, (50, 50))
    assert low <= made.min() < made.max() <= high
    assert np.array_equal(made, shapes.sample_inputs([spec])["x"])
    assert not np.array_equal(made, shapes.sample_inputs([spec], seed=1)["x"])
    assert shapes.sample_inputs([TensorSpec("x", "int64", (99,))], vocabulary=50)["x"].max() > 30


@pytest.mark.parametrize("kind", ["BFLOAT16", "FLOAT8E4M3FN", "UINT4", "STRING"])
def test_an_output_that_cannot_be_carried_is_named_by_its_type(kind: str) -> None:
    number = getattr(TensorProto, kind)
    nodes = [node("Tanh", ["x"], ["t"]), node("Cast", ["t"], ["y"], to=number)]
    net = nets.proto(nodes, [value("x", [1, 4])], [value("y", [1, 4], number)], opset=21)
    word = "text" if kind == "STRING" else kind.lower()
    with pytest.raises(ModelError, match=f"output y is {word}, which splitpoint cannot carry: "):
        nets.load(net)


def test_an_output_that_is_a_sequence() -> None:
    output = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
    net = nets.proto([node("SequenceConstruct", ["x", "x"], ["y"])], [value("x", [1, 4])], [output])
    with pytest.raises(ModelError, match=r"output y is a sequence, which .* take it \(and what makes it"):
        nets.load(net)


def test_a_model_that_does_not_run_on_made_up_inputs_is_opened_by_inference() -> None:
    def probe(*_: object) -> Any:
        raise ModelError("the inputs make no sense")

    pool = node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
    proto = nets.proto([pool], [value("x", ["batch", 2, 13, 17])], [value("y", [1, 9, 9, 9])])
    assert shapes.shapes_of(proto, probe).free["y"].shape[:2] == ("batch", 2)
