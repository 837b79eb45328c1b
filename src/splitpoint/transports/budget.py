"""What others may take in a time: so much at once, and then as it comes back."""

from __future__ import annotations


class Budget:
    """At most `most` at once, of which `per_s` come back in a second. Pure: the caller says what time it is, and holds
    a lock.

    >>> budget = Budget(most=2.0, per_s=0.5)
    >>> budget.take(2.0, now_s=0.0), budget.take(1.0, now_s=0.0), budget.take(1.0, now_s=2.0)
    (0.0, 2.0, 0.0)
    """

    def __init__(self, most: float, per_s: float) -> None:
        self._most, self._per_s = most, per_s
        self._left, self._then_s = most, 0.0

    def take(self, amount: float, now_s: float) -> float:
        """0.0 if `amount` is left, which is taken; else in how many seconds it will be."""
        self._left = min(self._most, self._left + max(0.0, now_s - self._then_s) * self._per_s)
        self._then_s = now_s
        if amount <= self._left:
            self._left -= amount
            return 0.0
        return (amount - self._left) / self._per_s

    def spend(self, amount: float) -> None:
        """Takes `amount`, which was known afterwards only, whether it is left or not."""
        self._left -= amount
