"""A calibration as a value."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from math import ceil
from typing import Annotated

import msgspec

from splitpoint.documents import AtLeast1, Count, LongLabel, Milliseconds, NotNegative, Share
from splitpoint.errors import UsageError

FORMAT = 1


def needed_inputs(max_drop: float) -> int:
    """How many inputs without a changed label show a drop of at most `max_drop`: the rule of three, 3/n.

    >>> needed_inputs(0.01), needed_inputs(0.03)
    (300, 100)

    UsageError for 0 or less, which no number of inputs shows.
    """
    if not max_drop > 0:
        raise UsageError(f"no number of inputs shows a drop of {max_drop:g}: use codecs that lose nothing")
    inputs = ceil(3 / max_drop)
    return inputs if inputs == 1 or 3 / (inputs - 1) > max_drop else inputs - 1


class Quality(msgspec.Struct, frozen=True):
    """How the answers of `inputs` calibration inputs compare with the whole model's on the raw input.

    `agreement` is the mean of the calibration's measure, for a classifier the share whose top label stays (None where
    nothing says what to measure); `cosine` the least cosine between outputs; `error` the largest difference as a share
    of the range of the model's own outputs. `least` is the lower end of the agreement (95 % confidence, by bootstrap)
    where a measure knows more than same and other; `accuracy` the share of right labels.
    """

    inputs: AtLeast1
    agreement: Share | None
    cosine: Annotated[float, msgspec.Meta(ge=-1.001, le=1.001)]
    error: NotNegative
    least: Share | None = None
    accuracy: Share | None = None

    @property
    def bound(self) -> float:
        """The drop in agreement that the calibration does not rule out, with 95 % confidence.

        Of labels: 3/n where all n stayed (Hanley & Lippman-Hand, 1983: the rule of three), else Clopper and Pearson's
        upper end. 1 where agreement means nothing.
        """
        if self.agreement is None:
            return 1.0
        if self.least is not None:
            return 1.0 - self.least
        changed = round((1 - self.agreement) * self.inputs)
        if changed == 0:
            return min(1.0, 3 / self.inputs)
        if changed >= self.inputs:
            return 1.0
        from scipy.special import betaincinv

        return float(betaincinv(changed + 1, self.inputs - changed, 0.95))


class CalibrationRow(msgspec.Struct, frozen=True):
    """One cut (its place in ``Graph.prefixes()``) with one codec for all tensors that cross and accept it.

    `nbytes` is the median over the inputs of what crosses, tensor by tensor in the order of ``cut.crossing``;
    `most` the largest sum seen; `encode_ms` and `decode_ms` are the median times of coding all of it, on the machine
    that calibrated.
    """

    prefix: Count
    codec: str
    nbytes: tuple[Count, ...]
    most: Count
    quality: Quality
    encode_ms: Milliseconds = 0.0
    decode_ms: Milliseconds = 0.0


class TensorTables(msgspec.Struct, frozen=True):
    """What a codec that is calibrated was taught of one tensor: `data` are the tables' bytes (`codecs.klt`)."""

    tensor: LongLabel
    data: bytes


class Calibration(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """Rows for every calibrated cut × codec of one model. `classifier`: whether agreement is that of top labels."""

    format: int = FORMAT
    model: LongLabel
    fingerprint: LongLabel
    inputs: AtLeast1
    classifier: bool
    output: LongLabel
    """The output that was compared."""
    measure: LongLabel = ""
    """What agreement is the mean of (`calibration.measures`), if not of top labels that stay."""
    accuracy: Share | None = None
    """The share of the inputs that the whole model is right about, where their labels were given."""
    rows: Annotated[tuple[CalibrationRow, ...], msgspec.Meta(min_length=1)]
    tables: tuple[TensorTables, ...] = ()
    """Each tensor once, whichever cuts it crosses at."""

    @property
    def judged(self) -> bool:
        """Whether its rows have an agreement."""
        return self.classifier or bool(self.measure)

    def row(self, prefix: int, codec: str) -> CalibrationRow | None:
        """What was measured of `codec` at a cut; None if nothing was."""
        return self._by_place.get((prefix, codec))

    @cached_property
    def _by_place(self) -> Mapping[tuple[int, str], CalibrationRow]:
        return {(r.prefix, r.codec): r for r in self.rows}
