"""Quantities on a command line."""

from __future__ import annotations

import pytest

from splitpoint.cli.options.quantities import MS, SHARE, SIZE, WATTS
from splitpoint.errors import UsageError
from splitpoint.profile.profiles import Watts


@pytest.mark.parametrize(
    ("text", "nbytes"), [("100MB", 100e6), ("1.5 GiB", 1.5 * 2**30), ("4096", 4096), ("2k", 2000), ("7B", 7)]
)
def test_sizes(text: str, nbytes: float) -> None:
    assert SIZE.parse(text, "--max-work") == nbytes


@pytest.mark.parametrize(("text", "ms"), [("200ms", 200), ("1.5s", 1500), ("2min", 120_000), ("80", 80)])
def test_times(text: str, ms: float) -> None:
    assert MS.parse(text, "--deadline") == ms


def test_shares_and_watts() -> None:
    assert SHARE.convert("1%", None, None) == SHARE.convert("0.01", None, None) == 0.01
    assert WATTS.parse("7,3,2", "--edge-watts") == Watts(7, 3, 2, "given by --edge-watts")
    for text in ("100%", "-1%", "1%%", "", "nan"):
        with pytest.raises(UsageError):
            SHARE.convert(text, None, None)
