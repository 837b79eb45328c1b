"""splitpoint doctor: what this machine and a server can do."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from splitpoint import install, telemetry
from splitpoint.cli.console import put_json
from splitpoint.cli.help_pages import verb
from splitpoint.cli.options.output import json_option, result_option, save_json
from splitpoint.cli.options.server_options import cloud_option
from splitpoint.errors import EngineError
from splitpoint.machine import EXTRAS, default_cache, may_be_written, this_machine, versions
from splitpoint.security import Security
from splitpoint.units import counted, size


@verb(
    ("this machine", "doctor"),
    ("and whether a server can be reached", "doctor --cloud SERVER --ca ca.pem --token-file token"),
)
@cloud_option(required=False)
@result_option
@json_option
def command(cloud: str | None, security: Security, output: Path | None, as_json: bool) -> None:
    """Show versions, cores, execution providers with their install lines, and whether a server is reachable.

    Exit status 6 if --cloud is given and the server cannot be reached or does not speak our version.
    """
    facts: dict[str, Any] = {}
    # A line at a time, as each is known: reaching a server may take seconds.
    lines = (*_versions(facts), *_providers(facts), *_cache(facts))
    if not as_json:
        for line in lines:
            click.echo(line)
    for line in _server(cloud, security, facts) if cloud else ():
        if not as_json:
            click.echo(line)
    if as_json:
        put_json(facts)
    save_json(output, facts)


def _versions(facts: dict[str, Any]) -> list[str]:
    """Machine, packages, extras; what is known goes into `facts`."""
    machine, packages = this_machine(), versions()
    facts |= {"machine": machine, "packages": packages, "extras": {}}
    lines = [f"machine    {machine}", "packages   " + ", ".join(f"{k} {v}" for k, v in packages.items())]
    for extra, wanted in EXTRAS.items():
        there = versions(wanted)
        if extra == "video" and not there and find_spec("cv2"):  # another build of OpenCV: a Jetson brings its own
            there = dict.fromkeys(wanted, "(another build of OpenCV)")
        have = ", ".join(f"{k} {v}" for k, v in there.items())
        missing = [p for p in wanted if p not in there]
        facts["extras"][extra] = {"installed": there, "missing": missing}
        text = have if not missing else f"{have + '; ' if have else ''}not installed: {install.extra(extra)}"
        lines.append(f"[{extra}]".ljust(11) + text)
    return lines


def _providers(facts: dict[str, Any]) -> list[str]:
    from splitpoint.engines.onnxruntime import DEVICES, install_line
    from splitpoint.engines.wheels import for_jetson, jetson_release, load, repair

    lines: list[str] = []
    try:
        available = set(load().get_available_providers())
    except EngineError as exc:
        lines.append(f"engine     {exc}")
        available = set()
    facts["devices"] = {}
    for name, device in DEVICES.items():
        facts["devices"][name] = there = device.provider in available
        lines.append(f"--device   {name:<9} {'yes' if there else 'no   ' + install_line(name)}")
    if release := jetson_release():
        lines.append("Jetson     {}: cuda and tensorrt: {}".format(*for_jetson(release)))
    known = {d.provider for d in DEVICES.values()}
    others = sorted(available - known - {"AzureExecutionProvider"})
    if others:
        lines.append(f"           also in this build, without a --device name: {', '.join(others)}")
    builds = install.onnxruntimes()
    if len(builds) > 1:
        lines.append(
            f"warning    {' and '.join(f'{k} {v}' for k, v in builds.items())} are one folder, onnxruntime: the last "
            f"to come is the one that runs, and not whole. Keep one: {repair(builds)}"
        )
    # What the libraries would report to their makers is off, unless the user wants it otherwise.
    facts["telemetry"] = on = telemetry.set_by_user()
    but = f"; but you have set {', '.join(on)}" if on else ""
    return [*lines, f"telemetry  off (ONNX Runtime, Hugging Face, Ray){but}"]


def _cache(facts: dict[str, Any]) -> list[str]:
    from splitpoint.runtime.client.blob_cache import usage

    notes: list[str] = []
    folder = default_cache(notes.append)
    kinds = usage(folder).values()
    files, nbytes, writable = sum(n for n, _ in kinds), sum(b for _, b in kinds), may_be_written(folder)
    facts["cache"] = {"folder": str(folder), "files": files, "bytes": nbytes, "writable": writable, "notes": notes}
    lines = [
        f"cache      {folder}: {counted(files, 'file')}, {size(nbytes)}",
        *(f"           {note}" for note in notes),
    ]
    if not writable:
        lines.append("           it cannot be written, so nothing is kept for the next time: SPLITPOINT_CACHE=DIR")
    return lines


def _server(cloud: str, security: Security, facts: dict[str, Any]) -> list[str]:
    from splitpoint.cli.link import channel_to

    with channel_to(cloud, security) as channel:
        channel.measure_clock()
        welcome, round_trip_ms = channel.welcome, channel.clock.round_trip_s * 1e3
        version = ".".join(map(str, welcome.version))
        facts["server"] = {
            "address": cloud, "version": version, "software": welcome.software, "round_trip_ms": round_trip_ms,
            "share": welcome.share,
            "models": [{"name": m.name, "fingerprint": m.fingerprint, "bytes": m.nbytes} for m in welcome.models],
        }  # fmt: skip
        return [
            f"server     {cloud}: reachable, speaks our version ({version}, {welcome.software}), "
            f"round trip {round_trip_ms:.2f} ms",
            *(f"           {m.name} {m.fingerprint[:12]}  {size(m.nbytes)} of weights" for m in welcome.models),
            f"           edges may fetch: {welcome.share}",
        ]
