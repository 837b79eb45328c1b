"""A plan and its options as values."""

from __future__ import annotations

import msgspec
from planning_cases import planned

from splitpoint.planning.plans import Option


def test_an_option_says_what_it_is() -> None:
    labels = [o.label for o in planned(codecs=("int8",)).options]
    assert labels[:3] == ["all on the edge", "all on the server, raw input", "all on the server, JPEG q90"]
    assert labels[3].startswith("split after ")


def test_options_are_plain_values() -> None:
    assert msgspec.json.decode(msgspec.json.encode(planned().best), type=Option) == planned().best
