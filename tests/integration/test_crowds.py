"""More edges than a server can serve: they take work back, and nothing collapses. In virtual time, seeded."""

from __future__ import annotations

import pytest
import virtual
from virtual import Network, Runner, World, always

#: Answers a second of a server and of a device.
SERVER, DEVICE = 20.0, 2.5


SECONDS, FROM_S = 20.0, 10.0


def crowd(count: int, period_s: float) -> tuple[float, float]:
    """Answers a second of `count` edges that adapt, once they have settled; and those that the server computed."""
    world = World(count)
    plan = virtual.planner(1000 / DEVICE, 1000 / SERVER)
    edges = [Runner(world, Network(always(50)), plan, seed=k, period_s=period_s) for k in range(count)]
    world.run(SECONDS)
    done = [d for e in edges for d in e.done if FROM_S <= d.began_s + d.ms * 1e-3 < SECONDS]
    there = [d for d in done if d.label.startswith("all on the server") and not d.late]
    return len(done) / (SECONDS - FROM_S), len(there) / (SECONDS - FROM_S)


@pytest.mark.parametrize(("period_s", "counts"), [(0.0, (2, 6, 16)), (0.5, (10, 24))])
def test_edges_beyond_what_saturates_a_server_take_work_back_and_no_fewer_are_answered(
    period_s: float, counts: tuple[int, ...]
) -> None:
    """Back to back, two edges are as much as the server can do; with a camera's two requests a second, ten."""
    rates = [crowd(count, period_s) for count in counts]
    peak = 0.0
    for rate, _ in rates:
        peak = max(peak, rate)
        assert rate >= 0.9 * peak
    total, there = rates[-1]
    assert total > 1.2 * there > 0, "some is taken back, not all"
