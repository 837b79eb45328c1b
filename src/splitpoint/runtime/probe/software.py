"""What the runtime's own software adds to a request beside the link's round trip and bytes, measured by requests.

A ping follows the one before it at once: both ends are awake, and their caches warm. A request comes after a wait, and
what it meets has been pushed out of the caches by what was computed meanwhile: beside the 0.03 ms of a ping that is
0.4 ms of a request of EfficientNet-Lite0, and 0.07 of LeNet-5 (`python -m bench compare`, a quiet machine). So it is
measured by requests of the model, through all that they pass, each after a pause like the runs of a profile, and in
visits with some time between them, of which those count that nothing disturbed. What requests computed is told by their
own traces, and no part of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from splitpoint.link import Link
from splitpoint.profile.measure import pause_s, stat_of
from splitpoint.runtime.result import Result

#: Visits, until so much is spent, and how long before each; a scheduler's slice, some ms, must not fill two of them.
_VISITS, _ENOUGH_MS, _APART_S = 6, 800.0, 0.05
#: Requests of a visit that are counted, and those before them that warm up.
_REQUESTS, _WARM = 7, 1
#: Bytes that take longer cannot be told from it: a rate is known to some 5 %, which is then 0.1 ms.
_MOST_BYTES_MS = 2.0
#: Of a request that computes longer it is a thousandth or two.
_MOST_MS = 500.0


def software_ms(ask: Callable[[], Result | None], link: Link, pause: Callable[[float], None] = time.sleep) -> float:
    """Milliseconds a request: the median of some that `ask` makes, each after a `pause` of so many seconds.

    0 where it is not known: no answer, or none of the server; a link so slow, or a request so long, that it does not
    show. Waiting for a worker is load, and no part of it.
    """
    visits: list[list[float]] = []
    spent_ms = 0.0
    while len(visits) < _VISITS and spent_ms < _ENOUGH_MS:
        beside: list[float] = []
        wait_s = _APART_S
        for _ in range(_WARM + _REQUESTS):
            pause(wait_s)
            result = ask()
            if result is None or result.offset is None:
                return 0.0
            bytes_ms = link.up_ms(result.up_nbytes) + link.down_ms(result.down_nbytes)
            computed_ms = result.trace.ms("head") + result.trace.ms("tail")
            if bytes_ms > _MOST_BYTES_MS or computed_ms > _MOST_MS:
                return 0.0
            known_ms = computed_ms + result.trace.ms("queue") + bytes_ms + link.rtt_ms
            beside.append(max(0.0, result.total_ms - known_ms))
            spent_ms += result.total_ms
            wait_s = pause_s(computed_ms)
        visits.append(beside[_WARM:])
    return stat_of(visits).median
