"""What computes here: --engine, --device, --threads."""

from __future__ import annotations

from dataclasses import dataclass

import click

from splitpoint.cli.options import ENGINE, gathered, together
from splitpoint.engines import ENGINES, Engine, open_engine

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
        return open_engine(self.engine, device=self.device, threads=self.threads)


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
