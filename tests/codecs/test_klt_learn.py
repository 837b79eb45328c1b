"""Learning: tables repeat, fit, and are not made of what says nothing."""

from __future__ import annotations

import numpy as np
import pytest
from klt_arrays import SHAPES, like_features, tables_for

from splitpoint.codecs.klt import Klt
from splitpoint.codecs.klt_learn import MOST_BANDS, learn
from splitpoint.codecs.klt_tables import KltTables
from splitpoint.codecs.klt_transform import Transform
from splitpoint.errors import InputError
from splitpoint.tensors import spec_of

MAPS = SHAPES[0]


def test_batches_singles_and_generators_give_the_same_tables() -> None:
    samples = like_features(MAPS, 40)
    wanted = tables_for(MAPS)
    for given in (list(samples[:, None]), (s for s in np.split(samples, 4)), [samples.astype(np.float64)]):
        tables = learn(given)
        assert tables.shape == wanted.shape
        assert np.allclose(tables.mean, wanted.mean, atol=1e-4)
        assert (np.abs(tables.scales.astype(int) - wanted.scales) <= 1).all()
    assert learn([samples]).to_bytes() == wanted.to_bytes()


def test_coefficients_go_apart_and_come_by_size() -> None:
    """Where there is one band; others borrow from their neighbours."""
    tables, samples = tables_for(SHAPES[3]), like_features(SHAPES[3], 40)
    values = Transform.of(tables).forward(samples)[0].astype(float)
    moments = values.T @ values / len(values)
    powers = np.diag(moments)
    assert np.abs(moments - np.diag(powers)).max() < 0.01 * powers.max()
    assert (np.diff(powers) < 0.01 * powers.max()).all()


def test_fewer_bytes_than_without_calibration_to_these() -> None:
    """At the same error: the channels rotated as they go together, against rotated as others do."""
    fresh = like_features(MAPS, 10, seed=5)
    own = Klt("klt:60", tables_for(MAPS))
    strange = learn([like_features(MAPS, 40)[:, np.random.default_rng(0).permutation(MAPS[0])]])
    other = Klt("klt:60", strange)
    assert np.isclose(own.step, other.step, rtol=0.1)
    assert own.encode(fresh).size < 0.9 * other.encode(fresh).size


def test_a_band_of_few_examples_borrows_from_its_neighbours() -> None:
    """With fewer examples than channels the lowest band alone would know nothing of most directions."""
    shape = (40, 4, 4)
    few, fresh = like_features(shape, 10), like_features(shape, 40, seed=6)
    constant = Transform.of(learn([few])).forward(fresh)[0]
    powers = np.sort(np.square(constant).mean(axis=0))[::-1]
    # Eigenvectors of ten examples would leave a quarter of the power behind the tenth component.
    assert powers[:10].sum() > 0.9 * powers.sum()


def test_maps_of_more_frequencies_than_bands_can_be_counted() -> None:
    """The corner of 200 x 200 is 283 frequencies from the middle: bands are joined."""
    samples = like_features((1, 200, 200), 8)
    tables = KltTables.from_bytes(learn([samples]).to_bytes())
    assert len(tables.matrices) == MOST_BANDS == tables.bands.max() + 1


def test_channels_that_are_always_the_same() -> None:
    samples = like_features(MAPS, 20)
    samples[:, 3], samples[:, 5] = 0, 7
    klt = Klt("klt:60", learn([samples]))
    data = klt.encode(samples[:1])
    decoded = klt.decode(data, spec_of("x", samples[:1]))
    assert np.abs(decoded[0, 3]).max() < 0.01
    assert np.abs(decoded[0, 5] - 7).max() < 0.01


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        ([], "at least 8 examples"),
        ([like_features(MAPS, 7)], "at least 8 examples"),
        ([like_features(MAPS, 1)] * 9, "all alike"),
        ([np.zeros((9, *MAPS), np.float32)], "all alike"),
        ([like_features(MAPS, 9), like_features((3, 4, 4), 9)], "one shape"),
        ([np.zeros((9, *MAPS), np.int8)], "float tensors"),
        ([np.zeros(9, np.float32)], "float tensors"),
        ([np.full((9, *MAPS), np.nan, np.float32)], "NaN"),
        ([np.zeros((9, 1, 2, 3, 4), np.float32)], "no codec tables"),
        ([np.zeros((9, 4000), np.float32)], "8 MiB"),
    ],
)  # fmt: skip
def test_samples_that_no_tables_are_made_of(samples: list[np.ndarray], words: str) -> None:
    with pytest.raises(InputError, match=words):
        learn(samples)
