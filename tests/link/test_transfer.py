"""One request on a link: frames against the wire, slow start against a simulated TCP."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitpoint import wire
from splitpoint.link import Link
from splitpoint.link.presets import PRESETS
from splitpoint.link.transfer import (
    ANSWER_NBYTES,
    REQUEST_NBYTES,
    entry_nbytes,
    unvalidated_slow_start_ms,
)
from splitpoint.tensors import ITEM_SIZES

SHAPES = st.lists(st.lists(st.integers(0, 300), max_size=5), min_size=1, max_size=4)


@given(SHAPES, st.sampled_from(sorted(ITEM_SIZES)))
def test_framing_is_what_the_wire_really_adds(shapes: Sequence[Sequence[int]], dtype: str) -> None:
    shapes = [s if np.prod(s, dtype=np.int64) < 1 << 20 else s[:2] for s in shapes]
    arrays = [np.zeros(s, dtype) for s in shapes]
    body = sum(a.nbytes for a in arrays)
    entries = sum(entry_nbytes(dtype, a.shape, a.nbytes) for a in arrays)
    request = wire.Packer(wire.Kind.INFER, lambda tensors, vectors, s: wire.Infer(3, tensors, vectors, s))
    assert request.pack(7, arrays, ((), 0.5)).nbytes == REQUEST_NBYTES + entries + body
    answer = wire.Packer(wire.Kind.RESULT, wire.Result)
    assert answer.pack(7, arrays, (), wire.Times()).nbytes == ANSWER_NBYTES + entries + body


@pytest.mark.parametrize("nbytes", [1, 127, 128, 255, 256, 65535, 65536, 2**32 - 1, 2**32])
def test_framing_of_encoded_tensors(nbytes: int) -> None:
    tensor = wire.Tensor("float32", (1, nbytes, 200), nbytes, "int8+zstd")
    assert entry_nbytes("float32", (1, nbytes, 200), nbytes, "int8+zstd") == len(msgspec.msgpack.encode(tensor))


def simulated_ms(nbytes: int, mbps: float, rtt_ms: float) -> float:
    """TCP by segment: the window begins with ten and grows by one with every acknowledgement."""
    segment_ms = 1448 * 8e-3 / mbps
    acks: list[float] = []
    free = 0.0
    for k in range(-(-nbytes // 1448)):
        begin = max(free, acks[(k - 10) // 2] if k >= 10 else 0.0)
        free = begin + segment_ms
        acks.append(free + rtt_ms)
    return free


@pytest.mark.parametrize("nbytes", [1000, 14_480, 100_000, 1_000_000, 5_000_000])
@pytest.mark.parametrize("link", PRESETS.values(), ids=lambda link: link.name)
def test_slow_start_is_that_of_a_simulated_tcp(link: Link, nbytes: int) -> None:
    plain = nbytes * 8e-3 / link.up_mbps
    slow = unvalidated_slow_start_ms(nbytes, link.up_mbps, link.rtt_ms)
    want = simulated_ms(nbytes, link.up_mbps, link.rtt_ms)
    # Each round's first window is a segment's time longer or shorter in one than in the other.
    assert plain + slow == pytest.approx(want, rel=0.1, abs=0.1 * link.rtt_ms + 2 * 1448 * 8e-3 / link.up_mbps)


def test_slow_start_is_no_part_of_a_transfer() -> None:
    link = PRESETS["wifi5"]
    assert link.transfer_ms(150_000, 4000) == link.rtt_ms + link.up_ms(150_000) + link.down_ms(4000)
    assert unvalidated_slow_start_ms(150_000, link.up_mbps, link.rtt_ms) > 2
