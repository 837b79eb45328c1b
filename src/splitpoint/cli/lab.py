"""splitpoint lab: a shaped link, a slowed edge, scenarios on one machine."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from splitpoint.cli.console import out, progress, put_json, table
from splitpoint.cli.help_pages import Verbs
from splitpoint.cli.options.engine import engine_option
from splitpoint.cli.options.output import csv_option, json_option, output_option, result_option, save_json, wrote
from splitpoint.cli.options.server_options import port_option
from splitpoint.errors import VerifyError
from splitpoint.files import make_folder
from splitpoint.lab.faults import KINDS, schedule
from splitpoint.lab.forwarder import Forwarder, be_punctual
from splitpoint.lab.relay import control
from splitpoint.lab.scenario import Scenario, find, load_scenario, names
from splitpoint.lab.slow_device import METHODS, slowed
from splitpoint.link import Link
from splitpoint.link.parse import parse_link
from splitpoint.report.files import write_csv
from splitpoint.report.table import Column, number_columns
from splitpoint.trace import STAGES, by_stage
from splitpoint.units import ms, size

if TYPE_CHECKING:
    from splitpoint.lab import experiment

#: From how many to how many requests apart: in the default number of requests nearly everything goes wrong once.
_FAULTS_APART = (15, 45)


@click.group(cls=Verbs)
def command() -> None:
    """Emulate a network and a slow edge on this machine, without root. Every result says that it is emulated."""


@command.command(
    short_help="A link with a rate, a delay and jitter before a TCP server.",
    examples=(
        ("a server on this machine, as behind 4g", "lab link --to localhost --link 4g"),
        ("a link that changes, at an address for others", "lab link --to SERVER --link lte.csv --host 0.0.0.0 -p 3278"),
    ),
)
@click.option("--to", "target", required=True, metavar="HOST[:PORT]", help="Where the bytes go (port 3277).")
@click.option("--link", "text", required=True, metavar="LINK",
              help="cat1, 3g, 4g, wifi, wifi5, lan; 10mbit/20mbit,40ms; a .link.json; a .csv trace.")  # fmt: skip
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@port_option(0, "Port to listen on; 0: any free one.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the jitter.")
@click.option("--control", "controlled", is_flag=True,
              help="Obey lines on standard input: link LINK, stall S, blackhole S, cut [S [BYTES]], "
                   "corrupt up|down [BYTES [COUNT]], status. Its end is the end.")  # fmt: skip
def link(target: str, text: str, host: str, port: int, seed: int, controlled: bool) -> None:  # fmt: skip
    """Carry bytes to HOST as LINK would, both ways, at an address of its own. Ctrl-C or SIGTERM ends it."""
    shaped = parse_link(text)
    forwarder = Forwarder(
        target, shaped, host=host, port=port, seed=seed, on_event=lambda said: click.echo(said, err=True)
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: forwarder.stop())
    be_punctual()
    if controlled:
        threading.Thread(target=control, args=(forwarder, sys.stdin, click.echo), daemon=True).start()
    else:
        click.echo(f"emulated link at {forwarder.address} to {target}: {shaped}")
    forwarder.run()


@command.command(
    short_help="Run a command on a slower machine.",
    context_settings={"ignore_unknown_options": True},
    examples=(
        ("an edge that computes eight times slower", "lab slow 8 -- splitpoint run --cloud SERVER photos/"),
        ("any program, by a limit of its CPU", "lab slow 4 --method quota -- python3 mine.py"),
    ),
)
@click.argument("factor", type=float)
@click.argument("words", metavar="-- COMMAND...", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option(
    "--threads",
    default=1,
    show_default=True,
    metavar="N",
    help="With a quota: threads of COMMAND that compute at once.",
)
@click.option("--method", type=click.Choice(METHODS), default="auto", show_default=True,
              help="stretched: each run of splitpoint's engine takes longer (auto: the same, for splitpoint's commands "
                   "only); quota: a control group's CPU limit; stop: stopped and continued in turns; limit: the first "
                   "of these two that works. Limits slow Python, too, but nothing of a few milliseconds.")  # fmt: skip
def slow(factor: float, words: tuple[str, ...], threads: int, method: str) -> None:  # fmt: skip
    """Run COMMAND as if this machine computed FACTOR times slower. Ends with COMMAND's exit status.

    What COMMAND's engine computes is slowed, be it short or long; Python, codecs and photos are not. COMMAND finds what
    to say of its measurements in $SPLITPOINT_EMULATED.
    """
    with slowed(factor, threads=threads, method=method) as limited:
        # In a process group of its own a command may not read the terminal: it would be stopped for good.
        terminal = sys.stdin is not None and sys.stdin.isatty()
        closed = limited.method == "stop" and terminal
        # In ours it gets Ctrl-C from the terminal, without us.
        shared = limited.method != "stop" and terminal
        held: list[int] = []
        handlers: dict[int, Any] = {}
        process = None

        def forward(number: int, _: object) -> None:
            if process is None:
                held.append(number)
            elif not (number == signal.SIGINT and shared):
                limited.send(process, number)

        for number in (int(signal.SIGINT), int(signal.SIGTERM), int(signal.SIGHUP)):
            handlers[number] = signal.signal(number, forward)
        try:
            process = limited.start(words, stdin=subprocess.DEVNULL if closed else None)
            click.echo(limited.note, err=True)
            for number in held:
                limited.send(process, number)
            status = process.wait()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    raise click.exceptions.Exit(status if status >= 0 else 128 - status)


@command.command(
    name="list",
    short_help="The scenarios that ship.",
    examples=(
        ("which there are", "lab list"),
        ("for another program", "lab list --json"),
    ),
)
@result_option
@csv_option("Write a row a scenario.")
@json_option
def list_scenarios(output: Path | None, csv_path: Path | None, as_json: bool) -> None:
    """Name the scenarios that `splitpoint lab run` knows, and what each runs."""

    def link_of(scenario: Scenario) -> str:
        shaped = scenario.shaped()
        return str(shaped) if isinstance(shaped, Link) else f"trace {shaped.name}, {shaped.duration:.0f} s"

    columns: list[Column[Scenario]] = [
        Column("scenario", lambda s: s.name, right=False, keep=True),
        Column("model", lambda s: s.model, right=False),
        Column("link", link_of, right=False),
        Column("edge", lambda s: f"{s.device.slowdown:g}x slower", right=False),
        Column("cuts", lambda s: ", ".join(s.at), right=False),
        Column("about", lambda s: s.title, right=False),
    ]
    scenarios = [msgspec.structs.replace(load_scenario(find(name)), name=name) for name in names()]
    rows = [{c.title: c.cell(scenario) for c in columns} for scenario in scenarios]
    _put(rows, lambda: table(columns, scenarios, console=out()), output, csv_path, as_json=as_json)


def _put(
    rows: Sequence[Mapping[str, Any]], show: Callable[[], None], output: Path | None, csv_path: Path | None, *,
    as_json: bool,
) -> None:  # fmt: skip
    """The same rows as JSON or as `show` prints them, and in files where these are asked for."""
    if as_json:
        put_json(rows)
    else:
        show()
    save_json(output, rows)
    if csv_path is not None:
        write_csv(csv_path, rows, list(rows[0]) if rows else [])
        wrote(csv_path)


@command.command(
    short_help="Run a scenario: server, link and edge on this machine.",
    examples=(
        ("a photo network behind 4g", "lab run 4g"),
        ("a scenario of your own, every request kept", "lab run mine.toml -o results"),
    ),
)
@click.argument("name", metavar="SCENARIO")
@output_option("Folder for requests.jsonl, summary.csv, about.json and the scenario.", metavar="DIR", folder=True)
@csv_option("Write a row a cut.")
@json_option
def run(name: str, output: Path | None, csv_path: Path | None, as_json: bool) -> None:
    """Run SCENARIO (a .toml file, or a name of `splitpoint lab list`) and print what each cut took.

    A server process, a relay process and an edge process on this machine; the link and the edge are emulated.
    """
    file = find(name)
    scenario = load_scenario(file)
    new_folders = [p for p in (output, *output.parents) if not p.exists()] if output is not None else []
    if output is not None:
        make_folder(output)
    try:
        _run(scenario, file, output, csv_path, as_json=as_json)
    except BaseException:
        for folder in new_folders:
            with suppress(OSError):  # something is in it: kept
                folder.rmdir()
        raise


def _run(scenario: Scenario, file: Path, output: Path | None, csv_path: Path | None, *, as_json: bool) -> None:
    from splitpoint.lab import experiment

    total = scenario.requests * len(scenario.at or "1")
    with progress() as bar:
        task = bar.add_task(f"running {scenario.name}", total=total)
        results = experiment.run(scenario, file, on_row=lambda _: bar.advance(task))
    columns: list[Column[experiment.CutSummary]] = [
        Column("cut", lambda s: s.cut, right=False, keep=True),
        Column("codec", lambda s: s.codec, right=False),
        Column("answers", lambda s: f"{s.requests - s.failed}/{s.requests}", keep=True),
        Column("bytes up", lambda s: size(s.up_nbytes)),
        Column("total ms", lambda s: ms(s.median_ms), keep=True),
        Column("p10…p90", lambda s: f"{ms(s.p10_ms)}…{ms(s.p90_ms)}"),
        *number_columns(STAGES[1:], lambda s: by_stage(s.spans_ms)),  # inputs are read before: no ``decode``
    ]
    summary = results.summary()

    def show() -> None:
        click.echo(f"{scenario.name}: {scenario.model}, {results.note}")
        table(columns, summary, console=out())

    about = {"scenario": scenario.name, "model": scenario.model, "note": results.note}
    _put([about | _flat(row) for row in summary], show, None, csv_path, as_json=as_json)
    if output is not None:
        results.save(output)
        click.echo(f"wrote {output / 'requests.jsonl'}, summary.csv, about.json and scenario.toml", err=as_json)


def _flat(row: experiment.CutSummary) -> dict[str, object]:
    """The row of a CSV file: spans as columns of their own."""
    flat = asdict(row)
    return flat | {f"{name}_ms": value for name, value in flat.pop("spans_ms").items()}


@command.command(
    short_help="Requests through random faults: none may be lost, none wrong.",
    examples=(
        ("everything that can go wrong", "lab faults"),
        ("one kind of fault, for one model", "lab faults zoo:efficientnet_lite0 --kind kill --count 100"),
    ),
)
@click.argument("model", default="zoo:lenet5")
@click.option("--count", type=click.IntRange(1), default=300, show_default=True, metavar="N", help="Requests.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of what goes wrong, and when.")
@click.option("--at", default="middle", show_default=True, metavar="CUT", help="Where to cut.")
@click.option("--rate", default=40.0, show_default=True, metavar="N", help="Requests a second.")
@click.option("--kind", "kinds", type=click.Choice(list(KINDS)), multiple=True,
              help="What may go wrong (repeat for several; default: everything).")  # fmt: skip
@engine_option
@result_option
@csv_option("Write a row a kind of fault.")
@json_option
def faults(
    model: str, count: int, seed: int, at: str, rate: float, kinds: tuple[str, ...], engine: str, output: Path | None,
    csv_path: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Ask for COUNT answers of MODEL while the server is killed, paused and kept busy and the link is cut, stalled,
    swallowed and corrupted. Every request must be answered once and with what the whole model answers; if not, exit
    status 1.

    A server process, a relay process and the edge on this machine; frames carry checksums.
    """
    from splitpoint.lab import fault_run

    planned = schedule(seed, count, kinds=kinds or tuple(KINDS), gap=_FAULTS_APART)
    with progress() as bar:
        task = bar.add_task("asking", total=count)
        report = fault_run.run(
            model, planned, count=count, at=at, rate=rate, seed=seed, engine_name=engine,
            on_answer=lambda: bar.advance(task),
        )  # fmt: skip
    columns: list[Column[fault_run.Toll]] = [
        Column("fault", lambda t: t.kind or "none yet", right=False, keep=True),
        Column("times", lambda t: str(t.times or ""), keep=True),
        Column("server", lambda t: str(t.by_server)),
        Column("here", lambda t: str(t.here)),
        Column("longest gap ms", lambda t: ms(t.longest_gap_ms), keep=True),
        Column("about", lambda t: KINDS[t.kind][0] if t.kind else "", right=False),
    ]
    tolls = report.tolls()
    rows = [msgspec.to_builtins(toll) for toll in tolls]
    _put(rows, lambda: table(columns, tolls, console=out()), output, csv_path, as_json=as_json)
    click.echo(report.summary, err=as_json)
    if report.complaints:
        raise VerifyError("; ".join(report.complaints))


@command.command(hidden=True)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--cloud", "address", required=True)
def edge(file: Path, address: str) -> None:
    """The edge of `lab run`."""
    from splitpoint.lab.scenario_device import work

    work(load_scenario(file), address, click.echo, _lines_for_life().__next__)


def _lines_for_life() -> Iterator[str]:
    """The lines of standard input. When it ends, so does this process: who started it has gone."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        rest = b""
        while data := os.read(0, 4096):  # not sys.stdin: its lock must be free when Python ends
            *whole, rest = (rest + data).split(b"\n")
            for line in whole:
                lines.put(line.decode())
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=read, daemon=True).start()
    return iter(lines.get, None)
