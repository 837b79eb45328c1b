"""One request, whatever becomes of it."""

from __future__ import annotations

import pytest

from splitpoint.errors import UsageError
from splitpoint.runtime.client.request import check_deadline, check_fallback


@pytest.mark.parametrize("deadline_s", [-1.0, -0.001, float("nan"), float("inf")])
def test_a_deadline_is_a_time(deadline_s: float) -> None:
    with pytest.raises(UsageError, match="a deadline is"):
        check_deadline(deadline_s)


def test_a_fallback_is_one_of_three() -> None:
    with pytest.raises(UsageError, match="error, wait, local, not never"):
        check_fallback("never")
