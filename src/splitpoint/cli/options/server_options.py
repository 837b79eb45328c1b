"""The server that an edge is to reach: --cloud, how to speak with it, and where what it hands out is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from splitpoint.cli.options import CONNECTION, PLANNING, F, gathered, together
from splitpoint.errors import UsageError
from splitpoint.machine import keep_to_memory
from splitpoint.security import OPEN, Security, client_security, server_security

_FILE = click.Path(path_type=Path)

cache_option = together(
    click.option("--cache", type=_FILE, metavar="DIR", envvar="SPLITPOINT_CACHE",
                 help="Where what was fetched, exported and measured is kept."),
    section=CONNECTION,
)  # fmt: skip

fresh_option = together(
    click.option("--fresh", is_flag=True, help="Profile this machine anew, whatever an earlier run has kept."),
    section=PLANNING,
)


def port_option(default: int, text: str, *, least: int = 0) -> Callable[[F], F]:
    """-p, --port, of what listens."""
    kind = click.IntRange(least, 65535)
    option = click.option("-p", "--port", type=kind, default=default, show_default=True, metavar="N", help=text)
    return together(option, section=CONNECTION)


def cloud_option(required: bool = True) -> Callable[[F], F]:
    """--cloud, and how to speak with it: the command gets `security` too."""
    return together(
        gathered(
            "cloud",
            _at_port,
            click.option("--cloud", required=required, metavar="[SCHEME://]HOST[:PORT]",
                         help="The server that runs the other half (port 3277)."),
            click.option("-p", "--port", type=click.IntRange(1, 65535), metavar="N", help="The server's port."),
        ),
        security_options,
        section=CONNECTION,
    )  # fmt: skip


def _at_port(cloud: str | None, port: int | None) -> str | None:
    """``gpu.local`` and 9999 → ``gpu.local:9999``. UsageError where the address has a port of its own."""
    if port is None:
        return cloud
    if cloud is None:
        raise UsageError("-p is a server's port: name the server with --cloud HOST")
    host = cloud.rpartition("://")[2]
    bare = host.count(":") > 1 and not host.startswith("[")  # of IPv6
    if ":" in host and not (bare or host.endswith("]")):
        raise UsageError(f"--cloud {cloud} has a port already: leave out -p {port}")
    return f"{cloud.removesuffix(host)}[{host}]:{port}" if bare else f"{cloud}:{port}"


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
                 help="The certificate of this edge, for a server that wants one (or SPLITPOINT_TLS_CERT)."),
    click.option("--tls-key", "key", type=_FILE, metavar="FILE", help="Its private key (or SPLITPOINT_TLS_KEY)."),
    click.option("--token-file", type=_FILE, metavar="FILE",
                 help="The server's token (or SPLITPOINT_TOKEN_FILE, SPLITPOINT_TOKEN)."),
    click.option("--server-name", default="", metavar="NAME",
                 help="The name in the server's certificate, where it is not the address's."),
    section=CONNECTION,
)  # fmt: skip


#: As the one parameter `security`, for the server itself.
server_security_options = gathered(
    "security",
    server_security,
    click.option("--tls-cert", "certificate", type=_FILE, metavar="FILE",
                 help="TLS, with this certificate and its chain (or SPLITPOINT_TLS_CERT); see splitpoint keys."),
    click.option("--tls-key", "key", type=_FILE, metavar="FILE", help="Its private key (or SPLITPOINT_TLS_KEY)."),
    click.option("--client-ca", type=_FILE, metavar="FILE",
                 help="Edges must have a certificate that this authority has signed (or SPLITPOINT_CLIENT_CA)."),
    click.option("--token-file", type=_FILE, metavar="FILE",
                 help="Edges must know the token in it (or SPLITPOINT_TOKEN_FILE, SPLITPOINT_TOKEN)."),
    click.option("--insecure", is_flag=True,
                 help="Serve other machines without TLS and a token or client certificates."),
    section=CONNECTION,
)  # fmt: skip
