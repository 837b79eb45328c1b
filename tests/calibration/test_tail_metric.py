"""The metric of a tail, against tails whose metric is known."""

from __future__ import annotations

import numpy as np
import pytest

from splitpoint.calibration.tail_metric import of_probabilities, passes, samples_worth, tail_metric
from splitpoint.codecs.klt import Klt, learn
from splitpoint.codecs.klt_transform import cosines
from splitpoint.errors import InputError
from splitpoint.tensors import Array, spec_of

SHAPE = (4, 6, 6)
RNG = np.random.default_rng(0)
SAMPLES = [RNG.normal(size=(1, *SHAPE)).astype(np.float32) for _ in range(20)]


def low(features: Array) -> Array:
    """A tail that reads channel 0 well, channel 1 a little, and only what is constant."""
    return np.array([3.0, 0.3, 0, 0]) * features.mean(axis=(0, 2, 3)) * 6


def test_a_linear_tail_has_the_metric_of_its_weights() -> None:
    metric = tail_metric(low, SAMPLES[:3])
    assert metric.shape[1:] == (4, 4)
    # The constant frequency is one of the first group's: bands 0 and up to a 16th of the highest.
    assert np.allclose(np.diag(metric[0]) / metric[0][0, 0], [1, 0.01, 0, 0], atol=1e-3)
    assert np.allclose(metric[-1], 0, atol=1e-9)


def test_rows_of_a_tail_that_mixes_channels() -> None:
    weights = RNG.normal(size=(5, 4))
    basis = np.kron(cosines(6)[0], cosines(6)[0])
    metric = tail_metric(lambda f: weights @ (f.reshape(4, 36) @ basis), SAMPLES[:2])
    assert np.allclose(metric[0] / np.trace(metric[0]), weights.T @ weights / np.trace(weights.T @ weights), atol=1e-3)


def test_distances_of_roots_are_fishers() -> None:
    logits, small = RNG.normal(size=7), 1e-4 * RNG.normal(size=7)
    shares = np.exp(logits) / np.exp(logits).sum()
    moved = np.square(of_probabilities(logits + small) - of_probabilities(logits)).sum()
    assert np.isclose(moved, shares @ np.square(small - shares @ small), rtol=1e-3)


def test_a_codec_with_the_metric_errs_where_the_tail_does_not_look() -> None:
    plain, task = learn(SAMPLES), learn(SAMPLES, tail_metric(low, SAMPLES[:3]))
    errors = []
    for tables in (plain, task):
        klt = Klt("klt:100", tables)
        array = RNG.normal(size=(1, *SHAPE)).astype(np.float32)
        data, _ = klt.encode_within(array, 90)
        errors.append(float(np.square(low(klt.decode(data, spec_of("x", array))) - low(array)).sum()))
    assert errors[1] < errors[0] / 3


@pytest.mark.parametrize("metric", [np.zeros((5, 4, 4)), np.eye(4)[None], np.full((9, 4, 4), np.nan)])
def test_what_is_no_metric_for_a_tensor(metric: Array) -> None:
    with pytest.raises(InputError, match="metric"):
        learn(SAMPLES, metric)


def test_passes_are_counted_and_bounded() -> None:
    told: list[None] = []
    tail_metric(low, SAMPLES[:3], on_pass=lambda: told.append(None))
    assert len(told) == 3 * passes(SHAPE) == 3 * 4 * 3
    assert passes((5,)) == 5, "a vector has one group"
    assert passes((1000, 7, 7)) == 2000, "two bands are two groups"
    assert [samples_worth(shape) for shape in ((80, 14, 14), (400, 7, 7), (1000, 7, 7))] == [10, 5, 0]
