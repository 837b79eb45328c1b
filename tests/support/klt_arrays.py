"""Tensors like a network's features, and tables for them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import prod

import numpy as np

from splitpoint.codecs.klt_learn import learn
from splitpoint.codecs.klt_tables import KltTables
from splitpoint.errors import InputError
from splitpoint.tensors import Array

#: Feature maps, of which one is wide; tokens; a vector.
SHAPES = ((12, 6, 6), (5, 4, 9), (16, 10), (24,))


def like_features(shape: tuple[int, ...], count: int, seed: int = 0) -> Array:
    """float32[count, *shape]: channels that go together, positions that go together, some examples livelier."""
    mixing = np.random.default_rng(99).normal(size=(64, 64)) * 0.7 ** np.arange(64)[:, None]
    rng = np.random.default_rng(seed)
    channels = shape[-1] if len(shape) == 2 else shape[0]
    positions = prod(shape) // channels
    smooth = np.cumsum(rng.normal(size=(count, positions, 64)), axis=1) / np.sqrt(positions)
    values = smooth @ mixing[:, :channels] + 0.1 * rng.normal(size=(count, positions, channels)) + 3
    values *= rng.uniform(0.5, 2, (count, 1, 1))
    if len(shape) != 2:
        values = values.transpose(0, 2, 1)
    return values.reshape(count, *shape).astype(np.float32)


@cache
def tables_for(shape: tuple[int, ...]) -> KltTables:
    return learn([like_features(shape, 40)])


def refusal(action: Callable[[], object]) -> str:
    """What `action` is refused with, and empty if it is not; any other exception than InputError goes through."""
    try:
        action()
    except InputError as exc:
        return str(exc)
    return ""
