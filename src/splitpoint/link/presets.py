"""Links by name.

The rates up of cat1, 3g, 4g and wifi are those of the DADS paper (INFOCOM 2019), which most partitioning papers since
compare on; wifi5 and lan, all round trips and all rates down are ours. Mobile networks give more down than up:
four times for cat1, 3g and 4g (rounded). The others carry both ways alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import log
from types import MappingProxyType

from splitpoint.link import Link

#: Name → link, the slowest first.
PRESETS: Mapping[str, Link] = MappingProxyType(
    {
        name: Link(up, down, rtt, 0.0, name)
        for name, up, down, rtt in (
            ("cat1", 0.13, 0.5, 100.0),
            ("3g", 1.1, 4.0, 60.0),
            ("4g", 5.85, 20.0, 40.0),
            ("wifi", 18.88, 18.88, 10.0),
            ("wifi5", 100.0, 100.0, 3.0),
            ("lan", 1000.0, 1000.0, 0.3),
        )
    }
)


def nearest_preset(link: Link) -> str:
    """The preset whose rate up is nearest, as a factor.

    >>> nearest_preset(Link(7, 7, 20))
    '4g'
    """
    return min(PRESETS, key=lambda name: abs(log(PRESETS[name].up_mbps / link.up_mbps)))
