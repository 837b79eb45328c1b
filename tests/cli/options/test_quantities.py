"""Quantities on a command line."""

from __future__ import annotations

import pytest

from splitpoint.cli.options.quantities import BYTES, MS, MS_OR_0, RATE, SECONDS, SHARE, SIZE, WATTS, Quantity
from splitpoint.errors import UsageError
from splitpoint.profile.profiles import Watts


@pytest.mark.parametrize(("text", "nbytes"), [("100MB", 100e6), ("1.5 GiB", 1.5 * 2**30), ("2k", 2000), ("7B", 7)])
def test_sizes(text: str, nbytes: float) -> None:
    assert SIZE.parse(text, "--max-work") == nbytes


@pytest.mark.parametrize(("text", "ms"), [("200ms", 200), ("1.5s", 1500), ("2min", 120_000)])
def test_times(text: str, ms: float) -> None:
    assert MS.parse(text, "--deadline") == ms


@pytest.mark.parametrize(
    ("kind", "text", "could"),
    [
        (MS, "200", "200ms, 200s or 200m"), (SECONDS, " 1.5", "1.5ms, 1.5s or 1.5m"), (MS_OR_0, "3", "3ms, 3s or 3m"),
        (SIZE, "4096", "4096kB, 4096MB or 4096GB"),
    ],
)  # fmt: skip
def test_a_bare_number_that_could_mean_two_things_is_refused(kind: Quantity, text: str, could: str) -> None:
    with pytest.raises(UsageError, match=f"needs its unit: {could}"):
        kind.convert(text, None, None)


def test_a_bare_number_where_the_option_says_what_it_counts() -> None:
    assert BYTES.parse("4096", "--max-bytes") == 4096
    assert RATE.parse("30", "--rate") == 30
    assert MS_OR_0.parse("0", "--max-wait") == 0


def test_shares_and_watts() -> None:
    assert SHARE.convert("1%", None, None) == SHARE.convert("0.01", None, None) == 0.01
    assert WATTS.parse("7,3,2", "--edge-watts") == Watts(7, 3, 2, "given by --edge-watts")
    for text in ("100%", "-1%", "1%%", "", "nan"):
        with pytest.raises(UsageError):
            SHARE.convert(text, None, None)
