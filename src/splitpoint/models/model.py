"""Model: a graph, its weights and its input contract. Segment: a part of it that an engine can build."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NoReturn

from splitpoint.errors import ModelError, StorageError, UsageError
from splitpoint.files import destination, is_special, publish, scratch, write_atomic
from splitpoint.graph import Cut, Graph
from splitpoint.images import InputSpec
from splitpoint.models import layer_names as layers
from splitpoint.models import node_kinds as placement
from splitpoint.models import shapes
from splitpoint.models.dataflow import Proto, onnx, reads
from splitpoint.models.fingerprint import fingerprint
from splitpoint.models.inference import alike, inferred
from splitpoint.models.input_values import Values, given, noted
from splitpoint.models.reading import parse_skeleton
from splitpoint.models.soundness import blob_hash, nbytes
from splitpoint.models.weights import Blob, StandIn, Weights
from splitpoint.tensors import TensorSpec
from splitpoint.text import listed

#: protobuf's limit, with room for the graph itself.
MAX_PROTO_BYTES = (2 << 30) - (64 << 20)


@dataclass(frozen=True)
class Segment:
    """A sub-model with named inputs and outputs, identified by the model's fingerprint and its boundary.

    Holds no weights: `proto` points to blobs, which `weights` opens when an engine builds the segment. `specs` has the
    tensors inside that are known.
    """

    fingerprint: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    proto: Proto = field(repr=False, compare=False)
    weights: Weights = field(repr=False, compare=False)
    specs: Mapping[str, TensorSpec] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def key(self) -> str:
        """16 hex digits, the same wherever this segment of this model is built."""
        names = [self.fingerprint, *(t.name for t in self.inputs), "→", *(t.name for t in self.outputs)]
        return hashlib.sha256("\0".join(names).encode()).hexdigest()[:16]

    @cached_property
    def blobs(self) -> tuple[str, ...]:
        """Hashes of the weight blobs it needs, each once."""
        return tuple(dict.fromkeys(h for t in self.proto.graph.initializer if (h := blob_hash(t))))

    @property
    def nbytes(self) -> int:
        """Bytes of its weights, each blob once."""
        return sum({h: nbytes(t) for t in self.proto.graph.initializer if (h := blob_hash(t))}.values())

    @property
    def _file_bytes(self) -> int:
        """Bytes of its weights in one file, where a blob that two weights share is written twice."""
        return sum(nbytes(t) for t in self.proto.graph.initializer)

    def to_bytes(self) -> bytes:
        """One plain ONNX file with the weights inside. ModelError above protobuf's 2 GB."""
        if self._file_bytes > MAX_PROTO_BYTES:
            raise ModelError(f"{self._file_bytes >> 20} MiB of weights do not fit one ONNX file: save it to a folder")
        full = onnx.ModelProto()
        full.CopyFrom(self.proto)
        for t in full.graph.initializer:
            digest = blob_hash(t)
            if digest:
                t.raw_data = bytes(self.weights.open(digest))
                t.data_location = onnx.TensorProto.DEFAULT
                del t.external_data[:]
        return bytes(full.SerializeToString())

    def save(self, path: Path) -> None:
        """Write a plain ONNX file; above 2 GB the weights go beside it, into `path` + ``.data``. StorageError."""
        if self._file_bytes <= MAX_PROTO_BYTES:
            write_atomic(path, self.to_bytes())
            return
        if is_special(path):
            raise StorageError(f"{path} cannot hold {self._file_bytes >> 20} MiB of weights: name a regular file")
        path = destination(path)  # the weights lie beside the file itself, not beside a link to it
        with scratch(path) as new:
            self._save_external(new / path.name)
            for name in (f"{path.name}.data", path.name):
                publish(new / name, path.with_name(name))

    def _save_external(self, path: Path) -> None:
        full = onnx.ModelProto()
        full.CopyFrom(self.proto)
        location = f"{path.name}.data"
        places: dict[str, tuple[int, int]] = {}
        with path.with_name(location).open("wb") as file:
            for blob in self.blobs:
                data = self.weights.open(blob)
                file.seek(-file.tell() % 4096, 1)  # page-aligned, so that runtimes can map it
                places[blob] = (file.tell(), data.nbytes)
                file.write(data)
        for t in full.graph.initializer:
            digest = blob_hash(t)
            if digest:
                offset, length = places[digest]
                del t.external_data[:]
                for key, value in (("location", location), ("offset", offset), ("length", length)):
                    t.external_data.add(key=key, value=str(value))
        path.write_bytes(full.SerializeToString())


@dataclass(frozen=True)
class Model:
    """What `splitpoint.load` returns: a `Graph`, its weights as blobs, its fingerprint and its input contract.

    `values` are those given for inputs that must make sense: what is tried out here is tried with them.
    """

    name: str
    graph: Graph
    fingerprint: str
    input_spec: InputSpec | None
    source: str
    specs: Mapping[str, TensorSpec] = field(repr=False)
    skeleton: Proto = field(repr=False, compare=False)
    weights: Weights = field(repr=False, compare=False)
    values: Values = field(default_factory=dict, repr=False, compare=False)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The model's inputs, free dimensions by name."""
        return self.graph.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The model's outputs, free dimensions by name."""
        return self.graph.outputs

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise UsageError(
            f"the model {self.name} cannot be pickled or copied, since its weights are in its file: "
            "give the other process its name or path, and load it there"
        )

    def outputs_at(self, inputs: Sequence[TensorSpec]) -> Mapping[str, TensorSpec]:
        """What is known of the outputs for inputs of these sizes, without running it: specs by name, in which a
        dimension has a name where values decide. Empty where ONNX Runtime may reckon otherwise than onnx."""
        known = inferred(self.skeleton, inputs)[0] if alike(self.skeleton.graph.node) else {}
        return {t.name: known[t.name] for t in self.outputs if t.name in known}

    def segment(self, inputs: Sequence[str], outputs: Sequence[str]) -> Segment:
        """The sub-model that computes `outputs` from `inputs` (tensor names); ModelError if it cannot.

        Names that are in both are passed through by the caller and belong to neither.
        """
        given = set(inputs)
        wanted = tuple(dict.fromkeys(o for o in outputs if o not in given))
        self.check_names((*inputs, *wanted))
        proto = extract(self.skeleton, inputs, wanted, self.specs)
        read = tuple(self.specs[i.name] for i in proto.graph.input)
        made = tuple(self.specs[n] for n in wanted)
        return Segment(self.fingerprint, read, made, proto, self.weights, self.specs)

    def check_names(self, names: Sequence[str]) -> None:
        """ModelError unless every one of `names` is a tensor's that can travel."""
        for name in names:
            if name not in self.specs:
                raise ModelError(f"{self.name} has no tensor {name} that can travel")

    def head(self, cut: Cut) -> Segment:
        """Model inputs → what crosses and the results made on the device. Inputs that cross are passed by the edge."""
        return self.segment([t.name for t in self.inputs], [*cut.boundary, *cut.results])

    def tail(self, cut: Cut) -> Segment:
        """What crosses → the model outputs that are not results of the device."""
        return self.segment(cut.boundary, [t.name for t in self.outputs if t.name not in cut.results])

    def whole(self) -> Segment:
        """The model in one piece: inputs → outputs."""
        return self.segment([t.name for t in self.inputs], [t.name for t in self.outputs])

    @cached_property
    def blobs(self) -> Mapping[str, Blob]:
        """Every weight blob by hash, with its size."""
        return {h: Blob(h, nbytes(t)) for t in self.skeleton.graph.initializer if (h := blob_hash(t))}

    @property
    def nbytes(self) -> int:
        """Bytes of all weights, each blob once and those that stay in the skeleton too."""
        small = (t for t in self.skeleton.graph.initializer if not blob_hash(t))
        inline = sum(nbytes(t) for t in small if t.data_type not in placement.NO_WEIGHTS)
        return sum(b.nbytes for b in self.blobs.values()) + inline

    def blob(self, hash: str) -> memoryview:
        """The raw little-endian bytes of one weight, read-only. StorageError if it is not there."""
        return self.weights.open(hash)

    def graph_bytes(self) -> bytes:
        """The skeleton: what a device fetches to know the graph, its names and its input contract."""
        return self._graph_bytes  # however many ask for it, there is one copy in memory

    @cached_property
    def _graph_bytes(self) -> bytes:
        return bytes(self.skeleton.SerializeToString(deterministic=True))

    def with_stand_ins(self) -> Model:
        """The same model with made-up weights: as slow as the real one without a download, and of no other use."""
        return dataclasses.replace(self, weights=StandIn(self.skeleton))

    def with_input_spec(self, spec: InputSpec) -> Model:
        """The same model, whose input is made from photos as `spec` says."""
        return dataclasses.replace(self, input_spec=spec)

    def with_values(self, values: Mapping[str, Any]) -> Model:
        """The same model, tried out with these values of its inputs. InputError for those that it cannot take."""
        inputs = [t.bind(self.graph.assumed) for t in self.inputs]
        return dataclasses.replace(self, values={**self.values, **given(self.skeleton, inputs, values)})

    def __str__(self) -> str:
        return f"{self.name} {self.fingerprint[:12]} ({self.graph})"


def build(
    skeleton: Proto, weights: Weights, name: str, probe: shapes.ShapeProbe | None = None, values: Values | None = None
) -> Model:
    """The Model of a skeleton and its weights. `probe` measures shapes that inference cannot know, on inputs of these
    `values` (default: those noted in the skeleton), the others made up."""
    if values is None:
        values = noted(skeleton, bound_inputs(skeleton))
    known = shapes.shapes_of(skeleton, probe or partial(shapes.run_once, skeleton, weights, values))
    props = layers.metadata(skeleton)
    graph, source = placement.graph_of(skeleton, name, known), props.get(layers.SOURCE_KEY, "")
    spec = InputSpec.from_metadata(props)
    return Model(name, graph, fingerprint(skeleton), spec, source, known.free, skeleton, weights, values)


def bound_inputs(skeleton: Proto) -> list[TensorSpec]:
    """The model's inputs, a free batch bound as it is where shapes are measured."""
    inputs = shapes.input_specs(skeleton)
    return [t.bind(shapes.assumed_dims(inputs)) for t in inputs]


def from_graph(
    graph_bytes: bytes, weights: Weights, *, name: str, expected: str | None = None, allowed: Collection[str] = ()
) -> Model:
    """The Model of a skeleton that came over a wire; its fingerprint is computed anew and must be `expected`. All
    operators of the domains `allowed` may be in it.

    A server notes all shapes in what it hands out. What is not noted is inferred or refused: to run a stranger's graph
    before anybody has asked for an answer could take for ever, or all memory.
    """
    model = build(parse_skeleton(graph_bytes, allowed), weights, name, _not_run)
    if expected is not None and model.fingerprint != expected:
        raise ModelError(
            f"the graph that came for {name} has fingerprint {model.fingerprint[:12]}…, not {expected[:12]}…: refused"
        )
    return model


def _not_run(*_: object) -> NoReturn:
    raise ModelError(
        "the graph that came does not note the shapes of its tensors, as all that splitpoint serves does, and is not "
        "run to find them out"
    )


def extract(skeleton: Proto, inputs: Sequence[str], outputs: Sequence[str], specs: Mapping[str, TensorSpec]) -> Proto:
    """The knife: a skeleton that computes `outputs` from `inputs`, both names of tensors in `skeleton`.

    Keeps node order, opsets and domains; takes along exactly the constants it reads, and as inputs those of `inputs`
    that it reads. ModelError if an output does not exist or cannot be computed from the inputs alone (the message
    names the model input that is missing).
    """
    graph = skeleton.graph
    maker_of = {o: i for i, n in enumerate(graph.node) for o in n.output if o}
    constants = {t.name for t in graph.initializer}
    missing = {i.name for i in graph.input} - set(inputs)
    given = set(inputs)
    keep: set[int] = set()
    read: set[str] = set()
    todo = list(outputs)
    while todo:
        name = todo.pop()
        if name in read:
            continue
        read.add(name)
        if name in given or name in constants:
            continue
        if name in maker_of:
            if maker_of[name] not in keep:
                keep.add(maker_of[name])
                todo += reads(graph.node[maker_of[name]])
        elif name in missing:
            raise ModelError(f"the segment that makes {listed(outputs)} also needs the model input {name}")
        else:
            raise ModelError(f"the model has no tensor {name}")
    part = onnx.ModelProto()
    part.ir_version = skeleton.ir_version
    part.producer_name = "splitpoint"
    part.opset_import.extend(skeleton.opset_import)
    part.graph.name = "segment"
    part.graph.node.extend(graph.node[i] for i in sorted(keep))
    part.graph.initializer.extend(t for t in graph.initializer if t.name in read)
    part.graph.quantization_annotation.extend(q for q in graph.quantization_annotation if q.tensor_name in read)
    part.graph.input.extend(_value_info(i, specs) for i in inputs if i in read)
    part.graph.output.extend(_value_info(o, specs) for o in outputs)
    inner = {o for i in keep for o in graph.node[i].output} - set(outputs) - given
    part.graph.value_info.extend(v for v in graph.value_info if v.name in inner)
    for node in part.graph.node:
        for k, t in enumerate(node.output):
            if t in given:  # what a node with several outputs makes besides is an input already
                node.output[k] = f"{t}.again"
    return part


def _value_info(name: str, specs: Mapping[str, TensorSpec]) -> Proto:
    spec = specs.get(name)
    if spec is None:
        raise ModelError(f"tensor {name} is not an array of numbers: no cut can go through it")
    return shapes.value_of(spec)
