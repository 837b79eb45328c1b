"""splitpoint doctor: what this machine and a server can do."""

from __future__ import annotations

from importlib.util import find_spec

import click

from splitpoint import install, telemetry
from splitpoint.cli.options.server_options import cloud_option
from splitpoint.errors import EngineError
from splitpoint.machine import EXTRAS, default_cache, may_be_written, this_machine, versions
from splitpoint.security import Security
from splitpoint.units import size


@click.command()
@cloud_option(required=False)
def command(cloud: str | None, security: Security) -> None:
    """Show versions, cores, execution providers with their install lines, and whether a server is reachable.

    Exit status 6 if --cloud is given and the server cannot be reached or does not speak our version.
    """
    machine = this_machine()
    click.echo(f"machine    {machine}")
    click.echo("packages   " + ", ".join(f"{k} {v}" for k, v in versions().items()))
    for extra, packages in EXTRAS.items():
        there = versions(packages)
        if extra == "video" and not there and find_spec("cv2"):  # another build of OpenCV: a Jetson brings its own
            there = dict.fromkeys(packages, "(another build of OpenCV)")
        have = ", ".join(f"{k} {v}" for k, v in there.items())
        missing = [p for p in packages if p not in there]
        text = have if not missing else f"{have + '; ' if have else ''}not installed: {install.extra(extra)}"
        click.echo(f"[{extra}]".ljust(11) + text)
    _providers()
    # What the libraries below would report to their makers is off, unless the user wants it otherwise.
    on = telemetry.set_by_user()
    click.echo(f"telemetry  off (ONNX Runtime, Hugging Face, Ray){'; but you have set ' + ', '.join(on) if on else ''}")
    _cache()
    if cloud:
        _server(cloud, security)


def _providers() -> None:
    from splitpoint.engines.onnxruntime import DEVICES, install_line
    from splitpoint.engines.wheels import for_jetson, jetson_release, load, repair

    try:
        available = set(load().get_available_providers())
    except EngineError as exc:
        click.echo(f"engine     {exc}")
        available = set()
    for name, device in DEVICES.items():
        click.echo(f"--device   {name:<9} {'yes' if device.provider in available else 'no   ' + install_line(name)}")
    if release := jetson_release():
        click.echo("Jetson     {}: cuda and tensorrt: {}".format(*for_jetson(release)))
    known = {d.provider for d in DEVICES.values()}
    others = sorted(available - known - {"AzureExecutionProvider"})
    if others:
        click.echo(f"           also in this build, without a --device name: {', '.join(others)}")
    builds = install.onnxruntimes()
    if len(builds) > 1:
        click.echo(
            f"warning    {' and '.join(f'{k} {v}' for k, v in builds.items())} are one folder, onnxruntime: the last "
            f"to come is the one that runs, and not whole. Keep one: {repair(builds)}"
        )


def _cache() -> None:
    from splitpoint.runtime.client.blob_cache import usage

    notes: list[str] = []
    folder = default_cache(notes.append)
    kinds = usage(folder).values()
    click.echo(f"cache      {folder}: {sum(n for n, _ in kinds)} files, {size(sum(b for _, b in kinds))}")
    for note in notes:
        click.echo(f"           {note}")
    if not may_be_written(folder):
        click.echo("           it cannot be written, so nothing is kept for the next time: SPLITPOINT_CACHE=DIR")


def _server(cloud: str, security: Security) -> None:
    from splitpoint.cli.link import channel_to

    with channel_to(cloud, security) as channel:
        channel.measure_clock()
        welcome = channel.welcome
        click.echo(
            f"server     {cloud}: reachable, speaks our version "
            f"({'.'.join(map(str, welcome.version))}, {welcome.software}), "
            f"round trip {channel.clock.round_trip_s * 1e3:.2f} ms"
        )
        for model in welcome.models:
            click.echo(f"           {model.name} {model.fingerprint[:12]}  {size(model.nbytes)} of weights")
        click.echo(f"           devices may fetch: {welcome.share}")
