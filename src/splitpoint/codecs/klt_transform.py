"""The transform of the codec ``klt``: cosines over positions, then a rotation of the channels for each band.

Everything is a product of matrices over whole batches, laid out so that none has to be transposed in memory.
"""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise
from math import isqrt, prod

import numpy as np

from splitpoint.codecs.klt_tables import KltTables, axes_of
from splitpoint.errors import InputError
from splitpoint.tensors import Array

#: No component is so small in the channels that it takes more steps for one.
_STEEPEST = 1 << 16


def cosines(size: int) -> Array:
    """float32[size, size]: the orthonormal DCT-II (Ahmed, Natarajan & Rao, 1974); a row is a frequency."""
    k, n = np.mgrid[:size, :size]
    rows = np.sqrt(2 / size) * np.cos(np.pi * k * (2 * n + 1) / (2 * size))
    rows[0] = np.sqrt(1 / size)
    basis: Array = rows.astype(np.float32)
    return basis


def radial_bands(positions: tuple[int, ...], most: int) -> Array:
    """uint8[frequencies]: the distance of each frequency from the constant one, rounded, in at most `most` bands.

    The shorter axis is stretched to the longer. Where there would be more bands, neighbours are one.

    >>> radial_bands((3, 3), 255)
    array([0, 1, 2, 1, 1, 2, 2, 2, 3], dtype=uint8)
    """
    area, longest = prod(positions), max(positions, default=1)
    squares = np.zeros(1, object)
    for size in positions:
        along = np.arange(size).astype(object) * longest * (area // size)  # beyond 64 bits for long ones
        squares = (squares[:, None] + along**2).reshape(-1)
    # Rounded in whole numbers, so that every machine agrees.
    radii = [(isqrt(4 * int(s)) // area + 1) // 2 for s in squares]
    bands = max(radii) + 1
    return np.array([r * min(bands, most) // bands for r in radii], np.uint8)


class Transform:
    """Tensors ↔ coefficients float32[frequencies, batch, channels], the frequencies in the order of their bands."""

    def __init__(self, shape: tuple[int, ...], mean: Array, bands: Array, matrices: Array, units: Array) -> None:
        self.mean, self.bands, self.matrices, self.units = mean, bands, matrices, units
        self._shape = shape
        self._tokens = len(shape) == 2
        self._channels, positions = axes_of(shape)
        self._axes = [cosines(n) for n in positions]
        self._constant = mean * np.float32(np.sqrt(bands.size))
        self.by_band = np.argsort(bands, kind="stable")
        """The frequencies, band by band."""
        self._natural = np.argsort(self.by_band)
        ends = np.cumsum(np.bincount(bands, minlength=len(matrices)))
        self._bands = [slice(start, stop) for start, stop in pairwise([0, *ends.tolist()])]

    @classmethod
    def of(cls, tables: KltTables) -> Transform:
        return cls(tables.shape, tables.mean, tables.bands, tables.matrices, tables.units)

    @cached_property
    def _synthesis(self) -> Array:
        return self.matrices * self.units[..., None]

    @cached_property
    def _analysis(self) -> Array:
        """float32[bands, channels, channels]; InputError for matrices without an inverse, which no calibration has."""
        try:
            inverse = np.linalg.inv(self._synthesis.astype(np.float64)).astype(np.float32)
        except np.linalg.LinAlgError:
            inverse = np.full(1, np.nan)
        if not (np.abs(inverse) < _STEEPEST).all():
            raise InputError("the codec tables hold a matrix that cannot be inverted: nothing can be encoded with them")
        return inverse

    def frequencies(self, batch: Array) -> Array:
        """float32[frequencies, batch, channels] of `batch`, float32[batch, …]: cosines, and the mean taken out."""
        count = len(batch)
        if self._tokens:
            flat = batch.transpose(1, 0, 2).reshape(self._shape[0], -1)
            out: Array = self._axes[0] @ flat
        else:
            # [batch, channel, row, column] → [v, batch, channel, row] → [u, v, batch, channel]
            out = batch.reshape(-1)
            for axis in reversed(self._axes):
                out = axis @ out.reshape(-1, len(axis)).T
        out = out.reshape(-1, count, self._channels)
        if not self._axes:
            out = out.copy()  # so far it is the tensor's own memory
        out[0] -= self._constant
        return out

    def forward(self, batch: Array) -> Array:
        """The coefficients of `batch`, float32[batch, …]."""
        plain = self.frequencies(batch).take(self.by_band, axis=0)
        out = np.empty_like(plain)
        for rows, matrix in zip(self._bands, self._analysis, strict=True):
            np.matmul(_flat(plain[rows]), matrix, out=_flat(out[rows]))
        return out

    def inverse(self, coefficients: Array) -> Array:
        """float32[batch, …] of coefficients; they are changed."""
        count = coefficients.shape[1]
        plain = np.empty_like(coefficients)
        for rows, matrix in zip(self._bands, self._synthesis, strict=True):
            np.matmul(_flat(coefficients[rows]), matrix, out=_flat(plain[rows]))
        out = plain.take(self._natural, axis=0)
        out[0] += self._constant
        if self._tokens:
            out = self._axes[0].T @ out.reshape(self._shape[0], -1)
            return np.ascontiguousarray(out.reshape(self._shape[0], count, self._channels).transpose(1, 0, 2))
        for axis in self._axes:
            out = out.reshape(len(axis), -1).T @ axis
        return out.reshape(count, *self._shape)


def _flat(array: Array) -> Array:
    return array.reshape(-1, array.shape[-1])
