"""One request on a link, in full: our frames around the tensors and, if wanted, TCP's slow start.

`Link.transfer_ms` is the affine part, which the planner's minimum cut needs: a round trip and bytes ÷ rate. What is
not affine is here, to score candidates with once they are few.
"""

from __future__ import annotations

from collections.abc import Sequence

#: Bytes of an INFER and a RESULT frame around their tensors' entries and bytes, by docs/wire-format.md: prefix, then
#: the header's fixed part (a segment's number below 128) or the server's times. tests/link/test_link.py holds them, and
#: `entry_nbytes`, to the frames that wire.Packer makes.
REQUEST_NBYTES = 24 + 13
ANSWER_NBYTES = 24 + 64 + 2

#: RFC 6928: the window a connection begins with, in segments; their size on Ethernet with IPv4 and timestamps.
_WINDOW = 10
_SEGMENT_NBYTES = 1448


def entry_nbytes(dtype: str, shape: Sequence[int], nbytes: int, codec: str = "") -> int:
    """Bytes of one tensor's entry in a frame's header, for `nbytes` of it as it travels (MessagePack).

    >>> entry_nbytes("float32", (1, 96, 28, 28), 301_056)
    20
    """
    sizes = [_integer(n) for n in (*shape, nbytes)]
    names = [len(text) + (1 if len(text) < 32 else 2) for text in (dtype, codec)]
    return 1 + (1 if len(shape) < 16 else 3) + sum(sizes) + sum(names)


def _integer(n: int) -> int:
    for limit, size in ((1 << 7, 1), (1 << 8, 2), (1 << 16, 3), (1 << 32, 5)):
        if n < limit:
            return size
    return 9


def unvalidated_slow_start_ms(nbytes: float, mbps: float, rtt_ms: float) -> float:
    """What a message of `nbytes` waits for acknowledgements on a connection that was idle. Not validated on real links.

    After idling for longer than its retransmission time-out, TCP begins anew with ten segments (RFC 2861, RFC 6928)
    and doubles every round trip. The sender stands still in each round whose window is sent before its first
    acknowledgement is back, as long as there is more to send.

    >>> unvalidated_slow_start_ms(14_480, mbps=100, rtt_ms=40)  # fits into the first window
    0.0
    >>> f"{unvalidated_slow_start_ms(150_528, mbps=100, rtt_ms=40):.0f} ms"
    '112 ms'
    """
    window = float(_WINDOW * _SEGMENT_NBYTES)
    waited, sent = 0.0, window
    while sent < nbytes:
        idle = rtt_ms - window * 8e-3 / mbps
        if idle <= 0:
            break
        waited += idle
        window *= 2
        sent += window
    return waited
