"""ONNX graphs made by hand for the tests, random ones from hypothesis, and onnx's light models with real signal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from splitpoint.engines import open_engine
from splitpoint.graph import JOIN, Graph
from splitpoint.models import model as building
from splitpoint.models import reading
from splitpoint.models.model import Model, Segment
from splitpoint.models.shapes import fix_shapes
from splitpoint.models.soundness import blob_hash
from splitpoint.segments import samples_for
from splitpoint.tensors import Array

FLOAT = TensorProto.FLOAT
ENGINE = open_engine("onnxruntime", threads=1)

Shape = Sequence[int | str] | None
node = helper.make_node


def value(name: str, shape: Shape, elem_type: int = FLOAT) -> Any:
    return helper.make_tensor_value_info(name, elem_type, shape)


def weight(name: str, array: Any, dtype: Any = None) -> Any:
    return numpy_helper.from_array(np.asarray(array, dtype or np.asarray(array).dtype), name)


def normal(name: str, *shape: int, seed: int = 0) -> Any:
    """A float32 weight drawn so that a layer keeps the size of its input."""
    fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 1
    rng = np.random.default_rng([seed, *name.encode()])
    return weight(name, (rng.standard_normal(shape) * np.sqrt(2 / fan_in)).astype(np.float32))


def proto(
    nodes: Iterable[Any],
    inputs: Iterable[Any],
    outputs: Iterable[Any],
    weights: Iterable[Any] = (),
    *,
    opset: int = 17,
    ir: int = 8,
    domains: Mapping[str, int] | None = None,
    functions: Iterable[Any] = (),
) -> Any:
    """A ModelProto."""
    graph = helper.make_graph(list(nodes), "net", list(inputs), list(outputs), list(weights))
    opsets = [helper.make_opsetid("", opset)]
    opsets += [helper.make_opsetid(d, v) for d, v in (domains or {}).items()]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir, functions=list(functions))


def load(model: Any, *, folder: Path = Path("."), shapes: Mapping[str, Sequence[int]] | None = None) -> Model:
    """The Model of a ModelProto, by the way a file takes."""
    copy = type(model).FromString(model.SerializeToString())
    skeleton, weights = reading.skeleton_of(copy, folder, "net.onnx")
    fix_shapes(skeleton, shapes or {})
    return building.build(skeleton, weights, "net")


def closed(graph: Graph, nodes: Iterable[int]) -> Set[int]:
    """The nodes of the cut that is named by `nodes`: these, and all that they need."""
    return graph.cut(JOIN.join(f"node:{graph.nodes[i].name}" for i in nodes) or "cut:input").nodes


def blob_hashes(segment: Segment) -> dict[str, str]:
    """Name of each weight that is not inline → its hash."""
    return {t.name: h for t in segment.proto.graph.initializer if (h := blob_hash(t))}


def saved(model: Any, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


# --- nets with a name ---------------------------------------------------------------------------------------------


def residual(batch: int | str = "batch") -> Any:
    """conv → relu → (conv → relu) + skip → pool → flatten → gemm, with a free batch."""
    return proto(
        [
            node("Conv", ["x", "w1", "b1"], ["c1"], name="stem", pads=[1, 1, 1, 1]),
            node("Relu", ["c1"], ["r1"], name="act"),
            node("Conv", ["r1", "w2"], ["c2"], name="body", pads=[1, 1, 1, 1]),
            node("Relu", ["c2"], ["r2"], name="act2"),
            node("Add", ["r1", "r2"], ["sum"], name="skip"),
            node("GlobalAveragePool", ["sum"], ["pool"], name="pool"),
            node("Flatten", ["pool"], ["flat"], name="flat"),
            node("Gemm", ["flat", "w3", "b3"], ["y"], name="fc", transB=1),
        ],
        [value("x", [batch, 3, 8, 8])],
        [value("y", [batch, 5])],
        [
            normal("w1", 6, 3, 3, 3),
            normal("b1", 6),
            normal("w2", 6, 6, 3, 3),
            normal("w3", 5, 6),
            normal("b3", 5),
        ],
    )


def flattening() -> Any:
    """A view(batch, -1) as old exporters write it: Shape → Gather → Unsqueeze → Concat → Reshape."""
    return proto(
        [
            node("Conv", ["x", "w1"], ["c1"], name="conv"),
            node("Relu", ["c1"], ["r1"], name="relu"),
            node("Shape", ["x"], ["s"], name="shape"),
            node("Constant", [], ["zero"], value=weight("", np.int64(0))),
            node("Gather", ["s", "zero"], ["n"], name="gather"),
            node("Unsqueeze", ["n", "axes"], ["n1"], name="unsqueeze"),
            node("Concat", ["n1", "minus"], ["target"], name="target", axis=0),
            node("Reshape", ["r1", "target"], ["flat"], name="view"),
            node("MatMul", ["flat", "w2"], ["y"], name="fc"),
        ],
        [value("x", ["batch", 3, 6, 6])],
        [value("y", ["batch", 4])],
        [
            normal("w1", 5, 3, 3, 3),
            normal("w2", 80, 4),
            weight("axes", [0], np.int64),
            weight("minus", [-1], np.int64),
        ],
    )


def wide_shapes() -> Any:
    """The tail needs the shape of a tensor that stays on the device, ConstantOfShape, Range, Size and a cast weight."""
    return proto(
        [
            node("Cast", ["w16"], ["w"], name="cast", to=FLOAT),
            node("MatMul", ["x", "w"], ["a"], name="first"),  # [batch, 8]
            node("Shape", ["a"], ["sa"], name="shape"),
            node("ReduceMean", ["a"], ["m"], name="mean", axes=[1], keepdims=1),  # [batch, 1]: narrow
            node("Tanh", ["m"], ["t"], name="tanh"),
            node("ConstantOfShape", ["sa"], ["ones"], name="ones", value=weight("", np.ones(1, np.float32))),
            node("Mul", ["t", "ones"], ["wide"], name="wide"),  # [batch, 8] again
            node("Gather", ["sa", "last"], ["n"], name="width"),
            node("Range", ["zero", "n", "one"], ["range"], name="range"),
            node("Cast", ["range"], ["ramp"], name="ramp", to=FLOAT),
            node("Size", ["a"], ["size"], name="size"),
            node("Cast", ["size"], ["fsize"], name="fsize", to=FLOAT),
            node("Div", ["ramp", "fsize"], ["slope"], name="slope"),
            node("Add", ["wide", "slope"], ["y"], name="add"),
        ],
        [value("x", ["batch", 4])],
        [value("y", ["batch", 8])],
        [
            weight("w16", np.random.default_rng(0).standard_normal((4, 8)).astype(np.float16)),
            weight("last", 1, np.int64),
            weight("zero", 0, np.int64),
            weight("one", 1, np.int64),
        ],
    )


def branching() -> Any:
    """An If inside an If: bodies two deep capture a weight, a tensor of the head and a model input."""
    inner_then = helper.make_graph([node("MatMul", ["h", "w"], ["it"])], "inner_then", [], [value("it", None)])
    inner_else = helper.make_graph([node("Sub", ["h", "x"], ["ie"])], "inner_else", [], [value("ie", None)])
    then = helper.make_graph(
        [
            node("Greater", ["mean", "half"], ["high"]),
            node("If", ["high"], ["inner"], then_branch=inner_then, else_branch=inner_else),
            node("Add", ["inner", "late"], ["to"]),
        ],
        "then",
        [],
        [value("to", None)],
        [weight("half", 0.5, np.float32)],
    )
    otherwise = helper.make_graph([node("Mul", ["h", "scale"], ["eo"])], "else", [], [value("eo", None)])
    return proto(
        [
            node("Tanh", ["x"], ["h"], name="early"),
            node("ReduceMean", ["h"], ["mean"], name="mean", keepdims=0),
            node("Greater", ["mean", "nought"], ["cond"], name="test"),
            node("Sigmoid", ["h"], ["late"], name="late"),
            node("If", ["cond"], ["o"], name="if", then_branch=then, else_branch=otherwise),
            node("MatMul", ["o", "w"], ["y"], name="fc"),
        ],
        [value("x", [2, 4])],
        [value("y", None)],
        [normal("w", 4, 4), weight("scale", 3.0, np.float32), weight("nought", 0.0, np.float32)],
    )


def looping() -> Any:
    """A Loop (weight, head tensor and input captured) and a Scan."""
    body = helper.make_graph(
        [
            node("MatMul", ["state", "w"], ["m"]),
            node("Tanh", ["m"], ["t"]),
            node("Add", ["t", "h"], ["next"]),
            node("Add", ["next", "x"], ["seen"]),
            node("Identity", ["going"], ["go"]),
        ],
        "body",
        [value("i", [], TensorProto.INT64), value("going", [], TensorProto.BOOL), value("state", [2, 4])],
        [value("go", [], TensorProto.BOOL), value("next", [2, 4]), value("seen", [2, 4])],
    )
    step = helper.make_graph(
        [node("Add", ["carry", "row"], ["sum"]), node("Mul", ["sum", "gain"], ["out"])],
        "step",
        [value("carry", [4]), value("row", [4])],
        [value("sum", [4]), value("out", [4])],
    )
    return proto(
        [
            node("Relu", ["x"], ["h"], name="relu"),
            node("Loop", ["trips", "yes", "h"], ["last", "all"], name="loop", body=body),
            node("Scan", ["start", "last"], ["total", "rows"], name="scan", body=step, num_scan_inputs=1),
            node("ReduceSum", ["all"], ["s"], name="sum", keepdims=0),
            node("Add", ["rows", "s"], ["y"], name="out"),
        ],
        [value("x", [2, 4])],
        [value("y", None), value("total", None)],
        [
            normal("w", 4, 4),
            weight("trips", 3, np.int64),
            weight("yes", True),
            weight("start", np.zeros(4, np.float32)),
            weight("gain", np.full(4, 0.5, np.float32)),
        ],
    )


def sequences() -> Any:
    """SplitToSequence → SequenceAt and ConcatFromSequence: what is between them cannot travel."""
    return proto(
        [
            node("Relu", ["x"], ["r"], name="relu"),
            node("SplitToSequence", ["r", "two"], ["parts"], name="split", axis=1),
            node("SequenceAt", ["parts", "zero"], ["first"], name="at"),
            node("ConcatFromSequence", ["parts"], ["joined"], name="join", axis=1),
            node("MatMul", ["joined", "w"], ["m"], name="fc"),
            node("Add", ["m", "first"], ["y"], name="add"),
        ],
        [value("x", ["batch", 4])],
        [value("y", None)],
        [weight("two", 2, np.int64), weight("zero", 0, np.int64), normal("w", 4, 2)],
    )


def measured() -> Any:
    """NonZero, whose shape exists only at run time, behind a weight large enough to be a blob."""
    return proto(
        [
            node("MatMul", ["x", "w"], ["m"], name="fc"),
            node("Relu", ["m"], ["r"], name="relu"),
            node("NonZero", ["r"], ["where"], name="nonzero"),
            node("Transpose", ["where"], ["rows"], name="transpose", perm=[1, 0]),
            node("GatherND", ["r", "rows"], ["y"], name="gather"),
        ],
        [value("x", ["batch", 6])],
        [value("y", None)],
        [normal("w", 6, 64)],
    )


def passing() -> Any:
    """Two inputs; outputs: an input itself, an Identity of one, a tensor that is used inside too, a constant."""
    return proto(
        [
            node("Identity", ["b"], ["same"], name="same"),
            node("Add", ["a", "b"], ["inner"], name="add"),
            node("Relu", ["inner"], ["r"], name="relu"),
            node("MatMul", ["r", "w"], ["y"], name="fc"),
            node("Shape", ["r"], ["size"], name="shape"),
            node("Constant", [], ["seven"], value=weight("", np.full(2, 7, np.float32))),
        ],
        [value("a", [2, 4]), value("b", [2, 4]), value("unused", [1, 3])],
        [
            value("a", [2, 4]),
            value("same", [2, 4]),
            value("inner", [2, 4]),
            value("y", [2, 3]),
            value("size", [2], TensorProto.INT64),
            value("seven", [2]),
            value("w", [4, 3]),
        ],
        [normal("w", 4, 3)],
    )


def stacked(depth: int, width: int = 4) -> Any:
    """A chain of `depth` cheap nodes."""
    nodes = [node("Tanh" if i % 2 else "Neg", [f"t{i}"], [f"t{i + 1}"], name=f"n{i}") for i in range(depth)]
    return proto(nodes, [value("t0", [1, width])], [value(f"t{depth}", [1, width])])


# --- random graphs ------------------------------------------------------------------------------------------------

#: All values are small whole numbers, so every sum is exact and any two ways to compute must agree to the last bit.
_LIMIT = 8


@st.composite
def random_dags(draw: st.DrawFn, most: int = 9) -> Any:
    """A ModelProto of random wiring: every tensor is [batch, 4] of whole numbers; 1–3 inputs, 1–4 outputs."""
    inputs = [f"in{k}" for k in range(draw(st.integers(1, 3)))]
    tensors = list(inputs)
    nodes: list[Any] = []
    for k in range(draw(st.integers(1, most))):
        kind = draw(st.sampled_from(sorted(_KINDS)))
        # Recent tensors more often, or no graph would be deep.
        a, b = (tensors[-1 - draw(st.integers(0, min(len(tensors), 6) - 1))] for _ in range(2))
        made, names = _KINDS[kind](f"k{k}", a, b)
        nodes += made
        tensors += names
    outputs = draw(st.lists(st.sampled_from(tensors), min_size=1, max_size=4, unique=True))
    whole = draw(st.lists(st.integers(-2, 2), min_size=32, max_size=32))
    weights = [
        weight("w44", np.reshape(whole[:16], (4, 4)), np.float32),
        weight("w84", np.reshape(whole, (8, 4)), np.float16),
        weight("row", whole[:4], np.float32),
        weight("one", 1.0, np.float32),
        weight("zp", 0, np.int8),
        weight("i0", 0, np.int64),
        weight("i2", 2, np.int64),
        weight("axis0", [0], np.int64),
        weight("four", [4], np.int64),
        weight("lo", -_LIMIT, np.float32),
        weight("hi", _LIMIT, np.float32),
    ]
    return proto(
        nodes,
        [value(i, ["batch", 4]) for i in inputs],
        [value(o, None) for o in outputs],
        weights,
    )


def _clipped(k: str, *nodes: Any) -> tuple[list[Any], list[str]]:
    return [*nodes, node("Clip", [nodes[-1].output[0], "lo", "hi"], [k], name=f"{k}/clip")], [k]


def _view(k: str, a: str, b: str) -> tuple[list[Any], list[str]]:
    return [
        node("Shape", [a], [f"{k}.s"], name=f"{k}/shape"),
        node("Gather", [f"{k}.s", "i0"], [f"{k}.n"], name=f"{k}/gather"),
        node("Unsqueeze", [f"{k}.n", "axis0"], [f"{k}.n1"], name=f"{k}/unsqueeze"),
        node("Concat", [f"{k}.n1", "four"], [f"{k}.t"], name=f"{k}/concat", axis=0),
        node("Reshape", [b, f"{k}.t"], [k], name=f"{k}/reshape"),
    ], [k]


def _filled(k: str, a: str, b: str) -> tuple[list[Any], list[str]]:
    return _clipped(
        k,
        node("Shape", [a], [f"{k}.s"], name=f"{k}/shape"),
        node("ConstantOfShape", [f"{k}.s"], [f"{k}.c"], name=f"{k}/fill", value=weight("", [2], np.float32)),
        node("Shape", [f"{k}.c"], [f"{k}.s2"], name=f"{k}/shape2"),
        node("ConstantOfShape", [f"{k}.s2"], [f"{k}.c2"], name=f"{k}/fill2", value=weight("", [1], np.float32)),
        node("Add", [b, f"{k}.c2"], [f"{k}.a"], name=f"{k}/add"),
    )


def _sized(k: str, a: str, b: str) -> tuple[list[Any], list[str]]:
    return _clipped(
        k,
        node("Size", [a], [f"{k}.s"], name=f"{k}/size"),
        node("Cast", [f"{k}.s"], [f"{k}.f"], name=f"{k}/cast", to=FLOAT),
        node("Min", [b, f"{k}.f"], [f"{k}.m"], name=f"{k}/min"),
    )


def _quantised(k: str, a: str, b: str) -> tuple[list[Any], list[str]]:
    """Max → Relu → QuantizeLinear → DequantizeLinear, and the shape of what was dequantised."""
    return [
        node("Max", [a, b], [f"{k}.m"], name=f"{k}/max"),
        node("Relu", [f"{k}.m"], [f"{k}.r"], name=f"{k}/relu"),
        node("QuantizeLinear", [f"{k}.r", "one", "zp"], [f"{k}.q"], name=f"{k}/quantize"),
        node("DequantizeLinear", [f"{k}.q", "one", "zp"], [k], name=f"{k}/dequantize"),
        node("Shape", [k], [f"{k}.s"], name=f"{k}/shape"),
        node("Reshape", [b, f"{k}.s"], [f"{k}.v"], name=f"{k}/view"),
    ], [k, f"{k}.v"]


def _sequence(k: str, a: str, b: str) -> tuple[list[Any], list[str]]:
    return [
        node("SplitToSequence", [a, "i2"], [f"{k}.p"], name=f"{k}/split", axis=1),
        node("SequenceInsert", [f"{k}.p", b, "i0"], [f"{k}.i"], name=f"{k}/insert"),
        node("SequenceErase", [f"{k}.i", "i0"], [f"{k}.e"], name=f"{k}/erase"),
        node("ConcatFromSequence", [f"{k}.e"], [k], name=f"{k}/join", axis=1),
    ], [k]


def _chosen(k: str, a: str, b: str) -> tuple[list[Any], list[str]]:
    then = helper.make_graph([node("Neg", [a], [f"{k}.then"])], "then", [], [value(f"{k}.then", None)])
    other = helper.make_graph([node("Max", [b, "row"], [f"{k}.else"])], "else", [], [value(f"{k}.else", None)])
    return [
        node("ReduceSum", [a], [f"{k}.s"], name=f"{k}/sum", keepdims=0),
        node("Cast", [f"{k}.s"], [f"{k}.c"], name=f"{k}/cast", to=TensorProto.BOOL),
        node("If", [f"{k}.c"], [k], name=f"{k}/if", then_branch=then, else_branch=other),
    ], [k]


_KINDS: Mapping[str, Any] = {
    "relu": lambda k, a, b: ([node("Relu", [a], [k], name=f"{k}/relu")], [k]),
    "neg": lambda k, a, b: ([node("Neg", [a], [k], name=f"{k}/neg")], [k]),
    "identity": lambda k, a, b: ([node("Identity", [a], [k], name=f"{k}/identity")], [k]),
    "max": lambda k, a, b: ([node("Max", [a, b, "row"], [k], name=f"{k}/max")], [k]),
    "add": lambda k, a, b: _clipped(k, node("Add", [a, b], [f"{k}.a"], name=f"{k}/add")),
    "sub": lambda k, a, b: _clipped(k, node("Sub", [a, b], [f"{k}.a"], name=f"{k}/sub")),
    "matmul": lambda k, a, b: _clipped(k, node("MatMul", [a, "w44"], [f"{k}.m"], name=f"{k}/matmul")),
    "concat": lambda k, a, b: _clipped(
        k,
        node("Cast", ["w84"], [f"{k}.w"], name=f"{k}/weight", to=FLOAT),
        node("Concat", [a, b], [f"{k}.c"], name=f"{k}/concat", axis=1),
        node("MatMul", [f"{k}.c", f"{k}.w"], [f"{k}.m"], name=f"{k}/matmul"),
    ),
    "split": lambda k, a, b: (
        [
            node("Concat", [a, b], [f"{k}.c"], name=f"{k}/concat", axis=1),
            node("Split", [f"{k}.c"], [k, f"{k}.b"], name=f"{k}/split", axis=1),
        ],
        [k, f"{k}.b"],
    ),
    "view": _view,
    "filled": _filled,
    "sized": _sized,
    "quantised": _quantised,
    "sequence": _sequence,
    "chosen": _chosen,
}


def whole_numbers(model: Model, batch: int, seed: int) -> dict[str, Array]:
    """Inputs for a random DAG."""
    rng = np.random.default_rng(seed)
    return {t.name: rng.integers(-4, 5, (batch, 4)).astype(np.float32) for t in model.inputs}


# --- onnx's bundled light models ------------------------------------------------------------------------------------

LIGHT = (
    "bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet", "squeezenet", "vgg19",
    "zfnet512",
)  # fmt: skip


def light(name: str) -> Any:
    """A light model with weights that carry signal instead of the constant ones it comes with.

    Convolutions get He-initialised weights, batch norms unit scale; the last layer is scaled for logits of size 3,
    so that neither the softmax nor the noise hides a change of the input. Layers of 4096 are narrowed to 64: half a
    gigabyte of VGG's weights would prove nothing more.
    """
    path = Path(onnx.__file__).parent / "backend/test/data/light" / f"light_{name}.onnx"
    model = onnx.load(path)
    graph = model.graph
    shapes = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    role = {t: (n.op_type, k) for n in graph.node for k, t in enumerate(n.input)}
    kept, made = [], []
    for n in graph.node:
        if n.op_type == "ConstantOfShape" and n.input[0] in shapes:
            size = tuple(64 if d == 4096 else int(d) for d in shapes[n.input[0]])
            made.append(_drawn(n.output[0], size, *role.get(n.output[0], ("", 0))))
        else:
            kept.append(type(n).FromString(n.SerializeToString()))
    del graph.node[:]
    graph.node.extend(kept)
    graph.initializer.extend(made)
    graph.input.extend(value(t.name, list(t.dims)) for t in made)  # as IR 3 demands
    _scale_last_layer(model)
    return model


def _drawn(name: str, size: tuple[int, ...], op: str, place: int) -> Any:
    rng = np.random.default_rng([len(name), *name.encode()])
    if op == "BatchNormalization":  # scale, bias, mean, variance
        centre, spread = {1: (1.0, 0.1), 2: (0.0, 0.1), 3: (0.0, 0.05), 4: (1.0, 0.0)}[place]
        return weight(name, (centre + spread * rng.standard_normal(size)).astype(np.float32))
    if op in ("Unsqueeze", "Mul") or len(size) == 1:  # scale and bias as layers of their own
        centre = 1.0 if "_w" in name or op == "Mul" else 0.0
        return weight(name, (centre + 0.1 * rng.standard_normal(size)).astype(np.float32))
    fan_in = int(np.prod(size[1:]))
    return weight(name, rng.standard_normal(size, np.float32) * np.float32(np.sqrt(2 / fan_in)))


def _scale_last_layer(model: Any) -> None:
    loaded = load(model)
    last = next(n for n in reversed(model.graph.node) if n.op_type in ("Gemm", "Conv", "MatMul"))
    made = loaded.segment([t.name for t in loaded.inputs], [last.output[0]])
    session = ENGINE.compile(made)
    size = float(session.run(samples_for(loaded, 1)[0])[last.output[0]].std())
    session.close()
    for t in model.graph.initializer:
        if t.name in last.input[1:]:
            array = numpy_helper.to_array(t) * np.float32(3 / size)
            t.CopyFrom(weight(t.name, array))
