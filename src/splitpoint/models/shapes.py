"""Types and shapes of every tensor: free dimensions fixed, the rest inferred, or measured by one run.

Shape inference answers most graphs in milliseconds. What it cannot know (operators of other domains, NonZero, NMS)
is measured by running the whole model once on made-up inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Annotated, Any

import msgspec
import numpy as np

from splitpoint.errors import ModelError, StorageError, nearest
from splitpoint.graph import SHAPE_ROOTS
from splitpoint.models.dataflow import Proto, by_value, onnx, ort, reads
from splitpoint.models.inference import alike, blind_kinds, body_ranks, dtype_name, inferred, open_dim
from splitpoint.models.input_values import Values, advice, with_values
from splitpoint.models.layer_names import SHAPES_KEY, metadata
from splitpoint.models.reasons import reason_of
from splitpoint.models.soundness import kind_of
from splitpoint.models.weights import Weights, give_weights
from splitpoint.parsing import MalformedError, parse_json
from splitpoint.tensors import ANY_RANK, ITEM_SIZES, Array, TensorSpec, spec_of
from splitpoint.text import listed

#: More elements than a machine can hold in one input; its dimensions, and their product, stay below.
_MOST_ELEMENTS = 1 << 40

#: Shapes are found with every free dimension 1, and with these sizes: what differs follows the one of that size.
_OTHER_SIZES = (3, 5, 7, 11, 13, 17, 19, 23)

#: What exporters write for a dimension that they have no name for. Two of them are two dimensions.
_NO_NAMES = frozenset({"none", "null", "nan", "unk", "unknown", "dynamic", "dyn", "any", "undefined", "free"})

#: Operators of other domains than onnx's own whose sizes follow values: NonZero and its kind, and sizes as inputs.
_SHAPED_BY_VALUES = frozenset({
    "BeamSearch", "CropAndResize", "DynamicTimeWarping", "ExpandDims", "GreedySearch", "GroupQueryAttention",
    "NonZero", "Pad", "Range", "ReduceSumInteger", "RemovePadding", "Sampling", "Tokenizer", "Unique",
    "WhisperBeamSearch",
})  # fmt: skip
#: Sequences are beyond inference: what comes out of them is measured, unless values decide which, by these inputs.
_PLACES = {"SequenceAt": 1, "SequenceErase": 1, "SequenceInsert": 2, "SplitToSequence": 1}
#: Operators whose number of dimensions may be another each time, where inference does not say it, …
_RANKED_BY_VALUES = frozenset({"Optional", "OptionalGetElement", "Scan", "SequenceAt", "SequenceMap"})
#: … or if values decide it by the inputs from this one on. (So are Reduce operators that drop dimensions.)
_RANKED_BY_INPUT = {"ConstantOfShape": 0, "Expand": 1, "Reshape": 1, "Squeeze": 1, "Unsqueeze": 1}
#: Shape arithmetic is done with few numbers; larger constants are no sizes.
_MOST_SIZES = 128
_MOST_ROUNDS = 10


#: Runs the whole model once, on made-up inputs of these specs: the values of the tensors named next (None for what is
#: no array), and the shapes of those named last. ModelError if it does not run.
ShapeProbe = Callable[
    [Sequence[TensorSpec], Sequence[str], Sequence[str]],
    tuple[Mapping[str, Array | None], Mapping[str, tuple[int, ...]]],
]


def _declared(value: Proto) -> TensorSpec | None:
    """The spec a ValueInfoProto declares; free dimensions get a name. None if it is no tensor of known rank."""
    tensor = value.type.tensor_type
    if value.type.WhichOneof("value") != "tensor_type" or not tensor.HasField("shape"):
        return None
    shape: list[int | str] = []
    for axis, d in enumerate(tensor.shape.dim):
        if d.HasField("dim_value") and d.dim_value >= 1:  # old exporters write a free one as 0 or −1
            shape.append(int(d.dim_value))
        else:
            shape.append(_dim_name(d) or ("batch" if axis == 0 else open_dim(value.name, axis)))
    return TensorSpec(value.name, dtype_name(tensor.elem_type), tuple(shape))


def value_of(spec: TensorSpec) -> Proto:
    """The ValueInfoProto that declares `spec`."""
    elem_type = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
    dims = None if spec.shape == ANY_RANK else list(spec.shape)
    return onnx.helper.make_tensor_value_info(spec.name, elem_type, dims)


def _dim_name(dim: Proto) -> str:
    """The name of a dimension; ``""`` where a file only says that it is free: "?", "-1", "None" name nothing."""
    name = str(dim.dim_param)
    return name if any(c.isalpha() for c in name) and name.lower() not in _NO_NAMES else ""


def fix_shapes(skeleton: Proto, shapes: Mapping[str, Sequence[int]]) -> None:
    """Fix input dimensions in place as `shapes` says. ModelError names the input and what it declares."""
    inputs = {i.name: i for i in skeleton.graph.input}
    sizes: dict[str, int] = {}
    for name, shape in shapes.items():
        if name not in inputs:
            raise ModelError(f"the model has no input {name}{nearest(name, inputs)} (its inputs: {listed(inputs)})")
        _fix_input(inputs[name], shape, sizes)
    for value in inputs.values():  # a dimension of the same name is the same dimension
        if value.type.WhichOneof("value") == "tensor_type":
            for dim in value.type.tensor_type.shape.dim:
                if _dim_name(dim) in sizes:
                    dim.dim_value = sizes[dim.dim_param]


def _fix_input(value: Proto, shape: Sequence[int], sizes: dict[str, int]) -> None:
    if any(size < 1 for size in shape):
        raise ModelError(f"--shape {value.name}: a dimension must be 1 or more, not {min(shape)}")
    if prod(int(size) for size in shape) > _MOST_ELEMENTS:
        raise ModelError(f"--shape {value.name}: {'x'.join(map(str, shape))} is more than any machine can hold")
    declared = _declared(value)
    if declared is None:
        if value.type.WhichOneof("value") == "tensor_type":
            value.type.tensor_type.shape.SetInParent()  # of a scalar, too
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
        name = _dim_name(dim)
        if name and sizes.setdefault(name, size) != size:
            raise ModelError(f"--shape gives dimension {name} two sizes, {sizes[name]} and {size}")
        dim.dim_value = size


def input_specs(skeleton: Proto) -> tuple[TensorSpec, ...]:
    """Specs of the model's inputs. ModelError for inputs that are no tensors of numbers or have no known rank."""
    specs = []
    for value in skeleton.graph.input:
        spec = _declared(value)
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
                f"input {spec} has free dimensions ({listed(free)}): fix them with --shape {spec.name}={example}"
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


def shapes_of(skeleton: Proto, probe: ShapeProbe) -> Shapes:
    """The shapes of `skeleton`, which notes them in its metadata: a device that fetches it need not infer anew.

    Raises ModelError where an input needs --shape, or a shape can neither be inferred nor measured.
    """
    inputs = input_specs(skeleton)
    assumed = assumed_dims(inputs)
    for value in skeleton.graph.output:  # what a file says about them can be wrong; it is found anew
        if value.type.WhichOneof("value") == "tensor_type":
            value.type.tensor_type.ClearField("shape")
    noted = metadata(skeleton).get(SHAPES_KEY)
    if noted is not None:
        return _recall(noted, skeleton, inputs, assumed)
    search = _ShapeSearch(skeleton, inputs, assumed, probe)
    shapes = search.shapes()
    skeleton.metadata_props.add(key=SHAPES_KEY, value=_note(shapes))
    # ONNX Runtime's optimiser has the same inference, and would make constants of a wrong size behind a Shape.
    skeleton.graph.value_info.extend(value_of(shapes.free[name]) for name in search.corrected)
    return shapes


@dataclass
class _Look:
    """All that is known of the tensors that nodes make, for one size of each free dimension.

    `plain` is what follows from the inputs' shapes alone, `specs` what follows when all is known that the inputs'
    values do not change. `measured` are the true sizes: of a run of the model, or else of inference.
    """

    inputs: list[TensorSpec]
    plain: dict[str, TensorSpec]
    opaque: set[str]
    specs: dict[str, TensorSpec]
    measured: dict[str, TensorSpec]
    #: What shape arithmetic came to.
    values: dict[str, Array] = field(default_factory=dict)
    run: bool = False


class _ShapeSearch:
    """Finds the shapes of a skeleton: inferred, and measured where inference does not know or may be wrong."""

    def __init__(
        self, skeleton: Proto, inputs: tuple[TensorSpec, ...], assumed: Mapping[str, int], probe: ShapeProbe
    ) -> None:
        self.skeleton, self.inputs, self.assumed, self.probe = skeleton, inputs, assumed, probe
        self.blind = blind_kinds(skeleton)
        self.nodes = list(zip(skeleton.graph.node, by_value(skeleton.graph), strict=True))
        self.outputs = {o.name for o in skeleton.graph.output}
        #: What no input's value changes.
        self.steady = {o for n, depends in self.nodes if not depends for o in n.output if o}
        self.moving = {o for n, depends in self.nodes if depends for o in n.output if o} | {s.name for s in inputs}
        #: Of which inference gives another size than a run.
        self.corrected: list[str] = []
        self.first = self._look(assumed)
        # What nobody reads (the mask of a Dropout) never crosses: not worth a run of the whole model.
        used = {t for n, _ in self.nodes for t in reads(n)} | self.outputs
        self.read = [o for n, _ in self.nodes for o in n.output if o in used and o not in self.first.opaque]
        self.unknown = [o for o in self.read if not _known(self.first.plain.get(o))]
        wanted = set(self.unknown)
        readers = (n for n, _ in self.nodes if not wanted.isdisjoint(n.output))
        self.arithmetic = [t for t in dict.fromkeys(t for n in readers for t in reads(n)) if t in self.steady]

    def shapes(self) -> Shapes:
        one = self.first
        if self.unknown or not alike(n for n, _ in self.nodes):
            try:
                self._measure(one)
            except (ModelError, StorageError):  # made-up inputs make no sense to it, or not all weights are here
                if self.unknown:
                    one = self._look(self.assumed, believe_bodies=True)
                    if not all(_known(one.plain.get(o)) for o in self.unknown):
                        raise
                    self.unknown = []
        other, sizes = self._other(one)
        if self.unknown:
            self._follow(one)
            if other is not one:
                self._follow(other)
        for t in self.skeleton.graph.initializer:  # a weight that is an output
            if t.name in self.outputs:
                spec = TensorSpec(t.name, dtype_name(t.data_type), tuple(t.dims))
                for look in (one, other):
                    look.measured[t.name] = look.specs[t.name] = spec
        wrong = {
            n for k in (one, other) for n, s in k.plain.items() if s.is_static and k.measured.get(n, s).shape != s.shape
        }
        self.corrected = [o for o in self.read if o in wrong]
        names = {size: name for name, size in reversed([*sizes.items()])}  # the first of a size
        return Shapes(
            self.inputs,
            self.assumed,
            one.measured | {s.name: s.bind(self.assumed) for s in self.inputs},
            {n: _freed(n, one, other, names) for n in one.measured} | {s.name: s for s in self.inputs},
            frozenset(one.opaque),
        )

    def _look(self, sizes: Mapping[str, int], believe_bodies: bool = False) -> _Look:
        inputs = [s.bind(sizes) for s in self.inputs]
        plain, opaque = inferred(self.skeleton, inputs, believe_bodies=believe_bodies)
        return _Look(inputs, plain, opaque, plain, {n: s for n, s in plain.items() if _known(s)})

    def _measure(self, look: _Look) -> None:
        """Run the model: the sizes it makes are the true ones. ModelError if it does not run."""
        names = [t for t in self.unknown if t not in look.plain]
        names += [t for t in self.arithmetic if t not in names]
        sized = [t for t in self.read if t in look.plain]
        if not names and not sized:
            return
        values, shapes = self.probe(look.inputs, names, sized)
        for name, shape in shapes.items():
            look.measured[name] = TensorSpec(name, look.plain[name].dtype, shape)
        for name, array in values.items():
            if array is None or array.dtype.name not in ITEM_SIZES:
                look.opaque.add(name)
                continue
            look.measured[name] = spec_of(name, array)
            if name in self.steady and array.size <= _MOST_SIZES:
                look.values[name] = array
        look.run = True

    def _other(self, one: _Look) -> tuple[_Look, Mapping[str, int]]:
        """The same for other sizes of the free dimensions, and these sizes.

        Each dimension has a size of its own, unless the model is sound only where they are the same.
        """
        if not self.assumed:
            return one, {}
        apart = dict(zip(self.assumed, _OTHER_SIZES, strict=False))
        same = dict.fromkeys(self.assumed, _OTHER_SIZES[0])
        choices = [apart, same] if 1 < len(apart) == len(same) else [same]
        tries = [(self._look(sizes), sizes) for sizes in choices]
        tries.sort(key=lambda t: -len(t[0].measured))
        if not one.run:
            return tries[0]
        for look, sizes in tries:
            try:
                self._measure(look)
            except (ModelError, StorageError):
                continue
            return look, sizes
        # Its batch cannot be any other, or what was made up made no sense with this one. What inference knows counts.
        return tries[0] if tries[0][0].plain else (one, {})

    def _follow(self, look: _Look) -> None:
        """Let `look.specs` say what follows without the inputs' values.

        First all is believed that one run gave where values should not count: shape arithmetic, and what operators
        make that inference does not know. It is taken back where it comes from something whose own size is open.
        """
        wanted = set(self.unknown)
        shapes = {o: look.measured[o] for o in self.unknown if o in self.steady and o in look.measured}
        if not look.plain:  # inference failed
            look.specs = {n: _opened(s) for n, s in look.measured.items()} | shapes
            return
        for n, _ in self.nodes:
            if self._beyond(n, look):
                known = {o: look.measured[o] for o in n.output if o in look.measured and o in wanted}
                shapes |= {o: _opened(s) for o, s in known.items()} if self._decided(n) else known
        values = dict(look.values)
        specs = inferred(self.skeleton, look.inputs, shapes, values)[0]
        if self._take_back(specs, look, shapes, values):
            specs = inferred(self.skeleton, look.inputs, shapes, values)[0]
        ranks: dict[str, TensorSpec] = {}
        for _ in range(_MOST_ROUNDS):  # a rank that is known may tell the next one, by way of a Shape
            more = self._ranks(look.plain | specs, look)
            if not more.keys() - ranks.keys():
                break
            ranks |= more
            specs = inferred(self.skeleton, look.inputs, ranks | shapes, values)[0]
        look.specs = look.plain | specs

    def _beyond(self, node: Proto, look: _Look) -> bool:
        """Whether inference cannot say what `node` makes, whatever it is told."""
        return (node.domain, node.op_type) in self.blind or any(t in look.opaque for t in (*node.input, *node.output))

    def _decided(self, node: Proto) -> bool:
        """Whether values decide the sizes that a node beyond inference makes."""
        place = _PLACES.get(node.op_type)
        if place is None:
            return node.op_type in _SHAPED_BY_VALUES
        return place < len(node.input) and node.input[place] in self.moving

    def _take_back(
        self, specs: Mapping[str, TensorSpec], look: _Look, shapes: dict[str, TensorSpec], values: dict[str, Array]
    ) -> bool:
        """Remove from `shapes` and `values` what came from a tensor of open size; whether there was any."""
        outputs = {o for n, _ in self.nodes for o in n.output if o}
        open_ = {o for o in outputs - look.opaque if not _known(specs.get(o))}
        doubted: set[str] = set()
        for n, depends in self.nodes:
            inputs, beyond = reads(n), self._beyond(n, look)
            measures = beyond or n.op_type in SHAPE_ROOTS
            if beyond and self._decided(n):
                open_.update(o for o in n.output if o)
            if not any(t in doubted or (measures and t in open_) for t in inputs):
                continue
            ranks = [specs.get(t) for t in inputs if t in open_ and t not in look.opaque]
            for o in n.output:
                known = _known(look.plain.get(o))
                if not o or (depends and known):
                    continue
                doubted.add(o)
                values.pop(o, None)
                believed = shapes.pop(o, None)
                if not known:
                    open_.add(o)
                if beyond and believed is not None and all(s is not None and s.shape != ANY_RANK for s in ranks):
                    shapes[o] = _opened(believed)
        return bool(doubted)

    def _ranks(self, specs: Mapping[str, TensorSpec], look: _Look) -> dict[str, TensorSpec]:
        """The tensors of which inference does not know how many dimensions they have, and which have always as many."""
        known = {**specs, **{s.name: s for s in look.inputs}}
        ranked: dict[str, TensorSpec] = {}
        for n, _ in self.nodes:
            lost = [o for o in n.output if o in look.measured and known.get(o, _NOTHING).shape == ANY_RANK]
            if not lost:
                continue
            ranks: dict[str, int | None] = {}
            if n.op_type in ("If", "Loop"):
                once = {o: look.measured[o] for o in n.output if o in look.measured}
                ranks = dict(zip(n.output, body_ranks(self.skeleton, n, known | once), strict=False))
            elif not self._ranked(n, known, look):
                ranks = {o: len(look.measured[o].shape) for o in lost}
            for o in lost:
                if ranks.get(o) == len(look.measured[o].shape):
                    ranked[o] = known[o] = _opened(look.measured[o])
        return ranked

    def _ranked(self, node: Proto, known: Mapping[str, TensorSpec], look: _Look) -> bool:
        """Whether values may decide how many dimensions `node` makes."""
        if any(t in look.measured and known.get(t, _NOTHING).shape == ANY_RANK for t in reads(node)):
            return True
        first = _RANKED_BY_INPUT.get(node.op_type)
        if node.op_type.startswith("Reduce") and any(a.name == "keepdims" and not a.i for a in node.attribute):
            first = 1
        if first is None:
            return node.op_type in _RANKED_BY_VALUES
        if node.op_type == "Squeeze" and len(node.input) < 2 and not any(a.name == "axes" for a in node.attribute):
            return not known.get(node.input[0], _NOTHING).is_static  # all that are 1
        return any(t in self.moving or (t in look.measured and not _known(known.get(t))) for t in node.input[first:])


#: Of a tensor that inference has not met.
_NOTHING = TensorSpec("", "", ANY_RANK)


def _known(spec: TensorSpec | None) -> bool:
    return spec is not None and spec.is_static and spec.dtype in ITEM_SIZES


def _opened(spec: TensorSpec) -> TensorSpec:
    """`spec` of which no more than the number of dimensions is known."""
    return TensorSpec(spec.name, spec.dtype, tuple(open_dim(spec.name, k) for k in range(len(spec.shape))))


def _freed(name: str, one: _Look, other: _Look, names: Mapping[int, str]) -> TensorSpec:
    """Tensor `name` with names for the dimensions that are not the same in `other`, of other sizes, or in every run.

    `names`: which free dimension has which of the other sizes.
    """
    measured, spec = one.measured[name], one.specs.get(name)
    if spec is None or len(spec.shape) != len(measured.shape) or spec.shape == ANY_RANK:
        return TensorSpec(name, measured.dtype, ANY_RANK)
    if name not in other.measured:  # which could not be measured
        return _opened(spec)
    measured2, spec2 = other.measured.get(name, measured), other.specs.get(name, spec)
    if not len(spec2.shape) == len(measured2.shape) == len(measured.shape) or spec2.shape == ANY_RANK:
        return TensorSpec(name, measured.dtype, ANY_RANK)
    shape: list[int | str] = []
    for axis, (a, b, p, q) in enumerate(zip(measured.shape, measured2.shape, spec.shape, spec2.shape, strict=True)):
        if isinstance(p, str) or isinstance(q, str):  # values decide
            shape.append(open_dim(name, axis))
        elif a == b or (p == q and not other.run):  # inference is wrong about it, and the same for both
            shape.append(a)
        else:
            shape.append(names[int(b)] if a == 1 and b in names else open_dim(name, axis))
    return TensorSpec(name, measured.dtype, tuple(shape))


class _NotedShapes(msgspec.Struct, array_like=True, frozen=True):
    dtype: str
    bound: tuple[Annotated[int, msgspec.Meta(ge=0)], ...]
    free: tuple[Annotated[int, msgspec.Meta(ge=0)] | str, ...] | None  # None: the same


class _Note(msgspec.Struct, frozen=True):
    tensors: dict[str, _NotedShapes]
    opaque: list[str]


def _note(shapes: Shapes) -> str:
    tensors = {}
    for name, spec in shapes.bound.items():
        bound = tuple(int(d) for d in spec.shape)
        free = shapes.free[name].shape
        tensors[name] = _NotedShapes(spec.dtype, bound, None if free == bound else free)
    return msgspec.json.encode(_Note(tensors, sorted(shapes.opaque))).decode()


def _recall(noted: str, skeleton: Proto, inputs: tuple[TensorSpec, ...], assumed: Mapping[str, int]) -> Shapes:
    """The shapes found where the weights are: a device that holds only its head could not measure them."""
    try:
        note = parse_json(noted, _Note)
    except MalformedError as exc:
        raise ModelError(f"the model's {SHAPES_KEY} metadata is broken: {exc}") from exc
    bound = {n: TensorSpec(n, t.dtype, t.bound) for n, t in note.tensors.items()}
    free = {n: TensorSpec(n, t.dtype, t.bound if t.free is None else t.free) for n, t in note.tensors.items()}
    here = {s.name: s.bind(assumed) for s in inputs}
    graph = skeleton.graph
    used = {t for n in graph.node for t in reads(n)} | {o.name for o in graph.output}
    outputs = {o for n in graph.node for o in n.output}
    missing = sorted((used & outputs) - set(bound) - set(note.opaque))
    wrong = [n for n, s in here.items() if bound.get(n) != s]
    wrong += [n for n, s in bound.items() if s.dtype not in ITEM_SIZES]
    if missing or wrong:
        raise ModelError(f"the model's {SHAPES_KEY} metadata does not fit its tensor {(missing + wrong)[0]}")
    return Shapes(inputs, assumed, bound, free, frozenset(note.opaque))


def sample_inputs(inputs: Sequence[TensorSpec], seed: int = 0, vocabulary: int = 2) -> dict[str, Array]:
    """Made-up inputs that most graphs accept: patchy floats and bytes, small non-negative integers."""
    rng = np.random.default_rng(seed)
    sample: dict[str, Array] = {}
    for spec in inputs:
        shape = tuple(int(d) for d in spec.shape)
        if spec.dtype.startswith("float"):
            values: Any = _patches(shape, rng)
        elif spec.dtype in ("uint8", "int8"):
            most = np.iinfo(spec.dtype).max
            centre = (most + 1) / 2  # of the values that are not negative
            values = np.clip(centre * (1 + 0.4 * _patches(shape, rng)), 0, most)
        else:
            values = rng.integers(0, 2 if spec.dtype == "bool" else vocabulary, shape)
        sample[spec.name] = np.asarray(values, spec.dtype)
    return sample


def _patches(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Normal numbers in patches of a quarter of each long axis, with grain: inputs that differ as photos do.

    White noise all looks the same behind a few poolings: measured on onnx's light Inception v2 with random weights,
    the answer to another noise moves by 0.03 % and to other patches by 0.4 %.
    """
    coarse = tuple(4 if d >= 16 else d for d in shape)
    places = [np.arange(d) * c // d for d, c in zip(shape, coarse, strict=True)]
    patches = rng.standard_normal(coarse)[np.ix_(*places)] if shape else rng.standard_normal()
    return np.asarray(patches + 0.3 * rng.standard_normal(shape))


def run_once(
    skeleton: Proto,
    weights: Weights,
    values: Values,
    inputs: Sequence[TensorSpec],
    names: Sequence[str],
    sized: Sequence[str] = (),
) -> tuple[Mapping[str, Array | None], Mapping[str, tuple[int, ...]]]:
    """The value of each tensor in `names` (None for what is not an array) and the shape of each in `sized`.

    For one input of `values`, the others made up. ModelError if ONNX Runtime cannot run the model on it.
    """
    full = onnx.ModelProto()
    full.CopyFrom(skeleton)
    known = {o.name for o in full.graph.output}
    for name in names:
        if name not in known:
            full.graph.output.add().name = name
    # Of most tensors the shape is enough, and they need not be kept until the end.
    shape_of = {name: f"splitpoint.shape.{k}" for k, name in enumerate(sized)}
    for name, shape in shape_of.items():
        full.graph.node.add(op_type="Shape", name=shape, input=[name], output=[shape])
        full.graph.output.add().name = shape
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    held = give_weights(options, full, weights)
    cpu = ["CPUExecutionProvider"]
    try:
        session = ort.InferenceSession(full.SerializeToString(), options, providers=cpu, enable_fallback=0)
    except Exception as exc:  # ONNX Runtime's exceptions share no base of their own
        raise ModelError(
            f"ONNX Runtime cannot run this model: {reason_of(exc)} (it was tried because no inference knows the "
            f"shape of {(*names, *sized)[0]})"
        ) from exc
    try:
        outputs = session.run([*names, *shape_of.values()], with_values(sample_inputs(inputs), inputs, values))
    except Exception as exc:
        raise ModelError(f"ONNX Runtime cannot run this model: {reason_of(exc)} ({advice(inputs, values)})") from exc
    del held
    arrays = {n: v if isinstance(v, np.ndarray) else None for n, v in zip(names, outputs, strict=False)}
    return arrays, {n: tuple(map(int, v)) for n, v in zip(sized, outputs[len(names) :], strict=True)}
