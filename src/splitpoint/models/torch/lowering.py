"""A PyTorch module → an ONNX graph that remembers which module every node came from.

The optimiser folds and drops nodes, so three things are noted before it runs and resolved after it:

* which module paths each unoptimised node belongs to (torch.export keeps the module stack of every operator),
* what each tensor is made of and who reads it,
* which modules hand their input on unchanged (Identity, Dropout in evaluation): torch.export leaves no trace of
  them, so their outputs pass through a marker operator that is taken out again before the optimiser sees it.

Every module path then has a node of its own, is a prefix of one, is an *alias* of the node that holds it (the
Conv a batch norm was folded into; what an Identity hands on), or is *unused* (an auxiliary head).
"""

from __future__ import annotations

import ast
import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import torch

from splitpoint.graph import SHAPE_ROOTS, module_paths
from splitpoint.models.layer_names import LAYER_KEY

# Through Any, so that mypy says the same with and without the [torch] extra.
ir: Any = import_module("onnx_ir")

OPSET = 20

#: The exporter's key: a list literal of module paths, outermost first, and last the fx node's name.
_SCOPES_KEY = "pkg.torch.onnx.name_scopes"

#: Operators that only hand values on. Where the optimiser drops one whose shape does not change, its module's
#: output is its input; any other operator that goes was folded into a later one.
_MOVES = frozenset({
    "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast", "CastLike", "Expand", "Slice", "Transpose",
    "Dropout", "Concat", "Split",
})  # fmt: skip


def _mark(value: torch.Tensor, path: str) -> torch.Tensor:
    return value.clone()  # a custom operator may not return its input


def _mark_shape(value: torch.Tensor, path: str) -> torch.Tensor:
    return torch.empty_like(value)


_custom_op: Any = torch.library.custom_op
_custom_op("splitpoint::mark", _mark, mutates_args=()).register_fake(_mark_shape)


def _mark_in_onnx(value: Any, path: str) -> Any:
    return import_module("onnxscript").opset20.Identity(value)


@dataclass(frozen=True, slots=True)
class Layers:
    """Where the module paths of the original model went.

    `aliases`: path without a node → name of the node that holds it, or of the model input it hands on.
    `unused`: paths that play no part in the outputs.
    """

    aliases: Mapping[str, str]
    unused: tuple[str, ...]


def trace(module: Any, inputs: tuple[Any, ...], *, free_batch: bool, identities: Iterable[str]) -> Any:
    """The exported program of ``module.model`` inside its wrapper `module`; raises whatever torch raises.

    `identities` are the paths of ``module.model`` whose module returns its input.
    """
    modules = dict(module.model.named_modules(remove_duplicate=False))
    with ExitStack() as hooks:
        for path in identities:
            hooks.callback(modules[path].register_forward_hook(partial(_marked, path)).remove)
        dims = {0: torch.export.Dim("batch")} if free_batch else None
        shapes = (tuple(dims for _ in inputs),) if dims else None
        return torch.export.export(module, inputs, dynamic_shapes=shapes, strict=False)


def translate(
    program: Any,
    paths: Mapping[str, Sequence[str]],
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    preprocess: str = "preprocess",
    prefix: str = "",
) -> tuple[Any, Layers]:
    """The ONNX model of an exported program, as ``onnx_ir.Model``, and its `Layers`.

    `paths` maps every module path of the original model to the names of its own parameters, `prefix` is the attribute
    of its wrapper, and `preprocess` the layer of the wrapper's own nodes.
    """
    mark = torch.ops.splitpoint.mark.default
    translated: Any = torch.onnx.export(
        program,
        dynamo=True,
        verbose=False,
        optimize=False,
        opset_version=OPSET,
        input_names=input_names,
        output_names=output_names,
        custom_translation_table={mark: _mark_in_onnx},
    )
    marks = {n.name: n.args[1] for n in translated.exported_program.graph.nodes if n.target is mark}
    clean = _Paths(prefix)
    passed = _take_out_marks(translated.model.graph, marks)
    before = _Before(translated.model.graph, clean, passed)
    translated.optimize()
    model = translated.model
    _name_batch(model)
    _name_layers(model.graph, clean, set(paths), preprocess)
    # Aliases are found by tensor names, so tensors are renamed last.
    layers = _resolve(model.graph, before, paths, clean)
    _name_tensors(model.graph, clean)
    return model, layers


def _marked(path: str, _module: Any, _inputs: Any, output: Any) -> Any:
    return torch.ops.splitpoint.mark(output, path)


class _Paths:
    """Reads the exporter's scopes: module paths of the original model, without the wrapper's attribute."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    def original(self, scope: str) -> str:
        scope = re.sub(r"@\d+", "", scope)  # the second call of one module
        if not self.prefix:
            return scope
        return "" if scope == self.prefix else scope.removeprefix(self.prefix + ".")

    def of(self, node: Any) -> tuple[list[str] | None, str]:
        """(original paths from the root ``""`` inwards, or None outside the model; the fx node's name)."""
        text = node.metadata_props.get(_SCOPES_KEY, "[]")
        scopes = [str(s) for s in ast.literal_eval(text)]
        if not scopes or scopes[0].startswith("_empty_nn_module_stack"):
            return None, ""
        inside = scopes[1:-1] if self.prefix else scopes[:-1]
        return [self.original(s) for s in inside], scopes[-1]


#: Every node of a graph, those of bodies included.
_all_nodes: Any = ir.traversal.RecursiveGraphIterator


def _within(node: Any) -> Iterable[Any]:
    """The nodes in the bodies of `node`."""
    for attribute in node.attributes.values():
        if isinstance(attribute, ir.Attr) and attribute.type == ir.AttributeType.GRAPH:
            yield from _all_nodes(attribute.value)
        elif isinstance(attribute, ir.Attr) and attribute.type == ir.AttributeType.GRAPHS:
            for graph in attribute.value:
                yield from _all_nodes(graph)


def _reads(node: Any) -> list[Any]:
    """The values a node needs, captures of its bodies included."""
    inside = list(_within(node))
    inner = {id(v) for n in inside for v in n.outputs}
    values = [v for n in (node, *inside) for v in n.inputs if v is not None]
    return [v for v in values if id(v) not in inner]


def _take_out_marks(graph: Any, marks: Mapping[str, str]) -> dict[str, str]:
    """Remove the marker nodes; returns path → name of the tensor that passed through its module last."""
    passed: dict[str, Any] = {}
    for node in list(graph):
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES_KEY, "[]"))
        path = marks.get(scopes[-1]) if scopes else None
        if path is None:
            continue
        marked, source = node.outputs[0], node.inputs[0]
        passed[path] = source
        if not marked.is_graph_output():
            ir.convenience.replace_all_uses_with(marked, source)
        elif source.is_graph_output() or source.is_graph_input():
            continue  # the answer is an input or another answer: this Identity is the model's own
        else:
            name = marked.name
            ir.convenience.replace_all_uses_with(marked, source, replace_graph_outputs=True)
            marked.name, source.name = None, name
        graph.remove(node, safe=True)
    return {path: value.name for path, value in passed.items()}


class _Before:
    """The graph before the optimiser, as plain names; `passed`: path of an identity module → the tensor it hands on."""

    def __init__(self, graph: Any, clean: _Paths, passed: dict[str, str]) -> None:
        self.passed, self.weights = passed, set(graph.initializers)
        self.maker: dict[str, int] = {}
        self.readers: dict[str, list[int]] = {}
        #: Module path → indices of its nodes, those of its children included.
        self.members: dict[str, list[int]] = {}
        self.shapes: dict[str, str] = {}
        self.ops = [node.op_type for node in graph]
        self.makes = [[v.name for v in node.outputs] for node in graph]
        self.reads: list[list[str]] = []
        for index, node in enumerate(graph):
            reads = _reads(node)
            self.reads.append([v.name for v in reads])
            self.shapes.update((v.name, str(v.shape)) for v in (*reads, *node.outputs))
            self.maker.update(dict.fromkeys(self.makes[index], index))
            for name in self.reads[index]:
                self.readers.setdefault(name, []).append(index)
            for path in {p for n in (node, *_within(node)) for p in clean.of(n)[0] or ()}:
                self.members.setdefault(path, []).append(index)


def _name_batch(model: Any) -> None:
    """Call the free batch dimension ``batch``, whatever symbol torch gave it."""
    symbols = {str(d.value) for v in model.graph.inputs for d in (v.shape or ())[:1] if isinstance(d, ir.SymbolicDim)}
    if len(symbols) != 1:
        return
    old = re.compile(rf"\b{re.escape(symbols.pop())}\b")
    values = [*model.graph.inputs, *(v for n in _all_nodes(model.graph) for v in n.outputs)]
    for value in values:
        if value.shape is None:
            continue
        dims = [old.sub("batch", str(d.value)) if isinstance(d, ir.SymbolicDim) and d.value else d for d in value.shape]
        value.shape = ir.Shape(dims)


def _name_layers(graph: Any, clean: _Paths, paths: set[str], preprocess: str) -> None:
    """Give every node its layer (its only metadata) and a readable unique name ``layer/Op``."""
    layers: dict[int, str] = {}
    parents = {parent for path in paths for parent in module_paths(path)}
    nodes = list(_all_nodes(graph))
    for node in nodes:
        inside, fx_name = clean.of(node)
        if inside is None:
            continue
        deepest = inside[-1] if inside else preprocess
        if not deepest:  # an operator in the model's own forward: named after itself
            deepest = fx_name.strip("_")
            deepest = f"{deepest}_op" if deepest in parents else deepest
        layers[id(node)] = deepest
    for node in reversed(nodes):  # shape arithmetic without a module belongs to who first reads it
        if id(node) not in layers:
            readers = [u.node for v in node.outputs for u in v.uses() if id(u.node) in layers]
            if readers:
                layers[id(node)] = layers[id(min(readers, key=nodes.index))]
    taken = {v.name for v in (*graph.inputs, *graph.outputs, *graph.initializers.values())}
    for node in nodes:
        layer = layers.get(id(node)) or "shared"
        base = name = f"{layer}/{node.op_type}"
        count = 0
        while name in taken:
            count += 1
            name = f"{base}_{count}"
        taken.add(name)
        node.name = name
        node.doc_string = None
        node.metadata_props.clear()
        node.metadata_props[LAYER_KEY] = layer


def _name_tensors(graph: Any, clean: _Paths) -> None:
    """Name tensors after their nodes, and drop what exporters write beside values: local file paths."""
    kept = {id(v) for v in (*graph.inputs, *graph.outputs)}
    values = [*graph.inputs, *graph.initializers.values()]
    for node in _all_nodes(graph):
        for k, value in enumerate(node.outputs):
            values.append(value)
            if id(value) not in kept and value.name and not value.is_graph_output():
                value.name = node.name if len(node.outputs) == 1 else f"{node.name}:{k}"
    for value in values:
        value.metadata_props.clear()
        value.doc_string = None
    taken = {v.name for v in values}
    for value in list(graph.initializers.values()):  # the original weight names, without the wrapper's attribute
        name = clean.original(value.name)
        if name and name not in taken:
            value.name = name
    graph.metadata_props.clear()
    graph.doc_string = None


def _resolve(graph: Any, before: _Before, paths: Mapping[str, Sequence[str]], clean: _Paths) -> Layers:
    """Find the node that holds each module path that has none of its own."""
    # Nodes that depend on no input's values are computed on both sides and hold no layer.
    alive, live = [], {id(v) for v in graph.inputs}
    for node in graph:
        if node.op_type not in SHAPE_ROOTS and any(id(v) in live for v in _reads(node)):
            alive.append(node)
            live.update(id(v) for v in node.outputs)
    holder = {v.name: n.name for n in alive for v in n.outputs if v.name}
    order = {n.name: k for k, n in enumerate(alive)}
    inputs = {v.name for v in graph.inputs}
    present = {path for n in alive for path in module_paths(n.metadata_props[LAYER_KEY])}
    find = _Finder(before, holder, inputs)
    aliases: dict[str, str] = {}
    for path, weights in paths.items():
        if not path or path in present:
            continue
        if path in before.passed:
            held_by = find.passed(before.passed[path])
        elif path in before.members:
            held_by = find.last(before.members[path])
        else:  # never called, but its parent may use its weights: MultiheadAttention's out_proj
            own = [f"{clean.prefix}.{w}" if clean.prefix else w for w in weights]
            held_by = find.forward([w for w in own if w in before.weights])
        if held_by is not None:
            aliases[path] = held_by
    told = present.union(*map(module_paths, aliases))
    unused = [p for p in paths if p and p not in told]
    return Layers(dict(sorted(aliases.items(), key=lambda a: (order.get(a[1], -1), a[0]))), tuple(unused))


class _Finder(NamedTuple):
    """From tensors of the unoptimised graph to the nodes that hold them now."""

    before: _Before
    holder: Mapping[str, str]
    inputs: set[str]

    def forward(self, tensors: Iterable[str]) -> str | None:
        """The first surviving node at or after `tensors`: what they were folded into."""
        todo, seen = deque(tensors), set[str]()
        while todo:
            name = todo.popleft()
            if name in seen:
                continue
            seen.add(name)
            if name in self.holder:
                return self.holder[name]
            for reader in self.before.readers.get(name, ()):
                if self.before.ops[reader] not in SHAPE_ROOTS:
                    todo.extend(self.before.makes[reader])
        return None

    def passed(self, tensor: str) -> str | None:
        """The node that makes `tensor`, which an identity handed on."""
        if tensor in self.inputs:
            return tensor
        if tensor in self.holder:
            return self.holder[tensor]
        maker = self.before.maker.get(tensor)
        return self.last([maker]) if maker is not None else self.forward([tensor])

    def last(self, members: Sequence[int]) -> str | None:
        """The node that holds the output of a module whose nodes (in order) are `members`."""
        inside, own = {t for m in members for t in self.before.makes[m]}, set(members)
        # Its output is what others read; shape arithmetic inside it comes last sometimes, so look from the end.
        outputs = [
            t
            for m in reversed(members)
            for t in self.before.makes[m]
            if not self.before.readers.get(t) or not own.issuperset(self.before.readers[t])
        ]
        if all(self.before.ops[m] in _MOVES | {"Constant"} | SHAPE_ROOTS for m in members):
            moved = self._unmoved(members, inside, outputs)
            if moved is not None:
                return moved
        return self.forward(outputs)

    def _unmoved(self, members: Sequence[int], inside: set[str], outputs: Sequence[str]) -> str | None:
        """Where nothing but a dropped no-op was inside: the node behind it."""
        if not outputs or outputs[0] in self.holder:
            return None
        shape = self.before.shapes.get(outputs[0])
        for m in members:
            for source in self.before.reads[m]:
                same = source not in inside and self.before.shapes.get(source) == shape
                if same and source not in self.before.weights:
                    return self.passed(source)
        return None
