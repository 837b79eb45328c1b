"""What an export says about itself. Importing this imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What `export` made, and what was found when it was compared with the eager module.

    `batch` is None where it is free, or the number it is fixed at. `max_error` is relative to how far the
    output moves between inputs; NaN where it did not move, so nothing could be proven (see `notes`).
    `seconds` covers everything but importing torch; `nbytes` are the files' bytes.
    """

    source: str
    path: Path
    weights: str
    opset: int
    nodes: int
    batch: int | None
    max_error: float
    seconds: float
    nbytes: int
    aliases: int
    unused: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        batch = "free batch" if self.batch is None else f"batch fixed at {self.batch}"
        proven = "not proven equal to PyTorch"
        if not math.isnan(self.max_error):
            proven = f"equal to PyTorch within {self.max_error:.1e}"
        text = (
            f"{self.path}: {self.nodes} nodes, opset {self.opset}, {batch}, {self.nbytes / 1e6:.1f} MB, "
            f"{self.weights}, {proven}, {self.seconds:.1f} s"
        )
        return "\n".join((text, *self.notes))
