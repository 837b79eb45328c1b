"""What a machine takes for a codec, by its profile."""

from __future__ import annotations

import msgspec
import pytest
from planning_cases import LENET, pair, planned
from plans import FOUR_G, calibration, model_of
from split_cases import (
    coded,
    graph_of,
    profile_of,
    split_of,
)

from splitpoint.errors import InputError
from splitpoint.planning.constraints import Constraints
from splitpoint.planning.hosts import Host, check_same_model
from splitpoint.planning.planner import plan


def test_a_codec_without_times_is_refused() -> None:
    edge, cloud = pair()
    with pytest.raises(InputError, match="the device's profile has no times for the codec int8"):
        plan(None, (msgspec.structs.replace(edge, codecs={}), cloud), FOUR_G, constraints=Constraints(codecs=("int8",)))


def test_a_codec_with_tables_needs_a_calibration() -> None:
    with pytest.raises(InputError, match="nothing says what klt:60 takes: give a calibration"):
        plan(None, pair(), FOUR_G, constraints=Constraints(codecs=("klt:60",)))


def test_other_jpeg_qualities_take_the_times_of_the_nearest() -> None:
    graph = graph_of("zoo:lenet5")
    split = split_of(graph, codecs=("jpeg:75",))
    t = [t.name for t in split.costs.steps.tensors].index("image")
    assert split.costs.codecs == ("raw", "jpeg:75")
    assert split.costs.tables[0].encode_ms[t, 1] == pytest.approx(
        coded(split.costs.hosts[0].profile, "jpeg:90", "encode", 1024)
    )


def test_a_host_without_times_for_a_codec_is_refused() -> None:
    graph = graph_of("zoo:lenet5")
    with pytest.raises(InputError, match="the device's profile has no times for the codec int4"):
        split_of(graph, codecs=("int4",))


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
        check_same_model(graph, (Host("device", profile_of(graph, 1, 1.0)), Host("server", other)), None)
