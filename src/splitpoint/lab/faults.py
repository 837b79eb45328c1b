"""What goes wrong, and when: a schedule of faults, drawn from a seed. Pure; `fault_run` makes it happen.

>>> [f.do for f in schedule(seed=4, count=300, gap=(40, 60), kinds=("cut", "pause"))]
['cut', 'pause', 'cut', 'pause']
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from random import Random
from types import MappingProxyType

import msgspec

from splitpoint.errors import UsageError, nearest


class Fault(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something that goes wrong when `request` is about to be asked. `do` is one of `KINDS`.

    `seconds` is how long it lasts: how long the killed server stays away, new connections are refused, and so on.
    `direction`, `after_nbytes` and `count` are those of `Relay.cut` and `Relay.corrupt`.
    """

    request: int
    do: str
    seconds: float = 0.0
    direction: str = ""
    after_nbytes: int = 0
    count: int = 1


#: Kind → what it is, and from how many to how many seconds it lasts.
KINDS: Mapping[str, tuple[str, float, float]] = MappingProxyType(
    {
        "kill": ("the server is killed (SIGKILL) and started again at the same port", 0.0, 1.0),
        "pause": ("the server is stopped (SIGSTOP) and continued", 0.1, 2.0),
        "busy": ("others fill the server's queue", 0.2, 1.5),
        "cut": ("every connection is reset, new ones are refused for a while", 0.0, 1.0),
        "mid-frame": ("every connection is reset in the middle of a request", 0.0, 0.5),
        "stall": ("not a byte arrives, none is lost", 0.1, 1.0),
        "blackhole": ("nothing passes, no end and no reset either", 0.2, 3.0),
        "corrupt-up": ("bits of requests are flipped", 0.0, 0.0),
        "corrupt-down": ("bits of answers are flipped", 0.0, 0.0),
    }
)
#: Bytes that may pass before a connection is cut or a byte is changed: some requests' worth.
_FEW_NBYTES = 40_000
_MOST_CHANGED = 8


def schedule(
    seed: int, count: int, *, kinds: Sequence[str] = tuple(KINDS), gap: tuple[int, int] = (20, 100)
) -> tuple[Fault, ...]:
    """Faults for `count` requests, from `gap[0]` to `gap[1]` requests apart, none in the last `gap[0]`.

    Each kind comes once before any comes again. The same arguments give the same faults. UsageError for a kind that
    there is not.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise UsageError(f"no fault is called {kind}{nearest(kind, KINDS)} (there are: {', '.join(KINDS)})")
    if not kinds or not 0 < gap[0] <= gap[1]:
        raise UsageError("a schedule needs a kind of fault, and a gap of one request at least")
    random = Random(f"faults {seed}")
    faults: list[Fault] = []
    order = _in_turns(kinds, random)
    at = random.randint(*gap)
    while at <= count - gap[0]:
        faults.append(_drawn(next(order), at, random))
        at += random.randint(*gap)
    return tuple(faults)


def _in_turns(kinds: Sequence[str], random: Random) -> Iterator[str]:
    while True:
        yield from random.sample(list(kinds), len(kinds))


def _drawn(kind: str, request: int, random: Random) -> Fault:
    _, least, most = KINDS[kind]
    seconds = round(random.uniform(least, most), 3)
    if kind == "mid-frame":
        return Fault(request, kind, seconds, "up", random.randint(1, _FEW_NBYTES))
    if kind.startswith("corrupt"):
        direction = kind.removeprefix("corrupt-")
        # Answers are small: what comes soon after is changed, or it would be an answer of much later.
        few = _FEW_NBYTES if direction == "up" else _FEW_NBYTES // 20
        return Fault(request, kind, 0.0, direction, random.randrange(few), random.randint(1, _MOST_CHANGED))
    return Fault(request, kind, seconds)
