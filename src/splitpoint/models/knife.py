"""The knife: an ONNX sub-graph between named tensors.

onnx's own Extractor loses what If and Loop bodies capture from outside, needs value_info for every boundary, and
takes the initializers that IR-3 files list as inputs for inputs. This one walks back from the outputs and names
what it misses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from splitpoint.errors import ModelError
from splitpoint.models.dataflow import Proto, reads
from splitpoint.models.shapes import value_of
from splitpoint.tensors import TensorSpec
from splitpoint.text import listed


def extract(
    skeleton: Proto,
    inputs: Sequence[str],
    outputs: Sequence[str],
    specs: Mapping[str, TensorSpec],
) -> Proto:
    """A skeleton that computes `outputs` from `inputs`, both names of tensors in `skeleton`.

    Keeps node order, opsets and domains; takes along exactly the constants it reads, and as inputs those of `inputs`
    that it reads. ModelError if an output does not exist or cannot be computed from the inputs alone (the message
    names the model input that is missing).
    """
    import onnx

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
    _unmake(part, given)
    return part


def _unmake(part: Proto, given: set[str]) -> None:
    """Rename what a node with several outputs makes besides, where that is an input already."""
    for node in part.graph.node:
        for k, t in enumerate(node.output):
            if t in given:
                node.output[k] = f"{t}.again"


def _value_info(name: str, specs: Mapping[str, TensorSpec]) -> Proto:
    spec = specs.get(name)
    if spec is None:
        raise ModelError(f"tensor {name} is not an array of numbers: no cut can go through it")
    return value_of(spec)
