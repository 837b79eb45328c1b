"""The whole model here: what a cut is compared with, and what runs where there is no server."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from time import perf_counter

from splitpoint.engines import Engine
from splitpoint.errors import UsageError
from splitpoint.graph import Cut
from splitpoint.lifetime import Closable
from splitpoint.models.model import Model
from splitpoint.runtime.result import Marks, Request, Result
from splitpoint.runtime.stream.pipeline import stream
from splitpoint.segments import by_name, check_inputs
from splitpoint.tensors import Array


class Local(Closable):
    """An uncut model on one engine, with the verbs of an `Edge`.

    >>> with Local(load("zoo:lenet5"), open_engine()) as whole:
    ...     whole.infer({"image": digit}).outputs["logits"].shape
    (1, 10)
    """

    def __init__(self, model: Model, engine: Engine) -> None:
        self.model = model
        self.cut: Cut = model.graph.prefixes()[-1]
        self._session = engine.compile(model.whole())
        self._opened()

    def _closed_error(self) -> UsageError:
        return UsageError("this Local is closed")

    def _end(self) -> None:
        self._session.close()

    def infer(self, inputs: Mapping[str, Array] | Request) -> Result:
        """The model's outputs. InputError for inputs that do not fit."""
        self.check()
        request = inputs if isinstance(inputs, Request) else Request(inputs)
        given = by_name(self.model.inputs, request.inputs)
        started = perf_counter()
        outputs = self._session.run(check_inputs(self.model, given))
        ended = perf_counter()
        return Result(outputs, self.cut.name, Marks(started, ended, ended, ended), request.spans, request.tag)

    def stream(self, items: Iterable[Request], *, window: int = 2) -> Iterator[Result]:
        """Results in order; while one is computed the next is taken from `items`, in a thread of its own."""
        self.check()
        return stream(items, (self.infer,), lambda result: None, window)
