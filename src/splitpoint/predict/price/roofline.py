"""What a kernel takes by its FLOPs and bytes alone: for kinds that were never calibrated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from splitpoint.predict.kernels.kernels import Kernel
from splitpoint.predict.learn.latency_model import PredictedTimes, Roofline


def roofline_times(kernels: Sequence[Kernel], device: Roofline) -> PredictedTimes:
    """The longer of computing and moving bytes, for each kernel, and within a factor of the device's spread.

    After Williams, Waterman and Patterson, Roofline (CACM 2009). It says nothing of how well a kernel is written: the
    interval is wide.
    """
    computing = np.array([k.flops for k in kernels], np.float64) / device.flops_per_ms
    moved = np.array([k.in_nbytes + k.out_nbytes + k.weight_nbytes for k in kernels], np.float64)
    ms = np.maximum(np.maximum(computing, moved / device.bytes_per_ms), device.fixed_ms)
    return PredictedTimes(ms, ms / device.spread, ms * device.spread, np.zeros(len(kernels)))
