"""splitpoint predict train: tables of measured kernels → a latency file."""

from __future__ import annotations

from pathlib import Path

import click

from splitpoint import install
from splitpoint.cli.console import out, say, table, waiting
from splitpoint.cli.help_pages import verb
from splitpoint.cli.options.output import csv_option, json_option, output_option, wrote
from splitpoint.files import is_special
from splitpoint.machine import now
from splitpoint.predict.kernels.kernel_table import read_tables
from splitpoint.predict.learn.files import latency_bytes, save_latency
from splitpoint.predict.learn.latency_model import SEED, TWO_PER_MAC, Latency
from splitpoint.report.accuracy_table import rates
from splitpoint.report.files import write_csv
from splitpoint.report.table import fields_of
from splitpoint.text import valid
from splitpoint.units import counted


@verb(
    ("what calibrate-kernels --csv has written", "predict train tables -o edge.latency.json"),
    (
        "the tables that the Neurosurgeon replica published",
        "predict train dataset/edge --seed-flops --name replica -o replica.latency.json",
    ),
    short_help="Learn a machine from tables of measured kernels.",
)
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@output_option("Where to write what was learned (device.latency.json).", required=True)
@csv_option("Write how well each kind was learned.")
@json_option
@click.option("--name", default="", metavar="TEXT", help="What the machine is called (default: the folder's name).")
@click.option("--engine", default="onnxruntime", show_default=True, metavar="NAME", help="What ran the kernels.")
@click.option("-d", "--device", default="cpu", show_default=True, metavar="NAME", help="The engine's device.")
@click.option("--threads", type=click.IntRange(0, 1024), default=0, metavar="N", help="Compute threads (0: not known).")
@click.option("--note", default="", metavar="TEXT", help="Kept in the file: where the tables are from.")
@click.option("--seed-flops", is_flag=True, help="FLOPs columns are counted as in the Neurosurgeon replica's tables.")
@click.option("--seed", type=click.IntRange(0, 1 << 30), default=0, metavar="N", help="Of what is drawn in training.")
def command(
    folder: Path, output: Path, csv_path: Path | None, as_json: bool,
    name: str, engine: str, device: str, threads: int, note: str, seed_flops: bool,
    seed: int,
) -> None:  # fmt: skip
    """Learn what kernels cost from the tables in DIR: conv_lat.csv, dw_conv_lat.csv, linear_lat.csv, …

    splitpoint calibrate-kernels --csv DIR writes such tables, and the Neurosurgeon replica published some. Rows with a
    latency that is no number, zero or negative are left out and named. Needs splitpoint[predict].
    """
    from splitpoint.predict.learn.boost import need_sklearn
    from splitpoint.predict.learn.training import train

    need_sklearn()
    tables, notes = read_tables(folder)
    say(*notes)
    rows = sum(len(t) for t in tables.values())
    with waiting(f"learning from {counted(rows, 'row')}") as show:
        latency = train(
            tables, name=valid(name or folder.resolve().name or "device"), engine=engine, device=device,
            threads=threads, created=now(),
            convention=SEED if seed_flops else TWO_PER_MAC, note=valid(note), seed=seed,
            progress=lambda kind: show(f"learning {kind}"),
        )  # fmt: skip
    save_latency(output, latency)
    if as_json:
        click.echo(latency_bytes(latency), nl=False)
    else:
        _print(latency)
    if csv_path is not None:
        write_csv(csv_path, [dict(zip(_TITLES, cells, strict=True)) for cells in _cells(latency)], _TITLES)
    if not (as_json or is_special(output)):
        click.echo(f"next: {install.command()} predict MODEL --on {output}")
    wrote(output, csv_path)


_TITLES = ("kernels", "rows", "MAPE", "±5%", "±10%", "±20%", "in range")


def _cells(latency: Latency) -> list[tuple[str, ...]]:
    return [(kind, str(model.rows), *rates(model.score)) for kind, model in latency.kinds.items()]


def _print(latency: Latency) -> None:
    """How well rows that were kept apart were predicted, a line a kind."""
    console = out()
    console.print(f"{latency.name}: what was learned, judged by rows kept apart")
    table(fields_of(_TITLES, left=_TITLES[:1], keep=_TITLES), _cells(latency), console=console)
    if few := latency.too_little():
        console.print(few)
