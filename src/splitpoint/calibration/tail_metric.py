"""What a tail's answers are sensitive to, by forward passes alone: a metric for the codec ``klt``.

An error that the answers do not see may be large. For each of some groups of frequencies and each channel, noise is
added to real features, and what it does to the answers is compared between channels: the Gram matrix of these changes
is the tail's metric, seen through that group. With gradients it would take a few backward passes, and a framework that
has them; so it takes channels × groups passes an input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from splitpoint.callbacks import call
from splitpoint.codecs.klt_learn import bands_of
from splitpoint.codecs.klt_tables import check_shape
from splitpoint.codecs.klt_transform import Transform
from splitpoint.tensors import Array

#: Noise, as a share of what coefficients are: about what quantising at 95 % agreement does.
_NOISE = 0.25
#: Up to these shares of the highest band frequencies are one group, and the rest is another.
_GROUPS = (0.06, 0.25)
#: As many passes are enough for one tensor, and from fewer samples than the least nothing is learnt.
_MOST_PASSES, _MOST_SAMPLES, _LEAST_SAMPLES = 6000, 10, 4


def samples_worth(shape: tuple[int, ...]) -> int:
    """From how many features of this shape (without the batch axis) a metric should be learnt; 0 where that would take
    too many passes, which are `passes` each.

    >>> samples_worth((80, 14, 14)), samples_worth((1000, 7, 7))
    (10, 0)
    """
    count = min(_MOST_SAMPLES, _MOST_PASSES // passes(shape))
    return count if count >= _LEAST_SAMPLES else 0


def passes(shape: tuple[int, ...]) -> int:
    """How many forward passes through the tail one sample of this shape takes, beside one without noise."""
    return check_shape(shape)[0] * (int(_groups(bands_of(shape)).max()) + 1)


def _groups(bands: Array) -> Array:
    """int[bands]: the group of each band, without gaps."""
    last = int(bands.max())
    groups = np.searchsorted(np.array(_GROUPS) * last, np.arange(last + 1), side="left")
    return np.unique(groups, return_inverse=True)[1]


def tail_metric(
    answer: Callable[[Array], Array],
    samples: Sequence[Array],
    *,
    seed: int = 0,
    on_pass: Callable[[], None] = lambda: None,
) -> Array:
    """float64[bands, channels, channels]: how far `answer` moves, squared, for an error of one in each coefficient.

    `samples` are features, float32[1, …]; ten of them do. `answer` gives the tail's answer to one as a vector whose
    squared distances matter: an embedding as it is, a classifier's as `of_probabilities`, which makes this Fisher's
    metric.
    """
    shape = samples[0].shape[1:]
    channels, frequencies = check_shape(shape)
    bands = bands_of(shape)
    last, group_of = int(bands.max()), _groups(bands)
    plain = Transform(
        shape, np.zeros(channels, np.float32), bands, np.eye(channels, dtype=np.int8)[None].repeat(last + 1, 0),
        np.ones((last + 1, channels), np.float32),
    )  # fmt: skip
    spread = float(np.sqrt(np.mean([np.square(s - s.mean()).mean() for s in samples])))
    rng = np.random.default_rng(seed)
    groups = np.zeros((int(group_of.max()) + 1, channels, channels))
    ordered = group_of[np.sort(bands, kind="stable")]
    for sample in samples:
        base = answer(sample).reshape(-1).astype(np.float64)
        for group, gram in enumerate(groups):
            its = ordered == group
            noise = rng.choice([-1.0, 1.0], frequencies) * its * (_NOISE * spread)
            moved = np.empty((channels, base.size))
            for c in range(channels):
                coefficients = np.zeros((frequencies, 1, channels), np.float32)
                coefficients[:, 0, c] = noise
                moved[c] = answer(sample + plain.inverse(coefficients)).reshape(-1) - base
                call(on_pass)
            gram += moved @ moved.T / (its.sum() * (_NOISE * spread) ** 2 * len(samples))
    return groups[group_of]


def of_probabilities(logits: Array) -> Array:
    """Twice the square roots of the softmax of `logits`: squared distances between these are Fisher's metric."""
    exponents = np.exp(logits.astype(np.float64) - logits.max())
    roots: Array = 2 * np.sqrt(exponents / exponents.sum())
    return roots
