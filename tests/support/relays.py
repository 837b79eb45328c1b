"""A relay in a thread of this process: what it carries is right; when, a process of its own shows."""

from __future__ import annotations

import threading
from collections.abc import Callable

from splitpoint.errors import UsageError
from splitpoint.lab.forwarder import Forwarder
from splitpoint.lab.relay import AnyLink, Relay, obey


class ThreadRelay(Relay):
    """Told the same things as a `Relay`."""

    def __init__(self, target: str, link: AnyLink, *, seed: int = 0) -> None:
        self._make: Callable[[], Forwarder] = lambda: Forwarder(target, link, seed=seed)
        self._forwarder: Forwarder | None = None

    def __enter__(self) -> ThreadRelay:
        self.start()
        return self

    def start(self) -> None:
        if self._forwarder is None:
            self._forwarder = self._make()
            self.address = self._forwarder.address
            self._thread = threading.Thread(target=self._forwarder.run, name="relay", daemon=True)
            self._thread.start()

    def close(self) -> None:
        forwarder, self._forwarder = self._forwarder, None
        if forwarder is not None:
            forwarder.stop()
            self._thread.join()

    def _tell(self, line: str) -> str:
        if self._forwarder is None:
            raise UsageError("the relay is not started: use it in a with statement, or call start()")
        return obey(self._forwarder, line)
