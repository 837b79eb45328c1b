"""A server's profile of itself, asked for until it has time."""

from __future__ import annotations

import threading
from time import monotonic

from splitpoint import wire
from splitpoint.errors import BusyError, ServerError, UsageError
from splitpoint.profile.files import parse_profile
from splitpoint.profile.profiles import Profile
from splitpoint.runtime.client.channel import CLOSED, Channel
from splitpoint.runtime.events import Event, OnEvent
from splitpoint.wire import Kind, ModelInfo

#: A tail may be large, and compiling it is not what a time limit for answers is about.
COMPILE_S = 600.0
#: How long a server that is busy measuring is asked again, beside some of our own budgets, and how often.
_BUSY_S, _BUSY_BUDGETS = 60.0, 6
_LEAST_PAUSE_S, _MOST_PAUSE_S = 0.05, 30.0


def ask_profile(
    channel: Channel, info: ModelInfo, budget_s: float, closed: threading.Event, tell: OnEvent, *, fresh: bool,
    within_s: float | None = None,
) -> Profile:  # fmt: skip
    """What every cut of the model costs on the server; see `Edge.profile_server`. Ends when `closed` is set, and after
    `within_s` if that is given."""
    if not 0 < budget_s < float("inf"):
        raise UsageError(f"a profile's time budget is a number of seconds above 0, not {budget_s}")
    request = wire.ProfileRequest(info.fingerprint, budget_s, fresh)
    # Compiling a large model once is not interrupted, and the server may be slow, or measure others first.
    limit_s, busy_s = COMPILE_S + 2 * budget_s, _BUSY_S + _BUSY_BUDGETS * budget_s
    if within_s is not None:
        limit_s, busy_s = within_s, within_s
    end, told = monotonic() + busy_s, False
    while True:
        try:
            most = wire.MOST_BODY[Kind.PROFILED]
            _, frame = channel.ask(Kind.PROFILE, request, wire.Profiled, limit_s, most=most)
            break
        except BusyError as exc:
            pause_s = min(max(exc.retry_after_s, _LEAST_PAUSE_S), _MOST_PAUSE_S)
            left_s = end - monotonic()
            if left_s < pause_s:
                raise
            if not told:
                told, said = True, f"{exc}; asking again for up to {left_s:.0f} s"
                tell(Event("notice", said, {"why": str(exc), "seconds": left_s}))
        if closed.wait(pause_s):
            raise ServerError(CLOSED)
    data = bytes(frame.tensors[0].data) if frame.tensors else b""
    profile = parse_profile(data, "what the server sent")
    profile.require(info.fingerprint, info.name)
    return profile
