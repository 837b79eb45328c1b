"""A calibration as a value."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import msgspec

FORMAT = 1


class Quality(msgspec.Struct, frozen=True):
    """How the answers of `inputs` calibration inputs compare with the whole model's on the raw input.

    `agreement` is the share whose top label stays (None for a model that is no classifier); `cosine` the least cosine
    between outputs; `error` the largest difference as a share of the range of the model's own outputs.
    """

    inputs: int
    agreement: float | None
    cosine: float
    error: float

    @property
    def bound(self) -> float:
        """The drop in top-1 agreement that the calibration does not rule out, with 95 % confidence.

        3/n where all n labels stayed (Hanley & Lippman-Hand, 1983: the rule of three), else Clopper and Pearson's
        upper end. 1 where agreement means nothing.
        """
        if self.agreement is None:
            return 1.0
        changed = round((1 - self.agreement) * self.inputs)
        if changed == 0:
            return min(1.0, 3 / self.inputs)
        if changed >= self.inputs:
            return 1.0
        from scipy.special import betaincinv

        return float(betaincinv(changed + 1, self.inputs - changed, 0.95))


class Row(msgspec.Struct, frozen=True):
    """One cut (its place in ``Graph.prefixes()``) with one codec for all tensors that cross and accept it.

    `nbytes` is the median over the inputs of what crosses, tensor by tensor in the order of ``cut.crossing``;
    `most` the largest sum seen.
    """

    prefix: int
    codec: str
    nbytes: tuple[int, ...]
    most: int
    quality: Quality


class Calibration(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """Rows for every calibrated cut × codec of one model. `classifier`: whether top-1 agreement means anything."""

    format: int = FORMAT
    model: str
    fingerprint: str
    inputs: int
    classifier: bool
    output: str
    """The output that was compared."""
    rows: tuple[Row, ...]

    def row(self, prefix: int, codec: str) -> Row | None:
        """What was measured of `codec` at a cut; None if nothing was."""
        return self._by_place.get((prefix, codec))

    @cached_property
    def _by_place(self) -> Mapping[tuple[int, str], Row]:
        return {(r.prefix, r.codec): r for r in self.rows}
