"""What computes here: --engine, --device, --threads."""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic

import click

from splitpoint.cli.console import how_far, telling
from splitpoint.cli.options import ENGINE, gathered, together
from splitpoint.engines import ENGINES, Engine, Session, open_engine
from splitpoint.models.model import Segment

#: The engine where none is named.
DEFAULT = next(iter(ENGINES))


@dataclass(frozen=True)
class EngineChoice:
    """The engine that was asked for."""

    engine: str = DEFAULT
    device: str = "cpu"
    threads: int = 0

    def open(self) -> Engine:
        """It, opened. EngineError where the device's support is not installed."""
        engine = open_engine(self.engine, device=self.device, threads=self.threads)
        compile = engine.compile

        def told(segment: Segment) -> Session:
            began_s, what = monotonic(), f"compiling for {self.device}"
            with telling(lambda: how_far(what, "", monotonic() - began_s, None)):
                return compile(segment)

        engine.compile = told  # type: ignore[method-assign]  # minutes for TensorRT, a second for others
        return engine


def engine_of(name: str, device: str, threads: int) -> Engine:
    """The engine that a file names, opened; the default one where it names none of ours: its name is not imported."""
    return open_engine(name if name in ENGINES else DEFAULT, device=device, threads=threads)


engine_option = together(
    click.option(
        "--engine", type=click.Choice(tuple(ENGINES)), default=DEFAULT, show_default=True, help="What computes here."
    ),
    section=ENGINE,
)

#: As the one parameter `choice`.
engine_options = gathered(
    "choice",
    EngineChoice,
    engine_option,
    click.option("-d", "--device", default="cpu", metavar="NAME",
                 help="cpu, cuda, tensorrt, openvino, coreml, … (default: cpu; see splitpoint doctor)."),
    click.option("--threads", type=click.IntRange(0, 1024), default=0, metavar="N",
                 help="Compute threads (default: one per core)."),
    section=ENGINE,
)  # fmt: skip
