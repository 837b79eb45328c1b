"""What a plan must keep to, and the sentence where it cannot."""

from __future__ import annotations

from math import isfinite

import msgspec

from splitpoint.calibration.calibrations import Calibration, Quality, needed_inputs
from splitpoint.codecs import open_codec
from splitpoint.errors import UsageError
from splitpoint.graph import Cut, Graph
from splitpoint.units import ms, size

#: Operators behind which an image still shows what it showed: moved, retyped, scaled, thinned out, element by element.
#: Not those that mix channels or places by what was learnt (Conv, MatMul, Gemm, attention).
_SHOWS = frozenset({
    "Abs", "Add", "AveragePool", "BatchNormalization", "Cast", "CastLike", "Celu", "CenterCropPad", "Clip",
    "Concat", "DepthToSpace", "DequantizeLinear", "Div", "Elu", "Erf", "Exp", "Expand", "Flatten", "Gather",
    "GatherElements", "GatherND", "Gelu", "HardSigmoid", "HardSwish", "Identity", "InstanceNormalization",
    "LayerNormalization", "LeakyRelu", "Log", "LpNormalization", "Max", "MaxPool", "MeanVarianceNormalization",
    "Min", "Mish", "Mul", "Neg", "Pad", "Pow", "PRelu", "QuantizeLinear", "Reciprocal", "Relu", "Reshape", "Resize",
    "Selu", "Sigmoid", "Slice", "Softplus", "Softsign", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub", "Sum",
    "Tanh", "Tile", "Transpose", "Unsqueeze", "Upsample", "Where",
})  # fmt: skip


class Shared(msgspec.Struct, frozen=True):
    """A server hands out the weights in front of `cut` only, and runs the tails of no later cuts.

    `whole`: the device has all weights itself, so that the whole model may run there, too.
    """

    cut: Cut
    whole: bool = False

    def refusal(self, cut: Cut, graph: Graph) -> str:
        """Why `cut` cannot be had; empty if it can."""
        if cut.nodes <= self.cut.nodes or (self.whole and len(cut.nodes) == len(graph.placed)):
            return ""
        return f"the server shares no more than the head up to {self.cut.name}"


class Constraints(msgspec.Struct, frozen=True, kw_only=True):
    """`agreement` is the least share of answers that a calibration must have measured to stay as they are (0.98), and
    `max_drop` the most that it must have ruled out to change, with 95 % confidence: the same with a margin for how few
    inputs there were. `max_edge_memory` is in bytes.

    `keep_input_local`: neither the model's input crosses nor what holds it only rearranged. `deadline_ms` is met if
    nine requests in ten are answered by then. `max_bytes` is the most that a request's frame has: where nothing is said
    of the answers, and of codecs, each cut has what keeps the most of them within that. `codecs` may be used for what
    crosses; none given means `raw`, and with `agreement`, `max_drop` or `max_bytes` all that are calibrated. `shared`
    is what the server allows, where that is not all. UsageError for numbers that make no sense and codecs that do not
    exist.
    """

    agreement: float | None = None
    max_drop: float | None = None
    max_edge_memory: float | None = None
    keep_input_local: bool = False
    deadline_ms: float | None = None
    max_bytes: float | None = None
    codecs: tuple[str, ...] = ()
    shared: Shared | None = None

    def __post_init__(self) -> None:
        if self.max_drop is not None and not 0 <= self.max_drop < 1:
            raise UsageError(f"a drop is a share from 0 to below 1, such as 0.01 for 1 %: not {self.max_drop}")
        if self.agreement is not None and not 0 < self.agreement <= 1:
            raise UsageError(f"an agreement is a share of the answers, such as 0.98 for 98 %: not {self.agreement}")
        for name, value, unit in (
            ("deadline", self.deadline_ms, "milliseconds"),
            ("edge memory", self.max_edge_memory, "bytes"),
            ("size of a request", self.max_bytes, "bytes"),
        ):
            if value is not None and not (isfinite(value) and value > 0):
                raise UsageError(f"the {name} must be a number of {unit} above zero, not {value}")
        for codec in self.codecs:
            open_codec(codec)

    @property
    def faithful(self) -> bool:
        """Whether it says how well answers must be kept."""
        return self.agreement is not None or self.max_drop is not None

    @property
    def bounded(self) -> Constraints:
        """The same for who chooses while nobody looks: an agreement is then what the calibration's lower end (95 %
        confidence) must be, and not its mean."""
        if self.agreement is None:
            return self
        drops = (1 - self.agreement, 1.0 if self.max_drop is None else self.max_drop)
        return msgspec.structs.replace(self, agreement=None, max_drop=round(min(drops), 12))

    @property
    def best_that_fits(self) -> bool:
        """Whether the bytes alone say how well answers must be kept: as well as they can be within them."""
        return self.max_bytes is not None and not (self.faithful or self.codecs)

    def too_lossy(self, quality: Quality | None) -> str:
        """Why lossy codecs of this quality are ruled out by what answers must be kept; empty if they are not."""
        if not self.faithful:
            return ""
        if quality is None or quality.agreement is None:
            return "its accuracy is not measured (splitpoint calibrate-codecs)"
        if self.agreement is not None and quality.agreement < self.agreement:
            return f"its agreement is {percent(quality.agreement)}"
        return "" if self.max_drop is None else over_budget(quality, self.max_drop)

    @property
    def said(self) -> tuple[str, ...]:
        """Each constraint that is set, in words."""
        words = []
        if self.agreement is not None:
            words.append(f"an agreement of at least {percent(self.agreement)}")
        if self.max_drop is not None:
            words.append(f"a drop of at most {percent(self.max_drop)}")
        if self.max_edge_memory is not None:
            words.append(f"at most {size(self.max_edge_memory)} on the edge")
        if self.keep_input_local:
            words.append("the input stays on the edge")
        if self.max_bytes is not None:
            words.append(f"at most {size(round(self.max_bytes))} up")
        if self.deadline_ms is not None:
            words.append(f"an answer within {ms(self.deadline_ms)} ms")
        if self.shared is not None:
            words.append(f"no cut behind {self.shared.cut.name}: the server shares no more of the model")
        return tuple(words)


def input_like(graph: Graph) -> frozenset[str]:
    """The model's inputs and the tensors that still show them: made from nothing else, element by element.

    A normalised, resized or quantised image is still the image, and so are its colour channels side by side or
    the embeddings of its words, each looked up by itself. What an operator mixed with learnt weights is not.
    """
    shown = {t.name for t in graph.inputs}
    for i in graph.placed:
        sources = graph.sources(i)
        if sources and graph.nodes[i].op in _SHOWS and all(t in shown for t in sources):
            shown.update(graph.nodes[i].outputs)
    return frozenset(shown)


def percent(share: float) -> str:
    """A share as people read it.

    >>> percent(0.01), percent(0.125), percent(1)
    ('1 %', '12.5 %', '100 %')
    """
    return f"{share * 100:.3g} %"


def check_budget(limits: Constraints, calibration: Calibration | None) -> None:
    """UsageError where what answers must be kept cannot mean anything."""
    if not limits.faithful:
        return
    option = "--agreement" if limits.agreement is not None else "--max-drop"
    if calibration is None:
        raise UsageError(f"{option} needs a calibration: splitpoint calibrate-codecs MODEL --images DIR -o calib.json")
    if not calibration.judged:
        raise UsageError(
            f"{option} is about how many answers stay, and {calibration.output} of {calibration.model} is no "
            "classifier's output: calibrate with --measure, or choose codecs by the error that its calibration shows, "
            "with --codec"
        )


def over_budget(quality: Quality | None, max_drop: float) -> str:
    """Why lossy codecs of this quality are ruled out by `max_drop`; empty if they are not."""
    if quality is None or quality.agreement is None:
        return "its accuracy is not measured (splitpoint calibrate-codecs)"
    if quality.bound <= max_drop:
        return ""
    if quality.agreement < 1:
        same = round(quality.agreement * quality.inputs)
        return f"{same}/{quality.inputs} labels stay: the drop may be {percent(quality.bound)}"
    needed = f"at least {needed_inputs(max_drop)}" if max_drop > 0 else "codecs that lose nothing"
    return (
        f"not shown by {quality.inputs} inputs, which allow a drop of {percent(quality.bound)}: calibrate with {needed}"
    )
