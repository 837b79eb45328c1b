"""A cut on this device: what is compiled here, where its tail is open, and how what crosses is encoded.

What belongs to one connection (the segment's number there) is one value, `Far`, that is replaced when the connection is
made again. All else outlives it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from splitpoint import wire
from splitpoint.codecs import Codec
from splitpoint.engines import Session
from splitpoint.errors import ProtocolError
from splitpoint.graph import Cut
from splitpoint.models.model import Model
from splitpoint.runtime.client.channel import Channel
from splitpoint.runtime.client.timeouts import Patience, Waits
from splitpoint.runtime.codec_choice import chooser
from splitpoint.segments import by_name, check_specs
from splitpoint.tensors import ANY_RANK, Array, TensorSpec
from splitpoint.wire import Kind

#: For so many sizes of the free dimensions it is remembered what the outputs must be.
_MOST_SIZES = 64

#: What tells two cuts apart that are not the same: what crosses, and which results stay.
Key = tuple[tuple[str, ...], tuple[str, ...]]


def key_of(cut: Cut) -> Key:
    """The key of `cut`."""
    return cut.boundary, cut.results


class Far(NamedTuple):
    """A tail that is open: on which channel, and its number there."""

    channel: Channel
    segment: int


def _infer(
    tensors: tuple[wire.Tensor, ...], segment: int, vectors: tuple[tuple[int, ...], ...], deadline_s: float
) -> wire.Infer:
    return wire.Infer(segment, tensors, vectors, deadline_s)


class Route:
    """A placement, and how what crosses there travels."""

    def __init__(self, placement: Placement, codecs: Mapping[str, Codec], *, strict: bool) -> None:
        self.placement = placement
        self.codecs = codecs
        self.packer: wire.Packer | wire.EncodingPacker
        if codecs:
            self.packer = wire.EncodingPacker(_infer, chooser(placement.tensors, codecs, strict=strict))
        else:
            self.packer = wire.Packer(Kind.INFER, _infer)

    def pack(self, id: int, segment: int, known: Mapping[str, Array], deadline_s: float, flags: int) -> wire.Packet:
        """The frame that asks for the rest of what is `known`."""
        placement = self.placement
        arrays = [known[name] for name in placement.tensors]
        vectors = placement.vectors_of(known) if placement.vectors else ()
        return self.packer.pack(id, arrays, (segment, vectors, deadline_s), (), flags)

    def codecs_of(self, packed: Sequence[str]) -> dict[str, str]:
        """By tensor name, what the tensors of a frame travelled with; what travelled raw is not in it."""
        return {n: c for n, c in zip(self.placement.tensors, packed, strict=True) if c} if packed else {}


class Placement:
    """A cut with its head compiled here, and the names of everything that goes back and forth.

    `far` is where its tail is open, None while it is nowhere; `remote` says whether it has one at all. `tail` is the
    same tail compiled here, once there is one. Sessions are closed when nobody `hold`s it any more.
    """

    def __init__(self, model: Model, cut: Cut, head: Session | None, opened: wire.Opened | None, patience: Patience):
        self.cut, self.head = cut, head
        self.inputs = model.inputs
        self.outputs = [t.name for t in model.outputs]
        self.asked = tuple(t for t in model.outputs if opened is not None and t.name not in cut.results)
        self.remote = [t.name for t in self.asked]
        #: Where the inputs' free dimensions are: input, axis, name.
        self._open_dims = [(t.name, k, n) for t in model.inputs for k, n in enumerate(t.shape) if isinstance(n, str)]
        self._outputs_at: Callable[[Sequence[TensorSpec]], Mapping[str, TensorSpec]] = model.outputs_at
        self._wanted: dict[tuple[int, ...], tuple[TensorSpec, ...]] = {}
        shapes = set(cut.shapes)
        self._needed = [t.name for t in opened.inputs] if opened is not None else []
        self.tensors = [name for name in self._needed if name not in shapes]
        self.vectors = [name for name in self._needed if name in shapes]
        if opened is not None:
            self.check_opened(opened)
        self.results = self.remote != self.outputs
        self.far: Far | None = None
        self.tail: Session | None = None
        self.waits = Waits(patience)
        self._routes: dict[object, Route] = {}
        self._accepted: list[tuple[str, np.dtype[np.generic], tuple[int, ...]]] = []
        self._seen: tuple[wire.Message | None, tuple[int, ...]] = (None, ())
        self._lock = threading.Lock()
        self._users = 0
        self._closing = False

    def check_opened(self, opened: wire.Opened) -> None:
        """ProtocolError unless it is the tail of this cut, with what it takes in the order it had before."""
        needed = [t.name for t in opened.inputs]
        known = {t.name for t in self.cut.crossing} | set(self.cut.shapes)
        twice = len(set(needed)) < len(needed)
        if needed != self._needed or twice or set(needed) - known or [t.name for t in opened.outputs] != self.remote:
            raise ProtocolError("the server opened another segment than it was asked for")

    def route(self, codecs: Mapping[str, Codec], *, strict: bool) -> Route:
        """How its tensors travel with `codecs`; see `chooser` for `strict`. Called by one at a time."""
        codecs = {name: codecs[name] for name in self.tensors if name in codecs}
        key = (strict and bool(codecs), *((name, codec.name) for name, codec in codecs.items()))
        found = self._routes.get(key)
        if found is None:
            found = self._routes[key] = Route(self, codecs, strict=strict)
        return found

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
        """The model's outputs, by the tail that is compiled here."""
        assert self.tail is not None
        return self.outputs_of({**known, **self.tail.run(known)})

    def outputs_of(self, known: Mapping[str, Array]) -> dict[str, Array]:
        """The model's outputs out of all that is known."""
        return {name: known[name] for name in self.outputs}

    def answer(self, frame: wire.Frame, known: Mapping[str, Array]) -> dict[str, Array]:
        """The model's outputs, of which the server has sent the missing ones. ProtocolError if these are others than
        follow from what was asked: see `_check_answer`."""
        header = frame.header
        sizes = tuple([known[name].shape[axis] for name, axis, _ in self._open_dims])
        seen, seen_sizes = self._seen  # the same object as long as it is the same bytes
        if header is not seen or sizes != seen_sizes or header is None:
            self._check_answer(frame, sizes)
            self._seen = (header, sizes)
        outputs = dict(zip(self.remote, frame.tensors, strict=True))
        return self.outputs_of({**known, **outputs}) if self.results else outputs

    def _check_answer(self, frame: wire.Frame, sizes: tuple[int, ...]) -> None:
        """ProtocolError unless there are as many tensors as were asked for, each of its dtype and of the shape that
        follows from the request's own `sizes`. A dimension that values decide can have any."""
        header = frame.header
        if not isinstance(header, wire.ResultData):
            raise ProtocolError(f"the server answered INFER with {wire.describe(frame.kind)}")
        if len(header.tensors) != len(self.asked):
            raise ProtocolError(f"the server answered with {len(header.tensors)} tensors instead of {len(self.asked)}")
        bound = self._bound(sizes)
        if all(t.is_static and t.fits(got.dtype, got.shape) for t, got in zip(bound, header.tensors, strict=True)):
            return
        for spec, got in zip(self._told(sizes, bound), header.tensors, strict=True):
            if not spec.fits(got.dtype, got.shape):
                came = f"{got.dtype}[{','.join(map(str, got.shape))}]"
                raise ProtocolError(f"the server's answer {spec.name} must be {spec.type}, but {came} came")

    def _bound(self, sizes: tuple[int, ...]) -> list[TensorSpec]:
        """What was asked for, with the free dimensions that the inputs have too as large as they are there."""
        named: dict[str, int] = {}
        twice = set()
        for (_, _, name), size in zip(self._open_dims, sizes, strict=True):
            if named.setdefault(name, size) != size:
                twice.add(name)
        return [t.bind({n: size for n, size in named.items() if n not in twice}) for t in self.asked]

    def _inputs_at(self, sizes: tuple[int, ...]) -> list[TensorSpec]:
        """The inputs of a request with these `sizes`."""
        shapes = {t.name: list(t.shape) for t in self.inputs}
        for (name, axis, _), size in zip(self._open_dims, sizes, strict=True):
            shapes[name][axis] = size
        return [TensorSpec(t.name, t.dtype, tuple(shapes[t.name])) for t in self.inputs]

    def _told(self, sizes: tuple[int, ...], bound: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        """`bound`, with all that onnx knows of outputs for inputs of these `sizes`: by names alone twice a batch would
        be open, and a batch of which only the first five go on wrong."""
        found = self._wanted.get(sizes)
        if found is None:
            known = self._outputs_at(self._inputs_at(sizes))
            found = tuple(_narrowed(t, known.get(t.name)) for t in bound)
            if len(self._wanted) >= _MOST_SIZES:
                self._wanted.clear()
            self._wanted[sizes] = found
        return found

    def vectors_of(self, known: Mapping[str, Array]) -> tuple[tuple[int, ...], ...]:
        """The shape vectors that travel in the header."""
        return tuple(tuple(int(n) for n in known[name].reshape(-1)) for name in self.vectors)

    # --- life ---------------------------------------------------------------------------------------------------

    def hold(self) -> bool:
        """Keeps its sessions until `release`; False if they are closed already."""
        with self._lock:
            if self._closing and not self._users:
                return False
            self._users += 1
            return True

    def release(self) -> None:
        """Ends a `hold`."""
        with self._lock:
            self._users -= 1
            last = self._closing and not self._users
        if last:
            self._free()

    def close(self) -> None:
        """Frees what is compiled here, as soon as nobody holds it."""
        with self._lock:
            self._closing, last = True, not self._users
        if last:
            self._free()

    def _free(self) -> None:
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
