"""Tables for the codec ``klt`` from what a tensor was in some forward passes: nothing is trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from splitpoint.codecs.klt_symbols import DIGITS
from splitpoint.codecs.klt_tables import (
    GROUPS,
    LOWEST_CLASS,
    TOP_CLASS,
    KltTables,
    axes_of,
    check_shape,
    step_of,
)
from splitpoint.codecs.klt_transform import Transform, radial_bands
from splitpoint.codecs.prefix_codes import SYMBOLS, code_lengths
from splitpoint.errors import InputError
from splitpoint.tensors import Array

#: Fewer say nothing of what the next one is like.
LEAST_SAMPLES = 8
#: More bands gain 0.1 % of the bytes. And bytes that the matrices have in all: bands are joined until they do.
MOST_BANDS, _MOST_MATRICES = 10, 2 << 20
#: Bits of a value that no symbol expresses: its index and itself.
_PATCH_BITS = 24.0
#: Codes are learned from about so many coefficients, at these distances from the middle step.
_LEARNED_FROM = 4 << 20
_LEARNED_AT = range(-50, 83, 6)
#: What a histogram begins with: so many symbols of independent values, distributed as Laplace's.
_PRIOR = 64.0
#: A band's neighbours count as so many vectors for each channel.
_STEADY = 64
#: Added to a metric's diagonal, as a share of its mean.
_RIDGE = 0.3


# A product of finite numbers may be reported as invalid, for lanes that BLAS computes and throws away.
@np.errstate(invalid="ignore")
def learn(samples: Iterable[Array], metric: Array | None = None) -> KltTables:
    """Tables for tensors like `samples`, float[batch, …] each, as a network gives them.

    Goes over the samples three times (what can be gone over only once is kept): for the mean and the bands'
    covariances, for the scales, for the codes. Some ten to a hundred different examples do.
    With `metric`, float[bands, channels, channels] (see `bands_of`), steps are equal in what an error weighs there,
    not in the tensor's own values.
    InputError for fewer than 8 examples, for such as are all alike, not finite or of different shapes, and for tensors
    that no tables are made for.
    """
    batches = list(samples) if isinstance(samples, Iterator) else samples
    shape, transform = _rotation(batches, metric)
    count = sum(len(b) for b in batches)
    magnitudes = np.zeros((transform.by_band.size, axes_of(shape)[0]))
    squares = 0.0
    for batch in _checked(batches, shape):
        coefficients = transform.forward(batch)
        magnitudes += np.abs(coefficients).sum(axis=1)
        squares += float(np.square(coefficients, dtype=np.float64).sum())
    places = np.rint(8 * np.log2(np.maximum(magnitudes / count, 1e-30)))
    exponent = int(places.max()) - 255
    scales = np.clip(places - exponent, 0, 255).astype(np.uint8)
    # Level 50 is a step of half the root mean square: near 95 to 98 % agreement (bench.klt).
    middle = round(16 * np.log2(np.sqrt(squares / (count * scales.size)) / 2))
    statistics = _Statistics(scales, exponent)
    every = -(-count * scales.size // _LEARNED_FROM)
    seen = 0
    for batch in _checked(batches, shape):
        chosen = batch[-seen % every :: every]
        seen += len(batch)
        if len(chosen):
            statistics.add(transform.forward(chosen), middle)
    lowest, groupings, lengths = statistics.codes()
    natural = np.empty_like(scales)
    natural[transform.by_band] = scales
    tables = KltTables(
        shape, transform.mean, transform.bands, transform.matrices, transform.units, natural, exponent, middle, lowest,
        groupings, statistics.centroids(lowest), lengths,
    )  # fmt: skip
    tables.check()
    return tables


def _checked(batches: Iterable[Array], shape: tuple[int, ...] | None) -> Iterator[Array]:
    """The batches as float32; InputError for one that is not of `shape`, or not finite."""
    for batch in batches:
        batch = np.asarray(batch)
        if batch.dtype.kind != "f" or batch.ndim < 2 or (shape and batch.shape[1:] != shape):
            of = f", after some of [batch,{','.join(map(str, shape))}]" if shape else ""
            raise InputError(
                f"codec tables are made from float tensors [batch, …] of one shape: {batch.dtype}"
                f"[{','.join(map(str, batch.shape))}] came{of}"
            )
        batch = batch.astype(np.float32)
        if not np.isfinite(batch).all():
            raise InputError("a sample for codec tables holds NaN or infinite values: leave it out")
        shape = batch.shape[1:]
        yield batch


def bands_of(shape: tuple[int, ...]) -> Array:
    """uint8[frequencies]: the bands that tables for such an example have, as many as the matrices have room for."""
    channels, _ = check_shape(shape)
    return radial_bands(axes_of(shape)[1], min(MOST_BANDS, max(1, _MOST_MATRICES // channels**2)))


def _rotation(batches: Iterable[Array], metric: Array | None) -> tuple[tuple[int, ...], Transform]:
    """(the shape of one example, its transform): the mean, and each band's components."""
    shape: tuple[int, ...] = ()
    first = np.zeros(0)
    alike, count = True, 0
    for batch in _checked(batches, None):
        if not count:
            shape, first = batch.shape[1:], batch[:1]
            channels, frequencies = check_shape(shape)
            bands = bands_of(shape)
            rows = [np.flatnonzero(bands == b) for b in range(int(bands.max()) + 1)]
            moments, sums = np.zeros((len(rows), channels, channels)), np.zeros(channels)
            plain = Transform(shape, np.zeros(channels, np.float32), bands, moments, sums)
        cosines = plain.frequencies(batch)
        sums += cosines[0].sum(axis=0, dtype=np.float64)
        for moment, its in zip(moments, rows, strict=True):
            values = cosines[its].reshape(-1, channels).astype(np.float64)
            moment += values.T @ values
        alike = alike and bool((batch == first).all())
        count += len(batch)
    if count < LEAST_SAMPLES:
        raise InputError(f"codec tables need at least {LEAST_SAMPLES} examples, and better some tens: {count} came")
    if alike:
        raise InputError(f"the {count} examples for codec tables are all alike: take different inputs")
    constant = sums / count
    moments[0] -= count * np.outer(constant, constant)
    moments = _steadied(moments, count * np.bincount(bands))
    if metric is None:
        components = np.linalg.eigh(moments)[1].transpose(0, 2, 1)[:, ::-1]
    else:
        components = _components(moments, metric, np.bincount(bands) / frequencies)
    # A component has two signs: the one whose largest number is positive, so that tables repeat.
    largest = np.take_along_axis(components, np.abs(components).argmax(axis=2)[..., None], axis=2)
    units = (np.abs(largest) / 127).astype(np.float32)
    matrices = np.rint(components * np.sign(largest) / units).astype(np.int8)
    return shape, Transform(shape, (constant / np.sqrt(frequencies)).astype(np.float32), bands, matrices, units[..., 0])


def _steadied(moments: Array, counts: Array) -> Array:
    """The bands' moments over their traces, each drawn to those of the bands next to it.

    Low bands have few frequencies, so some tens of examples say little of their covariance; that of the next bands is
    much the same. The nearer and the better known a band is, the more it counts.
    """
    sizes = np.trace(moments, axis1=1, axis2=2)
    shares = moments / np.maximum(sizes, np.finfo(float).tiny)[:, None, None]
    bands = np.arange(len(moments))
    weights = np.exp(-np.abs(bands[:, None] - bands)) * counts * (sizes > 0)
    np.fill_diagonal(weights, 0)
    others = np.maximum(weights.sum(axis=1, keepdims=True), np.finfo(float).tiny)
    neighbours = np.tensordot(weights / others, shares, 1)
    own = (counts / (counts + _STEADY * moments.shape[1]))[:, None, None] if len(moments) > 1 else 1.0
    steadied: Array = own * shares + (1 - own) * neighbours
    return steadied


def _components(moments: Array, metric: Array, shares: Array) -> Array:
    """float64[bands, channels, channels], a row a component: they go apart, and a step of any weighs the same in
    `metric`, which has a mean of 1 over all coefficients. InputError for one of another size, or that is none.
    """
    if metric.shape != moments.shape or not np.isfinite(metric).all():
        raise InputError(f"a metric of shape {metric.shape} does not fit codec tables of {moments.shape}")
    weights = np.trace(metric, axis1=1, axis2=2) / metric.shape[1]
    mean = float(weights @ shares)
    if not mean > 0:
        raise InputError("the metric for codec tables is zero: the answers do not depend on this tensor")
    # What few inputs show of a metric has directions without any weight, which others have.
    ridge = _RIDGE * weights + 1e-3 * mean
    values, vectors = np.linalg.eigh((metric + ridge[:, None, None] * np.eye(metric.shape[1])) / mean)
    roots = np.sqrt(np.maximum(values, 1e-6))[:, None, :]
    root, inverse = ((vectors * r) @ vectors.transpose(0, 2, 1) for r in (roots, 1 / roots))
    turned = np.linalg.eigh(root @ moments @ root)[1].transpose(0, 2, 1)[:, ::-1]
    components: Array = turned @ inverse
    return components


class _Statistics:
    """What symbols the calibration's coefficients make, class by class, at many steps."""

    def __init__(self, scales: Array, exponent: int) -> None:
        flat = scales.reshape(-1)
        self._order = np.argsort(~flat, kind="stable")
        self._sorted = flat[self._order].astype(np.int64)
        self._exponent = exponent
        classes = range(LOWEST_CLASS, TOP_CLASS + 1)
        #: Class → grouping → how often each symbol was, and how often a value was too large for it.
        self._counts = {k: [np.zeros((2 * reach + 1) ** n) for reach, n in GROUPS] for k in classes}
        self._beyond = {k: [0] * len(GROUPS) for k in classes}
        self._offsets = {k: np.zeros((2, 3)) for k in classes}

    def add(self, coefficients: Array, middle: int) -> None:
        batch = coefficients.transpose(1, 0, 2).reshape(coefficients.shape[1], -1)[:, self._order]
        for step in (middle + d for d in _LEARNED_AT):
            classes = (2 * (self._sorted + self._exponent) - step) >> 3
            scaled = batch * np.float32(1 / step_of(step))
            for k in range(max(LOWEST_CLASS, classes[-1]), min(TOP_CLASS, classes[0]) + 1):
                start, stop = np.searchsorted(-classes, [-k, -k + 1])
                if stop > start:
                    self._count(k, scaled[:, start:stop])

    def _count(self, k: int, scaled: Array) -> None:
        values = np.rint(scaled)
        magnitudes = np.abs(values)
        largest = int(magnitudes.max())
        nearer = magnitudes - np.abs(scaled)
        for m in range(3):
            its = magnitudes == m + 1 if m < 2 else magnitudes > 2
            self._offsets[k][:, m] += nearer[its].sum(), np.count_nonzero(its)
        for grouping, (reach, n) in enumerate(GROUPS):
            if not _worth_trying(k, grouping):
                continue
            fitting = values[:, : values.shape[1] // n * n]
            if largest > reach:
                self._beyond[k][grouping] += int(np.count_nonzero(magnitudes > reach))
                fitting = np.where(np.abs(fitting) > reach, np.float32(0), fitting)
            counts = self._counts[k][grouping]
            symbols = (fitting.reshape(-1, n) @ DIGITS[grouping]).astype(np.int64) + counts.size // 2
            counts += np.bincount(symbols, minlength=counts.size)

    def codes(self) -> tuple[int, Array, Array]:
        """(the lowest class worth coding, each class's grouping, its code lengths)."""
        groupings, lengths = [], []
        for k in range(TOP_CLASS, LOWEST_CLASS - 1, -1):
            best = min((self._code(k, g) for g in range(len(GROUPS)) if _worth_trying(k, g)), key=lambda code: code[0])
            bits, uncoded, grouping, code = best
            if uncoded < bits and k < TOP_CLASS - 1:
                break
            groupings.append(grouping)
            lengths.append(code)
        classes = len(groupings)
        every = np.zeros((classes, SYMBOLS), np.uint8)
        for row, code in zip(every, reversed(lengths), strict=True):
            row[: len(code) - 1], row[-1] = code[:-1], code[-1]
        return TOP_CLASS + 1 - classes, np.array(groupings[::-1], np.uint8), every

    def _code(self, k: int, grouping: int) -> tuple[float, float, int, list[int]]:
        """(bits a value, bits if only patches are sent, `grouping`, code lengths) of a class."""
        reach, n = GROUPS[grouping]
        decay = 2.0 ** (k / 2 + 0.25)
        one = np.exp(-np.abs(np.arange(-reach, reach + 1)) / decay)
        if decay < 1:  # mostly zeros: a mean magnitude of `decay`
            one[reach] = 1.0
        prior = one / one.sum()
        for _ in range(n - 1):
            prior = np.outer(prior, one / one.sum()).reshape(-1)
        counts = self._counts[k][grouping] + _PRIOR * prior
        total = counts.sum()
        code = code_lengths([*counts, 1e-9 * total])
        bits = float((counts * code[:-1]).sum() / total) / n
        bits += _PATCH_BITS * self._beyond[k][grouping] / (n * total)
        places = np.arange(counts.size)
        nonzero = sum((places // (2 * reach + 1) ** j % (2 * reach + 1) != reach).astype(float) for j in range(n))
        share = float((counts * nonzero).sum() / total) / n
        return bits, _PATCH_BITS * share, grouping, code

    def centroids(self, lowest: int) -> Array:
        """uint8[classes, 3], as `KltTables` has them."""
        rows = []
        for k in range(lowest, TOP_CLASS + 1):
            sums, counts = self._offsets[k]
            rows.append(np.clip(np.rint(512 * sums / np.maximum(counts, 16)), 0, 255))
        return np.array(rows, np.uint8)


def _worth_trying(k: int, grouping: int) -> bool:
    """Whether a class of a mean magnitude of 2**(k / 2) steps may group so: not all patches, and not a bit too much."""
    reach, n = GROUPS[grouping]
    mean = 2.0 ** (k / 2)
    return n == 1 if k >= TOP_CLASS - 1 else (reach >= 2 * mean and (n > 1 or mean > 0.7))
