"""The codec for one cut by a calibration alone."""

from __future__ import annotations

import pytest
import virtual
from plans import model_of

from splitpoint.planning.codec_at_cut import at_cut, rows_at
from splitpoint.planning.constraints import Constraints

GRAPH = model_of("zoo:efficientnet_lite0").graph
CUT = GRAPH.cut("blocks.5.project.norm")


@pytest.mark.parametrize(
    ("limits", "codec", "why"),
    [
        (Constraints(agreement=0.95), "klt:42", ""),
        (Constraints(agreement=0.95).bounded, "klt:48", ""),
        (Constraints(max_drop=0.0005), "raw", ""),
        (Constraints(max_bytes=7000), "klt:60", ""),
        (Constraints(max_bytes=1e6), "int8", ""),
        (Constraints(max_bytes=2000), "", "it has up to"),
        (Constraints(agreement=0.95, max_bytes=3500), "", "its agreement is 93 %|it has up to"),
        (Constraints(agreement=0.99, codecs=("klt:60",)), "klt:60", "its agreement is 98.5 %"),
        (Constraints(agreement=0.98, codecs=("klt:60",)), "klt:60", ""),
        (Constraints(agreement=0.98, codecs=("klt:61",)), "klt:61", "nothing was calibrated there"),
    ],
)
def test_it_keeps_to_what_is_asked_for(limits: Constraints, codec: str, why: str) -> None:
    chosen, said = at_cut(virtual.front(), GRAPH, CUT, limits)
    assert chosen == codec
    assert (said == "") == (why == "")
    assert any(said.startswith(one) for one in why.split("|"))


def test_what_crosses_says_which_rows_are_meant() -> None:
    assert {row.prefix for row in rows_at(virtual.front(), GRAPH, CUT)} == {
        next(k for k, cut in enumerate(GRAPH.prefixes()) if cut.name == CUT.name)
    }
    assert rows_at(virtual.front(), GRAPH, GRAPH.cut("blocks.6")) == []
