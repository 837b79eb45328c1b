"""Weights from a server into the cache, many pieces under way at once so that the link is never idle."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence

from splitpoint import wire
from splitpoint.callbacks import call
from splitpoint.errors import ProtocolError
from splitpoint.runtime.client.blob_cache import BlobCache
from splitpoint.runtime.client.channel import Channel
from splitpoint.wire import Kind

#: Requests sent ahead: 16 MiB with the usual piece, a link of 1 Gbit/s with 100 ms round trip.
_WINDOW = 16

_Piece = tuple[str, int, int]


def fetch(
    channel: Channel,
    fingerprint: str,
    wanted: Sequence[tuple[str, int]],
    cache: BlobCache,
    chunk: int,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Fetches the blobs `wanted` (hash, size) into `cache`, each hashed on the way; returns bytes fetched.

    `progress` is told bytes so far and in all. ServerError, ProtocolError, StorageError; blobs that are complete by
    then stay.
    """
    total = sum(size for _, size in wanted)
    pieces = _pieces(channel, fingerprint, wanted, chunk)
    done = 0

    def blob(hash: str, size: int) -> Iterator[memoryview]:
        nonlocal done
        got = 0
        while got < size:
            data = next(pieces)
            got += data.nbytes
            done += data.nbytes
            yield data
            if progress is not None:
                call(progress, done, total)

    try:
        for hash, size in wanted:
            cache.put(hash, blob(hash, size))
    finally:
        pieces.close()
    return done


def _pieces(channel: Channel, fingerprint: str, wanted: Sequence[tuple[str, int]], chunk: int) -> Generator[memoryview]:
    """The bytes of the blobs in order, requested ahead."""
    plan = ((hash, at, min(chunk, size - at)) for hash, size in wanted for at in range(0, size, chunk))
    under_way: deque[tuple[int, _Piece]] = deque()
    try:
        while True:
            while len(under_way) < _WINDOW and (piece := next(plan, None)) is not None:
                hash, offset, length = piece
                id = channel.reserve(most=length)
                request = wire.BlobRequest(fingerprint, hash, offset, length)
                channel.send(id, wire.encode(Kind.BLOB, id, request))
                under_way.append((id, piece))
            if not under_way:
                return
            id, piece = under_way.popleft()
            _, frame = channel.expect(id, wire.BlobData)
            data = frame.tensors[0].data if frame.tensors else memoryview(b"")
            if data.nbytes != piece[2]:
                raise ProtocolError(f"asked for {piece[2]} bytes of weight {piece[0][:12]}…, {data.nbytes} came")
            yield data
    finally:
        for id, _ in under_way:
            channel.abandon(id)
