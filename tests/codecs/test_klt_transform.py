"""The transform: against its definition, worked out term by term, and back."""

from __future__ import annotations

import numpy as np
import pytest
from klt_arrays import SHAPES, like_features, tables_for

from splitpoint.codecs.klt_transform import Transform, cosines, radial_bands


def test_cosines_are_orthonormal() -> None:
    for size in (1, 2, 7, 14, 56):
        assert np.allclose(cosines(size) @ cosines(size).T, np.eye(size), atol=1e-5)
        assert np.allclose(cosines(size)[0], size**-0.5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_is_what_the_documentation_says(shape: tuple[int, ...]) -> None:
    tables, batch = tables_for(shape), like_features(shape, 3)
    transform = Transform.of(tables)
    if len(shape) == 3:
        plain = np.einsum("uh,vw,bchw->uvbc", *map(cosines, shape[1:]), batch - tables.mean[:, None, None])
    elif len(shape) == 2:
        plain = np.einsum("ut,btc->ubc", cosines(shape[0]), batch - tables.mean)
    else:
        plain = (batch - tables.mean)[None]
    plain = plain.reshape(-1, 3, tables.channels)
    inverse = np.linalg.inv(tables.matrices * tables.units[..., None].astype(float))
    expected = [plain[f] @ inverse[tables.bands[f]] for f in transform.by_band]
    assert np.allclose(transform.forward(batch), expected, atol=1e-3)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_there_and_back(shape: tuple[int, ...]) -> None:
    transform, batch = Transform.of(tables_for(shape)), like_features(shape, 2, seed=1)
    assert np.allclose(transform.inverse(transform.forward(batch)), batch, atol=1e-3)


def test_bands() -> None:
    assert radial_bands((), 9).tolist() == [0]
    assert radial_bands((5,), 255).tolist() == [0, 1, 2, 3, 4]
    assert radial_bands((2, 4), 255).tolist() == [0, 1, 2, 3, 2, 2, 3, 4]
    square = radial_bands((14, 14), 255).reshape(14, 14)
    assert np.array_equal(square, np.rint(np.hypot(*np.mgrid[:14, :14])))
    joined = radial_bands((14, 14), 4)
    assert sorted(set(joined.tolist())) == [0, 1, 2, 3]
    assert (np.diff(joined[np.argsort(square.reshape(-1), kind="stable")].astype(int)) >= 0).all()
