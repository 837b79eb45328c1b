"""Who may speak with whom, as values: authorities, certificates, keys and tokens. `transports.tls` puts them to use.

Nothing here is read from the environment unless it is asked for (`client_security`, `server_security`), and no token
is ever printed: neither value shows its own.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import shlex
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from splitpoint.errors import UsageError
from splitpoint.files import open_file

#: Characters of a token: with fewer it could be guessed; more is not read, nor looked at.
LEAST_TOKEN, MOST_TOKEN = 16, 1024
#: A key, a certificate with its chain, or a system's list of authorities; nothing larger is read.
_MOST_NBYTES = 4 << 20


def _check_pair(certificate: Path | None, key: Path | None) -> None:
    if key is not None and certificate is None:
        raise UsageError(f"the key {key} comes without its certificate: --tls-cert FILE")


def _check_characters(token: str) -> None:
    if len(token) > MOST_TOKEN:
        raise UsageError(f"a token has {MOST_TOKEN} characters at most")
    if not all("!" <= character <= "~" for character in token):
        raise UsageError("a token is one word of ASCII characters")


@dataclass(frozen=True)
class Security:
    """How a device speaks with a server. As it is made by default: openly, and without a token.

    With `tls`, an authority or a certificate the connection is encrypted, and the server must have a certificate for
    its own name (or for `server_name`) that `ca`, or else an authority known to this system, has signed. `certificate`
    and `key` (in the same file if left out) are for servers that want to know the device, `token` for those that want
    one; a token never goes over a connection that others could read.
    """

    tls: bool = False
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    token: str = field(default="", repr=False)
    server_name: str = ""

    def __post_init__(self) -> None:
        _check_pair(self.certificate, self.key)
        _check_characters(self.token)

    @property
    def encrypts(self) -> bool:
        """Whether something in it makes sense with TLS only."""
        return self.tls or bool(self.ca or self.certificate or self.server_name)


OPEN = Security()


@dataclass(frozen=True)
class ServerSecurity:
    """Whom a server lets in. As it is made by default: everyone, and so it may listen on loopback only.

    With `certificate` and `key` (in the same file if left out) connections are encrypted; with `client_ca` a device
    must have a certificate that this authority has signed; with `token` it must know that. Without encryption and one
    of these two a server that other machines can reach does not start, unless it is `insecure` on purpose.
    """

    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    token: str = field(default="", repr=False)
    insecure: bool = False

    def __post_init__(self) -> None:
        _check_pair(self.certificate, self.key)
        _check_characters(self.token)
        if self.client_ca is not None and self.certificate is None:
            raise UsageError("client certificates need TLS: give the server's own too (--tls-cert, --tls-key)")
        if self.token and len(self.token) < LEAST_TOKEN:
            raise UsageError(
                f"the token has {len(self.token)} characters and could be guessed: it needs {LEAST_TOKEN} or more "
                "(splitpoint keys makes one)"
            )

    def admits(self, token: str) -> bool:
        """Whether who says `token` may come in; it takes as long however much of it is right, or long ours is."""
        return not self.token or hmac.compare_digest(_digest(token), _digest(self.token))


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def client_security(
    *,
    tls: bool = False,
    ca: Path | None = None,
    certificate: Path | None = None,
    key: Path | None = None,
    token_file: Path | None = None,
    server_name: str = "",
    environ: Mapping[str, str] = os.environ,
) -> Security:
    """What a device is told, completed from SPLITPOINT_CA, _TLS_CERT, _TLS_KEY, _TOKEN_FILE and _TOKEN. UsageError."""
    if certificate is None and key is None:
        certificate, key = _path(environ, "TLS_CERT"), _path(environ, "TLS_KEY")
    token = _token(token_file, environ)
    return Security(tls, ca or _path(environ, "CA"), certificate, key, token, server_name)


def server_security(
    *,
    certificate: Path | None = None,
    key: Path | None = None,
    client_ca: Path | None = None,
    token_file: Path | None = None,
    insecure: bool = False,
    environ: Mapping[str, str] = os.environ,
) -> ServerSecurity:
    """The same of a server: SPLITPOINT_TLS_CERT, _TLS_KEY, _CLIENT_CA, _TOKEN_FILE and _TOKEN. UsageError."""
    if certificate is None and key is None:
        certificate, key = _path(environ, "TLS_CERT"), _path(environ, "TLS_KEY")
    token = _token(token_file, environ)
    return ServerSecurity(certificate, key, client_ca or _path(environ, "CLIENT_CA"), token, insecure)


def unguarded(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """`environ` without tokens, keys and authorities: for our own processes that speak with each other on loopback."""
    names = ("CA", "CLIENT_CA", "TLS_CERT", "TLS_KEY", "TOKEN", "TOKEN_FILE")
    return {name: value for name, value in environ.items() if name not in {f"SPLITPOINT_{n}" for n in names}}


def read_token(path: Path) -> str:
    """The token in `path`. UsageError if there is none, or others than the file's owner can read it too."""
    data, mode = read_file(path, "token file")
    check_own(path, "token file", mode, group=False)
    text = data.strip()
    if not text:
        raise UsageError(f"the token file {path} is empty: splitpoint keys makes one")
    token = text.decode("ascii", "replace")  # by characters that no token may have
    try:
        _check_characters(token)
    except UsageError as exc:
        raise UsageError(f"the token file {path} holds no token: {exc}") from exc
    return token


def read_file(path: Path, what: str) -> tuple[bytes, int]:
    """(the bytes of `path`, its mode). UsageError if it cannot be read or is too large.

    On a read-only mount the mode is without the right to read for group and others: nobody can take it away there.
    Docker and Kubernetes mount secrets so, with modes such as 0444, and who mounts them chooses who else is in.
    """
    try:
        with open_file(path) as file:
            mode = os.fstat(file.fileno()).st_mode
            if _is_mounted_read_only(file.fileno()):
                mode &= ~(stat.S_IRGRP | stat.S_IROTH)
            data = file.read(_MOST_NBYTES + 1)
    except OSError as exc:
        raise UsageError(f"cannot read the {what} {path}: {exc.strerror or exc}") from exc
    if len(data) > _MOST_NBYTES:
        raise UsageError(f"the {what} {path} has more than {_MOST_NBYTES >> 20} MB: is it the right file?")
    return data, mode


def _is_mounted_read_only(descriptor: int) -> bool:
    return bool(os.fstatvfs(descriptor).f_flag & os.ST_RDONLY)


def check_own(path: Path, what: str, mode: int, *, group: bool) -> None:
    """UsageError if a file of this `mode` is for others than its owner; `group`: its group may read it."""
    refused = stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP | (0 if group else stat.S_IRGRP)
    if os.name == "posix" and mode & refused:
        raise UsageError(f"the {what} {path} is not for its owner alone: chmod 600 {shlex.quote(str(path))}")


def _path(environ: Mapping[str, str], name: str) -> Path | None:
    text = environ.get(f"SPLITPOINT_{name}", "")
    return Path(text) if text else None


def _token(token_file: Path | None, environ: Mapping[str, str]) -> str:
    path = token_file or _path(environ, "TOKEN_FILE")
    return read_token(path) if path is not None else environ.get("SPLITPOINT_TOKEN", "").strip()
