"""What does not belong together."""

from __future__ import annotations

import msgspec
import pytest
from planning_cases import LENET, pair, planned
from plans import FOUR_G, calibration, model_of
from split_cases import (
    graph_of,
    profile_of,
)

from splitpoint.errors import InputError
from splitpoint.planning.hosts import Host
from splitpoint.planning.planner import plan
from splitpoint.planning.same_model import check


def test_profiles_of_two_models_are_refused() -> None:
    edge, cloud = pair()
    with pytest.raises(InputError, match="both must be of one model"):
        plan(None, (edge, msgspec.structs.replace(cloud, fingerprint="0" * 64)), FOUR_G)
    lenet = pair(LENET)[1]
    with pytest.raises(InputError, match="lenet5"):
        plan(None, (edge, lenet), FOUR_G)


def test_a_graph_of_another_model_is_refused_with_the_missing_node() -> None:
    with pytest.raises(InputError, match=r"profile lacks node .* of lenet5"):
        plan(model_of(LENET).graph, pair(), FOUR_G)


def test_a_profile_with_missing_nodes_is_refused() -> None:
    edge, cloud = pair()
    with pytest.raises(InputError, match="the server's profile has times for 142 nodes"):
        plan(None, (edge, msgspec.structs.replace(cloud, nodes=cloud.nodes[:-1])), FOUR_G)


def test_a_profile_with_a_cut_that_is_not_there_is_refused() -> None:
    edge, cloud = pair()
    segments = (*edge.segments, msgspec.structs.replace(edge.segments[3], prefix=1000))
    with pytest.raises(InputError, match="a cut at prefix 1000"):
        plan(None, (msgspec.structs.replace(edge, segments=segments), cloud), FOUR_G)


def test_a_calibration_of_another_model_is_refused() -> None:
    other = calibration(model_of(LENET), {(3, "int8"): 1.0})
    with pytest.raises(InputError, match="the calibration is of lenet5"):
        planned(calibration=other)


def test_profiles_of_two_models_do_not_belong_together() -> None:
    graph = graph_of("zoo:lenet5")
    other = msgspec.structs.replace(profile_of(graph, 1, 1.0), fingerprint="e" * 64)
    with pytest.raises(InputError, match="both must be of one model"):
        check(graph, (Host("device", profile_of(graph, 1, 1.0)), Host("server", other)), None)
