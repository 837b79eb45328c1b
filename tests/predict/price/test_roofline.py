"""What was never calibrated is priced by FLOPs and bytes."""

from __future__ import annotations

import pytest
from latencies import latency
from plans import model_of
from predicted_nets import LENET, SLOW, width

from splitpoint.predict.kernels.kernels import kernels_of
from splitpoint.predict.learn.latency_model import Roofline
from splitpoint.predict.price.prediction import predict_latency
from splitpoint.predict.price.roofline import roofline_times


def test_what_was_never_calibrated_is_priced_by_flops_and_bytes_and_listed() -> None:
    model, line = model_of(LENET), Roofline(flops_per_ms=4e6, bytes_per_ms=2e6, fixed_ms=0.01, spread=3.0)
    known, found = predict_latency(model, SLOW), predict_latency(model, latency(without=("linear", "avgpool")))
    assert known.uncalibrated == ()
    assert {(u.op, u.kind, u.count) for u in found.uncalibrated} == {
        ("Gemm", "linear", 3),
        ("AveragePool", "avgpool", 2),
    }
    assert sum(u.share for u in found.uncalibrated) < 1
    for cost in found.kernels:
        if cost.kind in ("linear", "avgpool"):
            k = cost.kernel
            ms = max(k.flops / 4e6, (k.in_nbytes + k.out_nbytes + k.weight_nbytes) / 2e6, 0.01)
            assert cost.ms.median == pytest.approx(1.1 * ms)
            assert (cost.ms.p10, cost.ms.p90) == pytest.approx((1.1 * ms / 3, 1.1 * ms * 3))
            assert not cost.calibrated
    assert width(found) > 1.2 * width(known)
    assert roofline_times(kernels_of(model), line).outside.max() == 0
