"""Neurosurgeon's layer study: what every layer costs and how much it makes, as rows, CSV, spreadsheet and picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from splitpoint.graph import Graph, Node
from splitpoint.profile.profiles import Profile
from splitpoint.report.files import bare, picture
from splitpoint.report.layer_table import first_input, main_output
from splitpoint.report.table import Column
from splitpoint.text import end_of
from splitpoint.units import fine_ms, size
from splitpoint.units import ms as ms_text


@dataclass(frozen=True, slots=True)
class CostRow:
    """A step (a node, or a quantised group) and the cut behind it.

    `ms` is the engine's own time in its kernels (0 where it was fused into a neighbour), `output_bytes` what it makes.
    Head and tail are of the cut behind it; `measured` says that they were not modelled. `crossing_bytes` would cross.
    """

    row: int
    cut: int | None
    layer: str
    node: str
    op: str
    kind: str
    ms: float
    share: float
    shape: str
    output_bytes: int
    crossing_bytes: int
    head_ms: float
    head_p10: float
    head_p90: float
    tail_ms: float
    tail_p10: float
    tail_p90: float
    measured: bool
    flops: int
    params: int


COLUMNS: Sequence[str] = tuple(f.name for f in fields(CostRow))
TABLE: Sequence[Column[CostRow]] = (
    Column("layer", lambda r: r.layer, right=False, keep=True),
    Column("op", lambda r: r.op, right=False),
    Column("ms", lambda r: fine_ms(r.ms), keep=True),
    Column("share", lambda r: f"{r.share:.0%}", keep=True),
    Column("output", lambda r: size(r.output_bytes), keep=True),
    Column("crosses behind it", lambda r: size(r.crossing_bytes) if r.cut else ""),
)


def cost_rows(profile: Profile) -> list[CostRow]:
    """A row for the input and for every step of the graph, in order."""
    graph = profile.graph
    total = sum(profile.nodes) or 1.0
    rows = []
    for k, (cut, step) in enumerate(zip(graph.prefixes(), ((), *graph.order), strict=True)):
        nodes = [graph.nodes[i] for i in step]
        spent = sum(profile.nodes[i] for i in step)
        output = main_output(nodes[-1], graph) if nodes else first_input(graph)
        halves = {"head": profile.head(k), "tail": profile.tail(k)}
        sides = {
            f"{side}_{name}": round(ms, 4)
            for side, stat in halves.items()
            for name, ms in (("ms", stat.median), ("p10", stat.p10), ("p90", stat.p90))
        }
        rows.append(
            CostRow(
                row=k,
                cut=cut.index,
                layer=graph.spell("layer", nodes[-1].layer) if nodes else cut.name,
                node=nodes[-1].name if nodes else "",
                op=" + ".join(n.op for n in nodes),
                kind=kind_of(nodes, graph),
                ms=round(spent, 4),
                share=round(spent / total, 5),
                shape="x".join(map(str, output.shape)) if output else "",
                output_bytes=output.nbytes if output else 0,
                crossing_bytes=cut.nbytes,
                measured=all(stat.count or not stat.median for stat in halves.values()),
                flops=sum(n.flops for n in nodes),
                params=sum(n.params for n in nodes),
                **sides,
            )
        )
    return rows


_KINDS: Mapping[str, str] = {
    "Gemm": "linear", "MatMul": "linear", "MatMulInteger": "linear", "QLinearMatMul": "linear", "FusedMatMul": "linear",
    "MaxPool": "pooling", "AveragePool": "pooling", "GlobalAveragePool": "pooling", "GlobalMaxPool": "pooling",
    "ReduceMean": "pooling", "Relu": "activation", "Clip": "activation", "Sigmoid": "activation", "Tanh": "activation",
    "HardSwish": "activation", "HardSigmoid": "activation", "Gelu": "activation", "Erf": "activation",
    "LeakyRelu": "activation", "PRelu": "activation", "Softmax": "activation", "Elu": "activation",
    "BatchNormalization": "normalisation", "LayerNormalization": "normalisation", "LRN": "normalisation",
    "InstanceNormalization": "normalisation",
}  # fmt: skip

#: Of the bars, in the order of the legend.
COLOURS: Mapping[str, str] = {
    "convolution": "#4c78a8", "depthwise convolution": "#72b7b2", "linear": "#f58518", "pooling": "#54a24b",
    "activation": "#b279a2", "normalisation": "#eeca3b", "other": "#9d9d9d",
}  # fmt: skip


def kind_of(nodes: Sequence[Node], graph: Graph) -> str:
    """What the heaviest of `nodes` is, in the layer study's words."""
    if not nodes:
        return ""
    node = max(nodes, key=lambda n: n.flops)
    if "Conv" in node.op and node.op != "ConvTranspose":
        return "depthwise convolution" if _is_depthwise(node, graph) else "convolution"
    return "convolution" if "Conv" in node.op else _KINDS.get(node.op, "other")


def _is_depthwise(node: Node, graph: Graph) -> bool:
    """Whether an output reads fewer numbers than there are channels, or no multiple of them (3 × 3 of 8 channels)."""
    output, came = main_output(node, graph), next((graph.tensors[t] for t in node.inputs if t in graph.tensors), None)
    if output is None or came is None or len(came.shape) < 3 or not output.elements:
        return False
    read, channels = node.flops // (2 * output.elements), int(came.shape[1])
    return 0 < read < channels or read % channels != 0


def draw(profile: Profile, rows: Sequence[CostRow], path: Path) -> None:
    """A PNG: each layer's milliseconds as bars, its output's size as a line. MissingExtraError without matplotlib."""
    with picture(path, size=(min(26.0, max(9.0, 0.17 * len(rows) + 3)), 6.2)) as (figure, [axes]):
        _fill(figure, axes, rows)
        axes.set_title(f"{profile.graph.name}: {ms_text(profile.whole.median)} ms on {profile.where}", fontsize=11)


def _fill(figure: Any, axes: Any, rows: Sequence[CostRow]) -> None:
    places = range(len(rows))
    for kind, colour in COLOURS.items():
        inside = [i for i in places if rows[i].kind == kind]
        if inside:
            axes.bar(inside, [rows[i].ms for i in inside], width=0.8, color=colour, label=kind)
    highest = max([r.ms for r in rows], default=0.0) or 1.0
    axes.set_ylim(0, highest * 1.12)
    axes.set_xlim(-0.8, len(rows) - 0.2)
    axes.set_ylabel("ms in the layer's kernels (bars)")
    step = max(1, -(-len(rows) // 150))
    axes.set_xticks(places[::step], _labels(rows)[::step], rotation=90, fontsize=9 if len(rows) < 40 else 6.5)
    sizes = axes.twinx()
    sizes.plot(
        places, [r.output_bytes / 1e3 for r in rows], color="black", marker=".", markersize=4, linewidth=1,
        label="output size",
    )  # fmt: skip
    sizes.set_ylabel("kB that the layer makes (line)")
    sizes.set_ylim(0, max([r.output_bytes for r in rows], default=0) * 1.12e-3 or 1)
    handles, labels = axes.get_legend_handles_labels()
    more, names = sizes.get_legend_handles_labels()
    figure.legend(handles + more, labels + names, loc="outside lower center", ncols=8, frameon=False, fontsize=9)
    for drawn in (axes, sizes):
        bare(drawn, "top")


def _labels(rows: Sequence[CostRow]) -> list[str]:
    """Layer names; with the operator where one layer has several."""
    several = Counter(r.layer for r in rows)
    return [end_of(r.layer if several[r.layer] == 1 else f"{r.layer} {r.op}", 28) for r in rows]
