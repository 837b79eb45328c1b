"""Layers as rows: what each makes, and what would cross behind it."""

from __future__ import annotations

from splitpoint.models import load
from splitpoint.report.layer_table import COLUMNS, layer_names, layer_rows, table_of, wire_bytes


def test_a_row_a_prefix_and_each_names_its_cut() -> None:
    model = load("zoo:lenet5")
    rows = layer_rows(model)
    assert len(rows) == len(model.graph.prefixes())
    for row, cut in zip(rows, model.graph.prefixes(), strict=True):
        assert model.graph.cut(row.at).nodes == cut.nodes
        assert row.crossing_bytes == cut.nbytes
        assert row.crossing_wire_bytes >= row.crossing_bytes
    assert [r.flops for r in rows] == sorted(r.flops for r in rows)
    assert rows[-1].params == sum(n.params for n in model.graph.nodes)
    assert rows[-1].crossing == ()


def test_cells_and_flat_rows_say_the_same() -> None:
    model = load("zoo:lenet5")
    row = next(r for r in layer_rows(model) if r.layer == "conv2")
    cells = {column.title: column.cell(row) for column in table_of(model.graph)}
    assert cells["output"] == "1×16×10×10"
    assert cells["memory"] == "6.4 kB"
    assert set(row.flat()) == set(COLUMNS)
    assert row.flat()["shape"] == "1x16x10x10"
    assert row.wire_bytes == wire_bytes([model.graph.tensors[model.graph.cut("conv2").crossing[0].name]])


def test_every_layer_name_selects_a_cut() -> None:
    model = load("zoo:lenet5")
    names = layer_names(model)
    assert len(set(names)) == len(names)
    assert all(model.graph.cut(name).nodes for name in names)
