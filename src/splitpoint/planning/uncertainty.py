"""How far what no profile has a spread for may be off, so that no row looks more certain than it is.

>>> beside(20.0, 0.25, 0.0), beside(20.0, 0.03, 0.04)
(5.0, 1.0)
"""

from __future__ import annotations

from math import hypot

from splitpoint.link import Link

#: Codecs are timed with made-up tensors of two sizes.
CODEC_SHARE = 0.25
#: Bytes of codecs that depend on the values (JPEG, zstd), where no calibration has measured them.
BYTES_SHARE = 0.25
#: The rate of a link that varies at all, beside its jitter; of one that is given as exact numbers nothing.
_RATE_SHARE = 0.05


def rate_share(link: Link) -> float:
    """How far the rate of `link` may be off, as a share: a link with jitter was measured, one without was made up."""
    return _RATE_SHARE if link.jitter_ms > 0 else 0.0


def beside(value: float, *shares: float) -> float:
    """How far `value` may be off where independent shares of it are unsure."""
    return value * hypot(*shares)
