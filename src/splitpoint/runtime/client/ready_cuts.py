"""The cuts of a model that are ready: heads compiled here, tails open at the server, and how what crosses is encoded.

What of a cut belongs to one connection is one value, the `RemoteTail`, which is replaced with it. All else outlives it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress

import numpy as np

from splitpoint.codecs import Codec
from splitpoint.engines import Engine, Session
from splitpoint.errors import (
    CutError,
    ModelError,
    ProtocolError,
    RefusedError,
    ServerError,
    SplitpointError,
    UsageError,
)
from splitpoint.graph import Cut
from splitpoint.models.model import Model
from splitpoint.planning.constraints import Shared
from splitpoint.runtime.client import Encoding, Remote, RemoteTail, TailAnswer
from splitpoint.runtime.client.channel import CLOSED
from splitpoint.runtime.client.held_tables import HeldTables, without_tables
from splitpoint.runtime.client.held_weights import Holding
from splitpoint.runtime.client.timeouts import AnswerTimes, Patience
from splitpoint.runtime.codec_choice import RAW, CodecChoice, check_decodable, choose
from splitpoint.runtime.events import Event, OnEvent, teller
from splitpoint.segments import by_name, check_specs
from splitpoint.tensors import ANY_RANK, Array, TensorSpec
from splitpoint.wire import SAID

#: A tail may be large, and compiling it is not what a time limit for answers is about.
COMPILE_S = 600.0
#: For so many sizes of the free dimensions it is remembered what the outputs must be.
_MOST_SIZES = 64
_ANY_NBYTES = 1 << 62

#: What tells two cuts apart that are not the same: what crosses, and which results stay.
Key = tuple[tuple[str, ...], tuple[str, ...]]


def key_of(cut: Cut) -> Key:
    """The key of `cut`."""
    return cut.boundary, cut.results


class Route:
    """A placement, and how what crosses there travels: with what was `asked` for, as it is `bound` to tables."""

    def __init__(self, placement: Placement, asked: Mapping[str, Codec], *, strict: bool) -> None:
        self.placement, self.asked, self.encoding = placement, asked, Encoding(asked, strict)

    def bind(self, codecs: Mapping[str, Codec]) -> None:
        """From now on what was asked for is done with `codecs`."""
        if self.encoding.codecs != codecs:
            strict, spare = self.encoding.strict, without_tables(codecs)
            self.encoding = Encoding(codecs, strict, Encoding(spare, strict) if spare != codecs else None)


class Placement:
    """A cut with its head compiled here.

    `remote_tail` is its tail where that is open (None: nowhere), `tail` the same compiled here; `remote` names the
    outputs that the remote is asked for, if any. Sessions are closed when nobody holds it any more.
    """

    def __init__(self, model: Model, cut: Cut, head: Session | None, patience: Patience) -> None:
        self.cut, self.head = cut, head
        self._model, self.inputs = model, model.inputs
        self.outputs = [t.name for t in model.outputs]
        self.asked = tuple(t for t in model.outputs if t.name not in cut.results)
        self.remote = [t.name for t in self.asked]
        #: Where the inputs' free dimensions are: input, axis, name.
        self._open_dims = [(t.name, k, n) for t in model.inputs for k, n in enumerate(t.shape) if isinstance(n, str)]
        self._wanted: dict[tuple[int, ...], tuple[TensorSpec, ...]] = {}
        self.results = self.remote != self.outputs
        self.remote_tail: RemoteTail | None = None
        self.tail: Session | None = None
        self.times = AnswerTimes(patience)
        self._routes: dict[object, Route] = {}
        self._accepted: list[tuple[str, np.dtype[np.generic], tuple[int, ...]]] = []
        self._most: tuple[tuple[int, ...] | None, int] = (None, 0)
        self._seen: tuple[object, tuple[int, ...]] = (None, ())
        self._holds: list[None] = []
        self._closing = self._freed = False

    def route(
        self, asked: Mapping[str, Codec], *, strict: bool, bound: Mapping[str, Codec] | None = None
    ) -> Route:  # fmt: skip
        """How its tensors travel with the codecs `asked` for, which must take theirs if `strict`; with the tables of
        these they are `bound`. Called by one at a time."""
        key = (strict and bool(asked), *((name, asked[name].name) for name in sorted(asked)))
        if key not in self._routes:
            self._routes[key] = Route(self, asked, strict=strict)
        if bound is not None:
            self._routes[key].bind(bound)
        return self._routes[key]

    @property
    def routes(self) -> Sequence[Route]:
        """Those that there are so far."""
        return tuple(self._routes.values())

    def is_open_at(self, remote: Remote) -> bool:
        """Whether its tail can be asked over `remote`."""
        tail = self.remote_tail
        return tail is not None and tail.remote is remote and not remote.ended

    def open_tail(self, tail: RemoteTail) -> None:
        """From now on its requests go to `tail`."""
        self.remote_tail = tail

    def compile_tail(self, session: Session, here_s: float) -> None:
        """Its tail is compiled here, too, and took `here_s` for a run (0: not known)."""
        self.times.finished(here_s)
        self.tail = session

    def check(self, inputs: Mapping[str, Array] | Array) -> Mapping[str, Array]:
        """`inputs` by name, contiguous; InputError unless they are what the model takes."""
        inputs = by_name(self.inputs, inputs)
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

    def compute(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """`inputs` and all that the head makes of them."""
        return inputs if self.head is None else {**inputs, **self.head.run(inputs)}

    def finish(self, known: Mapping[str, Array]) -> dict[str, Array]:
        """The model's outputs, by the tail that is compiled here, where one is left to run."""
        return self.outputs_of(known if self.tail is None else {**known, **self.tail.run(known)})

    def outputs_of(self, known: Mapping[str, Array]) -> dict[str, Array]:
        """The model's outputs out of all that is known."""
        return {name: known[name] for name in self.outputs}

    def answer(self, answer: TailAnswer, known: Mapping[str, Array]) -> dict[str, Array]:
        """The model's outputs, of which the remote has sent the missing ones. ProtocolError: see `_check_answer`."""
        layout, tensors = answer.layout, answer.tensors
        sizes = tuple([known[name].shape[axis] for name, axis, _ in self._open_dims]) if self._open_dims else ()
        seen, seen_sizes = self._seen
        if layout is not seen or sizes != seen_sizes or layout is None:
            self._check_answer(tensors, sizes)
            self._seen = (layout, sizes)
        outputs = dict(zip(self.remote, tensors, strict=True))
        return self.outputs_of({**known, **outputs}) if self.results else outputs

    def most_nbytes(self, known: Mapping[str, Array]) -> int:
        """How many bytes the answer to a request can have. Where values decide it, the connection's limits hold."""
        sizes = tuple([known[name].shape[axis] for name, axis, _ in self._open_dims]) if self._open_dims else ()
        at, most = self._most
        if at != sizes:
            bound: Sequence[TensorSpec] = self._bound(sizes)
            if not all(t.is_static for t in bound):
                bound = self._told(sizes, bound)
            most = sum(t.nbytes for t in bound) if all(t.is_static for t in bound) else _ANY_NBYTES
            self._most = sizes, most
        return most

    def _check_answer(self, tensors: Sequence[Array], sizes: tuple[int, ...]) -> None:
        """ProtocolError unless there are as many tensors as were asked for, each of its dtype and of the shape that
        follows from the request's own `sizes`. A dimension that values decide can have any."""
        if len(tensors) != len(self.asked):
            raise ProtocolError(f"the server answered with {len(tensors)} tensors instead of {len(self.asked)}")
        bound = self._bound(sizes)
        if all(t.is_static and t.fits(a.dtype.name, a.shape) for t, a in zip(bound, tensors, strict=True)):
            return
        for spec, array in zip(self._told(sizes, bound), tensors, strict=True):
            if not spec.fits(array.dtype.name, array.shape):
                came = f"{array.dtype.name}[{','.join(map(str, array.shape))}]"
                raise ProtocolError(f"the server's answer {spec.name} must be {spec.type}, but {came} came")

    def _bound(self, sizes: tuple[int, ...]) -> list[TensorSpec]:
        """What was asked for, with the free dimensions that the inputs have too as large as they are there."""
        named: dict[str, int] = {}
        twice = set()
        for (_, _, name), size in zip(self._open_dims, sizes, strict=True):
            if named.setdefault(name, size) != size:
                twice.add(name)
        return [t.bind({n: size for n, size in named.items() if n not in twice}) for t in self.asked]

    def _told(self, sizes: tuple[int, ...], bound: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        """`bound`, with all that onnx knows of outputs for inputs of these `sizes`: by names alone twice a batch would
        be open, and a batch of which only the first five go on wrong."""
        told = self._wanted.get(sizes)
        if told is None:
            shapes = {t.name: list(t.shape) for t in self.inputs}
            for (name, axis, _), size in zip(self._open_dims, sizes, strict=True):
                shapes[name][axis] = size
            known = self._model.outputs_at([TensorSpec(t.name, t.dtype, tuple(shapes[t.name])) for t in self.inputs])
            told = tuple(_narrowed(t, known.get(t.name)) for t in bound)
            if len(self._wanted) >= _MOST_SIZES:
                self._wanted.clear()
            self._wanted[sizes] = told
        return told

    def hold(self) -> bool:
        """Keeps its sessions until `release`; False if they are closed already."""
        self._holds.append(None)  # a lock twice a request would be felt
        if self._freed:
            self.release()
            return False
        return True

    def release(self) -> None:
        """Ends a `hold`."""
        self._holds.pop()
        if self._closing and not self._holds:
            self._free()

    def close(self) -> None:
        """Frees what is compiled here, as soon as nobody holds it."""
        self._closing = True
        if not self._holds:
            self._free()

    def _free(self) -> None:
        self._freed = True
        if self._holds:
            return  # begun before that was to be seen: it ends that hold which frees it
        for session in (self.head, self.tail):
            if session is not None:
                session.close()


def _narrowed(spec: TensorSpec, known: TensorSpec | None) -> TensorSpec:
    """`spec` with the sizes that are `known`."""
    if known is None or known.shape == ANY_RANK or known.dtype != spec.dtype:
        return spec
    if spec.shape == ANY_RANK or len(spec.shape) != len(known.shape):
        return known
    shape = tuple(n if isinstance(n, int) else old for n, old in zip(known.shape, spec.shape, strict=True))
    return TensorSpec(spec.name, spec.dtype, shape)


class Cuts:
    """Makes cuts of `holding`'s model ready, once each: `engine` compiles heads, tails are opened at `remote`.

    `current` is what requests go through, from the first `switch` on. `alone`: a cut is of use without its tail.
    """

    current: Route

    def __init__(
        self, holding: Holding, remote: Callable[[], Remote], engine: Callable[[], Engine], patience: Patience,
        on_event: OnEvent, alone: Callable[[], bool] = lambda: False, tables: HeldTables | None = None,
    ) -> None:  # fmt: skip
        self._holding, self._remote, self._engine = holding, remote, engine
        self._patience, self._tell, self._alone = patience, teller(on_event), alone
        self.tables = tables or HeldTables(holding, None, self._tell)
        self._placements: dict[Key, Placement] = {}
        self._lock, self._building = threading.Lock(), threading.Lock()
        self._closed = False
        self._sent_raw: set[tuple[Key, str]] = set()
        self._shared: tuple[str, Shared | None] = ("", None)

    def __contains__(self, cut: Cut) -> bool:
        return key_of(cut) in self._placements

    def all(self) -> Iterable[Placement]:
        """Those that are ready."""
        return tuple(self._placements.values())

    def route(self, cut: Cut, asked: CodecChoice, *, hurry: bool = False) -> Route:
        """`cut`, made ready if it is not, with tensors that travel as `asked`. In a `hurry` (and always for the first),
        where requests can be answered `alone`, its tail need not be open, whatever the server says of it."""
        chosen = choose(cut, asked)
        key = key_of(cut)
        raw = cut.crossing and not chosen
        if isinstance(asked, str) and asked not in RAW and raw and (key, asked) not in self._sent_raw:
            self._sent_raw.add((key, asked))
            said = f"{asked} takes none of what crosses at {cut.name}: sent raw"
            self._tell(Event("notice", said, {"codec": asked, "cut": cut.name}))
        strict, bound = not isinstance(asked, str), self.tables.bind(chosen, self._remote())
        with self._lock:
            known = self._placements.get(key)
            if known is not None:
                check_decodable(bound, self._remote().offer.codecs)
                return known.route(chosen, strict=strict, bound=bound)
        # One at a time; whoever wants a cut that is ready does not wait for it.
        with self._tell.held(), self._building:
            first = not self._placements
            placement = self._placements.get(key) or self._build(cut, bound, hurry=(first or hurry) and self._alone())
            with self._lock:
                if self._closed:
                    placement.close()
                    raise ServerError(CLOSED)
                self._placements[key] = placement
                route = placement.route(chosen, strict=strict, bound=bound)
        if placement.remote and placement.remote_tail is None and not first and not self._remote().ended:
            with suppress(SplitpointError):  # the server has come meanwhile: whoever needs the tail finds out why not
                self.reopen(placement)
        return route

    def switch(self, cut: Cut, asked: CodecChoice) -> Route:
        """Makes `cut` ready, in a hurry, and what the next request goes through."""
        while True:
            route = self.route(cut, asked, hurry=True)
            with self._lock:
                if self._placements.get(key_of(cut)) is route.placement:  # not forgotten meanwhile
                    self.current = route
                    return route

    def _build(self, cut: Cut, codecs: Mapping[str, Codec], *, hurry: bool) -> Placement:
        """Both halves of `cut`: the server compiles the tail while the head's weights are fetched and compiled. In a
        `hurry` the tail need not be open."""
        tail: RemoteTail | None = None
        head: Session | None = None
        try:
            remote = self._remote()
            if not (remote.ended and self._alone()):
                try:
                    check_decodable(codecs, remote.offer.codecs)
                    if why := self.refusal(cut):
                        raise RefusedError(why)
                    tail = self._ask_for_tail(cut, remote)
                except SAID as exc:
                    self._unopened(cut, exc, hurry)
            segment = self._holding.model.head(cut)
            if segment.outputs:
                if not self._holding.local:
                    self._holding.pull(segment.blobs)
                head = self._engine().compile(segment)
            placement = Placement(self._holding.model, cut, head, self._patience)
            if tail is not None:
                try:
                    tail.ready(self._patience.open_s if hurry else COMPILE_S)
                    placement.open_tail(tail)
                except SAID as exc:
                    self._unopened(cut, exc, hurry)
                    tail.close()
        except BaseException:
            if tail is not None:
                tail.close()
            if head is not None:
                head.close()
            raise
        return placement

    def _unopened(self, cut: Cut, why: SplitpointError, hurry: bool) -> None:
        """The server has said `why` instead of opening the tail of `cut`: told in a `hurry`, else raised."""
        if not hurry:
            raise why
        said = f"{why}; until it opens {cut.name}, requests are answered here"
        self._tell(Event("notice", said, {"why": str(why), "cut": cut.name}))

    @property
    def shared(self) -> Shared | None:
        """What the server allows; None if that is every cut, or one that this model has not: it may refuse then."""
        name = self._remote().offer.heads.get(self._holding.info.fingerprint, "")
        if name != self._shared[0]:
            cut = None
            with suppress(CutError):
                cut = self._holding.model.graph.cut(name)
            self._shared = (name, None if cut is None else Shared(cut, whole=self._holding.local))
        return self._shared[1]

    def refusal(self, cut: Cut) -> str:
        """Why the server has no part in `cut`; empty if nothing speaks against it."""
        shared, model = self.shared, self._holding.model
        if shared is None or not shared.refusal(cut, model.graph):
            return ""
        return (
            f"of {model.name} this server shares the head up to {shared.cut.name}, and {cut.name} is deeper: cut there "
            "or before it"
        )

    def _ask_for_tail(self, cut: Cut, remote: Remote) -> RemoteTail | None:
        """What follows `cut`, asked for at `remote`; None if nothing is left to compute there."""
        outputs = tuple(t.name for t in self._holding.model.outputs if t.name not in cut.results)
        if not outputs:
            return None
        tail = remote.open(self._holding.info.fingerprint, cut, outputs)
        if tail.fingerprint != self._holding.info.fingerprint:
            tail.close()
            raise ModelError(
                f"{remote.peer} opened a tail of {tail.fingerprint[:12]}, not of {self._holding.info.fingerprint[:12]}"
            )
        return tail

    def holds(self, cut: Cut) -> bool:
        """Whether `cut` can be made ready without fetching weights over a link that requests need."""
        if cut in self:
            return True
        if self.refusal(cut):
            return False
        # A head is all that will ever be fetched; a whole model comes by itself, with what requests leave.
        return self._holding.local or self.shared is not None or self._holding.has(self._holding.model.head(cut).blobs)

    def reopen(self, placement: Placement, remote: Remote | None = None) -> None:
        """Opens a cut's tail at `remote`, or at that of the moment. ServerError and its kin."""
        remote = remote or self._remote()
        before = placement.remote_tail
        if before is not None and before.remote is remote:
            return
        tail = self._ask_for_tail(placement.cut, remote)
        if tail is None:
            return
        try:
            tail.ready(COMPILE_S, self._patience.pong_s)
            self._bind_again(placement, remote)
        except BaseException:
            tail.close()
            raise
        placement.open_tail(tail)

    def _bind_again(self, placement: Placement, remote: Remote) -> None:
        """The server there may have other tables than the one before."""
        for route in placement.routes:
            route.bind(self.tables.bind(route.asked, remote))

    def reopen_current(self, remote: Remote) -> None:
        """Opens at `remote` the tail that the next request needs."""
        opened: Route | None = None
        while opened is not self.current:  # it may be switched meanwhile
            opened = self.current
            self._bind_again(opened.placement, remote)
            check_decodable(opened.encoding.codecs, remote.offer.codecs)
            self.reopen(opened.placement, remote)

    def reopen_all(self, remote: Remote) -> None:
        """Opens all tails there that are not; whoever needs one that cannot be opened finds out why."""
        for placement in self.all():
            with suppress(SplitpointError):
                self.reopen(placement, remote)

    def forget(self, cut: Cut | None) -> None:
        """Frees both halves of `cut`, or of all but the current one, as soon as nobody uses them."""
        with self._lock:
            current = self.current.placement.cut
            keep = key_of(current)
            wanted = [k for k in self._placements if k != keep] if cut is None else [key_of(cut)]
            if keep in wanted:
                raise UsageError(f"{current.name} is in use: switch to another cut first")
            for placement in [self._placements.pop(k) for k in wanted if k in self._placements]:
                placement.close()
                if placement.remote_tail is not None and placement.is_open_at(self._remote()):
                    placement.remote_tail.close()

    def close(self) -> None:
        """Frees what is compiled here, as soon as nobody uses it."""
        with self._lock:
            self._closed = True
        for placement in self.all():
            placement.close()
        self._placements.clear()
