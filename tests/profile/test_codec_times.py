"""What codecs cost on this machine."""

from __future__ import annotations

import msgspec

from splitpoint.models.model import Model
from splitpoint.profile.codec_times import codec_costs


def test_codecs_are_measured_for_tensors_that_cross(lenet: Model) -> None:
    costs = codec_costs(lenet, 0.01)
    assert {"raw", "fp16", "int8", "int4", "int8+zstd", "jpeg:90"} <= costs.keys()
    assert costs["int8"].encode_ms_per_mb > 0
    assert all(ms >= 0 for c in costs.values() for ms in msgspec.structs.astuple(c))
