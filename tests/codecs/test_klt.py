"""The codec klt: what it promises of values, its sizes, its budgets, and bytes from a stranger."""

from __future__ import annotations

import struct
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from codec_arrays import allocates_at_most
from klt_arrays import SHAPES, like_features, refusal, tables_for

from splitpoint.codecs.klt import LEVELS, Klt, learn, outside_of_range
from splitpoint.codecs.klt_tables import GROUPS, KltTables
from splitpoint.codecs.prefix_codes import code_lengths
from splitpoint.errors import InputError, UsageError
from splitpoint.tensors import Array, TensorSpec, spec_of

MAPS = SHAPES[0]


def coefficients(klt: Klt, array: Array) -> Array:
    return klt._transform.forward(array.astype(np.float32))


def there_and_back(klt: Klt, array: Array) -> Array:
    spec = spec_of("x", array)
    data = klt.encode(array)
    assert (data.dtype, data.ndim) == (np.uint8, 1)
    assert data.size <= klt.most(spec)
    decoded = klt.decode(data, spec)
    assert (decoded.dtype, decoded.shape) == (array.dtype, array.shape)
    assert decoded.flags.c_contiguous
    return decoded


@pytest.mark.parametrize("level", [1, 20, 50, 80, 100])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_coefficient_moves_by_more_than_a_step(shape: tuple[int, ...], level: int) -> None:
    klt = Klt(f"klt:{level}", tables_for(shape))
    fresh = like_features(shape, 6, seed=1)
    moved = np.abs(coefficients(klt, there_and_back(klt, fresh)) - coefficients(klt, fresh))
    # Half a step, and half a step more at most to where the values of a bin have their mean.
    assert moved.max() <= klt.step * 1.01
    assert np.sqrt(np.mean(moved**2)) <= klt.step * 0.5


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_higher_level_takes_more_bytes_and_is_nearer(shape: tuple[int, ...]) -> None:
    fresh = like_features(shape, 8, seed=2)
    sizes, errors = [], []
    for level in (10, 30, 50, 70, 90):
        klt = Klt(f"klt:{level}", tables_for(shape))
        sizes.append(klt.encode(fresh).size)
        errors.append(float(np.square(there_and_back(klt, fresh) - fresh).mean()))
        assert 0.5 < klt.nbytes(spec_of("x", fresh)) / sizes[-1] < 2
    assert sizes == sorted(sizes)
    assert errors == sorted(errors, reverse=True)


def test_levels_are_sixteenths_of_an_octave() -> None:
    steps = [Klt(f"klt:{level}", tables_for(MAPS)).step for level in LEVELS]
    assert np.allclose(np.log2(steps), np.log2(steps[0]) - np.arange(len(LEVELS)) / 16)


@pytest.mark.parametrize("name", ["klt", "klt:", "klt:0", "klt:101", "klt:5.5", "klt:٣", "int8:40"])
def test_unknown_levels(name: str) -> None:
    with pytest.raises(UsageError, match="level from 1 to 100"):
        Klt(name, tables_for(MAPS))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_batch_is_its_examples(shape: tuple[int, ...]) -> None:
    klt, batch = Klt("klt:60", tables_for(shape)), like_features(shape, 3, seed=3)
    spec = TensorSpec("x", "float32", (1, *shape))
    singles = [klt.encode(one[None]) for one in batch]
    apart = np.concatenate([klt.decode(one, spec) for one in singles])
    # BLAS may add in another order where there are more columns.
    assert np.allclose(there_and_back(klt, batch), apart, atol=1e-4)
    assert np.allclose(klt.decode_many(singles, spec), apart, atol=1e-4)
    assert abs(klt.encode(batch).size - sum(one.size for one in singles) - 8) <= 3


def test_any_level_decodes_any_level() -> None:
    fine, coarse = Klt("klt:90", tables_for(MAPS)), Klt("klt:10", tables_for(MAPS))
    array = like_features(MAPS, 1, seed=4)
    assert np.array_equal(coarse.decode(fine.encode(array), spec_of("x", array)), there_and_back(fine, array))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
def test_every_float(dtype: str) -> None:
    klt = Klt("klt:70", tables_for(MAPS))
    array = like_features(MAPS, 2, seed=5).astype(dtype)
    spec = spec_of("x", array)
    decoded = klt.decode(klt.encode(array), spec)
    assert decoded.dtype == np.dtype(spec.dtype)
    assert np.abs(decoded.astype(float) - array.astype(float)).mean() < klt.step


def test_encoding_does_not_change_its_input_and_repeats() -> None:
    for shape in SHAPES:
        klt, array = Klt("klt:40", tables_for(shape)), like_features(shape, 1, seed=6)
        before = array.copy()
        assert np.array_equal(klt.encode(array), klt.encode(array))
        assert np.array_equal(array, before)


def test_what_it_takes() -> None:
    klt = Klt("klt:40", tables_for(MAPS))
    assert klt.accepts(TensorSpec("x", "float16", (7, *MAPS)))
    empty = np.zeros((0, *MAPS), np.float32)
    assert klt.decode(klt.encode(empty), spec_of("x", empty)).shape == empty.shape
    assert klt.encode_within(empty, 0)[0].size == 0
    for dtype, shape in (("float32", MAPS), ("float32", (1, 12, 6, 7)), ("int8", (1, *MAPS)), ("float32", ())):
        spec = TensorSpec("x", dtype, shape)
        assert not klt.accepts(spec)
        with pytest.raises(InputError, match="does not take"):
            klt.encode(np.zeros(shape, dtype))
        with pytest.raises(InputError, match="does not take"):
            klt.decode(np.zeros(9, np.uint8), spec)


def test_threads_may_share_it() -> None:
    klt = Klt("klt:60", tables_for(MAPS))
    arrays = [like_features(MAPS, 1, seed=k) for k in range(8)]
    expected = [there_and_back(klt, a) for a in arrays]
    start = threading.Barrier(8)

    def work(k: int) -> bool:
        start.wait(10)
        return all(np.array_equal(there_and_back(klt, arrays[k]), expected[k]) for _ in range(20))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


# -- values that no calibration input had ---------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_far_outside_come_back(shape: tuple[int, ...]) -> None:
    klt = Klt("klt:60", tables_for(shape))
    assert outside_of_range(klt.encode(like_features(shape, 3, seed=7)), batch=3) == 0
    for strange in (
        np.zeros((1, *shape), np.float32),
        np.full((1, *shape), -300, np.float32),
        1000 * np.random.default_rng(8).normal(size=(1, *shape)).astype(np.float32),
    ):
        moved = np.abs(coefficients(klt, there_and_back(klt, strange)) - coefficients(klt, strange))
        assert moved.max() <= klt.step * 1.01
    assert outside_of_range(klt.encode(strange)) > 0.1 * strange.size


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_what_cannot_be_expressed_is_refused(bad: float) -> None:
    array = like_features(MAPS, 2, seed=9)
    array[1, 3, 2, 2] = bad
    with pytest.raises(InputError, match="send it"):
        Klt("klt:50", tables_for(MAPS)).encode(array)


def test_values_too_large_for_the_step_are_refused() -> None:
    array = np.full((1, *MAPS), 1e9, np.float32)
    with pytest.raises(InputError, match="nothing like"):
        Klt("klt:50", tables_for(MAPS)).encode(array)


def test_what_does_not_fit_the_dtype_that_the_frame_says_is_refused() -> None:
    klt = Klt("klt:50", tables_for(MAPS))
    data = klt.encode(np.full((1, *MAPS), 1e5, np.float32))
    with pytest.raises(InputError, match="too large"):
        klt.decode(data, TensorSpec("x", "float16", (1, *MAPS)))


# -- budgets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_budget_is_never_exceeded_and_is_used(shape: tuple[int, ...], count: int) -> None:
    klt = Klt("klt:100", tables_for(shape))
    finest = klt.encode(like_features(shape, count)).size
    for seed in range(12):
        array = like_features(shape, count, seed) * (10 if seed % 4 == 3 else 1)
        spec, budget = spec_of("x", array), round(finest * (0.3 + 0.05 * seed))
        data, step = klt.encode_within(array, budget)
        assert data.size <= budget
        error = np.abs(coefficients(klt, klt.decode(data, spec)) - coefficients(klt, array)).max()
        assert error <= 1.01 * step
        if budget > 400 * count and step > klt.step * 1.01:
            assert data.size > 0.75 * budget


def test_a_loose_budget_is_the_level() -> None:
    klt, array = Klt("klt:40", tables_for(MAPS)), like_features(MAPS, 1, seed=3)
    data, step = klt.encode_within(array, 1 << 20)
    assert np.array_equal(data, klt.encode(array))
    assert step == klt.step


def test_a_budget_that_nothing_fits_is_refused() -> None:
    klt = Klt("klt:40", tables_for(MAPS))
    with pytest.raises(InputError, match="3 bytes are too few"):
        klt.encode_within(like_features(MAPS, 1), 3)


# -- bytes from a stranger ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_damaged_bytes_are_refused_or_decoded_in_bounded_memory(shape: tuple[int, ...]) -> None:
    klt, array = Klt("klt:70", tables_for(shape)), like_features(shape, 2, seed=10) * 2
    spec, data = spec_of("x", array), klt.encode(array)
    klt.decode(data, spec)
    rng = np.random.default_rng(0)
    refused = 0
    with allocates_at_most(2 << 20):
        for turn in range(400):
            broken = data.copy()
            if turn % 4 == 0:
                broken = broken[: rng.integers(broken.size)]
            elif turn % 4 == 1:
                broken = np.append(broken, rng.integers(0, 256, rng.integers(1, 9), np.uint8))
            else:
                for _ in range(rng.integers(1, 4)):
                    broken[rng.integers(broken.size if turn % 4 == 2 else min(40, broken.size))] = rng.integers(256)
            words = refusal(lambda broken=broken: klt.decode(broken, spec))  # type: ignore[misc]
            assert len(words) < 300
            refused += bool(words)
    assert refused > 100


def test_random_bytes() -> None:
    klt, spec = Klt("klt:50", tables_for(MAPS)), TensorSpec("x", "float32", (1, *MAPS))
    rng = np.random.default_rng(1)
    for size in (0, 1, 2, 3, 10, 100, 1000):
        for _ in range(20):
            with pytest.raises(InputError, match="klt"):
                klt.decode(rng.integers(0, 256, size, np.uint8), spec)


def test_more_than_an_honest_encoding_is_refused() -> None:
    klt, spec = Klt("klt:50", tables_for(MAPS)), TensorSpec("x", "float32", (1, *MAPS))
    with pytest.raises(InputError, match="at most"):
        klt.decode(np.zeros(klt.most(spec) + 1, np.uint8), spec)


@pytest.mark.parametrize("offset", [257, -257, 32767, -32768])
def test_a_step_that_no_encoder_chooses(offset: int) -> None:
    klt, array = Klt("klt:50", tables_for(MAPS)), like_features(MAPS, 1)
    data = struct.pack("<h", offset) + klt.encode(array).tobytes()[2:]
    with pytest.raises(InputError, match="step"):
        klt.decode(np.frombuffer(data, np.uint8), spec_of("x", array))


def test_another_tensors_tables() -> None:
    """Tables of the same shape decode it to nonsense, which their hash is there to prevent; never to more."""
    klt, array = Klt("klt:50", tables_for(MAPS)), like_features(MAPS, 1)
    others = [like_features(MAPS, 20, seed)[:, ::-1] * 3 for seed in (1, 2)]
    other = KltTables.from_bytes(klt.tables.to_bytes())
    assert other.hash == klt.tables.hash
    strange = Klt("klt:50", learn(others))
    assert strange.tables.hash != klt.tables.hash
    words = refusal(lambda: strange.decode(klt.encode(array), spec_of("x", array)))
    assert words == "" or "broken bytes of klt" in words


# -- bytes that do not change ---------------------------------------------------------------------------------------


def plain_tables() -> KltTables:
    """Of float[30], with numbers that no computer rounds: nothing is rotated, scales fall by half an octave."""
    groupings, lengths = [], np.zeros((9, 257), np.uint8)
    for row, grouping in zip(lengths, (4, 4, 3, 2, 1, 1, 1, 0, 0), strict=True):
        reach, values = GROUPS[grouping]
        used = (2 * reach + 1) ** values
        *row[:used], row[256] = code_lengths([1.0] * (used + 1))
        groupings.append(grouping)
    return KltTables(
        (30,), np.zeros(30, np.float32), np.zeros(1, np.uint8), np.eye(30, dtype=np.int8)[None],
        np.ones((1, 30), np.float32), np.array([255 - 4 * k for k in range(30)], np.uint8)[None], 32 - 255, 0, -2,
        np.array(groupings, np.uint8), np.full((9, 3), 64, np.uint8), lengths,
    )  # fmt: skip


def test_golden_bytes() -> None:
    """Whoever changes what these bytes mean makes another version of the tables (docs/codecs.md)."""
    klt = Klt("klt:50", plain_tables())
    assert klt.step == 1
    assert klt.tables.hash == "da9509888698d46821d3d8602ef4ac3ec772d7a0fc689c3ec9618d0830182152"
    array = np.zeros((1, 30), np.float32)
    array[0, :12] = [19, -11, 300, 6, -5, 4, 3, -2, 1, 0, 0, -1]
    array[0, 29] = -77
    data = klt.encode(array).tobytes()
    header, sizes, spans, low_bits = "0000 09 02", "01 01 01 01 01 01", "11 9e fe a1 c7 25", "03"
    places, values = "0200 0800 0b00 1d00", "2c010000 01000000 ffffffff b3ffffff"
    assert data == bytes.fromhex(header + sizes + spans + low_bits + places + values)
    assert outside_of_range(np.frombuffer(data, np.uint8)) == 2
    wanted = array.copy()
    wanted[0, 3:8] -= np.sign(wanted[0, 3:8]) / 8
    assert np.array_equal(klt.decode(np.frombuffer(data, np.uint8), spec_of("x", array)), wanted)
