"""splitpoint sweep: the split-latency experiment, at every split point."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from splitpoint.cli.console import bold, line, out, progress, put_json, say, table
from splitpoint.cli.help_pages import verb
from splitpoint.cli.input_files import images_option, read_images, recursive_option
from splitpoint.cli.options.codecs import calibration_option, codec_choice_option, parse_codecs
from splitpoint.cli.options.model_options import Here, cuts_option, device_options
from splitpoint.cli.options.output import json_option, output_option, png_option, wrote
from splitpoint.cli.options.server_options import cloud_option
from splitpoint.errors import UsageError
from splitpoint.files import is_special
from splitpoint.graph import Cut
from splitpoint.machine import EMULATED
from splitpoint.measured_cuts import sweep, sweep_again
from splitpoint.models.model import Model
from splitpoint.report.sweep_table import FASTEST, TABLE, SweepRow, close, draw, in_words, read_rows, write_rows
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.codec_choice import CodecChoice
from splitpoint.security import Security
from splitpoint.segments import select
from splitpoint.tensors import Array
from splitpoint.units import counted, ms

#: So many of the fastest are named below the table, which marks all of them.
_NAMED = 4


@verb(
    ("every cut that one tensor crosses", "sweep mobilenet_v2 --cloud SERVER"),
    (
        "every cut there is, with a picture; the same line goes on after Ctrl-C",
        "sweep yolo --cloud SERVER --cuts all -o all.csv --png all.png",
    ),
)
@click.argument("model")
@cloud_option()
@images_option
@recursive_option
@click.option("--repeat", type=click.IntRange(1, 100_000), default=3, show_default=True, help="Requests an input.")
@cuts_option
@codec_choice_option
@calibration_option
@output_option(
    "Where the rows go (CSV).", "--csv", "csv_path", default=Path("split_latency_results.csv"), show_default=True
)
@png_option("Also draw the result (needs splitpoint[plot]).")
@click.option("--fresh", is_flag=True, help="Measure anew what the CSV already has.")
@json_option
@device_options
def command(
    model: str, cloud: str, security: Security, images: Path | None, recursive: bool, repeat: int, cuts: str,
    codecs: tuple[str, ...], calib: Path | None, csv_path: Path, png_path: Path | None, fresh: bool, as_json: bool,
    here: Here,
) -> None:  # fmt: skip
    """Run MODEL at every split point against a server, and write split_latency_results.csv.

    The CSV begins with split_layer,avg_compute,avg_transfer,avg_recv,avg_rtt in seconds: compute on the edge;
    transfer up, end to end (the server's clock is mapped onto the edge's, clock_error says how well); recv, the
    wait from then to the answer, server time included; and their sum: means, as that format has them. The table and
    the picture show medians (p50_… in the CSV). What cannot be told from the fastest is measured again, in turns.
    Ctrl-C keeps what was measured; the same command goes on where it stopped.
    """
    engine = here.choice.open()
    with here.reached(model, cloud, security, engine, calib) as (edge, _):
        chosen = select(edge.model, cuts)
        inputs = read_images(edge.model, images, recursive=recursive)
        setup = f"{engine.name} on {engine.device}, {engine.threads} threads; {cloud}; {len(inputs)} inputs x {repeat}"
        codec = parse_codecs(codecs)
        if codec != "raw":
            setup += f"; codec {' '.join(codecs)}"
        setup += f"; {note}" if (note := os.environ.get(EMULATED)) else ""
        done = [] if fresh else _done(csv_path, edge.model, setup)
        alike = Alike(chosen)
        if len(alike.cuts) < len(chosen):
            say(f"{len(chosen)} names are {len(alike.cuts)} cuts: each is measured once, for all names that it has")
        rows, fastest = _measure(edge, alike, done, inputs, repeat, setup, codec, csv_path, as_json)
        asked = counted(min(r.n for r in rows), "request")
        title = f"{edge.model.name}, {counted(len(rows), 'split point')}, {asked} or more each"
    if not as_json:
        _print(rows, fastest)
    wrote(csv_path)
    if png_path:
        draw(rows, png_path, title, fastest)
        wrote(png_path)


class Alike:
    """Cuts, each once, and the other names that it is asked for by: folded modules, and those that hold others."""

    def __init__(self, chosen: Sequence[Cut]) -> None:
        named: dict[frozenset[int], list[Cut]] = {}
        for cut in chosen:
            named.setdefault(frozenset(cut.nodes), []).append(cut)
        self.cuts = [first for first, *_ in named.values()]
        self._others = {first.name: tuple(c.name for c in others) for first, *others in named.values()}

    def rows(self, row: SweepRow) -> list[SweepRow]:
        """The row of a cut, by each of its names."""
        return [row, *(replace(row, split_layer=name) for name in self._others.get(row.split_layer, ()))]

    def once(self, rows: Sequence[SweepRow]) -> list[SweepRow]:
        """Rows of an earlier run, of each cut one."""
        first = {name: cut for cut, others in self._others.items() for name in others}
        kept = {row.identity: row for row in rows if row.split_layer not in first}
        for row in rows:
            same = replace(row, split_layer=first.get(row.split_layer, row.split_layer))
            kept.setdefault(same.identity, same)
        return list(kept.values())


def _done(path: Path, model: Model, setup: str) -> list[SweepRow]:
    """Rows of an earlier run, but those of a version that kept no medians. UsageError if it measured something else:
    rows of two setups do not compare."""
    if is_special(path) or not path.exists():
        return []
    rows = read_rows(path)
    way_out = "name another file with --csv, or measure anew with --fresh"
    for row in rows:
        if row.fingerprint != model.fingerprint:
            raise UsageError(f"{path} holds a sweep of {row.model} {row.fingerprint[:12]}: {way_out}")
        if row.setup != setup:
            raise UsageError(f"{path} was measured otherwise ({row.setup}; now {setup}): {way_out}")
    kept = [row for row in rows if row.p50_high]
    if len(kept) < len(rows):
        say(f"{len(rows) - len(kept)} rows of {path} have no medians (an earlier version): they are measured anew")
    return kept


def _measure(
    edge: Edge, alike: Alike, done: list[SweepRow], inputs: list[dict[str, Array]], repeat: int, setup: str,
    codec: CodecChoice, path: Path, as_lines: bool,
) -> tuple[list[SweepRow], list[SweepRow]]:  # fmt: skip
    """The rows of `chosen`, those that are `done` already as they are, but for what may be the fastest, which is
    measured again; and those that cannot be told from the fastest. The file keeps every other row it has."""
    known, chosen = {r.identity: r for r in alike.once(done)}, alike.cuts

    def write() -> None:
        write_rows(path, [row for key in sorted(known) for row in alike.rows(known[key])])

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
                    write()
                if as_lines:
                    for told in alike.rows(row):
                        put_json(told.flat())
                bar.update(task, advance=1, description=f"sweeping {row.split_layer}"[:40])
            wide = close([known[key] for key in wanted])
            judged = [row for row in known.values() if row.verdict]
            # An earlier run's verdict stands where nothing of now contradicts it, and all that it is of is asked for.
            if all(row.verdict for row in wide) and {row.identity for row in judged} <= set(wanted):
                wide, more = judged, []
            else:
                known = {key: replace(row, verdict="") for key, row in known.items()}
                more = wide if len(wide) > 1 else []
            while more:
                bar.update(task, description=f"measuring {len(wide)} again, in turns")
                again = [chosen[wanted.index(row.identity)] for row in wide]
                wide = sweep_again(edge, again, inputs, repeat=repeat, codec=codec, setup=setup)
                known |= {row.identity: row for row in wide}
                if not once:
                    write()
                if as_lines:
                    for told in (told for row in wide for told in alike.rows(row)):
                        put_json(told.flat())
                # One that was measured once may now have the least median: it takes its turns as well.
                more = [row for row in close([known[key] for key in wanted]) if row not in wide]
                wide += more
        finally:
            if once and known:
                write()
    fastest = [row for row in wide if row.verdict == FASTEST] or wide
    return [known[key] for key in wanted], sorted(fastest, key=lambda row: row.p50_rtt)


def _print(rows: Sequence[SweepRow], fastest: Sequence[SweepRow]) -> None:
    console = out()
    table(TABLE, rows, console=console)
    console.print(
        f"milliseconds, medians; up is known to ± {max(r.clock_error for r in rows) * 1e3:.2f} ms "
        "(clock offset between the machines); recv is from then to the answer, server in it"
    )
    apart = f" (→), not told apart by {counted(fastest[0].n, 'request')} each" if len(fastest) > 1 else ""
    console.print(line(f"fastest{apart}: ", bold(in_words(fastest, _NAMED))))
    for row in rows:
        if row.place.startswith("all on") and row not in fastest:
            console.print(f"         {row.place}: {ms(row.p50_rtt * 1e3)} ms")
