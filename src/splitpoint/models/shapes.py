"""Types and shapes of every tensor: free dimensions fixed, the rest inferred, or measured by one run.

Shape inference answers most graphs in milliseconds. What it cannot know (operators of other domains, NonZero, NMS)
is measured by running the whole model once on made-up inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Annotated, Any

import msgspec
import numpy as np

from splitpoint.errors import ModelError, nearest
from splitpoint.models.dataflow import Proto, by_value, reads
from splitpoint.models.layers import SHAPES_KEY
from splitpoint.models.soundness import kind_of
from splitpoint.tensors import ITEM_SIZES, Array, TensorSpec, spec_of

#: More elements than a machine can hold in one input; its dimensions, and their product, stay below.
_MOST_ELEMENTS = 1 << 40

#: Shapes are found for batch 1 and for this one: what differs follows the batch.
_OTHER_BATCH = 3

#: The shape of what they make depends on the values they get, …
_SHAPED_BY_VALUES = frozenset({"NonZero", "NonMaxSuppression", "Unique", "Compress", "If", "Loop", "StringSplit"})
#: … or on the values of the inputs that say what shape to make.
_SHAPED_BY_INPUT = frozenset(
    {"Reshape", "Resize", "Upsample", "Tile", "Expand", "Range", "ConstantOfShape", "Slice", "Pad", "TopK", "OneHot",
     "SequenceAt", "SplitToSequence", "Split", "CenterCropPad", "DFT", "STFT", "MelWeightMatrix", "Col2Im"}
)  # fmt: skip

#: Runs the whole model once with every tensor in `names` as an output, on inputs of these specs.
Probe = Callable[[Sequence[TensorSpec], Sequence[str]], Mapping[str, Array | None]]


def dtype_name(elem_type: int) -> str:
    """numpy's name of an ONNX element type; ``""`` where the type is not given or not known."""
    import onnx

    try:
        return str(onnx.helper.tensor_dtype_to_np_dtype(elem_type).name)
    except (KeyError, TypeError, ValueError):
        return ""


def spec_of_value(value: Proto, least: int = 0) -> TensorSpec | None:
    """The spec a ValueInfoProto declares; free dimensions get a name. None if it is no tensor of known rank.

    Old exporters write a free dimension as 0 or −1: what is below `least` is free.
    """
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type" or not value.type.tensor_type.HasField("shape"):
        return None
    tensor = value.type.tensor_type
    shape: list[int | str] = []
    for axis, d in enumerate(tensor.shape.dim):
        if d.HasField("dim_value") and d.dim_value >= least:
            shape.append(int(d.dim_value))
        else:
            shape.append(d.dim_param or ("batch" if axis == 0 else f"{value.name}.{axis}"))
    return TensorSpec(value.name, dtype_name(tensor.elem_type), tuple(shape))


def fix_shapes(skeleton: Proto, shapes: Mapping[str, Sequence[int]]) -> None:
    """Fix input dimensions in place as `shapes` says. ModelError names the input and what it declares."""
    inputs = {i.name: i for i in skeleton.graph.input}
    sizes: dict[str, int] = {}
    for name, shape in shapes.items():
        if name not in inputs:
            known = ", ".join(inputs)
            raise ModelError(f"the model has no input {name}{nearest(name, inputs)} (its inputs: {known})")
        _fix_input(inputs[name], shape, sizes)
    for value in inputs.values():  # a dimension of the same name is the same dimension
        if value.type.WhichOneof("value") == "tensor_type":
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param in sizes:
                    dim.dim_value = sizes[dim.dim_param]


def _fix_input(value: Proto, shape: Sequence[int], sizes: dict[str, int]) -> None:
    if any(size < 1 for size in shape):
        raise ModelError(f"--shape {value.name}: a dimension must be 1 or more, not {min(shape)}")
    if prod(int(size) for size in shape) > _MOST_ELEMENTS:
        raise ModelError(f"--shape {value.name}: {'x'.join(map(str, shape))} is more than any machine can hold")
    declared = spec_of_value(value, least=1)
    if declared is None:
        if value.type.WhichOneof("value") == "tensor_type":
            for size in shape:
                value.type.tensor_type.shape.dim.add(dim_value=size)
        return
    if len(declared.shape) != len(shape):
        raise ModelError(
            f"input {declared} has {len(declared.shape)} dimensions, --shape {value.name} gives {len(shape)}"
        )
    for dim, want, size in zip(value.type.tensor_type.shape.dim, declared.shape, shape, strict=True):
        if isinstance(want, int) and want != size:
            raise ModelError(f"input {declared} is fixed, --shape {value.name} asks for {list(shape)}")
        if dim.dim_param and sizes.setdefault(dim.dim_param, size) != size:
            raise ModelError(f"--shape gives dimension {dim.dim_param} two sizes, {sizes[dim.dim_param]} and {size}")
        dim.dim_value = size


def input_specs(skeleton: Proto) -> tuple[TensorSpec, ...]:
    """Specs of the model's inputs. ModelError for inputs that are no tensors of numbers or have no known rank."""
    specs = []
    for value in skeleton.graph.input:
        spec = spec_of_value(value, least=1)
        if spec is None:
            if value.type.WhichOneof("value") != "tensor_type":
                raise ModelError(f"input {value.name} is {kind_of(value)}, not a tensor")
            raise ModelError(f"input {value.name} declares no shape: give it with --shape {value.name}=1,…")
        if spec.dtype not in ITEM_SIZES:
            raise ModelError(f"input {value.name} is {kind_of(value)}, which splitpoint cannot carry")
        specs.append(spec)
    return tuple(specs)


def assumed_dims(inputs: Sequence[TensorSpec]) -> dict[str, int]:
    """The free leading dimensions, assumed to be 1. ModelError asks for --shape where another one is free."""
    assumed: dict[str, int] = {}
    for spec in inputs:
        if spec.shape and isinstance(spec.shape[0], str):
            assumed[spec.shape[0]] = 1
    for spec in inputs:
        free = [d for d in spec.shape if isinstance(d, str) and d not in assumed]
        if free:
            example = ",".join(str(assumed.get(d, "N")) if isinstance(d, str) else str(d) for d in spec.shape)
            raise ModelError(
                f"input {spec} has free dimensions ({', '.join(free)}): fix them with --shape {spec.name}={example}"
            )
    return assumed


@dataclass(frozen=True)
class Shapes:
    """Shapes of all tensors that anything reads, with the free dimensions bound and left free.

    `bound` has integers only, for the batch that is `assumed`. `free` has a name where a dimension follows the batch
    or depends on values. Tensors that are no arrays of numbers we can carry (sequences, strings) are in `opaque`.
    """

    inputs: tuple[TensorSpec, ...]
    assumed: Mapping[str, int]
    bound: Mapping[str, TensorSpec]
    free: Mapping[str, TensorSpec]
    opaque: frozenset[str]


def shapes_of(skeleton: Proto, probe: Probe) -> Shapes:
    """The shapes of `skeleton`, which notes them in its metadata: a device that fetches it need not infer anew.

    Raises ModelError where an input needs --shape, or a shape can neither be inferred nor measured.
    """
    inputs = input_specs(skeleton)
    assumed = assumed_dims(inputs)
    declared = {o.name: spec_of_value(o) for o in skeleton.graph.output}
    for value in skeleton.graph.output:  # what a file says about them can be wrong; it is found anew
        if value.type.WhichOneof("value") == "tensor_type":
            value.type.tensor_type.ClearField("shape")
    noted = next((p.value for p in skeleton.metadata_props if p.key == SHAPES_KEY), None)
    if noted is not None:
        return _recall(noted, skeleton, inputs, assumed)
    found = _find(skeleton, inputs, assumed, probe, declared)
    skeleton.metadata_props.add(key=SHAPES_KEY, value=_note(found))
    return found


def _find(
    skeleton: Proto,
    inputs: Sequence[TensorSpec],
    assumed: Mapping[str, int],
    probe: Probe,
    declared: Mapping[str, TensorSpec | None],
) -> Shapes:
    many = dict.fromkeys(assumed, _OTHER_BATCH)
    one, opaque = _inferred(skeleton, [s.bind(assumed) for s in inputs])
    other = _inferred(skeleton, [s.bind(many) for s in inputs])[0] if assumed else {}
    graph = skeleton.graph
    outputs = {o.name for o in graph.output}
    used = {t for n in graph.node for t in reads(n)} | outputs
    # What nobody reads (the mask of a Dropout) never crosses: not worth a run of the whole model.
    unknown = [o for n in graph.node for o in n.output if o in used and o not in one and o not in opaque]
    if unknown:
        measured, no_arrays = _measured(probe, [s.bind(assumed) for s in inputs], unknown)
        one |= measured
        opaque |= no_arrays
        if assumed:
            try:
                other |= _measured(probe, [s.bind(many) for s in inputs], unknown)[0]
            except ModelError:
                other = {}  # a graph whose batch cannot be any other is declared with the shapes it has
    for t in graph.initializer:  # a weight that is an output
        if t.name in outputs:
            one[t.name] = TensorSpec(t.name, dtype_name(t.data_type), tuple(t.dims))
    dynamic = _dynamic(graph, {*unknown, *opaque})
    free = {n: _freed(s, other.get(n), n in dynamic, assumed) for n, s in one.items()}
    for name, spec in declared.items():
        if spec is not None and name in dynamic and name in free:
            free[name] = _as_declared(free[name], spec, one[name], other.get(name))
    return Shapes(
        tuple(inputs),
        assumed,
        one | {s.name: s.bind(assumed) for s in inputs},
        free | {s.name: s for s in inputs},
        frozenset(opaque),
    )


def _measured(
    probe: Probe, inputs: Sequence[TensorSpec], names: Sequence[str]
) -> tuple[dict[str, TensorSpec], set[str]]:
    """Specs of the tensors `names` for one run, and the names of those that are no arrays of numbers."""
    specs: dict[str, TensorSpec] = {}
    opaque: set[str] = set()
    for name, array in probe(inputs, names).items():
        if array is not None and array.dtype.name in ITEM_SIZES:
            specs[name] = spec_of(name, array)
        else:
            opaque.add(name)
    return specs, opaque


def _freed(spec: TensorSpec, other: TensorSpec | None, dynamic: bool, assumed: Mapping[str, int]) -> TensorSpec:
    """`spec` with names for the dimensions that are not the same in `other`, of another batch, or in every run."""
    if dynamic:
        return TensorSpec(spec.name, spec.dtype, tuple(f"{spec.name}.{k}" for k in range(len(spec.shape))))
    if other is None or len(other.shape) != len(spec.shape):
        return spec
    batch = next(iter(assumed), "batch")
    shape: list[int | str] = []
    for axis, (a, b) in enumerate(zip(spec.shape, other.shape, strict=True)):
        shape.append(a if a == b else batch if (a, b) == (1, _OTHER_BATCH) else f"{spec.name}.{axis}")
    return TensorSpec(spec.name, spec.dtype, tuple(shape))


def _as_declared(free: TensorSpec, declared: TensorSpec, one: TensorSpec, other: TensorSpec | None) -> TensorSpec:
    """`free` with the sizes that the file declares for this output, where what was measured bears them out."""
    if any(s is not None and len(s.shape) != len(declared.shape) for s in (one, other)):
        return free
    ours, others = one.shape, (other or one).shape
    rows = zip(free.shape, declared.shape, ours, others, strict=True)
    return TensorSpec(free.name, free.dtype, tuple(d if d == a == b else name for name, d, a, b in rows))


def _dynamic(graph: Proto, unknown: set[str]) -> set[str]:
    """Those of the `unknown` tensors whose shape may be another for other values, as far as operators tell.

    A shape measured by one run holds for every run elsewhere: behind an operator that inference does not know.
    """
    found: set[str] = set()
    data = {i.name for i in graph.input}
    for node, depends in zip(graph.node, by_value(graph), strict=True):
        inputs = reads(node)
        dynamic = any(t in found for t in inputs) or (depends and node.op_type in _SHAPED_BY_VALUES)
        if node.op_type in _SHAPED_BY_INPUT:
            first = 0 if node.op_type in ("Range", "ConstantOfShape") else 1
            dynamic = dynamic or any(t in data for t in node.input[first:])
        outputs = [o for o in node.output if o]
        if depends:
            data.update(outputs)
        if dynamic:
            found.update(o for o in outputs if o in unknown)
    return found


class _Noted(msgspec.Struct, array_like=True, frozen=True):
    dtype: str
    bound: tuple[Annotated[int, msgspec.Meta(ge=0)], ...]
    free: tuple[Annotated[int, msgspec.Meta(ge=0)] | str, ...] | None  # None: the same


class _Note(msgspec.Struct, frozen=True):
    tensors: dict[str, _Noted]
    opaque: list[str]


def _note(shapes: Shapes) -> str:
    tensors = {}
    for name, spec in shapes.bound.items():
        bound = tuple(int(d) for d in spec.shape)
        free = shapes.free[name].shape
        tensors[name] = _Noted(spec.dtype, bound, None if free == bound else free)
    return msgspec.json.encode(_Note(tensors, sorted(shapes.opaque))).decode()


def _recall(noted: str, skeleton: Proto, inputs: tuple[TensorSpec, ...], assumed: Mapping[str, int]) -> Shapes:
    """The shapes found where the weights are: a device that holds only its head could not measure them."""
    try:
        note = msgspec.json.decode(noted, type=_Note)
    except msgspec.MsgspecError as exc:
        raise ModelError(f"the model's {SHAPES_KEY} metadata is broken: {exc}") from exc
    bound = {n: TensorSpec(n, t.dtype, t.bound) for n, t in note.tensors.items()}
    free = {n: TensorSpec(n, t.dtype, t.bound if t.free is None else t.free) for n, t in note.tensors.items()}
    here = {s.name: s.bind(assumed) for s in inputs}
    graph = skeleton.graph
    used = {t for n in graph.node for t in reads(n)} | {o.name for o in graph.output}
    made = {o for n in graph.node for o in n.output}
    missing = sorted((used & made) - set(bound) - set(note.opaque))
    wrong = [n for n, s in here.items() if bound.get(n) != s]
    wrong += [n for n, s in bound.items() if s.dtype not in ITEM_SIZES]
    if missing or wrong:
        raise ModelError(f"the model's {SHAPES_KEY} metadata does not fit its tensor {(missing + wrong)[0]}")
    return Shapes(inputs, assumed, bound, free, frozenset(note.opaque))


def _inferred(skeleton: Proto, inputs: Sequence[TensorSpec]) -> tuple[dict[str, TensorSpec], set[str]]:
    """Specs of the tensors whose every dimension is known with the inputs bound to `inputs`; names of no arrays."""
    import onnx

    bound = onnx.ModelProto()
    bound.CopyFrom(skeleton)
    for value, spec in zip(bound.graph.input, inputs, strict=True):
        value.type.tensor_type.ClearField("shape")
        for size in spec.shape:
            value.type.tensor_type.shape.dim.add(dim_value=int(size))
    for value in bound.graph.output:
        # A declared output shape can be wrong or free; what follows from the inputs is better.
        if value.type.WhichOneof("value") == "tensor_type":
            value.type.tensor_type.ClearField("shape")
    try:
        inferred = onnx.shape_inference.infer_shapes(bound, data_prop=True)
    except Exception:  # C++: an inconsistent graph, or one it cannot handle. Running it will tell which.
        return {}, set()
    specs: dict[str, TensorSpec] = {}
    opaque: set[str] = set()
    for value in (*inferred.graph.value_info, *inferred.graph.output):
        kind = value.type.WhichOneof("value")
        elem_type = value.type.tensor_type.elem_type if kind == "tensor_type" else 0
        found = spec_of_value(value)
        if kind not in ("tensor_type", None) or (elem_type and dtype_name(elem_type) not in ITEM_SIZES):
            opaque.add(value.name)
        elif found is not None and found.is_static and found.dtype in ITEM_SIZES:
            specs[value.name] = found
    return specs, opaque


def sample_inputs(inputs: Sequence[TensorSpec], seed: int = 0, vocabulary: int = 2) -> dict[str, Array]:
    """Made-up inputs that most graphs accept: patchy floats and bytes, small non-negative integers."""
    rng = np.random.default_rng(seed)
    made: dict[str, Any] = {}
    for spec in inputs:
        shape = tuple(int(d) for d in spec.shape)
        if spec.dtype.startswith("float"):
            made[spec.name] = _patches(shape, rng).astype(spec.dtype)
        elif spec.dtype == "bool":
            made[spec.name] = rng.integers(0, 2, shape).astype(bool)
        elif spec.dtype in ("uint8", "int8"):
            info = np.iinfo(spec.dtype)
            centre = (info.max + 1) / 2  # of the values that are not negative
            made[spec.name] = (centre * (1 + 0.4 * _patches(shape, rng))).clip(0, info.max).astype(spec.dtype)
        else:
            made[spec.name] = rng.integers(0, vocabulary, shape).astype(spec.dtype)
    return made


def _patches(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Normal numbers in patches of a quarter of each long axis, with grain: inputs that differ as photos do.

    White noise all looks the same behind a few poolings: measured on onnx's light Inception v2 with random weights,
    the answer to another noise moves by 0.03 % and to other patches by 0.4 %.
    """
    coarse = tuple(4 if d >= 16 else d for d in shape)
    places = [np.arange(d) * c // d for d, c in zip(shape, coarse, strict=True)]
    patches = rng.standard_normal(coarse)[np.ix_(*places)] if shape else rng.standard_normal()
    return np.asarray(patches + 0.3 * rng.standard_normal(shape))
