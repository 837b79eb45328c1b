"""What codecs cost on this machine; how long one takes, in virtual time."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from codec_arrays import NAMES, example

from splitpoint.codecs import open_codec
from splitpoint.errors import InputError
from splitpoint.models.model import Model
from splitpoint.profile import codec_times
from splitpoint.profile.codec_times import codec_costs, measure
from splitpoint.tensors import Array, TensorSpec, spec_of


def test_codecs_are_measured_for_tensors_that_cross(lenet: Model) -> None:
    costs = codec_costs(lenet, 0.01)
    assert {"raw", "fp16", "int8", "int4", "int8+zstd", "jpeg:90"} <= costs.keys()
    assert costs["int8"].encode_ms_per_mb > 0
    assert all(ms >= 0 for c in costs.values() for ms in msgspec.structs.astuple(c))


class Cold:
    """A clock that moves by 1 ms each time it is read, and by 4 when the first action after a run ends."""

    def __init__(self) -> None:
        self.now, self.runs, self._reads = 0.0, 0, 0

    def run(self) -> None:
        self.runs, self._reads = self.runs + 1, 0

    def clock(self) -> float:
        self._reads += 1
        self.now += 4e-3 if self.runs and self._reads == 2 else 1e-3
        return self.now


@pytest.mark.parametrize(("budget_s", "rounds"), [(0.0, 1), (10.0, 9)])
def test_what_a_codec_takes_longer_after_a_run_of_the_model(budget_s: float, rounds: int) -> None:
    cold = Cold()
    more = codec_times._after(cold.run, TensorSpec("x", "float32", (1, 64, 28, 28)), budget_s, cold.clock)
    assert more == pytest.approx((3.0, 3.0)), "encoding, decoding"
    assert cold.runs == 2 * rounds


def test_it_is_added_to_all_but_raw(lenet: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec_times, "_after", lambda *given: (1000.0, 2000.0))
    for name, cost in codec_costs(lenet, 0.01, lambda: None).items():
        assert (cost.encode_fixed_ms >= 1000, cost.decode_fixed_ms >= 2000) == (name != "raw", name != "raw")


class Timed:
    """A codec whose work takes virtual time: a fixed part, and a part for each byte of the tensor."""

    name, sent_as, exact, sized = "timed", "timed", True, True

    def __init__(self, fixed_s: float, s_per_mb: float) -> None:
        self.now, self.rounds, self._fixed, self._slope = 0.0, 0, fixed_s, s_per_mb

    def clock(self) -> float:
        return self.now

    def accepts(self, spec: TensorSpec) -> bool:
        return spec.dtype == "float32"

    def nbytes(self, spec: TensorSpec) -> int:
        return spec.nbytes

    most = nbytes

    def encode(self, array: Array) -> Array:
        self.rounds += 1
        self.now += self._fixed + self._slope * array.nbytes / 1e6
        return np.zeros(array.nbytes, np.uint8)

    def decode(self, data: Array, spec: TensorSpec) -> Array:
        self.now += 2 * self._fixed + 3 * self._slope * spec.nbytes / 1e6
        return np.zeros(0)


def test_speed_finds_the_fixed_part_and_the_other() -> None:
    codec = Timed(fixed_s=0.002, s_per_mb=0.005)
    for shape in ((1, 64, 28, 28), (1, 197, 768), (7,), (), (1, 10), (2, 3, 0)):
        speed = measure(codec, TensorSpec("x", "float32", shape), clock=codec.clock)
        assert speed.encode_fixed_ms == pytest.approx(2)
        assert speed.encode_ms_per_mb == pytest.approx(5)
        assert speed.decode_fixed_ms == pytest.approx(4)
        assert speed.decode_ms_per_mb == pytest.approx(15)


def test_speed_of_tensors_whose_channel_is_larger_than_both_sizes() -> None:
    codec = Timed(fixed_s=0, s_per_mb=0.005)
    speed = measure(codec, TensorSpec("x", "float32", (1, 32, 512, 512)), clock=codec.clock)
    assert speed.encode_fixed_ms == 0
    assert speed.encode_ms_per_mb == pytest.approx(5)


def test_speed_keeps_to_its_budget_and_measures_at_least_thrice() -> None:
    quick, slow = Timed(1e-4, 0), Timed(10, 0)
    spec = TensorSpec("x", "float32", (1, 8, 8, 8))
    measure(quick, spec, budget_s=0.1, clock=quick.clock)
    assert 0.1 <= quick.now <= 0.102
    measure(slow, spec, budget_s=0.1, clock=slow.clock)
    assert slow.rounds == 2 + 2 * 3


def test_speed_of_what_is_not_taken() -> None:
    with pytest.raises(InputError, match="does not take int64"):
        measure(Timed(1, 1), TensorSpec("x", "int64", (4,)))
    with pytest.raises(InputError, match="does not take uint8"):
        measure(open_codec("jpeg:90"), TensorSpec("x", "uint8", (2, 8, 8, 3)))


@pytest.mark.parametrize("name", NAMES)
def test_speed_of_the_codecs_is_finite(name: str) -> None:
    speed = measure(open_codec(name), spec_of("x", example(name)), budget_s=0)
    for value in (speed.encode_fixed_ms, speed.encode_ms_per_mb, speed.decode_fixed_ms, speed.decode_ms_per_mb):
        assert 0 <= value < 1e4
