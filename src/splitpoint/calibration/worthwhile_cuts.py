"""The cuts that are worth a calibration: those that a plan could ever choose for what they send.

An early cut that sends no more than a later one always wins against it: the device computes less. So of all cuts only
those matter that send less than every cut before them, and in front of which work is left. Bytes are not known before
anything is calibrated; how many values cross is, and with one codec bytes go with them.
"""

from __future__ import annotations

from math import inf, prod

from splitpoint.codecs import open_codec
from splitpoint.graph import Cut, Graph

#: A share of the FLOPs that is next to nothing: less behind a cut is not worth sending it, and less between two cuts
#: does not part them.
_LITTLE = 0.005


def worthwhile(graph: Graph) -> list[Cut]:
    """The input, and of the single-tensor cuts (`Graph.chain`) those with fewer values than all before them.

    Where the input is a picture they must have fewer than that, too, because pictures have codecs of their own.
    Of cuts with the same shape and hardly any work between them (before and behind an activation) it is the last.
    """
    first, *others = graph.chain()
    flops = [node.flops for node in graph.nodes]
    whole = sum(flops)
    kept, depth = [first], 0
    least = _values(first) if any(map(open_codec("jpeg:90").accepts, first.crossing)) else inf
    for cut in others:
        count, before = _values(cut), sum(flops[i] for i in cut.nodes)
        if not cut.crossing or whole - before < _LITTLE * whole:
            continue
        if count < least:
            kept.append(cut)
            least, depth = count, before
        elif len(kept) > 1 and _shapes(cut) == _shapes(kept[-1]) and before - depth <= _LITTLE * whole:
            kept[-1] = cut
    return kept


def _values(cut: Cut) -> int:
    """How many cross, free dimensions taken as one."""
    return sum(prod(n if isinstance(n, int) else 1 for n in t.shape) for t in cut.crossing)


def _shapes(cut: Cut) -> list[tuple[int | str, ...]]:
    return [t.shape for t in cut.crossing]
