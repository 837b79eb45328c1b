"""splitpoint profile: what a model costs here, or on a server."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import click
from click.core import ParameterSource

from splitpoint import install
from splitpoint.cli.console import Column, bold, countdown, line, out, table, waiting
from splitpoint.cli.options import (
    Opening,
    cache_option,
    cloud_option,
    engine_options,
    json_option,
    model_options,
)
from splitpoint.cli.outputs import OUTPUT
from splitpoint.cli.quantities import parse_budget, parse_watts
from splitpoint.cli.run import is_local, notice
from splitpoint.engines import open_engine
from splitpoint.errors import MissingExtraError, UsageError
from splitpoint.files import is_special
from splitpoint.machine import EMULATED
from splitpoint.profile import measure
from splitpoint.profile.files import profile_bytes, save_profile
from splitpoint.profile.power import find_meter
from splitpoint.profile.profiles import Profile, Watts
from splitpoint.report.files import check_writable
from splitpoint.report.layer_study import cost_rows, draw, write_rows, write_sheet
from splitpoint.runtime.client.edge import Edge
from splitpoint.security import Security
from splitpoint.text import valid
from splitpoint.units import counted, size
from splitpoint.units import ms as usual_ms

#: Layers in the summary.
_SLOWEST = 8


@click.command(short_help="Measure what a model costs on this machine, or on a server.")
@click.argument("model", required=False)
@cloud_option(required=False)
@click.option("--budget", default="60s", show_default=True, metavar="TIME", help="How long it may take: 30s, 5m.")
@click.option(
    "-o",
    "--output",
    type=OUTPUT,
    metavar="FILE",
    help="Write the profile (edge.profile.json): splitpoint plan reads it.",
)
@click.option(
    "--png",
    "png_path",
    type=OUTPUT,
    metavar="FILE",
    help="Draw latency and output size of every layer (needs splitpoint[plot]).",
)
@click.option(
    "--csv",
    "csv_path",
    type=OUTPUT,
    metavar="FILE",
    help="Write a row a layer as CSV.",
)
@click.option(
    "--xlsx",
    "xlsx_path",
    type=OUTPUT,
    metavar="FILE",
    help="Write a row a layer as a spreadsheet (needs splitpoint[xlsx]).",
)
@click.option(
    "--edge-watts",
    metavar="COMPUTE,TX,IDLE",
    help="Watts of the device computing, sending and waiting; measured if the system tells.",
)
@click.option("--note", default="", metavar="TEXT", help="Kept in the profile: what is special about this machine.")
@json_option
@cache_option
@engine_options
@model_options
def command(
    model: str | None, cloud: str | None, security: Security, budget: str, output: Path | None, png_path: Path | None,
    csv_path: Path | None, xlsx_path: Path | None, edge_watts: str | None, note: str, as_json: bool,
    cache: Path | None, device: str, threads: int, opening: Opening,
) -> None:  # fmt: skip
    """Measure what every cut of MODEL costs on this machine, with the engine and threads that will run it.

    With --cloud HOST the server measures itself and sends the result; MODEL is then one that it has, and may
    be left out if there is one. Heads and tails of cuts are compiled and run one after the other, from coarse to
    fine, until the time budget ends; the cuts that were not reached are modelled.
    """
    seconds = parse_budget(budget)
    watts = parse_watts(edge_watts) if edge_watts else None
    for path in (output, png_path, csv_path, xlsx_path):
        if path:
            check_writable(path)
    _need_extras(png_path, xlsx_path)
    if cloud is None:
        if model is None:
            raise UsageError("say which MODEL to measure, or which server measures itself (--cloud HOST)")
        note = valid(note or os.environ.get(EMULATED, ""))  # `splitpoint lab slow` says what it emulates
        made = _measure_here(model, seconds, watts, note, device, threads, opening)
    else:
        if note or watts:
            raise UsageError("--note and --edge-watts describe this machine: with --cloud the server measures itself")
        source = click.get_current_context().get_parameter_source
        if any(source(name) not in (None, ParameterSource.DEFAULT) for name in ("threads", "device")):
            raise UsageError("--threads and --device are for this machine: give them to splitpoint serve on the server")
        made = _ask_server(model, cloud, security, seconds, cache, opening)
    written = _write(made, output, png_path, csv_path, xlsx_path)
    if as_json:
        click.echo(profile_bytes(made), nl=False)
    else:
        _print(made)
        _say_next(made, output, cloud)
    for path in written:
        click.echo(f"wrote {path}", err=True)


def _need_extras(png_path: Path | None, xlsx_path: Path | None) -> None:
    """Ask for them before a minute of measuring, not after it."""
    from importlib.util import find_spec

    if png_path and find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "plot", "draw pictures")
    if xlsx_path and find_spec("openpyxl") is None:
        raise MissingExtraError("openpyxl", "xlsx", "write spreadsheets")


def _measure_here(
    name: str, seconds: float, watts: Watts | None, note: str, device: str, threads: int, opening: Opening,
) -> Profile:  # fmt: skip
    engine = open_engine(device=device, threads=threads)
    model = opening.load(name)
    with countdown() as bar:
        task = bar.add_task(f"measuring {model.name}", total=seconds, left="")

        def show(progress: measure.Progress) -> None:
            end = progress.elapsed_s + progress.left_s
            what = f"measuring {model.name}: {progress.what}"
            bar.update(
                task,
                completed=progress.elapsed_s,
                total=end,
                description=what[:60],
                left=f"{progress.left_s:.0f} s left",
            )

        return measure.profile_model(
            model, engine, budget_s=seconds, on_progress=show, note=note, watts=watts,
            meter=None if watts else find_meter(),
        )  # fmt: skip


def _ask_server(
    name: str | None, cloud: str, security: Security, seconds: float, cache: Path | None, opening: Opening,
) -> Profile:  # fmt: skip
    here = opening.load(name) if name and is_local(name) else None
    if here is None:
        opening.refuse_local()
    with (
        Edge(
            cloud, here or name, at="cut:input", cache=cache, security=security,
            on_event=notice,
        ) as edge,
        waiting(f"{cloud} measures {edge.model.name} on itself, for up to {seconds:g} s"),
    ):  # fmt: skip
        return edge.profile_server(seconds)


def _write(profile: Profile, output: Path | None, png: Path | None, csv: Path | None, xlsx: Path | None) -> list[Path]:
    rows = cost_rows(profile) if png or csv or xlsx else []
    writers: list[tuple[Path | None, Callable[[Path], None]]] = [
        (output, lambda path: save_profile(path, profile)),
        (png, lambda path: draw(profile, rows, path)),
        (csv, lambda path: write_rows(path, rows)),
        (xlsx, lambda path: write_sheet(path, rows, profile.graph.name)),
    ]
    for path, write in writers:
        if path:
            write(path)
    return [path for path, _ in writers if path]


_COLUMNS = (
    Column("layer", right=False, keep=True), Column("op", right=False), Column("ms", keep=True),
    Column("share", keep=True), Column("output", keep=True), Column("crosses behind it"),
)  # fmt: skip


def _print(profile: Profile) -> None:
    console, graph, whole = out(), profile.graph, profile.whole
    console.print(line(bold(graph.name), f" {profile.fingerprint[:12]}"))
    console.print(profile.where)
    spread = (whole.p90 - whole.p10) / 2
    often = f"(median of {whole.count} runs, {ms(whole.p10)}…{ms(whole.p90)} for eight of ten)"
    console.print(line("whole model ", bold(f"{ms(whole.median)} ms"), f" ± {ms(spread)} {often}"))
    rows = sorted(cost_rows(profile), key=lambda r: r.ms, reverse=True)[:_SLOWEST]
    console.print(f"\nslowest of {counted(len(graph.order), 'layer')}, by the engine's own kernel times")
    cells = [
        (r.layer, r.op, ms(r.ms), f"{r.share:.0%}", size(r.output_bytes), size(r.crossing_bytes) if r.cut else "")
        for r in rows
    ]
    table(_COLUMNS, cells, console=console)
    chain = len(graph.chain())
    others = len(profile.segments) - profile.measured
    more = f", and {others} between them" if others else ""
    console.print(f"{profile.measured} of {chain} single-tensor cuts were measured{more}: {_spread(profile)}")
    if profile.codecs:
        costs = ", ".join(
            f"{name} {ms(c.encode_ms_per_mb + c.encode_fixed_ms)}"
            for name, c in profile.codecs.items()
            if name != "raw"
        )
        console.print(f"ms to encode 1 MB: {costs}")
    if profile.watts:
        w = profile.watts
        console.print(f"{w.compute:.1f} W computing, {w.tx:.1f} W sending, {w.idle:.1f} W idle ({w.source})")


def ms(milliseconds: float) -> str:
    """Milliseconds with three digits, of tiny layers too."""
    return usual_ms(milliseconds) if milliseconds >= 0.995 else f"{milliseconds:.3f}"


def _spread(profile: Profile) -> str:
    """How far eight of ten runs lie apart, over all measured halves."""
    halves = [h for s in profile.segments for h in (s.head, s.tail) if h is not None and h.median > 0]
    spreads = sorted((h.p90 - h.p10) / 2 / h.median for h in halves)
    if not spreads:
        return "nothing to say of their spread"
    middle, worst = spreads[len(spreads) // 2], spreads[-1]
    advice = "; other programs may be running: measure again when it is quiet" if middle > 0.1 else ""
    return f"runs spread by ± {middle:.0%} (worst cut ± {worst:.0%}){advice}"


def _say_next(profile: Profile, output: Path | None, cloud: str | None) -> None:
    if not profile.complete:
        click.echo(
            "the time budget ended before every cut was measured; the others are modelled (a larger --budget helps)"
        )
    if output is not None and is_special(output):
        return
    if output is None:
        click.echo(f"keep it with -o {'cloud' if cloud else 'edge'}.profile.json")
    elif cloud:
        click.echo(f"next: {install.command()} plan MODEL --edge edge.profile.json --cloud {output} --link wifi")
    else:
        click.echo(f"next: {install.command()} plan MODEL --edge {output} --cloud HOST --link wifi")
