"""--codec: one codec for all, or one by tensor."""

from __future__ import annotations

import pytest

from splitpoint.cli.options.codecs import parse_codecs
from splitpoint.errors import UsageError


def test_codecs_for_all_or_by_tensor() -> None:
    assert parse_codecs(()) == "raw"
    assert parse_codecs(("int8",)) == "int8"
    assert parse_codecs(("h=int8", "a=b=jpeg:90")) == {"h": "int8", "a=b": "jpeg:90"}
    for wrong in (("int8", "fp16"), ("x=",), ("=int8",), ("x=int8", "x=fp16")):
        with pytest.raises(UsageError, match="--codec"):
            parse_codecs(wrong)
