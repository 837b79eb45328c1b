"""What a machine takes for a codec, by its profile."""

from __future__ import annotations

import msgspec
import pytest
from planning_cases import pair
from plans import FOUR_G
from split_cases import (
    coded,
    graph_of,
    split_of,
)

from splitpoint.errors import InputError
from splitpoint.planning.constraints import Constraints
from splitpoint.planning.planner import plan


def test_a_codec_without_times_is_refused() -> None:
    edge, cloud = pair()
    with pytest.raises(InputError, match="the device's profile has no times for the codec int8"):
        plan(None, (msgspec.structs.replace(edge, codecs={}), cloud), FOUR_G, constraints=Constraints(codecs=("int8",)))


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
