"""splitpoint profile: what a model costs here, or on a server."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

import click

from splitpoint import install
from splitpoint.cli.console import bold, countdown, line, out, say, table, waiting
from splitpoint.cli.help_pages import verb
from splitpoint.cli.options import given
from splitpoint.cli.options.model_options import Here, device_options
from splitpoint.cli.options.output import csv_option, json_option, output_option, png_option, wrote, xlsx_option
from splitpoint.cli.options.quantities import WATTS, budget_option
from splitpoint.cli.options.server_options import cloud_option
from splitpoint.errors import UsageError
from splitpoint.files import is_special
from splitpoint.machine import EMULATED
from splitpoint.profile import measure
from splitpoint.profile.files import profile_bytes, save_profile
from splitpoint.profile.kernel_times import is_estimated
from splitpoint.profile.power import find_meter
from splitpoint.profile.profiles import Profile, Watts
from splitpoint.report.files import write_csv, write_xlsx
from splitpoint.report.layer_study import COLUMNS, TABLE, cost_rows, draw
from splitpoint.security import Security
from splitpoint.text import valid
from splitpoint.units import counted, fine_ms

#: Layers in the summary.
_SLOWEST = 8


@verb(
    ("this machine: what plan calls the edge", "profile yolo.onnx -o edge.profile.json"),
    ("a server, which measures itself", "profile yolo --cloud SERVER --budget 30s -o cloud.profile.json"),
)
@click.argument("model", required=False)
@cloud_option(required=False)
@budget_option("60s", "How long it may take: 30s, 5m.")
@output_option("Write the profile (edge.profile.json): splitpoint plan reads it.")
@png_option("Draw latency and output size of every layer (needs splitpoint[plot]).")
@csv_option("Write a row a layer as CSV.")
@xlsx_option(
    "Write a row a layer as a spreadsheet (needs splitpoint[xlsx]): a sheet called as the model, added to a workbook "
    "that is there."
)
@click.option("--edge-watts", type=WATTS, metavar="COMPUTE,TX,IDLE",
              help="Watts of the edge computing, sending and waiting; measured if the system tells.")  # fmt: skip
@click.option("--note", default="", metavar="TEXT", help="Kept in the profile: what is special about this machine.")
@json_option
@device_options
def command(
    model: str | None, cloud: str | None, security: Security, budget_s: float, output: Path | None,
    png_path: Path | None, csv_path: Path | None, xlsx_path: Path | None, edge_watts: Watts | None, note: str,
    as_json: bool, here: Here,
) -> None:  # fmt: skip
    """Measure what every cut of MODEL costs on this machine, with the engine and threads that will run it.

    With --cloud HOST the server measures itself and sends the result; MODEL is then one that it has, and may
    be left out if there is one. Heads and tails of cuts are compiled and run one after the other, from coarse to
    fine, until the time budget ends; the cuts that were not reached are modelled.
    """
    if cloud is None:
        if model is None:
            raise UsageError("say which MODEL to measure, or which server measures itself (--cloud HOST)")
        note = valid(note or os.environ.get(EMULATED, ""))  # `splitpoint lab slow` says what it emulates
        profile = _measure_here(model, budget_s, edge_watts, note, here)
    else:
        if note or edge_watts:
            raise UsageError("--note and --edge-watts describe this machine: with --cloud the server measures itself")
        if any(map(given, ("engine", "device", "threads"))):
            raise UsageError(
                "--engine, --device and --threads are for this machine: give them to splitpoint serve on the server"
            )
        profile = _ask_server(model, cloud, security, budget_s, here)
    rows = cost_rows(profile) if png_path or csv_path or xlsx_path else []
    if output:
        save_profile(output, profile)
    if png_path:
        draw(profile, rows, png_path)
    if csv_path:
        write_csv(csv_path, [asdict(r) for r in rows], COLUMNS)
    if xlsx_path:
        write_xlsx(xlsx_path, [asdict(r) for r in rows], COLUMNS, profile.graph.name)
    if as_json:
        click.echo(profile_bytes(profile), nl=False)
    else:
        _print(profile)
        _say_next(profile, output, cloud)
    wrote(output, png_path, csv_path, xlsx_path)


def _measure_here(name: str, seconds: float, watts: Watts | None, note: str, here: Here) -> Profile:
    engine = here.choice.open()
    model = here.opening.load(name)
    with countdown() as bar:
        task = bar.add_task(f"measuring {model.name}", total=seconds, left="")

        def show(progress: measure.Progress) -> None:
            end = progress.elapsed_s + progress.left_s
            what = f"measuring {model.name}: {progress.what}"
            left = f"{progress.left_s:.0f} s left"
            bar.update(task, completed=progress.elapsed_s, total=end, description=what[:60], left=left)

        return measure.profile_model(
            model, engine, budget_s=seconds, on_progress=show, note=note, watts=watts,
            meter=None if watts else find_meter(),
        )  # fmt: skip


def _ask_server(name: str | None, cloud: str, security: Security, seconds: float, here: Here) -> Profile:
    with (
        here.edge(here.opening.here(name) or name, cloud, security, on_event=say) as edge,
        waiting(f"{cloud} measures {edge.model.name} on itself, for up to {seconds:g} s"),
    ):
        return edge.profile_server(seconds)


def _print(profile: Profile) -> None:
    console, graph, whole = out(), profile.graph, profile.whole
    console.print(line(bold(graph.name), f" {profile.fingerprint[:12]}"))
    console.print(profile.where)
    spread = (whole.p90 - whole.p10) / 2
    often = f"(median of {whole.count} runs, {fine_ms(whole.p10)}…{fine_ms(whole.p90)} for eight of ten)"
    console.print(line("whole model ", bold(f"{fine_ms(whole.median)} ms"), f" ± {fine_ms(spread)} {often}"))
    slowest = sorted(cost_rows(profile), key=lambda r: r.ms, reverse=True)[:_SLOWEST]
    guessed = len(graph.placed) > 1 and is_estimated(graph, profile.nodes)
    by = "FLOPs and bytes: the engine's own kernel times are not known" if guessed else "the engine's own kernel times"
    console.print(f"\nslowest of {counted(len(graph.order), 'layer')}, by {by}")
    table(TABLE, slowest, console=console)
    chain = len(graph.chain())
    others = len(profile.segments) - profile.measured
    more = f", and {others} between them" if others else ""
    console.print(f"{profile.measured} of {chain} single-tensor cuts were measured{more}: {_spread(profile)}")
    if profile.codecs:
        took = {name: c.encode_ms_per_mb + c.encode_fixed_ms for name, c in profile.codecs.items() if name != "raw"}
        console.print(f"ms to encode 1 MB: {', '.join(f'{name} {fine_ms(each)}' for name, each in took.items())}")
    if profile.watts:
        w = profile.watts
        console.print(f"{w.compute:.1f} W computing, {w.tx:.1f} W sending, {w.idle:.1f} W idle ({w.source})")


def _spread(profile: Profile) -> str:
    """How far eight of ten runs lie apart, over all measured halves."""
    halves = [h for s in profile.segments for h in (s.head, s.tail) if h is not None and h.median > 0]
    spreads = sorted((h.p90 - h.p10) / 2 / h.median for h in halves)
    if not spreads:
        return "nothing to say of their spread"
    middle, worst = spreads[len(spreads) // 2], spreads[-1]
    advice = "; other programs may be running: measure again when it is quiet" if middle > 0.1 else ""
    return f"runs spread by ± {middle:.0%} (worst cut ± {worst:.0%}){advice}"


def _doubt(profile: Profile) -> str:
    """How far off the modelled halves of single-tensor cuts may be."""
    chain = [k for k, cut in enumerate(profile.graph.prefixes()) if cut.index is not None]
    halves = [half for k in chain for half in (profile.head(k), profile.tail(k)) if half.median and not half.count]
    spreads = sorted(max(h.p90 - h.median, h.median - h.p10) / h.median for h in halves)
    return f"four of five within ± {spreads[len(spreads) // 2]:.0%} in the middle" if spreads else "none of any length"


def _say_next(profile: Profile, output: Path | None, cloud: str | None) -> None:
    if not profile.complete:
        click.echo(
            "the time budget ended before every cut was measured; the others are modelled, "
            f"{_doubt(profile)} (a larger --budget helps)"
        )
    if output is None:
        click.echo(f"keep it with -o {'cloud' if cloud else 'edge'}.profile.json")
    elif not is_special(output):
        edge, there = ("edge.profile.json", output) if cloud else (output, "HOST")
        click.echo(f"next: {install.command()} plan MODEL --edge {edge} --cloud {there} --link wifi")
