"""What this device has of a server's model: the graph, and weights in a cache; what is missing is fetched."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Protocol

from splitpoint import wire
from splitpoint.callbacks import call
from splitpoint.errors import ModelError, ProtocolError, RefusedError, ServerError, StorageError
from splitpoint.images import InputSpec
from splitpoint.machine import default_cache, usable_memory
from splitpoint.models.model import Model, from_graph
from splitpoint.runtime.client.blob_cache import BlobCache
from splitpoint.runtime.client.channel import CLOSED, Channel
from splitpoint.runtime.events import Event, OnEvent
from splitpoint.units import counted, size
from splitpoint.wire import Frame, Kind, ModelInfo

#: The share of the link that weights may take which nobody waits for, beside requests.
SHARE = 0.1
#: A piece that comes within so many times of what it should take comes as those before.
_AS_BEFORE = 1.25
#: How long a piece of them should be on its way: a request that comes meanwhile waits for no more than that.
_PIECE_S = 0.02
_LEAST_PIECE, _FIRST_PIECE = 2 << 10, 16 << 10
#: The most that is asked for at once, whatever a server allows: many are under way.
_MOST_PIECE = 4 << 20
#: Requests sent ahead: 16 MiB with the usual piece, a link of 1 Gbit/s with 100 ms round trip.
_WINDOW = 16
#: How often a link that is down is looked at again.
_AGAIN_S = 0.2


class Holding:
    """`model` as it is here, and the cache its weights are fetched into. `local`: it was here all along.

    `channel` gives the connection of the moment. A graph that is fetched may have operators of the domains `allowed`.
    ServerError if the server hands nothing out.
    """

    def __init__(
        self,
        info: ModelInfo,
        local: Model | None,
        channel: Callable[[], Channel],
        cache: Path | None,
        on_event: OnEvent,
        on_progress: Callable[[int, int], None] | None,
        allowed: Collection[str] = (),
    ) -> None:
        self.info, self.local = info, local is not None
        self.channel, self._tell = channel, on_event
        self._progress = on_progress
        self._folder, self._allowed = cache, allowed
        self.model = local if local is not None else self._fetch_graph()

    @cached_property
    def cache(self) -> BlobCache:
        """Where weights are kept on this device."""
        return BlobCache(self._folder or default_cache(self._notice), self._not_kept)

    @cached_property
    def _memory(self) -> int:
        return usable_memory()

    def _notice(self, text: str) -> None:
        self._tell(Event("notice", text))

    def _not_kept(self, error: StorageError) -> None:
        self._notice(f"{self.info.name} is not kept for the next time: {error}")

    def _fetch_graph(self) -> Model:
        fingerprint, name = self.info.fingerprint, self.info.name
        data = self.cache.graph(fingerprint)
        if data is not None:
            try:
                return self._built(data)
            except ModelError:
                self.cache.drop_graph(fingerprint)
                self._notice(f"the cached graph of {name} has rotted: fetching it again")
        request, most = wire.GraphRequest(fingerprint), wire.MOST_BODY[Kind.GRAPH_DATA]
        _, frame = self.channel().ask(Kind.GRAPH, request, wire.GraphData, most=most)
        raw = bytes(frame.tensors[0].data) if frame.tensors else b""
        model = self._built(raw)
        self.cache.put_graph(fingerprint, raw)
        said = f"fetched the graph of {name} ({size(len(raw))}), fingerprint {fingerprint[:12]}"
        self._tell(Event("fetched", said, {"model": name, "nbytes": len(raw)}))
        return model

    def _built(self, graph: bytes) -> Model:
        """The model, with the input spec that the server was given for it, if that is not the graph's own."""
        info = self.info
        model = from_graph(graph, self, name=info.name, expected=info.fingerprint, allowed=self._allowed)
        return model.with_input_spec(InputSpec.from_json(info.input_spec)) if info.input_spec else model

    def open(self, hash: str) -> memoryview:
        """A weight's bytes; one that is missing or has rotted is fetched. (This makes it a `Weights`.)"""
        cache, nbytes = self.cache, self.model.blobs[hash].nbytes
        self._check_memory(nbytes)  # also of one that is here: another's file can have any size
        if hash in cache:
            try:
                return cache.open(hash, nbytes)
            except StorageError as exc:
                self._notice(f"{exc}; fetching it again")
        try:
            self.pull((hash,))
        except ServerError as exc:
            raise StorageError(f"weight {hash[:12]}… is not in the cache and cannot be fetched: {exc}") from exc
        return cache.open(hash, nbytes)

    def has(self, hashes: Sequence[str]) -> bool:
        """Whether all of these weights are here."""
        return self.local or all(h in self.cache for h in hashes)

    def pull(self, hashes: Sequence[str]) -> int:
        """Fetches those of these weights that are missing; returns bytes fetched."""
        wanted = self.missing(hashes)
        if not wanted:
            return 0
        self.check_room(wanted)
        channel = self.channel()
        fetched = fetch(channel, self.info.fingerprint, wanted, self.cache, most_piece(channel), self._progress)
        text = f"fetched {counted(len(wanted), 'weight')} of {self.info.name} ({size(fetched)})"
        self._tell(Event("fetched", text, {"model": self.info.name, "nbytes": fetched, "weights": len(wanted)}))
        return fetched

    def missing(self, hashes: Sequence[str]) -> list[tuple[str, int]]:
        """Those of these weights that are not here, with their sizes."""
        sizes = self.model.blobs
        return [(h, sizes[h].nbytes) for h in hashes if h not in self.cache]

    def check_room(self, wanted: Sequence[tuple[str, int]]) -> None:
        """StorageError if this machine has no room for `wanted`: how large they are is a stranger's word."""
        needed = sum(n for _, n in wanted)
        memory = self._check_memory(needed)
        if needed > self.cache.room() and needed > (memory or needed) // 2:
            raise StorageError(
                f"the weights of {self.info.name} that are missing here are {size(needed)}, and where the cache "
                f"{self.cache.folder} is {size(self.cache.room())} are free: make room, or give another (--cache DIR)"
            )

    def _check_memory(self, needed: int) -> int:
        """This machine's memory (0: not known). StorageError if weights take more."""
        memory = self._memory
        if memory and needed > memory:
            raise StorageError(
                f"weights of {self.info.name} that are needed here are {size(needed)}, more than this machine's memory "
                f"({size(memory)}): they could not run here, and are neither fetched nor read"
            )
        return memory

    def amount(self) -> tuple[int, int]:
        """(bytes of the model's weights that are here, bytes of all of them)."""
        total = sum(b.nbytes for b in self.model.blobs.values())
        if self.local:
            return total, total
        return total - sum(n for _, n in self.missing(tuple(self.model.blobs))), total


class RequestsBeside(Protocol):
    """Those that weights are fetched beside: how many were begun so far, and how many of them have no answer yet."""

    begun: int

    @property
    def under_way(self) -> int: ...


class Background:
    """Fetches all that is missing of `holding` in a thread of its own, with what `requests` leave of the link. Then it
    calls `done`. A lost connection only delays it.

    One piece is asked for at a time: a request that begins meanwhile waits for no more than that. While requests come,
    it is followed by a pause nine times as long as it was under way, the round trip not counted: a tenth of the link as
    it is, whatever else goes over it. While none come, the next piece follows at once.
    """

    def __init__(self, holding: Holding, done: Callable[[], None], on_event: OnEvent, requests: RequestsBeside) -> None:
        self._holding, self._done, self._tell, self._requests = holding, done, on_event, requests
        self._piece, self._rate = _FIRST_PIECE, 0.0
        self._first: Collection[str] = ()
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._run, name="weights", daemon=True)

    def start(self) -> None:
        """Begins, if it has not begun."""
        with self._lock:
            if not self._stop.is_set() and self._thread.ident is None:
                self._thread.start()

    def first(self, hashes: Collection[str]) -> None:
        """Has these weights fetched before others."""
        self._first = hashes

    def close(self) -> None:
        """Ends it; what is fetched stays."""
        self._stop.set()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(1.0)

    def _run(self) -> None:
        holding = self._holding
        here, _ = holding.amount()
        try:
            missing = holding.missing(tuple(holding.model.blobs))
            holding.check_room(missing)
            while missing:
                hash, nbytes = missing.pop(next((k for k, (h, _) in enumerate(missing) if h in self._first), 0))
                while not self._fetch(hash, nbytes):
                    if self._stop.wait(_AGAIN_S):
                        return
        except Exception as exc:  # a bug, too: whoever counts on it is told
            self._tell(Event("notice", f"no local fallback: the rest of {holding.info.name} cannot be fetched: {exc}"))
            return
        now, total = holding.amount()
        said = f"all of {holding.info.name} is here ({size(now - here)} more, {size(total)})"
        self._tell(Event("fetched", said, {"model": holding.info.name, "nbytes": now - here}))
        self._done()

    def _fetch(self, hash: str, nbytes: int) -> bool:
        """Fetches one weight; False if the server did not give it now."""
        try:
            self._holding.cache.put(hash, self._pieces(hash, nbytes))
        except RefusedError:
            raise
        except ServerError:
            return False
        return True

    def _pieces(self, hash: str, nbytes: int) -> Iterator[memoryview]:
        """Its bytes, one piece after the other; after each the link is ours no longer for a while."""
        got = 0
        while got < nbytes:
            channel = self._holding.channel()
            most = most_piece(channel)
            length = min(self._piece, nbytes - got, most)
            asked, began = self._requests.begun, perf_counter()
            request = wire.BlobRequest(self._holding.info.fingerprint, hash, got, length)
            _, frame = channel.ask(Kind.BLOB, request, wire.BlobData, most=length)
            data = _piece(frame, hash, length)
            under_way_s = perf_counter() - began
            carried_s = max(under_way_s - channel.clock.round_trip_s, 0.1 * under_way_s)
            if length >= _LEAST_PIECE:  # a shorter one tells of frames more than of the link
                # What asks for a piece may have waited behind a request's bytes: then the piece itself comes as before.
                if not self._rate or frame.received - frame.started > _AS_BEFORE * length / self._rate:
                    self._rate /= 2
                self._rate = max(length / carried_s, self._rate)
                self._piece = int(min(max(_LEAST_PIECE, min(2 * self._piece, _PIECE_S * self._rate)), most))
            if self._rate:
                carried_s = min(carried_s, length / self._rate)
            quiet = self._requests.begun == asked and not self._requests.under_way
            if self._stop.wait(0.0 if quiet else carried_s * (1 / SHARE - 1)):
                raise ServerError(CLOSED)
            got += length
            yield data


def fetch(
    channel: Channel,
    fingerprint: str,
    wanted: Sequence[tuple[str, int]],
    cache: BlobCache,
    chunk: int,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Fetches the blobs `wanted` (hash, size) into `cache`, `chunk` bytes at a time; returns bytes fetched. `progress`
    is told bytes so far and in all. ServerError, StorageError; blobs that are complete by then stay."""
    total = sum(size for _, size in wanted)
    pieces = _ahead(channel, fingerprint, wanted, chunk)
    done = 0

    def blob(size: int) -> Iterator[memoryview]:
        nonlocal done
        end = done + size
        while done < end:
            data = next(pieces)
            done += data.nbytes
            yield data
            if progress is not None:
                call(progress, done, total)

    try:
        for hash, size in wanted:
            cache.put(hash, blob(size))
    finally:
        pieces.close()
    return done


def _ahead(channel: Channel, fingerprint: str, wanted: Sequence[tuple[str, int]], chunk: int) -> Generator[memoryview]:
    """The bytes of the blobs in order, many pieces under way at once, so that the link is never idle."""
    plan = ((hash, at, min(chunk, size - at)) for hash, size in wanted for at in range(0, size, chunk))
    under_way: deque[tuple[int, str, int]] = deque()
    try:
        while True:
            while len(under_way) < _WINDOW and (piece := next(plan, None)) is not None:
                hash, offset, length = piece
                id = channel.reserve(most=length)
                channel.send(id, wire.encode(Kind.BLOB, id, wire.BlobRequest(fingerprint, hash, offset, length)))
                under_way.append((id, hash, length))
            if not under_way:
                return
            id, hash, length = under_way.popleft()
            yield _piece(channel.expect(id, wire.BlobData)[1], hash, length)
    finally:
        for id, _, _ in under_way:
            channel.abandon(id)


def most_piece(channel: Channel) -> int:
    """How many bytes of a weight may be asked for at once."""
    return min(channel.welcome.limits.get("blob_chunk", 1 << 20), _MOST_PIECE)


def _piece(frame: Frame, hash: str, length: int) -> memoryview:
    """What came of a weight. ProtocolError unless it is as much as was asked for."""
    data = frame.tensors[0].data if frame.tensors else memoryview(b"")
    if data.nbytes != length:
        raise ProtocolError(f"asked for {length} bytes of weight {hash[:12]}…, {data.nbytes} came")
    return data
