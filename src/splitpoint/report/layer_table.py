"""One row a cut point: what each layer makes and what would cross the link behind it.

The first seed system's `list_layers` and `measure_tensor`, for any model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, fields
from typing import Any

import msgspec

from splitpoint.graph import Cut, Graph, Node
from splitpoint.models.model import Model
from splitpoint.report.table import Column
from splitpoint.tensors import TensorSpec
from splitpoint.units import count, size
from splitpoint.wire import PREFIX_BYTES, Infer, Tensor


@dataclass(frozen=True, slots=True)
class LayerRow:
    """A node, its output, and the cut behind it (the node and everything before it on the device).

    `cut` is the index in ``Graph.chain()``, or None; `at` is the name that ``--at`` takes for just this cut. `layer` is
    written as ``--at`` takes it: ``layer:5`` where the model's ``5`` could be taken for a cut's number. Bytes on the
    wire include the frame's own. A model without inputs has one row, in which nothing is made.
    FLOPs and parameters are counted up to here; multiply-adds count as two.
    """

    row: int
    cut: int | None
    at: str
    layer: str
    node: str
    op: str
    shape: tuple[int, ...]
    dtype: str
    elements: int
    memory_bytes: int
    wire_bytes: int
    crossing: tuple[str, ...]
    crossing_bytes: int
    crossing_wire_bytes: int
    flops: int
    params: int

    def flat(self) -> dict[str, Any]:
        """The row with text in place of tuples, for CSV and spreadsheets."""
        return asdict(self) | {
            "shape": "x".join(map(str, self.shape)) or "scalar",
            "crossing": " ".join(self.crossing),
            "cut": "" if self.cut is None else self.cut,
        }


COLUMNS: Sequence[str] = tuple(f.name for f in fields(LayerRow))


def table_of(graph: Graph) -> Sequence[Column[LayerRow]]:
    """The table's columns, for rows of `graph`."""
    return (
        Column("cut", lambda r: "" if r.cut is None else graph.spell_index(r.cut), keep=True),
        Column("layer", lambda r: r.layer, right=False, keep=True),
        Column("op", lambda r: r.op, right=False),
        Column(
            "output", lambda r: "×".join(map(str, r.shape)) or ("scalar" if r.dtype else "-"), right=False, keep=True
        ),
        Column("crosses", _crosses, keep=True),
        Column("FLOPs", lambda r: count(r.flops), keep=True),
        Column("params", lambda r: count(r.params)),
        Column("memory", lambda r: size(r.memory_bytes)),
        Column("on the wire", lambda r: size(r.wire_bytes)),
        Column("elements", lambda r: count(r.elements)),
        Column("dtype", lambda r: r.dtype, right=False),
    )


def _crosses(row: LayerRow) -> str:
    several = f"{len(row.crossing)}: " if len(row.crossing) > 1 else ""
    return several + size(row.crossing_wire_bytes) if row.crossing else "-"


def wire_bytes(tensors: Sequence[TensorSpec], vectors: Sequence[TensorSpec] = ()) -> int:
    """Bytes of the request frame that carries these tensors raw: prefix, header and body (docs/wire-format.md)."""
    entries = tuple(Tensor(t.dtype, tuple(int(d) for d in t.shape), t.nbytes) for t in tensors)
    header = msgspec.msgpack.encode(Infer(0, entries, tuple((1,) * v.elements for v in vectors)))
    return PREFIX_BYTES + len(header) + sum(t.nbytes for t in tensors)


def layer_rows(model: Model, cuts: Iterable[Cut] | None = None) -> list[LayerRow]:
    """A row for each cut (default: every topological prefix), from `input` to the last node."""
    graph = model.graph
    rows: list[LayerRow] = []
    before: AbstractSet[int] = frozenset()
    flops = params = 0
    for number, cut in enumerate(cuts if cuts is not None else graph.prefixes()):
        new = sorted(cut.nodes - before)
        before = cut.nodes
        flops += sum(graph.nodes[i].flops for i in new)
        params += sum(graph.nodes[i].params for i in new)
        node = graph.nodes[new[-1]] if new else None
        vectors = [graph.tensors[name] for name in cut.shapes]
        output = main_output(node, graph) if node else first_input(graph)
        rows.append(
            LayerRow(
                row=number,
                cut=cut.index,
                at=cut.name,
                layer=graph.spell("layer", node.layer) if node else cut.name,
                node=node.name if node else "",
                op=node.op if node else "",
                shape=tuple(int(d) for d in output.shape) if output else (),
                dtype=output.dtype if output else "",
                elements=output.elements if output else 0,
                memory_bytes=output.nbytes if output else 0,
                wire_bytes=wire_bytes([output]) if output else 0,
                crossing=tuple(t.name for t in cut.crossing),
                crossing_bytes=cut.nbytes,
                crossing_wire_bytes=wire_bytes(cut.crossing, vectors) if cut.crossing else 0,
                flops=flops,
                params=params,
            )
        )
    return rows


def first_input(graph: Graph) -> TensorSpec | None:
    """The graph's first input, free dimensions as assumed."""
    return graph.inputs[0].bind(graph.assumed) if graph.inputs else None


def main_output(node: Node, graph: Graph) -> TensorSpec | None:
    """The node's first output that is an array of numbers."""
    return next((graph.tensors[t] for t in node.outputs if t in graph.tensors), None)


def layer_names(model: Model) -> list[str]:
    """Every module once, in order, folded ones too: the lines of the seed's ``layer_names.txt``; each is a valid
    ``--at``."""
    return list(model.graph.modules)
