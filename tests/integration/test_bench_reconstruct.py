"""bench.reconstruct: least squares finds the pixels where they are a linear function of what crosses."""

from __future__ import annotations

import numpy as np
import pytest
from bench.reconstruct import SIZE, Estimate, correlation, psnr

SIDE = 14


def test_pixels_that_are_linear_in_the_tensor_come_back() -> None:
    rng = np.random.default_rng(0)

    def example() -> tuple[np.ndarray, np.ndarray]:
        colours = rng.uniform(0, 255, (3, SIDE, SIDE))
        pixels = colours.repeat(SIZE // SIDE, axis=1).repeat(SIZE // SIDE, axis=2).transpose(1, 2, 0)
        # What crosses: each place's colour, mixed with that of the place to its left.
        return (colours + 0.5 * np.pad(colours, ((0, 0), (0, 0), (1, 0)), mode="edge")[:, :, :-1]) / 255, pixels

    estimate = Estimate()
    estimate.learn(example() for _ in range(20))
    tensor, pixels = example()
    close = estimate.pixels(tensor.astype(np.float32))
    assert close.shape == (SIZE, SIZE, 3)
    assert psnr(pixels, close) > 15
    assert correlation(pixels, close) > 0.95
    assert correlation(pixels, estimate.pixels(example()[0])) < 0.5


def test_measures() -> None:
    picture = np.zeros((SIZE, SIZE, 3))
    picture[:, : SIZE // 2] = 255
    assert psnr(picture, 255 - picture) == pytest.approx(0)
    assert correlation(picture, 255 - picture) == pytest.approx(-1)
