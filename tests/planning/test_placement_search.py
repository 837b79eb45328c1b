"""The best of all placements under constraints, and its bound."""

from __future__ import annotations

import msgspec
from planning_cases import LENET, pair, parts, planned, worth
from plans import model_of, profile

from splitpoint.link import Link
from splitpoint.planning.constraints import Constraints
from splitpoint.planning.planner import plan
from splitpoint.profile.profiles import CodecCost, Profile, Stat


def test_a_deadline_and_the_least_server_time_are_held_together() -> None:
    free = planned(objective="server-time")
    assert free.best.kind == "device"
    tight = planned(Link(50, 50, 5), objective="server-time", deadline_ms=60.0)
    assert tight.best.kind == "split"
    assert tight.best.total.high <= 60
    edge, cloud = pair()
    link = Link(50, 50, 5)
    for p, cut in enumerate(edge.graph.prefixes()):
        found = parts(edge, cloud, cut, ("raw",) * len(cut.crossing), link)
        if worth(found, "latency") < 50:
            assert worth(found, "server-time") >= tight.best.stages["server"].ms - 1e-9, p


def test_a_streams_bound_counts_the_servers_own_overhead_and_coding() -> None:
    """Milliseconds that every call takes on either side, and codecs that take as long: no gap comes of them."""
    graph = model_of(LENET).graph

    def with_overhead(found: Profile) -> Profile:
        def more(stat: Stat | None) -> Stat | None:
            return None if stat is None else Stat(stat.median + 0.25, stat.p10 + 0.25, stat.p90 + 0.25, stat.count)

        segments = tuple(
            msgspec.structs.replace(s, head=more(s.head), tail=more(s.tail)) for s in found.segments
        )  # fmt: skip
        codecs = {"int8": CodecCost(0.1, 2.0, 0.1, 1.5)}
        return msgspec.structs.replace(found, segments=segments, whole=more(found.whole), codecs=codecs)

    both = with_overhead(profile(graph, 0.13)), with_overhead(profile(graph, 0.13))
    for link in (Link(19862, 18000, 0.06), Link(60, 60, 1), Link(8, 8, 1)):
        found = plan(None, both, link, objective="throughput", constraints=Constraints(codecs=("int8",)))
        assert found.gap < 0.03, link
