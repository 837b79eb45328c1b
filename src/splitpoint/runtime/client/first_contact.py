"""The first connection of an edge: made, waited for, or done without, as its fallback says."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from random import Random
from time import monotonic

from splitpoint.errors import BusyError, ServerError, UnreachableError
from splitpoint.models.model import Model
from splitpoint.runtime.client import Remote, RemoteProvider
from splitpoint.runtime.client.channel import CLOSED
from splitpoint.runtime.client.reconnect import REFUSALS, AbsentRemote, gone
from splitpoint.runtime.client.request import ERROR, WAIT, Fallback
from splitpoint.runtime.client.timeouts import Patience
from splitpoint.runtime.events import Event, OnEvent
from splitpoint.runtime.threads import begin


def first_remote(
    provider: RemoteProvider, fallback: Fallback, patience: Patience, local: Model | None, tell: OnEvent,
    *, deadline_s: float, pause: Callable[[float], bool],
) -> tuple[Remote, str]:  # fmt: skip
    """The server; or, where requests are answered without it, a stand-in and why it is not there.

    With the fallback ``wait`` it is waited for until `deadline_s` (0: for ever). `pause` sleeps, and says whether to
    give up. ServerError and its kin.
    """
    if fallback == ERROR or patience.need_server:
        return provider.connect(patience.connect_s), ""
    if fallback == WAIT:
        return wait_for(provider, patience, tell, within_s=deadline_s or float("inf"), pause=pause), ""
    try:
        return _connect_in_time(provider, patience.connect_s), ""
    except ServerError as exc:
        if isinstance(exc, REFUSALS) or (local is None and not isinstance(exc, (UnreachableError, BusyError))):
            raise
        if local is None:
            raise ServerError(
                f"{exc}; and nothing can be answered here without the model's own file: give that, or choose the "
                "fallback wait"
            ) from exc
        tell(Event("notice", f"{exc}; until it is there, requests are answered here", {"why": str(exc)}))
        return AbsentRemote(provider.address, exc), gone(exc, met=False)


def wait_for(
    provider: RemoteProvider, patience: Patience, tell: OnEvent, *, within_s: float, pause: Callable[[float], bool]
) -> Remote:
    """The server, as soon as it is there: within `within_s`. `pause` sleeps, and says whether to give up."""
    end, random, pause_s, told = monotonic() + within_s, Random(patience.seed), patience.pause_s, False
    while True:
        try:
            return provider.connect(patience.connect_s)
        except (UnreachableError, BusyError) as exc:
            left_s = end - monotonic()
            if left_s <= 0:
                raise
            if not told:
                told = True
                tell(Event("notice", f"{exc}; waiting for it", {"why": str(exc)}))
            if pause(min(left_s, random.uniform(0, pause_s))):
                raise ServerError(CLOSED) from exc
            pause_s = min(2 * pause_s, patience.longest_pause_s)


def _connect_in_time(provider: RemoteProvider, connect_s: float) -> Remote:
    """A connection within `connect_s`, also where looking the name up takes longer. ServerError and its kin."""
    came: SimpleQueue[Remote | BaseException] = SimpleQueue()
    late = threading.Event()

    def work() -> None:
        try:
            remote = provider.connect(connect_s)
        except BaseException as exc:
            came.put(exc)
            return
        came.put(remote)
        if late.is_set():
            remote.close()

    begin(threading.Thread(target=work, name="first connection", daemon=True))
    try:
        outcome = came.get(timeout=connect_s)
    except Empty:
        late.set()
        with suppress(Empty):  # it came at the last moment
            last = came.get_nowait()
            if not isinstance(last, BaseException):
                last.close()
        raise UnreachableError(f"no answer from {provider.address} in {connect_s:g} s") from None
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome
