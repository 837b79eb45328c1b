"""What goes wrong, and when: schedules."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import hypothesis.strategies as st
import pytest
from hypothesis import given

from splitpoint.errors import UsageError
from splitpoint.lab import faults
from splitpoint.lab.faults import KINDS, schedule


@given(
    st.integers(0, 1000),
    st.integers(1, 3000),
    st.sets(st.sampled_from(list(KINDS)), min_size=1).map(sorted),
)
def test_a_schedule_is_a_function_of_its_seed_and_within_bounds(seed: int, count: int, kinds: list[str]) -> None:
    planned = schedule(seed, count, kinds=kinds, gap=(20, 60))
    assert planned == schedule(seed, count, kinds=kinds, gap=(20, 60))
    at = [0, *(f.request for f in planned)]
    assert all(20 <= b - a <= 60 for a, b in pairwise(at))
    assert at[-1] <= max(0, count - 20)
    assert len(planned) >= (count - 20) // 60
    found = Counter(f.do for f in planned)
    assert max(found.values(), default=0) - min((found[k] for k in kinds), default=0) <= 1  # in turns
    for fault in planned:
        assert fault.do in kinds
        assert 0 <= fault.seconds <= KINDS[fault.do][2]
        assert bool(fault.direction) == (fault.do == "mid-frame" or fault.do.startswith("corrupt"))


def test_schedules_differ_by_seed_and_have_every_kind() -> None:
    assert schedule(1, 2000) != schedule(2, 2000)
    assert {f.do for f in schedule(1, 2000)} == set(KINDS)
    for wrong, said in ((("kil",), "did you mean kill"), ((), "needs a kind of fault")):
        with pytest.raises(UsageError, match=said):
            schedule(1, 100, kinds=wrong)
    with pytest.raises(UsageError, match="a gap of one request at least"):
        schedule(1, 100, gap=(0, 5))


def test_every_kind_has_a_line_for_people() -> None:
    for about, least, most in faults.KINDS.values():
        assert about
        assert 0 <= least <= most
