"""The server that a device is to reach: --cloud, how to speak with it, and where what it hands out is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from splitpoint.cli.options import F, gathered, together
from splitpoint.errors import UsageError
from splitpoint.machine import keep_to_memory
from splitpoint.security import OPEN, Security, client_security, server_security

_FILE = click.Path(path_type=Path)

cache_option = click.option(
    "--cache", type=_FILE, metavar="DIR", envvar="SPLITPOINT_CACHE", help="Where blobs are kept."
)

fresh_option = click.option(
    "--fresh", is_flag=True, help="Profile this machine anew, whatever an earlier run has kept."
)


def cloud_option(required: bool = True) -> Callable[[F], F]:
    """--cloud, and how to speak with it: the command gets `security` too."""
    return together(
        click.option("--cloud", required=required, metavar="[SCHEME://]HOST[:PORT]",
                     help="The server that runs the other half (port 3277)."),
        security_options,
    )  # fmt: skip


def _client(
    tls: bool, ca: Path | None, certificate: Path | None, key: Path | None, token_file: Path | None, server_name: str
) -> Security:
    if click.get_current_context().params["cloud"] is None:
        if tls or ca or certificate or key or token_file or server_name:
            raise UsageError("--tls, --ca, --tls-cert, --token-file and --server-name need a server: --cloud HOST")
        return OPEN
    keep_to_memory()  # what is run here is what a server says
    return client_security(
        tls=tls, ca=ca, certificate=certificate, key=key, token_file=token_file, server_name=server_name
    )


#: As the one parameter `security`, for a command that has --cloud.
security_options = gathered(
    "security",
    _client,
    click.option("--tls", is_flag=True,
                 help="TLS, with a server whose certificate an authority known to this system has signed."),
    click.option("--ca", type=_FILE, metavar="FILE",
                 help="TLS, with a server whose certificate this authority has signed (or SPLITPOINT_CA)."),
    click.option("--tls-cert", "certificate", type=_FILE, metavar="FILE",
                 help="This device's certificate, for a server that wants one (or SPLITPOINT_TLS_CERT)."),
    click.option("--tls-key", "key", type=_FILE, metavar="FILE", help="Its private key (or SPLITPOINT_TLS_KEY)."),
    click.option("--token-file", type=_FILE, metavar="FILE",
                 help="The server's token (or SPLITPOINT_TOKEN_FILE, SPLITPOINT_TOKEN)."),
    click.option("--server-name", default="", metavar="NAME",
                 help="The name in the server's certificate, where it is not the address's."),
)  # fmt: skip


#: As the one parameter `security`, for the server itself.
server_security_options = gathered(
    "security",
    server_security,
    click.option("--tls-cert", "certificate", type=_FILE, metavar="FILE",
                 help="TLS, with this certificate and its chain (or SPLITPOINT_TLS_CERT); see splitpoint keys."),
    click.option("--tls-key", "key", type=_FILE, metavar="FILE", help="Its private key (or SPLITPOINT_TLS_KEY)."),
    click.option("--client-ca", type=_FILE, metavar="FILE",
                 help="Devices must have a certificate that this authority has signed (or SPLITPOINT_CLIENT_CA)."),
    click.option("--token-file", type=_FILE, metavar="FILE",
                 help="Devices must know the token in it (or SPLITPOINT_TOKEN_FILE, SPLITPOINT_TOKEN)."),
    click.option("--insecure", is_flag=True,
                 help="Serve other machines without TLS and a token or client certificates."),
)  # fmt: skip
