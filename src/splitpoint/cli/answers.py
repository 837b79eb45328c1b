"""An answer as a person reads it, and where its milliseconds went."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from splitpoint import images
from splitpoint.errors import InputError
from splitpoint.images import InputSpec
from splitpoint.tensors import Array
from splitpoint.text import plain, valid
from splitpoint.trace import STAGES, Trace, stage_ms
from splitpoint.units import ms


def answer(outputs: Mapping[str, Array], spec: InputSpec | None, count: int = 3) -> str:
    """Labels with probabilities for a classifier; names, types and ranges of the outputs otherwise."""
    labels = _labels(outputs, spec)
    if labels is not None:
        return ", ".join(f"{plain(label)} {probability:.0%}" for label, probability in labels[:count])
    return ", ".join(_described(plain(name), value) for name, value in outputs.items())


def _labels(outputs: Mapping[str, Array], spec: InputSpec | None) -> list[tuple[str, float]] | None:
    """Labels of a classifier's answer; None where there are none to give (a batch of several, for instance)."""
    if spec is None or spec.task != "classify":
        return None
    try:
        return images.classify(outputs, spec)
    except InputError:
        return None  # the answer is there all the same: it is described by its numbers


def _described(name: str, value: Array) -> str:
    shape = ",".join(map(str, value.shape))
    if value.dtype.kind == "f" and value.size:
        return f"{name} {value.dtype.name}[{shape}] {value.min():.3g}…{value.max():.3g}"
    return f"{name} {value.dtype.name}[{shape}]"


def as_json(
    name: str, outputs: Mapping[str, Array], spec: InputSpec | None, trace: Trace, **more: Any
) -> dict[str, Any]:
    """One line of `--json`: labels or output specs, stages and spans in milliseconds."""
    row: dict[str, Any] = {"input": valid(name)}
    labels = _labels(outputs, spec)
    if labels is not None:
        row["labels"] = [{"label": text, "probability": p} for text, p in labels]
    row["outputs"] = {k: {"dtype": v.dtype.name, "shape": list(v.shape)} for k, v in outputs.items()}
    row["ms"] = {k: round(v, 4) for k, v in stage_ms(trace).items()}
    row["spans_ms"] = {k: round(v, 4) for k, v in trace.stages().items()}
    return row | more


_NUMBER = 7
#: A camera may run for days: medians are those of so many last answers.
_REMEMBERED = 10_000


class Lines:
    """A table that is printed row by row, as answers come."""

    def __init__(self, width: int, names: Sequence[str]) -> None:
        self.name_width = min(14 if width < 100 else 28, max([6, *(len(n) for n in names)]))
        numbers = _NUMBER * (len(STAGES) + 1)
        self.answer_width = min(48, max(9, width - self.name_width - numbers - 6))
        self.traces: deque[dict[str, float]] = deque(maxlen=_REMEMBERED)

    def header(self) -> str:
        titles = "".join(f"{t:>{_NUMBER}}" for t in (*STAGES, "total"))
        return f"{'input':<{self.name_width}}  {'answer':<{self.answer_width}}{titles}  ms"

    def row(self, name: str, text: str, trace: Trace) -> str:
        stages = stage_ms(trace)
        self.traces.append(stages)
        return self._line(name, text, stages)

    def medians(self) -> str:
        """The middle value of each column over all rows."""
        middle = {k: median(t[k] for t in self.traces) for k in self.traces[0]}
        return self._line("median", f"of {len(self.traces)}", middle)

    def _line(self, name: str, text: str, stages: Mapping[str, float]) -> str:
        numbers = "".join(f"{ms(v):>{_NUMBER}}" for v in stages.values())
        return f"{_fit(name, self.name_width)}  {_fit(text, self.answer_width)}{numbers}"


def _fit(text: str, width: int) -> str:
    return f"{text:<{width}}" if len(text) <= width else text[: width - 1] + "…"
