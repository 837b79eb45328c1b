"""Engines run a segment on this machine.

An engine compiles a `Segment` into a `Session`; a session computes the segment's outputs from its inputs:

    engine = open_engine("onnxruntime", device="cpu", threads=2)
    session = engine.compile(model.head(cut))
    outputs = session.run({"image": photo})          # {"features.7": float32[1,32,28,28]}

Adding one is a file with a class that has these methods, and a line in `ENGINES`: tests/engines/test_engines.py tries
every engine of that table. Outsiders pass ``"my_package.tvm:TvmEngine"`` instead of a name. What an engine can do
beyond that it says by having what `KernelTimer` or `Reopenable` has: those who need it ask for these, not for a class.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from splitpoint.engines.stretch import slowdown
from splitpoint.errors import EngineError, UsageError, nearest
from splitpoint.models.model import Segment
from splitpoint.tensors import Array, TensorSpec

#: Name → where its class is. Imported when asked for.
ENGINES: Mapping[str, str] = {"onnxruntime": "splitpoint.engines.onnxruntime:OnnxRuntimeEngine"}


class Session(Protocol):
    """A compiled segment. May be called from several threads."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    nbytes: int
    """Memory it holds, measured when it was compiled."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Output name → array. InputError for a wrong input, EngineError if the engine fails, or if it was given up:
        one that can be is noted in `engines.underway` while it runs."""
        ...

    def close(self) -> None:
        """Give its memory back."""
        ...


class Engine(Protocol):
    """Compiles segments. `name` and `device` say what runs them, in tables and profiles; `repr` has them, too."""

    name: str
    device: str
    threads: int

    def compile(self, segment: Segment) -> Session:
        """A session for `segment`. EngineError if an operator or the device is not supported."""
        ...


@runtime_checkable
class KernelTimer(Engine, Protocol):
    """An engine that can say where the time of a segment went. Where it cannot, shares are estimated."""

    def kernel_times(
        self, segment: Segment, inputs: Mapping[str, Array], runs: int, warm: int
    ) -> list[tuple[str, float]]:
        """(name, median ms) of every kernel in the order they ran, for a session that is gone afterwards."""
        ...


@runtime_checkable
class Reopenable(Engine, Protocol):
    """An engine that another process can open: segments whose work nobody can know beforehand run there (`apart`)."""

    opened_as: str
    """What `open_engine` opens it by, with the same device and threads."""


def open_engine(name: str = "onnxruntime", *, device: str = "cpu", threads: int = 0) -> Engine:
    """The engine of that name for `device`, with `threads` compute threads (0: one per core it may use).

    UsageError for an unknown name, EngineError where the device's support is not installed, and for an engine that
    does not heed `splitpoint lab slow` in a command that this has started.
    """
    target = ENGINES.get(name, name)
    module, _, attribute = target.partition(":")
    if not attribute:
        raise UsageError(f"no engine is called {name}{nearest(name, ENGINES)} (known: {', '.join(ENGINES)})")
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as exc:
        raise EngineError(f"engine {name} cannot be loaded: {exc}") from exc
    engine: Engine = factory(device=device, threads=threads)
    if slowdown() > 1 and not hasattr(engine, "slowdown"):
        raise EngineError(f"{name} cannot be slowed: what splitpoint lab slow slows computes with onnxruntime")
    return engine
