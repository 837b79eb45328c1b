"""The device's side: runs heads here, sends what crosses, and knows where every millisecond went."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import copy
from pathlib import Path
from time import monotonic, perf_counter
from types import TracebackType

import msgspec
import numpy as np

from splitpoint import wire
from splitpoint.codecs import Codec
from splitpoint.engines import Engine, Session, open_engine
from splitpoint.errors import (
    BusyError,
    InputError,
    ModelError,
    ProtocolError,
    ServerError,
    StorageError,
    UsageError,
    nearest,
)
from splitpoint.graph import Cut
from splitpoint.images import InputSpec
from splitpoint.link import Link
from splitpoint.machine import default_cache
from splitpoint.models.model import Model, from_graph
from splitpoint.profile.files import parse_profile
from splitpoint.profile.values import Profile
from splitpoint.runtime.cache import BlobCache
from splitpoint.runtime.channel import Channel
from splitpoint.runtime.encoding import CodecChoice, check_decodable, choose, chooser, is_unused
from splitpoint.runtime.events import Event, OnEvent, ignore, software
from splitpoint.runtime.fetch import fetch
from splitpoint.runtime.probe import measure_link
from splitpoint.runtime.result import Marks, Request, Result
from splitpoint.runtime.stream import stream
from splitpoint.segments import check_specs
from splitpoint.tensors import Array
from splitpoint.transports import Connection, connect
from splitpoint.units import counted, size
from splitpoint.wire import Kind, Limits, ModelInfo

Inputs = Mapping[str, Array] | Array | Request
_Key = tuple[tuple[str, ...], tuple[str, ...]]


class Edge:
    """A model cut in two: the head runs here, the tail at `address`.

    >>> with Server([load("zoo:lenet5")], engine=open_engine(), port=0) as server:
    ...     with Edge(server.address, at="pool1") as edge:
    ...         result = edge.infer(digit)
    >>> list(result.trace.stages())
    ['head', 'encode', 'up', 'decode', 'queue', 'tail', 'reply', 'down']

    `model` is a name or fingerprint (its first digits suffice) that the server has (it may be left out if there is
    one), or a `Model` that is here already and whose fingerprint the server must have. Without one, the graph and the
    weights of the head are fetched into `cache` once. `model_hash` pins the fingerprint (its first digits suffice):
    another one is refused. A name that several versions have needs one of the two.
    `at` names a cut; at ``"input"`` all is computed on the server, at ``"output"`` all here. `codec` is how crossing
    tensors travel: one name (``"int8"``) for all that it takes, the others raw, or names by tensor. `engine` is ONNX
    Runtime on the CPU if not given. `timeout_s` is how long any answer may take.

    Raises ServerError and its kin if the server is not there or refuses, CutError for an unknown cut, UsageError for
    a codec that makes no sense, StorageError for the cache. Any number of threads may call `infer`.
    """

    def __init__(
        self,
        address: str | Connection,
        model: Model | str | None = None,
        *,
        at: str | int | Cut = "middle",
        codec: CodecChoice = "raw",
        engine: Engine | None = None,
        cache: Path | None = None,
        model_hash: str | None = None,
        timeout_s: float = 30.0,
        connect_s: float = 5.0,
        limits: Limits | None = None,
        on_event: OnEvent = ignore,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._tell = on_event
        self._progress = on_progress
        self._engine = engine
        self._timeout_s = timeout_s
        self._cache_folder = cache
        self._cache: BlobCache | None = None
        self._codec = codec
        self._placements: dict[_Key, _Placement] = {}
        self._placing = threading.Lock()
        self._closed = threading.Event()
        self._sent_raw: set[tuple[_Key, str]] = set()
        connection = connect(address, limits, connect_s) if isinstance(address, str) else address
        try:
            self._channel = Channel(connection, software=software(), timeout_s=connect_s)
        except BaseException:
            connection.close()
            raise
        try:
            self._channel.timeout_s = timeout_s
            self.info = self._choose(model, model_hash)
            self._channel.measure_clock()
            self.model = model if isinstance(model, Model) else self._fetch_graph()
            self._local = isinstance(model, Model)
            self._current = self._place(at, codec)
        except BaseException:
            self.close()
            raise

    # --- life ---------------------------------------------------------------------------------------------------

    def __enter__(self) -> Edge:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection and frees the compiled heads."""
        self._closed.set()
        self._channel.close()
        for placement in self._placements.values():
            placement.close()
        self._placements.clear()

    # --- choosing and fetching the model ------------------------------------------------------------------------

    @property
    def served(self) -> tuple[ModelInfo, ...]:
        """The models that the server has."""
        return self._channel.welcome.models

    @property
    def cut(self) -> Cut:
        """Where the model is cut now."""
        return self._current.cut

    @property
    def codecs(self) -> Mapping[str, str]:
        """How what crosses now travels, by tensor name; what travels raw is not in it."""
        return {name: codec.name for name, codec in self._current.codecs.items()}

    @property
    def input_spec(self) -> InputSpec | None:
        """How photos become the model's input."""
        return self.model.input_spec

    @property
    def clock_error_ms(self) -> float:
        """How well the server's clock is known now."""
        return self._channel.clock.error_s(perf_counter()) * 1e3

    @property
    def round_trip_ms(self) -> float:
        """The shortest of the recent pings."""
        return self._channel.clock.round_trip_s * 1e3

    def measure_link(self, budget_s: float = 3.0) -> Link:
        """The link to the server, measured by sending over it (`splitpoint.runtime.probe`). ServerError if it ends."""
        return measure_link(self._channel, budget_s)

    def profile_server(self, budget_s: float = 60.0, fresh: bool = False) -> Profile:
        """What every cut costs on the server, which measures itself for up to `budget_s` (less, if it says so).

        It keeps the result: asking again costs nothing, unless with `fresh` or, if it did not get to the end, with a
        larger budget. Who asks while it measures this model for someone gets the same; while it has too many others
        to measure, it is asked again for a while, which `on_event` is told of. RefusedError if it does not measure
        itself or has nothing to say of it, BusyError if it stays busy, ServerError if it fails, InputError for a
        profile that makes no sense.
        """
        if not 0 < budget_s < float("inf"):
            raise UsageError(f"a profile's time budget is a number of seconds above 0, not {budget_s}")
        request = wire.ProfileRequest(self.info.fingerprint, budget_s, fresh)
        frame = self._ask_for_profile(request, monotonic() + _BUSY_S + _BUSY_BUDGETS * budget_s)
        data = bytes(frame.tensors[0].data) if frame.tensors else b""
        profile = parse_profile(data, "what the server sent")
        profile.require(self.info.fingerprint, self.info.name)
        return profile

    def _ask_for_profile(self, request: wire.ProfileRequest, end: float) -> wire.Frame:
        """The answer to `request`, asked again while the server is busy, until `end`."""
        told = False
        while True:
            try:
                # Compiling a large model once is not interrupted, and the server may be slow, or measure others first.
                limit_s = _COMPILE_S + 2 * request.budget_s
                return self._channel.ask(Kind.PROFILE, request, wire.Profiled, limit_s)[1]
            except BusyError as exc:
                pause_s = min(max(exc.retry_after_s, _LEAST_PAUSE_S), _MOST_PAUSE_S)
                left_s = end - monotonic()
                if left_s < pause_s:
                    raise
                if not told:
                    told = True
                    self._tell(Event("notice", f"{exc}; asking again for up to {left_s:.0f} s"))
            if self._closed.wait(pause_s):
                raise ServerError("the connection is closed")

    def _choose(self, model: Model | str | None, model_hash: str | None) -> ModelInfo:
        served = list({m.fingerprint: m for m in self.served}.values())
        listed = _listed(served)
        if isinstance(model, Model):
            found = [m for m in served if m.fingerprint == model.fingerprint]
            if not found:
                raise ModelError(
                    f"the server does not have this {model.name} ({model.fingerprint[:12]}); it has {listed}"
                )
        elif model is None:
            found = served
            if len({m.name for m in found}) > 1 and not model_hash:
                raise UsageError(f"the server has several models, so name one: {listed}")
        else:
            found = [m for m in served if m.name == model] or _with_prefix(served, model)
            if not found:
                raise ModelError(
                    f"the server has no model {model}{nearest(model, {m.name: None for m in served})} (it has {listed})"
                )
        if model_hash is not None:
            pinned = _with_prefix(found, model_hash)
            if not pinned:
                raise ModelError(
                    f"the server's model is not the pinned one, {model_hash[:12]}: it has {listed}; "
                    "use another --model-hash only if you know why it changed"
                )
            found = pinned
        if not found:
            raise ModelError("the server has no model")
        if len(found) > 1:  # a fleet moves to a new version edge by edge: which one is never a guess
            names = {m.name for m in found}
            called = f"called {found[0].name}" if len(names) == 1 else "that fit"
            raise UsageError(
                f"the server has {len(found)} models {called}: {_listed(found)}; "
                "name one by its fingerprint or pin it with --model-hash"
            )
        return found[0]

    @property
    def cache(self) -> BlobCache:
        """Where weights are kept on this device."""
        if self._cache is None:
            self._cache = BlobCache(self._cache_folder or default_cache())
        return self._cache

    def _fetch_graph(self) -> Model:
        fingerprint, name = self.info.fingerprint, self.info.name
        weights = _Fetching(self)
        data = self.cache.graph(fingerprint)
        if data is not None:
            try:
                return self._with_spec(from_graph(data, weights, name=name, expected=fingerprint))
            except ModelError:
                self.cache.drop_graph(fingerprint)
                self._tell(Event("notice", f"the cached graph of {name} has rotted: fetching it again"))
        _, frame = self._channel.ask(Kind.GRAPH, wire.GraphRequest(fingerprint), wire.GraphData)
        raw = bytes(frame.tensors[0].data) if frame.tensors else b""
        model = from_graph(raw, weights, name=name, expected=fingerprint)
        self.cache.put_graph(fingerprint, raw)
        self._tell(Event("fetched", f"fetched the graph of {name} ({size(len(raw))}), fingerprint {fingerprint[:12]}"))
        return self._with_spec(model)

    def _with_spec(self, model: Model) -> Model:
        """`model` with the input spec that the server was given for it, if that is not the graph's own."""
        text = self.info.input_spec
        return model.with_input_spec(InputSpec.from_json(text)) if text else model

    def pull(self, at: str | int | Cut | None = None) -> int:
        """Fetches the weights of the head at `at`, or of the whole model, into the cache; returns bytes fetched.

        ServerError if the server does not hand them out; StorageError for the cache.
        """
        if self._local:
            return 0
        heads_only = self._channel.welcome.share == "head"
        if at is None:
            if heads_only:
                raise ServerError("this server only hands out heads, not the whole model: give --at CUT")
            return self._pull(tuple(self.model.blobs))
        cut = at if isinstance(at, Cut) else self.model.graph.cut(at)
        wanted = self.model.head(cut).blobs
        if not heads_only or _key(cut) in self._placements or all(h in self.cache for h in wanted):
            return self._pull(wanted)
        asked = self._ask_for_tail(cut)
        if asked is None:
            return self._pull(wanted)
        opened, _ = self._channel.expect(asked, wire.Opened, _COMPILE_S)
        try:
            return self._pull(wanted)
        finally:
            with suppress(ServerError):  # if the connection has ended, so has the tail
                self._channel.tell(Kind.CLOSE, wire.Close(opened.segment))

    def _pull(self, hashes: Sequence[str]) -> int:
        sizes = self.model.blobs
        wanted = [(h, sizes[h].nbytes) for h in hashes if h not in self.cache]
        if not wanted:
            return 0
        chunk = max(1, self._channel.welcome.limits.get("blob_chunk", 1 << 20))
        fetched = fetch(self._channel, self.info.fingerprint, wanted, self.cache, chunk, self._progress)
        text = f"fetched {counted(len(wanted), 'weight')} of {self.info.name} ({size(fetched)})"
        self._tell(Event("fetched", text))
        return fetched

    # --- cuts ---------------------------------------------------------------------------------------------------

    def warm(self, at: str | int | Cut, codec: CodecChoice | None = None) -> Cut:
        """Makes the cut `at` ready, head here and tail there, without switching to it."""
        return self._place(at, codec).cut

    def switch(self, at: str | int | Cut, codec: CodecChoice | None = None) -> Cut:
        """Cuts at `at` from the next request on. A cut that is ready (`warm`, or used before) costs < 1 ms.

        Without `codec` tensors travel as before; those that it gave to tensors by name go on while these cross.
        Another codec compiles nothing.
        """
        self._current = self._place(at, codec)
        if codec is not None:
            self._codec = codec
        return self._current.cut

    def forget(self, at: str | int | Cut | None = None) -> None:
        """Frees the compiled halves of `at`, or of every cut but the current one, here and on the server."""
        with self._placing:
            if at is None:
                gone = [k for k in self._placements if k != _key(self._current.cut)]
            else:
                cut = at if isinstance(at, Cut) else self.model.graph.cut(at)
                gone = [_key(cut)] if _key(cut) in self._placements else []
            for key in gone:
                if key == _key(self._current.cut):
                    raise UsageError(f"{self._current.cut.name} is in use: switch to another cut first")
                placement = self._placements.pop(key)
                placement.close()
                if placement.segment:
                    self._channel.tell(Kind.CLOSE, wire.Close(placement.segment))

    def _place(self, at: str | int | Cut, codec: CodecChoice | None) -> _Placement:
        cut = at if isinstance(at, Cut) else self.model.graph.cut(at)
        asked = self._codec if codec is None else codec
        if codec is None and not isinstance(asked, str):
            crossing = {t.name for t in cut.crossing}
            asked = {name: one for name, one in asked.items() if name in crossing}
        chosen = choose(cut, asked)
        if isinstance(asked, str) and is_unused(cut, asked, chosen) and (_key(cut), asked) not in self._sent_raw:
            self._sent_raw.add((_key(cut), asked))
            self._tell(Event("notice", f"{asked} takes none of what crosses at {cut.name}: sent raw"))
        check_decodable(chosen, self._channel.welcome.features)
        with self._placing:
            found = self._placements.get(_key(cut))
            if found is None:
                found = self._placements[_key(cut)] = self._build(cut)
            return found.encoding(chosen, strict=not isinstance(asked, str))

    def _build(self, cut: Cut) -> _Placement:
        """Both halves of `cut`: the server compiles the tail while the head's weights are fetched and compiled."""
        asked = self._ask_for_tail(cut)
        if asked is not None and self._channel.welcome.share == "head":
            # The head's weights are handed out to those who have opened its tail.
            opened, _ = self._channel.expect(asked, wire.Opened, _COMPILE_S)
            return _Placement(self.model, cut, self._head(cut), opened)
        try:
            head = self._head(cut)
        except BaseException:
            if asked is not None:
                self._channel.abandon(asked)
            raise
        if asked is None:
            return _Placement(self.model, cut, head, None)
        try:
            opened, _ = self._channel.expect(asked, wire.Opened, _COMPILE_S)
        except BaseException:
            if head is not None:
                head.close()
            raise
        return _Placement(self.model, cut, head, opened)

    def _ask_for_tail(self, cut: Cut) -> int | None:
        """Sends OPEN for what follows `cut`; its id, or None if nothing is left to compute there."""
        outputs = tuple(t.name for t in self.model.outputs if t.name not in cut.results)
        if not outputs:
            return None
        crossing = tuple(t.name for t in cut.crossing)
        request = wire.OpenRequest(self.info.fingerprint, crossing, outputs, cut.shapes)
        asked = self._channel.reserve()
        self._channel.send(asked, wire.encode(Kind.OPEN, asked, request))
        return asked

    def _head(self, cut: Cut) -> Session | None:
        segment = self.model.head(cut)
        if not segment.outputs:
            return None
        if not self._local:
            self._pull(segment.blobs)
        if self._engine is None:
            self._engine = open_engine()
        return self._engine.compile(segment)

    # --- running ------------------------------------------------------------------------------------------------

    def infer(self, inputs: Inputs, *, deadline_s: float = 0.0) -> Result:
        """The model's outputs for `inputs`: an array if it has one input, else arrays by name; or a `Request`.

        `deadline_s`: a server that cannot begin by then refuses instead of computing in vain. Raises InputError for
        inputs that do not fit, BusyError, ServerError; none of them costs an answer that was given before.
        """
        placement = self._current
        request = inputs if isinstance(inputs, Request) else Request(inputs)
        sent = self._begin(placement, request, deadline_s, 0)
        return self._finish(sent)

    def stream(self, items: Iterable[Inputs], *, window: int = 4, deadline_s: float = 0.0) -> Iterator[Result]:
        """Results of `items` in order, with up to `window` of them under way at once.

        While one is on the wire or at the server, the head of the next computes; `items` is read in a thread of
        its own. An exception, the caller's included, ends all of it; results before it are delivered first.
        """
        if window < 1:
            raise UsageError(f"a stream needs a window of at least 1, not {window}")
        window = max(1, min(window, self._channel.welcome.limits.get("in_flight", window)))
        flags = wire.PIPELINED if window > 1 else 0

        def begin(item: Inputs) -> _Sent:
            request = item if isinstance(item, Request) else Request(item)
            return self._begin(self._current, request, deadline_s, flags)

        return stream(items, begin, self._finish, self._abandon, window)

    def _begin(self, placement: _Placement, request: Request, deadline_s: float, flags: int) -> _Sent:
        """Runs the head and sends the request, if there is anything to send."""
        started = perf_counter()
        known = placement.check(request.inputs)
        if placement.head is not None:
            known = {**known, **placement.head.run(known)}
        headed = perf_counter()
        if not placement.segment:
            return _Sent(placement, request, known, started, headed, headed, 0, 0, ())
        arrays = [known[name] for name in placement.tensors]
        extra = (placement.vectors_of(known), deadline_s) if placement.vectors else ((), deadline_s)
        channel = self._channel
        if channel.in_flight:
            flags |= wire.PIPELINED
        id = channel.reserve()
        try:
            packet = placement.packer.pack(id, arrays, extra, (), flags)
        except BaseException:
            channel.abandon(id)
            raise
        packed = perf_counter()
        channel.send(id, packet)
        return _Sent(placement, request, known, started, headed, packed, id, packet.nbytes, packet.codecs)

    def _finish(self, sent: _Sent) -> Result:
        placement = sent.placement
        if not sent.id:
            outputs = {name: sent.known[name] for name in placement.outputs}
            now = perf_counter()
            request = sent.request
            return Result(outputs, placement.cut.name, Marks(sent.started, now, now, now), request.spans, request.tag)
        frame = self._channel.wait(sent.id)
        if frame.kind != _RESULT or len(frame.tensors) != len(placement.remote):
            raise ProtocolError(f"the server answered INFER with {wire.describe(frame.kind)}")
        outputs = dict(zip(placement.remote, frame.tensors, strict=True))
        if placement.results:
            known = {**sent.known, **outputs}
            outputs = {name: known[name] for name in placement.outputs}
        return Result(
            outputs,
            placement.cut.name,
            Marks(sent.started, sent.headed, sent.packed, perf_counter()),
            sent.request.spans,
            sent.request.tag,
            sent.nbytes,
            frame.nbytes,
            frame.times,
            self._channel.clock.best,
            {n: c for n, c in zip(placement.tensors, sent.codecs, strict=True) if c} if sent.codecs else {},
        )

    def _abandon(self, sent: _Sent) -> None:
        if sent.id:
            self._channel.abandon(sent.id)


def _key(cut: Cut) -> _Key:
    """What tells two cuts apart that are not the same: what crosses, and which results stay."""
    return cut.boundary, cut.results


_RESULT = int(Kind.RESULT)
#: A tail may be large, and compiling it is not what `timeout_s` is about.
_COMPILE_S = 600.0
#: How long a server that is busy measuring is asked again, beside some of our own budgets, and how often.
_BUSY_S, _BUSY_BUDGETS = 60.0, 6
_LEAST_PAUSE_S, _MOST_PAUSE_S = 0.05, 30.0


class _Sent(msgspec.Struct):
    """A request under way. `id` is 0 if it needs no server."""

    placement: _Placement
    request: Request
    known: Mapping[str, Array]
    started: float
    headed: float
    packed: float
    id: int
    nbytes: int
    codecs: tuple[str, ...]


class _Placement:
    """A cut with both halves compiled, the names of everything that goes back and forth, and how it is encoded."""

    def __init__(self, model: Model, cut: Cut, head: Session | None, opened: wire.Opened | None) -> None:
        self.cut, self.head = cut, head
        self.inputs = model.inputs
        self.outputs = [t.name for t in model.outputs]
        vectors = set(cut.shapes)
        needed = [t.name for t in opened.inputs] if opened is not None else []
        self.tensors = [name for name in needed if name not in vectors]
        self.vectors = [name for name in needed if name in vectors]
        self.remote = [t.name for t in opened.outputs] if opened is not None else []
        stays = set(cut.results) if opened is not None else set(self.outputs)
        asked = [name for name in self.outputs if name not in stays]
        if set(needed) - {t.name for t in cut.crossing} - vectors or self.remote != asked:
            raise ProtocolError("the server opened another segment than it was asked for")
        self.results = self.remote != self.outputs
        self.segment = segment = opened.segment if opened is not None else 0
        self._header = lambda tensors, vectors, deadline_s: wire.Infer(segment, tensors, vectors, deadline_s)
        self.packer: wire.Packer | wire.EncodingPacker = wire.Packer(Kind.INFER, self._header)
        self.codecs: Mapping[str, Codec] = {}
        self._encodings: dict[object, _Placement] = {}
        self._accepted: list[tuple[str, np.dtype[np.generic], tuple[int, ...]]] = []

    def check(self, inputs: Mapping[str, Array] | Array) -> Mapping[str, Array]:
        """`inputs` by name, contiguous; InputError unless they are what the model takes."""
        if isinstance(inputs, np.ndarray):
            if len(self.inputs) != 1:
                raise InputError(f"the model has {len(self.inputs)} inputs: give them by name")
            inputs = {self.inputs[0].name: inputs}
        accepted = self._accepted
        if len(inputs) == len(accepted):
            # Looked at again only if something changed since the last time.
            for name, dtype, shape in accepted:
                array = inputs.get(name)
                if (
                    not isinstance(array, np.ndarray)
                    or array.dtype != dtype
                    or array.shape != shape
                    or not array.flags.c_contiguous
                ):
                    break
            else:
                return inputs
        checked = check_specs(self.inputs, inputs)
        self._accepted = [(name, a.dtype, a.shape) for name, a in checked.items()]
        return checked

    def encoding(self, codecs: Mapping[str, Codec], *, strict: bool) -> _Placement:
        """The same halves, for tensors that travel with `codecs`; see `chooser` for `strict`. Called by one at a time.

        Only the one without codecs is closed, and all with it.
        """
        codecs = {name: codecs[name] for name in self.tensors if name in codecs}
        if not codecs:
            return self
        key = (strict, *((name, codec.name) for name, codec in codecs.items()))
        found = self._encodings.get(key)
        if found is None:
            found = self._encodings[key] = copy(self)
            found.codecs = codecs
            found.packer = wire.EncodingPacker(self._header, chooser(self.tensors, codecs, strict=strict))
        return found

    def vectors_of(self, known: Mapping[str, Array]) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(int(n) for n in known[name].reshape(-1)) for name in self.vectors)

    def close(self) -> None:
        if self.head is not None:
            self.head.close()


class _Fetching:
    """`Weights` over the cache; what is missing or has rotted is fetched."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    def open(self, hash: str) -> memoryview:
        cache = self._edge.cache
        if hash in cache:
            try:
                return cache.open(hash)
            except StorageError as exc:
                self._edge._tell(Event("notice", f"{exc}; fetching it again"))
        try:
            self._edge._pull((hash,))
        except ServerError as exc:
            raise StorageError(f"weight {hash[:12]}… is not in the cache and cannot be fetched: {exc}") from exc
        return cache.open(hash)


def _listed(models: Iterable[ModelInfo]) -> str:
    """Names and fingerprints for a message."""
    all_of_them = [f"{m.name} {m.fingerprint[:12]}" for m in models]
    more = f" and {len(all_of_them) - 20} more" if len(all_of_them) > 20 else ""
    return ", ".join(all_of_them[:20]) + more or "none"


def _with_prefix(models: Iterable[ModelInfo], digits: str) -> list[ModelInfo]:
    wanted = digits.lower()
    with suppress(ValueError):
        int(wanted, 16)
        return [m for m in models if len(wanted) >= 6 and m.fingerprint.startswith(wanted)]
    return []
