"""Quantities on a command line."""

from __future__ import annotations

import pytest

from splitpoint.cli.options.quantities import parse_ms, parse_share, parse_size, parse_watts
from splitpoint.errors import UsageError
from splitpoint.profile.profiles import Watts


@pytest.mark.parametrize(
    ("text", "nbytes"), [("100MB", 100e6), ("1.5 GiB", 1.5 * 2**30), ("4096", 4096), ("2k", 2000), ("7B", 7)]
)
def test_sizes(text: str, nbytes: float) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize(("text", "ms"), [("200ms", 200), ("1.5s", 1500), ("2min", 120_000), ("80", 80)])
def test_times(text: str, ms: float) -> None:
    assert parse_ms(text, "--deadline") == ms


def test_shares_and_watts() -> None:
    assert parse_share("1%") == parse_share("0.01") == 0.01
    assert parse_watts("7,3,2") == Watts(7, 3, 2, "given by --edge-watts")
    for text in ("100%", "-1%", "1%%", "", "nan"):
        with pytest.raises(UsageError):
            parse_share(text)
