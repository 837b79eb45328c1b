"""Bytes that are changed on purpose."""

from __future__ import annotations

from random import Random

import hypothesis.strategies as st
from hypothesis import given

from splitpoint.lab.damage import Damage


@given(
    st.lists(st.binary(max_size=30), max_size=8),
    st.integers(0, 100),
    st.integers(1, 40),
    st.integers(0, 5),
)
def test_so_many_bytes_change_by_a_bit_each_after_so_many_others(
    chunks: list[bytes], after: int, count: int, seed: int
) -> None:
    damage = Damage(Random(seed))
    damage.order(after, count)
    sent = b"".join(chunks)
    came = b"".join(damage.passed(chunk) for chunk in chunks)
    assert len(came) == len(sent)
    changed = [k for k, (a, b) in enumerate(zip(sent, came, strict=True)) if a != b]
    assert changed == list(range(after, min(after + count, len(sent))))
    assert all((sent[k] ^ came[k]).bit_count() == 1 for k in changed)
    assert damage.nbytes == len(changed)
    again = Damage(Random(seed))
    again.order(after, count)
    assert again.passed(sent) == came


def test_a_second_order_takes_the_place_of_the_first() -> None:
    damage = Damage(Random(0))
    damage.order(1000, 5)
    damage.order(0, 1)
    assert damage.passed(b"ab")[1:] == b"b"
    assert damage.passed(bytes(2000)) == bytes(2000)
