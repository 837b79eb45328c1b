"""splitpoint sweep: the split-latency experiment, at every split point."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from splitpoint.cli.console import bold, line, out, progress, put_json, say, table
from splitpoint.cli.input_files import images_option, read_images, recursive_option
from splitpoint.cli.options.codecs import codec_choice_option, parse_codecs
from splitpoint.cli.options.model_options import Here, cuts_option, device_options
from splitpoint.cli.options.output import csv_option, json_option, png_option, wrote
from splitpoint.cli.options.server_options import cloud_option
from splitpoint.errors import UsageError
from splitpoint.files import is_special
from splitpoint.graph import Cut
from splitpoint.measured_cuts import sweep
from splitpoint.models.model import Model
from splitpoint.report.sweep_table import TABLE, SweepRow, draw, read_rows, write_rows
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.codec_choice import CodecChoice
from splitpoint.security import Security
from splitpoint.segments import select
from splitpoint.tensors import Array
from splitpoint.units import ms


@click.command()
@click.argument("model")
@cloud_option()
@images_option
@recursive_option
@click.option("--repeat", type=click.IntRange(1, 100_000), default=3, show_default=True, help="Requests an input.")
@cuts_option
@codec_choice_option
@csv_option("Where the rows go.", default=Path("split_latency_results.csv"), show_default=True)
@png_option("Also draw the result (needs splitpoint[plot]).")
@click.option("--fresh", is_flag=True, help="Measure anew what the CSV already has.")
@json_option
@device_options
def command(
    model: str, cloud: str, security: Security, images: Path | None, recursive: bool, repeat: int, cuts: str,
    codecs: tuple[str, ...], csv_path: Path, png_path: Path | None, fresh: bool, as_json: bool, here: Here,
) -> None:  # fmt: skip
    """Run MODEL at every split point against a server, and write split_latency_results.csv.

    The CSV begins with split_layer,avg_compute,avg_transfer,avg_recv,avg_rtt in seconds: compute on the device;
    transfer up, end to end (the server's clock is mapped onto the device's, clock_error says how well); recv, the
    wait from then to the answer, server time included; and their sum. Ctrl-C keeps what was measured; the same
    command goes on where it stopped.
    """
    engine = here.choice.open()
    with here.reached(model, cloud, security, engine) as edge:
        chosen = select(edge.model, cuts)
        inputs = read_images(edge.model, images, recursive=recursive)
        setup = f"{engine.name} on {engine.device}, {engine.threads} threads; {cloud}; {len(inputs)} inputs x {repeat}"
        codec = parse_codecs(codecs)
        if codec != "raw":
            setup += f"; codec {' '.join(codecs)}"
        done = [] if fresh else _done(csv_path, edge.model, setup)
        rows = _measure(edge, chosen, done, inputs, repeat, setup, codec, csv_path, as_json)
        title = f"{edge.model.name}, {len(rows)} split points, {len(inputs) * repeat} requests each"
    if not as_json:
        _print(rows)
    wrote(csv_path)
    if png_path:
        draw(rows, png_path, title)
        wrote(png_path)


def _done(path: Path, model: Model, setup: str) -> list[SweepRow]:
    """Rows of an earlier run. UsageError if it measured something else: rows of two setups do not compare."""
    if is_special(path) or not path.exists():
        return []
    rows = read_rows(path)
    way_out = "name another file with --csv, or measure anew with --fresh"
    for row in rows:
        if row.fingerprint != model.fingerprint:
            raise UsageError(f"{path} holds a sweep of {row.model} {row.fingerprint[:12]}: {way_out}")
        if row.setup != setup:
            raise UsageError(f"{path} was measured otherwise ({row.setup}; now {setup}): {way_out}")
    return rows


def _measure(
    edge: Edge, chosen: Sequence[Cut], done: list[SweepRow], inputs: list[dict[str, Array]], repeat: int, setup: str,
    codec: CodecChoice, path: Path, as_lines: bool,
) -> list[SweepRow]:  # fmt: skip
    """The rows of `chosen`, those that are `done` already as they are; the file keeps every other row it has."""
    known = {r.identity: r for r in done}
    wanted = [(len(c.nodes), c.name, " ".join(t.name for t in c.crossing)) for c in chosen]
    left = [c for c, key in zip(chosen, wanted, strict=True) if key not in known]
    if len(left) < len(chosen):
        say(f"{path} has {len(chosen) - len(left)} of {len(chosen)} split points already")
    once = is_special(path)  # what is written there cannot be written anew
    with progress() as bar:
        task = bar.add_task("sweeping", total=len(chosen), completed=len(chosen) - len(left))
        try:
            for row in sweep(edge, left, inputs, repeat=repeat, codec=codec, setup=setup):
                known[row.identity] = row
                if not once:  # after every cut, in graph order: Ctrl-C or a lost server costs one cut at most
                    write_rows(path, [known[key] for key in sorted(known)])
                if as_lines:
                    put_json(row.flat())
                bar.update(task, advance=1, description=f"sweeping {row.split_layer}"[:40])
        finally:
            if once and known:
                write_rows(path, [known[key] for key in sorted(known)])
    return [known[key] for key in wanted]


def _print(rows: Sequence[SweepRow]) -> None:
    console = out()
    table(TABLE, rows, console=console)
    best = min(rows, key=lambda r: r.p50_rtt)
    console.print(
        f"milliseconds; up is known to ± {max(r.clock_error for r in rows) * 1e3:.2f} ms "
        "(clock offset between the machines)"
    )
    fastest = f"{ms(best.p50_rtt * 1e3)} ms (median of {best.n})"
    console.print(line("fastest: split after ", bold(best.split_layer), f", {fastest}"))
    for name, meaning in (("input", "all on the server"), ("output", "all on the device")):
        row = next((r for r in rows if r.split_layer in (name, f"cut:{name}")), best)
        if row is not best:
            console.print(f"         {meaning}: {ms(row.p50_rtt * 1e3)} ms")
