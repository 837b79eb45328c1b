"""JSON and TOML of strangers: a value, or one kind of error with a short reason."""

from __future__ import annotations

import json
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitpoint.parsing import MOST_DEPTH, MalformedError, parse_json, parse_toml

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


@given(VALUES)
def test_json_is_read_as_the_standard_library_reads_it(value: object) -> None:
    text = json.dumps(value)
    assert parse_json(text) == parse_json(text.encode()) == json.loads(text)


@given(st.binary(max_size=40))
def test_any_bytes_are_a_value_or_one_kind_of_error(data: bytes) -> None:
    with suppress(MalformedError):
        parse_json(data)


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def test_what_is_nested_too_deeply_is_refused() -> None:
    assert parse_json(nested(MOST_DEPTH)) is not None
    for depth in (MOST_DEPTH + 1, 1000, 1_000_000):
        with pytest.raises(MalformedError, match="nested too deeply"):
            parse_json(nested(depth))
    for text in (f"a = {nested(MOST_DEPTH + 1)}", f"[{'.'.join('a' * 1000)}]\nb = 1"):
        with pytest.raises(MalformedError, match="nested too deeply"):
            parse_toml(text)


def test_a_wrong_type_is_named_with_its_place() -> None:
    class Row(msgspec.Struct):
        sizes: list[int]

    assert parse_json('{"sizes": [1]}', Row).sizes == [1]
    with pytest.raises(MalformedError, match=r"Expected `int`, got `str` - at `\$.sizes\[0\]`"):
        parse_json('{"sizes": ["1"]}', Row)


def test_reasons_are_short() -> None:
    with pytest.raises(MalformedError) as caught:
        parse_toml(f"{'x' * 5000}")
    assert len(str(caught.value)) <= 300
