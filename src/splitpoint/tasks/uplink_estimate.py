"""What many requests at once say of the link they share. Pure: time is an argument.

A request that was handed over behind others waits for them: the time until its last byte is there says how long the
queue was, not how fast the link is. On one connection requests follow each other, so one's bytes begin to flow when
those of the one before have arrived. Connections share the link: where requests of several were on their way at the
same time, only all their bytes over all that time are the link's rate.

>>> seen = Uplink()
>>> for id, connection in ((1, "a"), (2, "a"), (3, "b")):
...     seen.sent(id, connection, 0.0)
>>> seen.answered(1, 0.0, 1.0, 1000)                # one that was alone would say 1000 bytes in 1 s, but b may share it
(0.0, [])
>>> seen.answered(2, 0.0, 2.0, 1000)
(1.0, [])
>>> seen.answered(3, 0.0, 2.0, 1000)
(0.0, [Carried(at=2.0, nbytes=3000, seconds=2.0)])
"""

from __future__ import annotations

from typing import NamedTuple


class Carried(NamedTuple):
    """So many bytes in so many seconds, the last of which arrived `at`."""

    at: float
    nbytes: int
    seconds: float


class _Way(NamedTuple):
    start: float
    end: float
    nbytes: int
    connection: object


class Uplink:
    """When requests were on their way up, and what that says, as soon as nobody else may have shared the link."""

    def __init__(self) -> None:
        self._under_way: dict[int, tuple[object, float]] = {}
        self._arrived: dict[object, float] = {}
        self._done: list[_Way] = []
        self.busy_s = 0.0
        """For how long something was on its way, in all that was told."""

    def sent(self, id: int, connection: object, now: float) -> None:
        """A request that may cross was begun."""
        self._under_way[id] = connection, now

    def dropped(self, id: int) -> list[Carried]:
        """It did not cross, or nobody knows how: (what is known now that was not sure before)."""
        self._under_way.pop(id, None)
        return self._told()

    def answered(self, id: int, ready: float, arrived: float, nbytes: int) -> tuple[float, list[Carried]]:
        """Its first byte could be there at `ready`, its last one was at `arrived`: (when its own bytes began to flow,
        what is known now)."""
        connection, _ = self._under_way.pop(id)
        start = min(max(ready, self._arrived.get(connection, ready)), arrived)
        self._arrived[connection] = max(arrived, self._arrived.get(connection, arrived))
        self._done.append(_Way(start, arrived, nbytes, connection))
        return start, self._told()

    def _told(self) -> list[Carried]:
        found = []
        for together in _clusters(self._done):
            end = max(w.end for w in together)
            connections = {w.connection for w in together}
            open_ones = [c for c, begun in self._under_way.values() if begun < end]
            if any(c not in connections or len(connections) > 1 for c in open_ones):
                continue
            self._done = [w for w in self._done if w not in together]
            start = min(w.start for w in together)
            self.busy_s += end - start
            found.append(Carried(end, sum(w.nbytes for w in together), end - start))
        return found


def _clusters(ways: list[_Way]) -> list[list[_Way]]:
    """Those that overlap, together; those that only follow each other are apart."""
    found: list[list[_Way]] = []
    end = float("-inf")
    for way in sorted(ways, key=lambda w: (w.start, w.end)):
        if way.start < end:
            found[-1].append(way)
        else:
            found.append([way])
        end = max(end, way.end)
    return found
