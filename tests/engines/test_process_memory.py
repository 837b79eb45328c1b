"""Resident memory as the system tells it."""

from __future__ import annotations

import mmap

from splitpoint.engines.process_memory import give_back, resident_bytes


def test_memory_that_was_written_is_resident() -> None:
    size = 64 << 20
    before = resident_bytes()
    with mmap.mmap(-1, size) as pages:
        pages.write(b"\x01" * size)
        assert resident_bytes() - before > size // 2
    give_back()
    assert resident_bytes() - before < size // 2
