"""Keys for the tests that speak TLS: made once a process, good for 127.0.0.1 and localhost."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from datetime import datetime, timedelta, timezone
from functools import cache
from pathlib import Path

from splitpoint.certificates import Keys, make
from splitpoint.security import Security, ServerSecurity

TOKEN = "correct-horse-battery-staple"


@cache
def folder() -> Path:
    """Where they are, until the process ends."""
    made = Path(tempfile.mkdtemp(prefix="splitpoint-tests-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


@cache
def keys(name: str = "lab", *, hosts: tuple[str, ...] = ("localhost", "127.0.0.1"), since_days: float = 0) -> Keys:
    """An authority and what it signs, made `since_days` ago to hold for a year; each name has its own."""
    return make(folder() / name, hosts, now=datetime.now(timezone.utc) - timedelta(days=since_days))


def server(*, token: str = "", mutual: bool = False, of: Keys | None = None) -> ServerSecurity:
    """A server with the certificate of `of`."""
    of = of or keys()
    return ServerSecurity(of.server, of.server_key, of.ca if mutual else None, token)


def client(*, token: str = "", mutual: bool = False, of: Keys | None = None) -> Security:
    """A device that trusts the authority of `of`, with its certificate if it is to show one."""
    of = of or keys()
    pair = (of.client, of.client_key) if mutual else (None, None)
    return Security(ca=of.ca, certificate=pair[0], key=pair[1], token=token)
