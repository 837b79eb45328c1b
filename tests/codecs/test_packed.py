"""Zstandard frames that would unpack to too much."""

from __future__ import annotations

import numpy as np
import pytest
import zstandard
from codec_arrays import (
    TENSORS,
    allocates_at_most,
    example,
)

from splitpoint.codecs import open_codec
from splitpoint.errors import InputError
from splitpoint.tensors import spec_of


@pytest.mark.parametrize("name", [n for n in TENSORS if n.endswith("+zstd")])
def test_zstd_bombs_are_not_unpacked(name: str) -> None:
    codec, array = open_codec(name), example(name)
    spec, inner = spec_of("x", array), open_codec(name.removesuffix("+zstd")).encode(array).tobytes()
    plain = zstandard.ZstdCompressor()
    huge = plain.compress(bytes(64 << 20))
    block = (len(inner) << 3 | 1).to_bytes(3, "little") + inner  # the last one, not compressed
    window = b"\x28\xb5\x2f\xfd\x80\x88" + len(inner).to_bytes(4, "little") + block
    bombs = {
        "says what it is": huge,
        "keeps it to itself": zstandard.ZstdCompressor(write_content_size=False).compress(bytes(64 << 20)),
        "a small one first": plain.compress(inner) + huge,
        "two": plain.compress(inner) * 2,
        "one byte less": plain.compress(inner[:-1]),
        "one byte more": plain.compress(inner + b"\0"),
        "honest, but wants a window of 128 MiB": window,
        "honest, but does not say its size": zstandard.ZstdCompressor(write_content_size=False).compress(inner),
        "skippable": b"\x50\x2a\x4d\x18" + len(inner).to_bytes(4, "little") + inner,
        "skippable, then honest": b"\x50\x2a\x4d\x18\x04\0\0\0abcd" + plain.compress(inner),
    }
    for kind, bomb in bombs.items():
        data = np.frombuffer(bomb, np.uint8)
        with allocates_at_most(1 << 18), pytest.raises(InputError, match=r"^x: "):
            print(kind, codec.decode(data, spec))  # read where it is not refused
