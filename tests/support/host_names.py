"""Names that have the addresses a test gives them."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from splitpoint.transports import addresses
from splitpoint.transports.addresses import Target

Named = Callable[..., None]


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> Named:
    """Gives a name its addresses, in this order."""

    def name(name: str, *hosts: str) -> None:
        def look_up(host: str, port: int, flags: int = 0) -> list[Target]:
            if host != name:
                return real(host, port, flags)
            if flags:
                raise socket.gaierror(socket.EAI_NONAME, "a name")
            return [t for h in hosts for t in real(h, port, socket.AI_NUMERICHOST)]

        monkeypatch.setattr(addresses, "_look_up_now", look_up)

    real = addresses._look_up_now
    return name
