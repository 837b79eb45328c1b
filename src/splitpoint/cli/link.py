"""splitpoint link: measure the network to a server, or say what a link means."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from math import inf
from pathlib import Path
from time import perf_counter, sleep

import click
import msgspec

from splitpoint.cli.console import out, put_json, say, table
from splitpoint.cli.help_pages import verb
from splitpoint.cli.options import given
from splitpoint.cli.options.output import csv_option, json_option, output_option, wrote
from splitpoint.cli.options.quantities import SECONDS, budget_option
from splitpoint.cli.options.server_options import cloud_option
from splitpoint.errors import ServerError, UsageError
from splitpoint.files import is_special
from splitpoint.link import Link
from splitpoint.link.files import save_link
from splitpoint.link.link_trace import LinkTrace
from splitpoint.link.parse import parse_link
from splitpoint.link.presets import PRESETS, nearest_preset
from splitpoint.report.files import write_csv
from splitpoint.report.table import Column
from splitpoint.runtime.client.channel import Channel
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.events import software
from splitpoint.runtime.probe.link_probe import check_budget, measure_link
from splitpoint.security import Security
from splitpoint.transports import connect
from splitpoint.units import counted, mbps, ms, size

#: What a link is judged by: a photo as MobileNet and its kin take it, 224 x 224 x 3 bytes.
_PHOTO = 224 * 224 * 3
#: More than networks between two machines usually carry: what was measured is rather the two ends' own speed.
_FAST_MBPS = 2000.0


@verb(
    ("measure, and keep it for plan --link", "link --cloud SERVER -o wifi.link.json"),
    ("what such a link means", "link --link 10mbit/20mbit,40ms"),
)
@click.argument("model", required=False)
@cloud_option(required=False)
@click.option(
    "--link", "spec", metavar="SPEC",
    help="Do not measure: a preset, UP/DOWN,ROUNDTRIP (10mbit/20mbit,40ms), a .link.json or a trace .csv.",
)  # fmt: skip
@budget_option("3s", "How long measuring may take; with --watch, how long to watch (default: until Ctrl-C).")
@click.option("--watch", "every_s", type=SECONDS, metavar="TIME",
              help="Measure again this often, such as 1s, with a line each. A quarter of the time the link is then "
                   "filled.")  # fmt: skip
@csv_option("With --watch: write a line each as CSV, a trace that --link FILE.csv takes.")
@output_option("Write the link, for --link FILE elsewhere.", metavar="FILE.link.json")
@json_option
def command(
    model: str | None, cloud: str | None, security: Security, spec: str | None, budget_s: float,
    every_s: float | None, csv_path: Path | None, output: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Measure bandwidth up and down, round trip and jitter to a server (--cloud), show what a link means (--link), or
    list the presets (neither).

    Measuring fills the link for up to --budget seconds, and sends what fits into it: some 10 kB up at 0.13 Mbit/s,
    some 15 MB at 100 Mbit/s. Other traffic at that time makes it look slower than it is.

    With MODEL, one that the server has, some requests of it show what the software at both ends adds to each.
    """
    if model is not None and not cloud:
        raise UsageError(f"requests of {model} need a server: name it with --cloud HOST")
    if not cloud and given("budget_s"):
        raise UsageError("--budget is how long measuring may take: name the server to measure to with --cloud HOST")
    if cloud and spec is not None:
        raise UsageError("--cloud measures a link and --link names one: give one of the two")
    if output is not None and not cloud and spec is None:
        raise UsageError("-o writes a link: measure one with --cloud, or name one with --link")
    if every_s is not None or csv_path is not None:
        if not cloud or every_s is None or model is not None or output is not None:
            raise UsageError(
                "the link goes on being shown with --cloud HOST --watch 1s, alone or with --csv and --json"
            )
        _watch(cloud, security, every_s, budget_s if given("budget_s") else inf, csv_path, as_json)
        return
    if cloud:
        link = _measure(model, cloud, security, budget_s, as_json)
    elif spec is not None:
        parsed = parse_link(spec)
        if isinstance(parsed, LinkTrace) and output is not None:
            raise UsageError(f"{spec} is a trace, which one link cannot hold: use the .csv file itself")
        link = _explain(parsed, as_json)
    else:
        _list_presets(as_json)
        return
    if output is not None:
        save_link(output, link)
        wrote(output)


@contextmanager
def channel_to(cloud: str, security: Security) -> Iterator[Channel]:
    """A connection to the server, greeted; it is closed at the end."""
    with closing(connect(cloud, timeout_s=5.0, security=security)) as connection:
        yield Channel(connection, software=software(), timeout_s=5.0, token=security.token)


#: Of a trace (`link.files`), and titles and widths of the lines on the terminal.
TRACE_COLUMNS = ("time", "up", "down", "rtt", "jitter")
_TITLES = ("time s", "up Mbit/s", "down Mbit/s", "round trip ms", "jitter ms")


def _watch(
    cloud: str, security: Security, every_s: float, until_s: float, csv_path: Path | None, as_json: bool
) -> None:  # fmt: skip
    """Measures every `every_s` for `until_s`; a line each, and what the CSV has is whole after each. A measurement that
    fails is told, and the next one is made with a new connection."""
    budget_s = max(0.2, min(3.0, every_s / 4))
    if every_s < budget_s:
        raise UsageError(f"--watch {every_s:g}s is too often: a measurement takes {budget_s:g} s")
    if not as_json:
        click.echo("  ".join(_TITLES))
    rows: list[dict[str, float]] = []
    began_s, turn = perf_counter(), 0
    while turn * every_s < until_s:
        with closing(connect(cloud, timeout_s=5.0, security=security)) as connection:
            channel = Channel(connection, software=software(), timeout_s=5.0, token=security.token)
            try:
                while turn * every_s < until_s:
                    sleep(max(0.0, began_s + turn * every_s - perf_counter()))
                    at_s, turn = perf_counter() - began_s, max(turn + 1, int((perf_counter() - began_s) / every_s) + 1)
                    link = measure_link(channel, budget_s, name=cloud).link
                    values = (at_s, link.up_mbps, link.down_mbps, link.rtt_ms, link.jitter_ms)
                    rows.append({name: round(v, 4) for name, v in zip(TRACE_COLUMNS, values, strict=True)})
                    _put_row(rows, csv_path, as_json)
            except ServerError as exc:
                if not rows:
                    raise
                say(f"{perf_counter() - began_s:.1f} s: {exc}")


def _put_row(rows: Sequence[dict[str, float]], csv_path: Path | None, as_json: bool) -> None:
    """Prints the last of `rows`, and writes it."""
    row = rows[-1]
    if as_json:
        put_json(row)
    else:
        shown = (f"{row['time']:.1f}", mbps(row["up"]), mbps(row["down"]), ms(row["rtt"]), ms(row["jitter"]))
        click.echo("  ".join(text.rjust(len(title)) for text, title in zip(shown, _TITLES, strict=True)))
    if csv_path is not None and is_special(csv_path):
        write_csv(csv_path, [row], TRACE_COLUMNS, header=len(rows) == 1)
    elif csv_path is not None:
        write_csv(csv_path, rows, TRACE_COLUMNS)


def _measure(model: str | None, cloud: str, security: Security, budget_s: float, as_json: bool) -> Link:
    check_budget(budget_s)
    with channel_to(cloud, security) as channel:
        measured = measure_link(channel, budget_s, name=cloud)
        channel.close()
    if model is not None:
        with Edge(cloud, model, at="cut:input", security=security) as edge:
            measured = msgspec.structs.replace(measured, link=edge.with_software(measured.link))
    link = measured.link
    _show(link, measured if as_json else None)
    if as_json:
        return link
    click.echo(
        f"measured    in {measured.seconds:.1f} s, with {measured.pings} pings, "
        f"{size(measured.up_nbytes)} up and {size(measured.down_nbytes)} down"
    )
    if model is not None and not link.software_ms:
        click.echo(f"software    does not show: the link is slow beside it, {model} is, or the server is busy")
    if min(link.up_mbps, link.down_mbps) > _FAST_MBPS:
        click.echo(
            "            so fast that the two ends' processors are the limit, not a wire: "
            "that is what requests get, and it varies with their load"
        )
    return link


def _explain(parsed: Link | LinkTrace, as_json: bool) -> Link:
    if isinstance(parsed, Link):
        _show(parsed, parsed if as_json else None)
        return parsed
    mean = parsed.mean
    if as_json:
        put_json({"rows": len(parsed.links), "duration_s": parsed.duration, "mean": mean})
        return mean
    ups = [link.up_mbps for link in parsed.links]
    click.echo(
        f"trace       {parsed.name}: {counted(len(ups), 'row')} over {parsed.duration:g} s; then its last row holds"
    )
    click.echo(f"up          from {min(ups):.4g} to {max(ups):.4g} Mbit/s; on average, as requests feel it:")
    _show(mean)
    return mean


def _show(link: Link, data: msgspec.Struct | None = None) -> None:
    """Prints what `link` means, or, as JSON, what is known of it."""
    near = nearest_preset(link)
    if data is not None:
        put_json({**msgspec.structs.asdict(data), "nearest_preset": near})
        return
    click.echo(f"up          {mbps(link.up_mbps)} Mbit/s")
    click.echo(f"down        {mbps(link.down_mbps)} Mbit/s")
    click.echo(f"round trip  {ms(link.rtt_ms)} ms, jitter {ms(link.jitter_ms)} ms (90th percentile above the least)")
    if link.software_ms:
        click.echo(f"software    {ms(link.software_ms)} ms a request, of the runtime at both ends, beside the above")
    if link != PRESETS[near]:
        click.echo(f"nearest     {near} ({PRESETS[near]})")
    click.echo(
        f"a photo     {ms(link.transfer_ms(_PHOTO, 0))} ms for {size(_PHOTO)} up (224 x 224 RGB) and a round trip"
    )


def _list_presets(as_json: bool) -> None:
    if as_json:
        put_json(dict(PRESETS))
        return
    columns: list[Column[tuple[str, Link]]] = [
        Column("preset", lambda r: r[0], right=False, keep=True),
        Column("up Mbit/s", lambda r: mbps(r[1].up_mbps), keep=True),
        Column("down Mbit/s", lambda r: mbps(r[1].down_mbps), keep=True),
        Column("round trip ms", lambda r: f"{r[1].rtt_ms:g}", keep=True),
        Column("150.5 kB up ms", lambda r: ms(r[1].transfer_ms(_PHOTO, 0))),
    ]
    table(columns, list(PRESETS.items()), console=out())
    click.echo(
        "up: cat1 to wifi are those of the DADS paper; the rest are ours. Measure yours: splitpoint link --cloud HOST"
    )
