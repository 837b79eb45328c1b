"""splitpoint keys: certificates and a token for a lab."""

from __future__ import annotations

import shlex
import socket
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

import click

from splitpoint import install
from splitpoint.certificates import make
from splitpoint.cli.console import put_json
from splitpoint.cli.help_pages import verb
from splitpoint.cli.options.output import OUTPUT_FOLDER, json_option, output_option
from splitpoint.errors import UsageError


@verb(
    ("for one server", "keys lab --host SERVER"),
    ("a server with two names, for a month", "keys lab --host 192.168.1.7 --host gpu.local --days 30"),
)
@click.argument("folder", metavar="DIR", type=OUTPUT_FOLDER, required=False)
@output_option("The same as DIR.", metavar="DIR", folder=True)
@json_option
@click.option("--host", "hosts", multiple=True, metavar="NAME",
              help="A name or IP address by which edges call the server; may be given several times "
                   "(default: this machine's name). localhost is always one.")  # fmt: skip
@click.option("--days", type=click.FloatRange(0, 36_500, min_open=True), default=365, show_default=True, metavar="N",
              help="How long they hold.")  # fmt: skip
def command(
    folder: Path | None, output: Path | None, as_json: bool, hosts: tuple[str, ...], days: float
) -> None:  # fmt: skip
    """Make what a server and its edges need to know each other, in DIR: an authority of your own, a certificate for
    the server and one for edges, and a token.

    For a few machines of your own: whoever can read DIR can be the server, and any edge.
    """
    if (folder is None) == (output is None):
        raise UsageError("say which folder the keys go to, once: splitpoint keys DIR")
    folder = folder or output
    assert folder is not None
    called = tuple(dict.fromkeys((*(hosts or (socket.gethostname(),)), "localhost", "127.0.0.1", "::1")))
    files = make(folder, called, now=datetime.now(timezone.utc), days=days)
    if as_json:
        put_json({"hosts": called} | {name: str(path) for name, path in asdict(files).items()})
        return
    where = hosts[0] if hosts else socket.gethostname()
    ca, token, server, key = (shlex.quote(str(p)) for p in (files.ca, files.token, files.server, files.server_key))
    click.echo(f"{folder}: an authority, a server certificate for {', '.join(called)}, one for edges, and a token")
    click.echo(f"server     {install.command()} serve MODEL --host 0.0.0.0 --tls-cert {server} --tls-key {key} \\")
    click.echo(f"               --token-file {token}")
    click.echo(f"edge       (copy {files.ca.name} and {files.token.name} there, over a way you trust)")
    click.echo(
        f"           splitpoint run MODEL INPUTS --cloud {where} --ca {files.ca.name} --token-file {files.token.name}"
    )
    click.echo(
        f"or         --client-ca {ca} instead of the server's token: each edge then needs "
        f"--tls-cert {files.client.name} --tls-key {files.client_key.name}"
    )
