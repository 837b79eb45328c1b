"""Latency files on the command line: which word names one, whose it is, and whether it may be used."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from splitpoint.cli.options.engine import DEFAULT
from splitpoint.engines import ENGINES
from splitpoint.errors import InputError
from splitpoint.files import read_file
from splitpoint.machine import this_machine
from splitpoint.models.model import Model
from splitpoint.parsing import MalformedError, parse_json
from splitpoint.predict.learn.files import LATENCIES, SHIPPED
from splitpoint.predict.learn.latency_model import Latency
from splitpoint.profile.codec_times import codec_costs
from splitpoint.profile.profiles import CodecCost
from splitpoint.units import counted

#: What codecs are timed for.
_CODECS_S = 0.5


def is_latency(text: str) -> bool:
    """Whether `text` names a latency file, or one of the shipped ones, rather than a profile or a server."""
    path = Path(text)
    if text in SHIPPED or path.name.endswith(".latency.json"):
        return True
    if not path.is_file():
        return False
    try:
        members = parse_json(read_file(path, LATENCIES.most_bytes, LATENCIES.what), dict[str, msgspec.Raw])
    except (InputError, MalformedError):
        return False  # reading it as a profile says what is wrong
    return members.keys() >= set(LATENCIES.marks)


def check_same(
    latency: Latency, name: str, *, engine: str | None = None, device: str | None = None, threads: int | None = None,
    force: bool = False,
) -> None:  # fmt: skip
    """InputError unless `latency` is of that engine, device and number of threads (None: any); a warning with `force`.

    Any engine is one of ours. The shipped files are of none, and say so wherever they are used.
    """
    ours = latency.engine if latency.engine in ENGINES else DEFAULT
    wanted = {"engine": "" if name in SHIPPED else engine or ours, "device": device, "threads": threads}
    for what, value in wanted.items():
        has = getattr(latency, what)
        if value and has != value:
            refuse(f"{name} was made with {in_words(what, has)}, not with {in_words(what, value)}", force=force)


def refuse(said: str, *, force: bool) -> None:
    """InputError that says it; with `force` a warning."""
    if not force:
        raise InputError(f"{said}: measure with the same (splitpoint calibrate-kernels), or use --force")
    click.echo(f"warning: {said}", err=True)


def in_words(what: str, value: str | int) -> str:
    """``2 threads``, ``engine onnxruntime``; a file that does not say has an unknown one."""
    if not value:
        return f"an unknown {'number of threads' if what == 'threads' else what}"
    return counted(value, "thread") if isinstance(value, int) else f"{what} {value}"


def codecs_there(model: Model, latency: Latency) -> dict[str, CodecCost] | None:
    """What codecs take on that device, timed now if it is this machine; None if it is another."""
    return codec_costs(model, _CODECS_S) if latency.machine == this_machine() else None


def whose(latency: Latency) -> tuple[str, ...]:
    """Which device the numbers are of, in a line or two."""
    processor = latency.machine.processor if latency.machine else ""
    machine = f"{processor}, " if processor and processor != latency.name else ""
    threads = f", {counted(latency.threads, 'thread')}" if latency.threads else ""
    first = f"on {latency.name}: {machine}{latency.engine} on {latency.device}{threads}"
    speed = f"refreshed {latency.refreshed}: everything takes {latency.slowdown:.2f}x as long as when it was calibrated"
    return (first, *([speed] if latency.refreshed else []), *([latency.note] if latency.note else []))
