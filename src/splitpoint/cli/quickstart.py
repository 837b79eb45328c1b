"""splitpoint quickstart: the lines to paste on server and edge, for this machine and a model."""

from __future__ import annotations

import shlex
import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import click

from splitpoint import install
from splitpoint.cli.console import put_json
from splitpoint.cli.help_pages import verb
from splitpoint.cli.options.model_options import Opening, model_options
from splitpoint.cli.options.output import json_option, result_option, save_json
from splitpoint.cli.options.server_options import port_option
from splitpoint.errors import EngineError, UsageError
from splitpoint.machine import this_machine
from splitpoint.models.model import Model
from splitpoint.models.zoo import photos
from splitpoint.units import size
from splitpoint.wire import DEFAULT_PORT

#: The model where none is named and none lies here.
_MODEL = "zoo:efficientnet_lite0"
#: Where the keys go, and are looked for.
_KEYS = Path("splitpoint-keys")
#: What of --device is worth more than cpu, the best first.
_FASTER = ("cuda", "migraphx", "coreml", "openvino")
#: Addresses for documentation, which nothing is sent to: the way there begins at the address that others see.
_ELSEWHERE = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))


@verb(
    ("a model of splitpoint's own, or the only .onnx file in this folder", "quickstart"),
    ("a model of your own; the server is another machine", "quickstart yolo.onnx --cloud 192.168.1.7"),
)
@click.argument("model", required=False)
@click.option("--cloud", metavar="HOST", help="The server's name or address. Default: this machine is the server.")
@port_option(DEFAULT_PORT, "The server's port.", least=1)
@result_option
@json_option
@model_options
def command(
    model: str | None, cloud: str | None, port: int, output: Path | None, as_json: bool, opening: Opening
) -> None:  # fmt: skip
    """Print what to paste on the server and on the edge to run MODEL on both, with the addresses of this machine, TLS
    and a token. Nothing is asked, started or written.
    """
    name = model or _lying_here() or _MODEL
    loaded = opening.load(name)
    words = [_word(name), *_repeated(opening)]
    host = cloud or address()
    secret = host is not None and find_spec("cryptography") is not None
    server = list(_server(words, host, port, cloud is None, secret=secret))
    edge = list(_edge(loaded, host, port, cloud is None, secret=secret))
    machine = str(this_machine())
    data = {"machine": machine, "model": loaded.name, "host": host, "server": server, "edge": edge}
    save_json(output, data)
    if as_json:
        put_json(data)
        return
    click.echo(f"this machine: {machine}" + (f", {host} to others" if host and not cloud else ""))
    click.echo(f"the model: {name}, {size(loaded.nbytes)} of weights; {_takes(loaded)}")
    here, there = " (this machine)", " (the other machine)"
    for title, lines in ((f"server{there if cloud else here}", server), (f"edge{here if cloud else there}", edge)):
        click.echo(f"\non the {title}:")
        for line in lines:
            click.echo(f"  {line}")
    if host is None:
        click.echo("\nThis machine has no address on a network: both lines are for this machine, in two terminals.")
    elif not secret:
        click.echo("\nThese lines are for a network that you trust: without the package cryptography there is no TLS.")
        click.echo(f"  {install.extra('tls')}")


def address() -> str | None:
    """The address by which other machines see this one; None where it is on no network."""
    for family, elsewhere in _ELSEWHERE:
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((elsewhere, 9))  # sends nothing
            seen = str(probe.getsockname()[0])
            if not seen.startswith("127.") and seen != "::1":
                return seen
    return None


def _server(words: Sequence[str], host: str | None, port: int, here: bool, *, secret: bool) -> Iterator[str]:
    call = install.command() if here else "splitpoint"
    at = "" if port == DEFAULT_PORT else f" -p {port}"
    device = f" -d {best}" if here and (best := _faster()) else ""
    serve = f"{call} serve {' '.join(words)}{device}{at}"
    every = "::" if host and ":" in host else "0.0.0.0"
    if host is None:
        yield serve
    elif not secret:
        yield f"{serve} --host {every} --insecure"
    else:
        if not (here and (_KEYS / "server.pem").is_file()):
            yield f"{call} keys {_KEYS} --host {host}"
        yield (
            f"{serve} --host {every} --tls-cert {_KEYS}/server.pem --tls-key {_KEYS}/server.key "
            f"--token-file {_KEYS}/token"
        )


def _edge(model: Model, host: str | None, port: int, other: bool, *, secret: bool) -> Iterator[str]:
    where = "localhost" if host is None else f"[{host}]" if ":" in host else host
    at = where if port == DEFAULT_PORT else f"{where}:{port}"
    call = "splitpoint" if other and host is not None else install.command()
    inputs = "photos/" if model.input_spec else "input.npy"
    if model.input_spec and not (other and host is not None):
        inputs = install.shown(photos()[0].parent)
    safe = ""
    if secret:
        folder = _word(str(Path.cwd() / _KEYS)) if other else str(_KEYS)
        yield f"scp '{where}:{folder}/ca.pem' '{where}:{folder}/token' ."
        safe = " --ca ca.pem --token-file token"
    yield f"{call} run --cloud {at}{safe} {inputs}"


def _takes(model: Model) -> str:
    if model.input_spec:
        return "photos are its inputs"
    specs = " and ".join(map(str, model.inputs)) or "nothing"
    return f"it takes {specs}: .npy or .npz files, or photos once --input-spec says how (docs/input-spec.md)"


def _lying_here() -> str | None:
    """The only .onnx file in this folder."""
    there = sorted(Path.cwd().glob("*.onnx"))
    if len(there) > 1:
        names = ", ".join(path.name for path in there[:4])
        raise UsageError(f"there are several models here ({names}): say which MODEL")
    return there[0].name if there else None


def _faster() -> str | None:
    """The best --device that the installed ONNX Runtime has, if it is more than the CPU."""
    from splitpoint.engines.onnxruntime import DEVICES
    from splitpoint.engines.wheels import load

    try:
        available = load().get_available_providers()
    except EngineError:
        return None
    return next((name for name in _FASTER if DEVICES[name].provider in available), None)


def _repeated(opening: Opening) -> Iterator[str]:
    """The options by which the model was opened here, for the server's line."""
    single = (("--weights", opening.weights), ("--input-spec", opening.input_spec))
    several = (
        ("--shape", opening.shapes), ("--input", opening.inputs), ("--value", opening.values),
        ("--allow-domain", opening.allow_domains),
    )  # fmt: skip
    for option, value in (*single, *((option, value) for option, values in several for value in values)):
        if value is not None:
            yield f"{option} {_word(str(value))}"


def _word(text: str) -> str:
    return shlex.quote(text)
