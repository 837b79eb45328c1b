"""Bytes changed on purpose: which of those that pass, and how. Pure.

>>> damage = Damage(Random(0))
>>> damage.order(after_nbytes=1, count=2)
>>> bytes(damage.passed(b"aa")), bytes(damage.passed(b"aaa")), damage.nbytes
(b'a!', b'!aa', 2)
"""

from __future__ import annotations

from random import Random


class Damage:
    """Flips one bit of each of some bytes; `random` chooses it. `nbytes` were changed so far."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._after = self._left = 0
        self.nbytes = 0

    def order(self, after_nbytes: int, count: int) -> None:
        """Changes `count` bytes once `after_nbytes` more have passed, and nothing else that was ordered before."""
        self._after, self._left = after_nbytes, count

    def passed(self, data: bytes) -> bytes:
        """`data` as it arrives."""
        if not self._left:
            return data
        first = min(self._after, len(data))
        end = min(first + self._left, len(data))
        self._after -= first
        if first == end:
            return data
        changed = bytearray(data)
        for k in range(first, end):
            changed[k] ^= 1 << self._random.randrange(8)
        self._left -= end - first
        self.nbytes += end - first
        return bytes(changed)
