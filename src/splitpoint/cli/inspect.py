"""splitpoint inspect: a model's layers, and what would cross behind each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from splitpoint.cli.console import bold, line, out, put_json, table
from splitpoint.cli.help_pages import verb
from splitpoint.cli.options.model_options import Opening, model_options
from splitpoint.cli.options.output import OUTPUT, csv_option, json_option, result_option, save_json, wrote, xlsx_option
from splitpoint.files import write_atomic
from splitpoint.models.model import Model
from splitpoint.report.files import write_csv, write_xlsx
from splitpoint.report.layer_table import COLUMNS, LayerRow, layer_names, layer_rows, table_of
from splitpoint.segments import random_note
from splitpoint.units import count, counted, size


@verb(
    ("what would cross the link behind each layer", "inspect zoo:efficientnet_lite0"),
    (
        "a model of your own: all columns, and every name that --at takes",
        "inspect yolo.onnx --shape images=1,3,640,640 --csv layers.csv --names layers.txt",
    ),
)
@click.argument("model")
@click.option(
    "--cuts", type=click.Choice(["all", "chain"]), default="all", help="Every node, or single-tensor cuts only."
)
@csv_option("Write all columns as CSV.")
@xlsx_option("Write a spreadsheet: a sheet called as the model, added to a workbook that is there.")
@click.option("--names", type=OUTPUT, metavar="FILE", help="Write every module's name, one a line.")
@result_option
@json_option
@model_options
def command(
    model: str, cuts: str, csv_path: Path | None, xlsx_path: Path | None, names: Path | None, output: Path | None,
    as_json: bool, opening: Opening,
) -> None:  # fmt: skip
    """List MODEL's cut points, one a row.

    Each row is a node in topological order: its layer, what it makes, and everything that would cross the link if
    the edge ran all up to and including it. A number under "cut" marks a cut that one tensor (or the fewest there
    are) crosses; --at takes that number, a layer's path, a node or a tensor. Where a name means several of these, it
    is written layer:NAME, node:NAME, tensor:NAME or cut:NUMBER.
    """
    loaded = opening.load(model)
    rows = layer_rows(loaded, loaded.graph.chain() if cuts == "chain" else None)
    if csv_path:
        write_csv(csv_path, [r.flat() for r in rows], COLUMNS)
    if xlsx_path:
        write_xlsx(xlsx_path, [r.flat() for r in rows], COLUMNS, loaded.name)
    if names:
        write_atomic(names, "".join(f"{n}\n" for n in layer_names(loaded)).encode())
    data = _summary(loaded) | {"rows": rows}
    if as_json:
        put_json(data)
    elif not (csv_path or xlsx_path or names or output):
        _print(loaded, rows)
    save_json(output, data)
    wrote(csv_path, xlsx_path, names)


def _summary(model: Model) -> dict[str, object]:
    return {
        "model": model.name,
        "fingerprint": model.fingerprint,
        "source": model.source,
        "inputs": [str(t) for t in model.inputs],
        "outputs": [str(t) for t in model.outputs],
        "assumed": dict(model.graph.assumed),
        "weight_bytes": model.nbytes,
    }


def _print(model: Model, rows: Sequence[LayerRow]) -> None:
    console = out()
    table(table_of(model.graph), rows, console=console)
    inner = sum(len(c.crossing) == 1 for c in model.graph.chain()[1:-1])
    totals = f"{count(rows[-1].flops)} FLOPs, {count(rows[-1].params)} parameters" if rows else ""
    console.print(line(bold(model.name), f" {model.fingerprint[:12]}  {totals}, {size(model.nbytes)} of weights"))
    if model.source:
        console.print(model.source)
    console.print("in   " + (", ".join(map(str, model.inputs)) or "nothing"))
    console.print("out  " + ", ".join(map(str, model.outputs)))
    if model.graph.assumed:
        console.print("sizes are for " + ", ".join(f"{k} {v}" for k, v in model.graph.assumed.items()))
    if note := random_note(model):
        console.print(note.removeprefix(": "))
    console.print(f"{counted(len(rows), 'cut point')}, {inner} of them single-tensor cuts inside the model")
