"""Real inputs through every cut × codec: bytes as they travel, and what the answers lose."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from statistics import median

import numpy as np

from splitpoint.calibration.calibrations import Calibration, CalibrationRow, Quality, TensorTables
from splitpoint.callbacks import call
from splitpoint.codecs import Codec, calibrated_names, open_codec
from splitpoint.codecs.klt_tables import KltTables
from splitpoint.codecs.untabled import Untabled
from splitpoint.engines import Engine
from splitpoint.errors import InputError, UsageError
from splitpoint.graph import Cut
from splitpoint.models.model import Model
from splitpoint.segments import Halves, check_inputs
from splitpoint.tensors import Array, TensorSpec, spec_of

Inputs = Mapping[str, Array]
_ABSURD = 1e30
#: Called after every input of a cut: how many runs of a cut with one input are done, of how many.
OnProgress = Callable[[int, int], None]


def calibrate(
    model: Model,
    engine: Engine,
    inputs: Sequence[Inputs],
    *,
    codecs: Sequence[str] = calibrated_names(),
    cuts: Sequence[Cut] | None = None,
    tables: Sequence[TensorTables] = (),
    on_progress: OnProgress = lambda done, total: None,
    on_note: Callable[[str], None] = lambda text: None,
) -> Calibration:
    """What each of `codecs` costs in bytes and in quality at each of `cuts` (the single-tensor cuts if not given).

    >>> calibration = calibrate(load("zoo:lenet5"), open_engine(), [{"image": digit}], codecs=["int8"])
    >>> calibration.rows[0].quality.agreement
    1.0

    Every input's answer is compared with the whole model's on the raw input. One cut's halves are in memory at a time.
    Codecs that need tables have these `tables`, which were learnt from other inputs, and are part of the calibration.
    A codec that some value cannot be expressed in (infinity, in int8) has no row there, and `on_note` is told.
    UsageError without inputs, or for an unknown codec; InputError for an input that is not the model's.
    """
    if not inputs:
        raise UsageError("a calibration needs at least one input, and better a few hundred: a drop of 1 % takes 300")
    checked = [check_inputs(model, one) for one in inputs]
    known = [open_codec(name) for name in dict.fromkeys(codecs)]
    prefixes = model.graph.prefixes()
    wanted = model.graph.chain() if cuts is None else cuts
    # A codec is tried where it takes something of what crosses: JPEG is not for images in the middle of a network.
    given = {entry.tensor: KltTables.from_bytes(entry.data) for entry in tables}
    tried = [(cut, [_Trial(c, way) for c in known if (way := _ways(c, cut, given))]) for cut in wanted]
    chosen = [(cut, trials) for cut, trials in tried if trials]
    places = {len(c.nodes): k for k, c in enumerate(prefixes)}
    judge = _AnswerJudge(model, engine, checked)
    rows: list[CalibrationRow] = []
    for k, (cut, trials) in enumerate(chosen):
        place = places.get(len(cut.nodes))
        if place is None or prefixes[place].nodes != cut.nodes:
            raise UsageError(f"{cut.name} is no topological prefix of {model.name}: it cannot be calibrated")
        both = Halves(model, cut, engine)
        try:
            for i, one in enumerate(checked):
                _try_all(both, one, trials, judge.expected[i], judge)
                call(on_progress, k * len(checked) + i + 1, len(chosen) * len(checked))
        finally:
            both.close()
        for trial in trials:
            if trial.failed:
                call(on_note, f"{trial.codec.name} is left out at {cut.name}: {trial.failed}")
            else:
                rows.append(trial.row(place, judge))
    if not rows:
        raise UsageError(f"none of {', '.join(c.name for c in known)} can encode what crosses at these cuts")
    return Calibration(
        model=model.name,
        fingerprint=model.fingerprint,
        inputs=len(checked),
        classifier=judge.classifier,
        output=judge.output,
        rows=tuple(rows),
        tables=tuple(tables),
    )


def _ways(codec: Codec, cut: Cut, tables: Mapping[str, KltTables]) -> dict[str, Codec]:
    """By tensor, `codec` as it encodes what crosses at `cut`: those that it takes."""
    if isinstance(codec, Untabled):
        return {t.name: codec.with_tables(tables[t.name]) for t in cut.crossing if t.name in tables}
    return {t.name: codec for t in cut.crossing if codec.accepts(t)}


@dataclass
class _Trial:
    """One codec at one cut, input after input."""

    codec: Codec
    ways: Mapping[str, Codec]
    sizes: list[tuple[int, ...]] = field(default_factory=list)
    same: int = 0
    cosine: float = 1.0
    error: float = 0.0
    failed: str = ""

    def row(self, prefix: int, judge: _AnswerJudge) -> CalibrationRow:
        middle = tuple(int(median(of_one)) for of_one in zip(*self.sizes, strict=True))
        inputs = len(self.sizes)
        agreement = self.same / inputs if judge.classifier else None
        quality = Quality(inputs, agreement, round(self.cosine, 9), self.error / judge.span)
        return CalibrationRow(prefix, self.codec.name, middle, max(map(sum, self.sizes)), quality)


def _try_all(both: Halves, inputs: Inputs, trials: Sequence[_Trial], expected: Array, judge: _AnswerJudge) -> None:
    """Runs the head once, and the tail on what each codec makes of what crosses."""
    values = {**inputs, **(both.head.run(inputs) if both.head else {})}
    answers: dict[str, tuple[int, float, float]] = {}
    for trial in trials:
        if trial.failed:
            continue
        try:
            sizes, decoded = _through(trial.ways, values, both.cut.crossing)
        except InputError as exc:
            trial.failed = str(exc)
            continue
        trial.sizes.append(sizes)
        # Packing with zstd changes no value: int8+zstd answers what int8 answers.
        base = trial.codec.name.partition("+")[0]
        if base not in answers:
            outputs = {**values, **decoded}
            if both.tail:
                outputs |= both.tail.run({t.name: outputs[t.name] for t in both.tail.inputs})
            answers[base] = judge.compare(expected, outputs[judge.output])
        same, cosine, error = answers[base]
        trial.same += same
        trial.cosine, trial.error = min(trial.cosine, cosine), max(trial.error, error)


def _through(
    ways: Mapping[str, Codec], values: Inputs, crossing: Sequence[TensorSpec]
) -> tuple[tuple[int, ...], dict[str, Array]]:
    """(bytes of each tensor that crosses, what is decoded of those that have a codec that takes them)."""
    sizes, decoded = [], {}
    for t in crossing:
        array = values[t.name]
        spec = spec_of(t.name, array)
        codec = ways.get(t.name)
        if codec is not None and codec.accepts(spec):
            data = codec.encode(array)
            sizes.append(data.nbytes)
            decoded[t.name] = codec.decode(data, spec)
        else:
            sizes.append(array.nbytes)
    return tuple(sizes), decoded


class _AnswerJudge:
    """The whole model's answers, and what they are compared by. `span` is their range: errors are shares of it."""

    def __init__(self, model: Model, engine: Engine, inputs: Sequence[Inputs]) -> None:
        spec = model.input_spec
        floats = [t.name for t in model.outputs if t.dtype.startswith("float")]
        named = spec.output if spec is not None and spec.output else ""
        self.output = named or (floats or [model.outputs[0].name])[0]
        session = engine.compile(model.whole())
        try:
            self.expected: list[Array] = [{**one, **session.run(one)}[self.output] for one in inputs]
        finally:
            session.close()
        first = self.expected[0]
        flat = first.ndim == 2 and first.shape[0] == 1 and first.shape[1] > 1
        self.classifier = flat and (spec is None or spec.task == "classify")
        low, high = (float(f([f(e) for e in self.expected])) for f in (np.min, np.max))
        self.span = (high - low) or 1.0

    def compare(self, expected: Array, got: Array) -> tuple[int, float, float]:
        """(whether the top label stays, cosine, largest difference)."""
        a, b = expected.reshape(-1).astype(np.float64), got.reshape(-1).astype(np.float64)
        norm = float(np.linalg.norm(a) * np.linalg.norm(b))
        cosine = float(a @ b) / norm if norm else float(np.array_equal(a, b))
        same = int(bool(a.size) and int(a.argmax()) == int(b.argmax()))
        error = np.abs(a - b).max() if a.size else 0.0
        # What is not a number in either cannot be nearer than anything that is.
        return same, cosine if isfinite(cosine) else -1.0, float(np.nan_to_num(error, nan=_ABSURD, posinf=_ABSURD))
