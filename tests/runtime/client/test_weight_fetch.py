"""Weights in pieces: asked for ahead, put together in order, and given up as one."""

from __future__ import annotations

import hashlib
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from splitpoint import wire
from splitpoint.errors import ProtocolError
from splitpoint.runtime.client.blob_cache import BlobCache
from splitpoint.runtime.client.weight_fetch import fetch

BLOBS = {hashlib.sha256(data).hexdigest(): data for data in (bytes(range(250)) * 40, b"short", b"x" * 3000)}
WANTED = [(hash, len(data)) for hash, data in BLOBS.items()]


class Link:
    """Answers when it is waited for; `short` pieces lack a byte."""

    def __init__(self, short: int = -1) -> None:
        self.sent: deque[tuple[int, wire.BlobRequest]] = deque()
        self.asked: list[wire.BlobRequest] = []
        self.reserved: list[int] = []
        self.abandoned: list[int] = []
        self.most_under_way = 0
        self._short = short

    def reserve(self, *, most: int = 0) -> int:
        self.reserved.append(most)
        return len(self.reserved)

    def send(self, id: int, packet: wire.Packet) -> None:
        frame = b"".join(bytes(part) for part in packet.buffers)
        prefix = wire.parse_prefix(frame[: wire.PREFIX_BYTES], wire.Limits())
        request = wire.parse_header(prefix, frame[wire.PREFIX_BYTES :])
        assert isinstance(request, wire.BlobRequest)
        self.sent.append((id, request))
        self.asked.append(request)
        self.most_under_way = max(self.most_under_way, len(self.sent))

    def expect(self, id: int, answer: type) -> tuple[Any, Any]:
        number, request = self.sent.popleft()
        assert number == id, "in the order in which they were asked for"
        length = request.length - (id == self._short)
        data = BLOBS[request.hash][request.offset : request.offset + length]
        return None, SimpleNamespace(tensors=[SimpleNamespace(data=memoryview(data))])

    def abandon(self, id: int) -> None:
        self.abandoned.append(id)


def test_pieces_are_asked_for_ahead_and_come_together(tmp_path: Path) -> None:
    link, cache, told = Link(), BlobCache(tmp_path), list[tuple[int, int]]()
    total = sum(nbytes for _, nbytes in WANTED)
    assert fetch(link, "f", WANTED, cache, 500, lambda *done: told.append(done)) == total  # type: ignore[arg-type]
    for hash, data in BLOBS.items():
        assert bytes(cache.open(hash, len(data))) == data
    assert link.most_under_way == 16, "the link is never idle"
    assert link.reserved == [request.length for request in link.asked], "an answer may be no larger than was asked"
    assert max(link.reserved) == 500
    assert told[-1] == (total, total)
    assert told == sorted(told)


def test_a_piece_that_is_too_short_gives_up_all_that_are_under_way(tmp_path: Path) -> None:
    link, cache = Link(short=3), BlobCache(tmp_path)
    with pytest.raises(ProtocolError, match=r"asked for 500 bytes of weight .*, 499 came"):
        fetch(link, "f", WANTED, cache, 500)  # type: ignore[arg-type]
    assert link.abandoned == [id for id, _ in link.sent]
    assert not any(hash in cache for hash in BLOBS)


def test_nothing_is_asked_for_where_nothing_is_wanted(tmp_path: Path) -> None:
    link = Link()
    assert fetch(link, "f", [], BlobCache(tmp_path), 500) == 0  # type: ignore[arg-type]
    assert link.asked == []
