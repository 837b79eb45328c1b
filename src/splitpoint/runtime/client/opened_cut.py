"""A cut on this device: what is compiled here, where its tail is open, and how what crosses is encoded.

What belongs to one connection is one value, the `RemoteTail`, that is replaced when the connection is made again. All
else outlives it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from splitpoint.codecs import Codec
from splitpoint.engines import Session
from splitpoint.errors import ProtocolError
from splitpoint.graph import Cut
from splitpoint.models.model import Model
from splitpoint.runtime.client import Encoding, Remote, RemoteTail, TailAnswer
from splitpoint.runtime.client.timeouts import AnswerTimes, Patience
from splitpoint.segments import by_name, check_specs
from splitpoint.tensors import ANY_RANK, Array, TensorSpec

#: For so many sizes of the free dimensions it is remembered what the outputs must be.
_MOST_SIZES = 64
_ANY_NBYTES = 1 << 62

#: What tells two cuts apart that are not the same: what crosses, and which results stay.
Key = tuple[tuple[str, ...], tuple[str, ...]]


def key_of(cut: Cut) -> Key:
    """The key of `cut`."""
    return cut.boundary, cut.results


class Route:
    """A placement, and how what crosses there travels."""

    def __init__(self, placement: Placement, codecs: Mapping[str, Codec], *, strict: bool) -> None:
        self.placement, self.encoding = placement, Encoding(codecs, strict)


class Placement:
    """A cut with its head compiled here.

    `remote_tail` is where its tail is open, None while it is nowhere; `remote` names the outputs that it is asked for,
    if any. `tail` is the same tail compiled here, once there is one. Sessions are closed when nobody holds it any more.
    """

    def __init__(self, model: Model, cut: Cut, head: Session | None, patience: Patience) -> None:
        self.cut, self.head = cut, head
        self.inputs = model.inputs
        self.outputs = [t.name for t in model.outputs]
        self.asked = tuple(t for t in model.outputs if t.name not in cut.results)
        self.remote = [t.name for t in self.asked]
        #: Where the inputs' free dimensions are: input, axis, name.
        self._open_dims = [(t.name, k, n) for t in model.inputs for k, n in enumerate(t.shape) if isinstance(n, str)]
        self._outputs_at: Callable[[Sequence[TensorSpec]], Mapping[str, TensorSpec]] = model.outputs_at
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

    def route(self, codecs: Mapping[str, Codec], *, strict: bool) -> Route:
        """How its tensors travel with `codecs`, of which those are `strict` that must take theirs. Called by one at a
        time."""
        key = (strict and bool(codecs), *((name, codecs[name].name) for name in sorted(codecs)))
        if key not in self._routes:
            self._routes[key] = Route(self, codecs, strict=strict)
        return self._routes[key]

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
        """The model's outputs, by the tail that is compiled here."""
        assert self.tail is not None
        return self.outputs_of({**known, **self.tail.run(known)})

    def outputs_of(self, known: Mapping[str, Array]) -> dict[str, Array]:
        """The model's outputs out of all that is known."""
        return {name: known[name] for name in self.outputs}

    def answer(self, answer: TailAnswer, known: Mapping[str, Array]) -> dict[str, Array]:
        """The model's outputs, of which the remote has sent the missing ones. ProtocolError if these are others than
        follow from what was asked: see `_check_answer`."""
        layout, tensors = answer.layout, answer.tensors
        sizes = tuple([known[name].shape[axis] for name, axis, _ in self._open_dims]) if self._open_dims else ()
        seen, seen_sizes = self._seen
        if layout is not seen or sizes != seen_sizes or layout is None:
            self._check_answer(tensors, sizes)
            self._seen = (layout, sizes)
        outputs = dict(zip(self.remote, tensors, strict=True))
        return self.outputs_of({**known, **outputs}) if self.results else outputs

    def most_nbytes(self, known: Mapping[str, Array]) -> int:
        """How large the answer can be to a request of whose inputs these are `known`, in bytes. Where values decide it,
        that is for the connection's limits."""
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

    # --- life ---------------------------------------------------------------------------------------------------

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
