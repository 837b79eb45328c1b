"""A link that changes with time."""

from __future__ import annotations

from math import inf, nan

import numpy as np
import pytest

from splitpoint.errors import InputError
from splitpoint.link import Link
from splitpoint.link.link_trace import LinkTrace


def test_a_trace_is_a_step_function_whose_last_row_holds() -> None:
    one, two, three = (Link(up, 10, 20) for up in (1, 2, 3))
    trace = LinkTrace((0, 10, 15), (one, two, three))
    assert [trace.at(t) for t in (-5, 0, 9.99, 10, 14, 15, 1e9)] == [one, one, one, two, two, three, three]
    assert trace.duration == 22.5


def test_the_mean_of_a_trace_takes_as_long_as_its_requests_do() -> None:
    links = (Link(8, 1, 10), Link(2, 4, 30), Link(5, 9, 20))
    trace = LinkTrace((0, 4, 6), links)
    moments = np.linspace(0, trace.duration, 9000, endpoint=False)
    taken = np.mean([trace.at(t).transfer_ms(1e5, 1e4) for t in moments])
    assert trace.mean.transfer_ms(1e5, 1e4) == pytest.approx(taken, rel=1e-6)


@pytest.mark.parametrize("times", [(), (0, 0), (0, -1), (1, 2), (0, nan), (0, inf), (0, 1, 2)])
def test_times_of_a_trace_must_rise_from_0(times: tuple[float, ...]) -> None:
    with pytest.raises(InputError):
        LinkTrace(times, (Link(1, 1, 1),) * 2)
