"""A calibration as a value."""

from __future__ import annotations

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
        """The drop in top-1 agreement that the calibration does not rule out (95 %; Clopper–Pearson's upper end,
        which is about 3/n where nothing disagreed)."""
        raise NotImplementedError


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


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """Rows for every calibrated cut × codec of one model. `classifier`: whether top-1 agreement means anything."""

    format: int = FORMAT
    model: str
    fingerprint: str
    inputs: int
    classifier: bool
    output: str
    """The output that was compared."""
    rows: tuple[Row, ...]
