"""splitpoint link: measure the network to a server, or say what a link means."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec
from click.core import ParameterSource

from splitpoint.cli.console import Column, out, put_json, table
from splitpoint.cli.options import cloud_option, json_option
from splitpoint.cli.outputs import OUTPUT
from splitpoint.cli.quantities import parse_budget
from splitpoint.errors import UsageError
from splitpoint.files import check_writable
from splitpoint.link import Link
from splitpoint.link.files import save_link
from splitpoint.link.link_trace import LinkTrace
from splitpoint.link.parse import parse_link
from splitpoint.link.presets import PRESETS, nearest_preset
from splitpoint.security import Security
from splitpoint.units import mbps, ms, size

#: What a link is judged by: a photo as MobileNet and its kin take it, 224 x 224 x 3 bytes.
_PHOTO = 224 * 224 * 3
#: More than networks between two machines usually carry: what was measured is rather the two ends' own speed.
_FAST_MBPS = 2000.0


@click.command(short_help="Measure the network to a server, or say what a link means.")
@cloud_option(required=False)
@click.option(
    "--link",
    "spec",
    metavar="SPEC",
    help="Do not measure: a preset, UP/DOWN,ROUNDTRIP (10mbit/20mbit,40ms), a .link.json or a trace .csv.",
)
@click.option("--budget", default="3s", show_default=True, metavar="SECONDS", help="How long measuring may take.")
@click.option(
    "-o",
    "--out",
    "path",
    type=OUTPUT,
    metavar="FILE.link.json",
    help="Write the link, for --link FILE elsewhere.",
)
@json_option
def command(
    cloud: str | None, security: Security, spec: str | None, budget: str, path: Path | None, as_json: bool
) -> None:  # fmt: skip
    """Measure bandwidth up and down, round trip and jitter to a server (--cloud), show what a link means (--link), or
    list the presets (neither).

    Measuring fills the link for up to --budget seconds, and sends what fits into it: some 10 kB up at 0.13 Mbit/s,
    some 15 MB at 100 Mbit/s. Other traffic at that time makes it look slower than it is.
    """
    if not cloud and _given("budget"):
        raise UsageError("--budget is how long measuring may take: name the server to measure to with --cloud HOST")
    if cloud and spec is not None:
        raise UsageError("--cloud measures a link and --link names one: give one of the two")
    if path is not None:
        if not cloud and spec is None:
            raise UsageError("-o writes a link: measure one with --cloud, or name one with --link")
        check_writable(path)
    if cloud:
        link = _measure(cloud, security, parse_budget(budget), as_json)
    elif spec is not None:
        found = parse_link(spec)
        if isinstance(found, LinkTrace) and path is not None:
            raise UsageError(f"{spec} is a trace, which one link cannot hold: use the .csv file itself")
        link = _explain(found, as_json)
    else:
        _list_presets(as_json)
        return
    if path is not None:
        save_link(path, link)
        click.echo(f"wrote {path}", err=True)


def _given(name: str) -> bool:
    """Whether the option was given, and is not at its default."""
    source = click.get_current_context().get_parameter_source(name)
    return source not in (None, ParameterSource.DEFAULT)


def _measure(cloud: str, security: Security, budget_s: float, as_json: bool) -> Link:
    from splitpoint.runtime.client.channel import Channel
    from splitpoint.runtime.events import software
    from splitpoint.runtime.probe.link_probe import check_budget, probe
    from splitpoint.transports import connect

    check_budget(budget_s)
    connection = connect(cloud, timeout_s=5.0, security=security)
    try:
        channel = Channel(connection, software=software(), timeout_s=5.0, token=security.token)
        measured = probe(channel, budget_s, name=cloud)
        channel.close()
    finally:
        connection.close()
    link = measured.link
    if as_json:
        put_json({**msgspec.structs.asdict(measured), "nearest_preset": nearest_preset(link)})
        return link
    _show(link)
    click.echo(
        f"measured    in {measured.seconds:.1f} s, with {measured.pings} pings, "
        f"{size(measured.up_nbytes)} up and {size(measured.down_nbytes)} down"
    )
    if min(link.up_mbps, link.down_mbps) > _FAST_MBPS:
        click.echo(
            "            so fast that the two ends' processors are the limit, not a wire: "
            "that is what requests get, and it varies with their load"
        )
    return link


def _explain(found: Link | LinkTrace, as_json: bool) -> Link:
    if isinstance(found, Link):
        if as_json:
            put_json({**msgspec.structs.asdict(found), "nearest_preset": nearest_preset(found)})
        else:
            _show(found)
        return found
    mean = found.mean
    if as_json:
        put_json({"rows": len(found.links), "duration_s": found.duration, "mean": mean})
        return mean
    ups = [link.up_mbps for link in found.links]
    click.echo(f"trace       {found.name}: {len(ups)} rows over {found.duration:g} s; then its last row holds")
    click.echo(f"up          from {min(ups):.4g} to {max(ups):.4g} Mbit/s; on average, as requests feel it:")
    _show(mean)
    return mean


def _show(link: Link) -> None:
    click.echo(f"up          {mbps(link.up_mbps)} Mbit/s")
    click.echo(f"down        {mbps(link.down_mbps)} Mbit/s")
    click.echo(f"round trip  {ms(link.rtt_ms)} ms, jitter {ms(link.jitter_ms)} ms (90th percentile above the least)")
    near = nearest_preset(link)
    if link != PRESETS[near]:
        click.echo(f"nearest     {near} ({PRESETS[near]})")
    click.echo(
        f"a photo     {ms(link.transfer_ms(_PHOTO, 0))} ms for {size(_PHOTO)} up (224 x 224 RGB) and a round trip"
    )


def _list_presets(as_json: bool) -> None:
    if as_json:
        put_json(dict(PRESETS))
        return
    columns = (
        Column("preset", right=False, keep=True), Column("up Mbit/s", keep=True), Column("down Mbit/s", keep=True),
        Column("round trip ms", keep=True), Column("150.5 kB up ms"),
    )  # fmt: skip
    rows = [
        (name, mbps(link.up_mbps), mbps(link.down_mbps), f"{link.rtt_ms:g}", ms(link.transfer_ms(_PHOTO, 0)))
        for name, link in PRESETS.items()
    ]
    table(columns, rows, console=out())
    click.echo(
        "up: cat1 to wifi are those of the DADS paper; the rest are ours. Measure yours: splitpoint link --cloud HOST"
    )
