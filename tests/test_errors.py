"""The tree of errors: each has an exit code of its own, and names that were misspelt are put right."""

from __future__ import annotations

import pytest

from splitpoint import errors
from splitpoint.errors import SplitpointError, nearest

TREE = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, SplitpointError)]


def test_every_error_is_in_the_drawing_of_the_tree() -> None:
    assert [e.__name__ for e in TREE if e.__name__ not in (errors.__doc__ or "")] == []


def test_errors_end_with_a_status_of_their_branch() -> None:
    branches = {e: e.exit_code for e in TREE if e.__base__ is SplitpointError}
    assert len(set(branches.values())) == len(branches)
    for error in TREE:
        for base, code in branches.items():
            if issubclass(error, base):
                assert error.exit_code == code


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("featurs.7", "; did you mean features.7 or features.8?"),
        ("clasifier", "; did you mean classifier?"),
        ("zzz", ""),
        ("features.7" * 200, ""),
    ],
)
def test_the_nearest_name_is_offered(name: str, said: str) -> None:
    assert nearest(name, ["features.7", "features.8", "classifier"]) == said


def test_a_busy_server_says_when_to_come_back() -> None:
    assert errors.BusyError("full", 2.5).retry_after_s == 2.5
