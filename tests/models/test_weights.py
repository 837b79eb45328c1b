"""Stand-ins for weights that are not there."""

from __future__ import annotations

import numpy as np
import pytest
from profile_cases import quantised

import nets
from nets import ENGINE, load
from splitpoint.errors import (
    StorageError,
)
from splitpoint.models import load as open_model
from splitpoint.segments import samples_for


@pytest.mark.parametrize("name", ["zoo:lenet5", "zoo:efficientnet_lite0", "qdq", "residual"])
def test_stand_ins_run_wherever_the_real_weights_do(name: str) -> None:
    model = open_model(name) if name.startswith("zoo") else quantised() if name == "qdq" else load(nets.residual())
    made = model.with_stand_ins()
    assert made.fingerprint == model.fingerprint
    for digest, blob in model.blobs.items():
        assert made.blob(digest).nbytes == blob.nbytes
    for segment in (made.whole(), made.head(made.graph.middle()), made.tail(made.graph.middle())):
        session = ENGINE.compile(segment)
        feed = samples_for(made, 1)[0] if segment.inputs[0].name == model.inputs[0].name else None
        if feed is not None:
            for value in session.run(feed).values():
                numbers = np.abs(value[np.nonzero(value)]) if value.dtype.kind == "f" else np.zeros(0)
                assert np.isfinite(value).all()
                assert (numbers > 1e-20).all(), "denormals would take ten times as long"
        session.close()


def test_stand_ins_of_integers_are_zero_and_scales_positive() -> None:
    table = np.arange(2000, dtype=np.int64)
    model = load(nets.proto(
        [nets.node("Gather", ["x", "table"], ["g"], name="g", axis=1),
         nets.node("QuantizeLinear", ["g", "scale", "zero"], ["q"], name="q", axis=1),
         nets.node("DequantizeLinear", ["q", "scale", "zero"], ["y"], name="d", axis=1)],
        [nets.value("x", [1, 2000])], [nets.value("y", [1, 2000])],
        [nets.weight("table", table), nets.weight("scale", np.full(2000, 0.1, np.float32)),
         nets.weight("zero", np.full(2000, 3, np.int8))],
    ))  # fmt: skip
    made = model.with_stand_ins()
    blobs = made.whole().initializers
    assert not np.frombuffer(made.blob(blobs["table"]), np.int64).any()
    assert (np.frombuffer(made.blob(blobs["scale"]), np.float32) > 0).all()
    assert not np.frombuffer(made.blob(blobs["zero"]), np.int8).any()
    session = ENGINE.compile(made.whole())
    assert np.isfinite(session.run({"x": np.ones((1, 2000), np.float32)})["y"]).all()
    session.close()
    with pytest.raises(StorageError, match="is not here"):
        made.blob("0" * 64)
