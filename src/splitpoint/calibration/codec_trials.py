"""Real inputs through every cut × codec: bytes as they travel, and what the answers lose."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from statistics import median
from time import perf_counter
from typing import NamedTuple

import numpy as np

from splitpoint.calibration.calibrations import Calibration, CalibrationRow, Quality, TensorTables
from splitpoint.calibration.measures import compared_output, cosine, open_measure
from splitpoint.callbacks import call
from splitpoint.codecs import Codec, calibrated_names, open_priced
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
    measure: str = "",
    labels: Sequence[int] | None = None,
    tables: Sequence[TensorTables] = (),
    on_progress: OnProgress = lambda done, total: None,
    on_note: Callable[[str], None] = lambda text: None,
) -> Calibration:
    """What each of `codecs` costs in bytes and in quality at each of `cuts` (the single-tensor cuts if not given).

    >>> calibration = calibrate(load("zoo:lenet5"), open_engine(), [{"image": digit}], codecs=["int8"])
    >>> calibration.rows[0].quality.agreement
    1.0

    Every input's answer is compared with the whole model's on the raw input, by `measure` (`calibration.measures`; of
    a classifier "top1" if none is named). The inputs must be apart from each other: two crops of a photo count as one.
    With `labels` (a class for each input) the accuracy is counted, too. One cut's halves are in memory at a time.
    Codecs that need tables have these `tables`, which were learnt from other inputs, and are part of the calibration.
    A codec that some value cannot be expressed in (infinity, in int8) has no row there, and `on_note` is told.
    UsageError without inputs, or for an unknown codec; InputError for an input that is not the model's.
    """
    if not inputs:
        raise UsageError("a calibration needs at least one input, and better a few hundred: a drop of 1 % takes 300")
    checked = [check_inputs(model, one) for one in inputs]
    if labels is not None and len(labels) != len(checked):
        raise UsageError(f"{len(labels)} labels for {len(checked)} inputs")
    known = [open_priced(name) for name in dict.fromkeys(codecs)]
    prefixes = model.graph.prefixes()
    wanted = model.graph.chain() if cuts is None else cuts
    # A codec is tried where it takes something of what crosses: JPEG is not for images in the middle of a network.
    given = {entry.tensor: KltTables.from_bytes(entry.data) for entry in tables}
    tried = [(cut, [_Trial(c, way) for c in known if (way := _ways(c, cut, given))]) for cut in wanted]
    chosen = [(cut, trials) for cut, trials in tried if trials]
    places = {len(c.nodes): k for k, c in enumerate(prefixes)}
    judge = _AnswerJudge(model, engine, checked, measure, labels)
    rows: list[CalibrationRow] = []
    for k, (cut, trials) in enumerate(chosen):
        place = places.get(len(cut.nodes))
        if place is None or prefixes[place].nodes != cut.nodes:
            raise UsageError(f"{cut.name} is no topological prefix of {model.name}: it cannot be calibrated")
        both = Halves(model, cut, engine)
        try:
            for i, one in enumerate(checked):
                _try_all(both, one, trials, i, judge)
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
        measure="" if judge.classifier else judge.name,
        accuracy=judge.accuracy,
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
    times: list[tuple[float, float]] = field(default_factory=list)
    answers: list[_Answer] = field(default_factory=list)
    failed: str = ""

    def row(self, prefix: int, judge: _AnswerJudge) -> CalibrationRow:
        middle = tuple(int(median(of_one)) for of_one in zip(*self.sizes, strict=True))
        quality = judge.quality(self.answers)
        encode_ms, decode_ms = (median(of_one) for of_one in zip(*self.times, strict=True))
        most = max(map(sum, self.sizes))
        return CalibrationRow(prefix, self.codec.name, middle, most, quality, encode_ms, decode_ms)


def _try_all(both: Halves, inputs: Inputs, trials: Sequence[_Trial], number: int, judge: _AnswerJudge) -> None:
    """Runs the head once, and the tail on what each codec makes of what crosses."""
    values = {**inputs, **(both.head.run(inputs) if both.head else {})}
    answers: dict[str, _Answer] = {}
    for trial in trials:
        if trial.failed:
            continue
        try:
            sizes, times, decoded = _through(trial.ways, values, both.cut.crossing)
        except InputError as exc:
            trial.failed = str(exc)
            continue
        trial.sizes.append(sizes)
        trial.times.append(times)
        # Packing with zstd changes no value: int8+zstd answers what int8 answers, and a lossless picture what raw does.
        base = "raw" if trial.codec.exact else trial.codec.name.partition("+")[0]
        if base not in answers:
            outputs = {**values, **decoded}
            if both.tail:
                outputs |= both.tail.run({t.name: outputs[t.name] for t in both.tail.inputs})
            answers[base] = judge.compare(number, outputs)
        trial.answers.append(answers[base])


def _through(
    ways: Mapping[str, Codec], values: Inputs, crossing: Sequence[TensorSpec]
) -> tuple[tuple[int, ...], tuple[float, float], dict[str, Array]]:
    """(bytes of each tensor that crosses, ms of encoding and of decoding, what is decoded of those that have a
    codec that takes them)."""
    sizes, encoding, decoding, decoded = [], 0.0, 0.0, {}
    for t in crossing:
        array = values[t.name]
        spec = spec_of(t.name, array)
        codec = ways.get(t.name)
        if codec is not None and codec.accepts(spec):
            start = perf_counter()
            data = codec.encode(array)
            between = perf_counter()
            decoded[t.name] = codec.decode(data, spec)
            encoding, decoding = encoding + between - start, decoding + perf_counter() - between
            sizes.append(data.nbytes)
        else:
            sizes.append(array.nbytes)
    return tuple(sizes), (encoding * 1e3, decoding * 1e3), decoded


class _Answer(NamedTuple):
    """An answer beside the whole model's: by the measure, the cosine, the largest difference, whether it is right."""

    score: float
    cosine: float
    error: float
    right: bool


class _AnswerJudge:
    """The whole model's answers, and what they are compared by. `span` is their range: errors are shares of it."""

    def __init__(
        self, model: Model, engine: Engine, inputs: Sequence[Inputs], measure: str, labels: Sequence[int] | None
    ) -> None:
        spec = model.input_spec
        self._names = [t.name for t in model.outputs]
        self.output = compared_output(model)
        open_measure(measure or "top1", self.output)  # one that is none is told before anything is computed
        session = engine.compile(model.whole())
        try:
            self.expected = [self._outputs({**one, **session.run(one)}) for one in inputs]
        finally:
            session.close()
        answers = [e[self.output] for e in self.expected]
        first = answers[0]
        flat = first.ndim == 2 and first.shape[0] == 1 and first.shape[1] > 1
        sure = flat and spec is not None and spec.task == "classify"
        self.name = measure or ("top1" if sure else "")
        self.classifier = self.name == "top1"
        self._measure = open_measure(self.name, self.output) if self.name else None
        self._labels = labels
        right = [int(e.argmax()) == label for e, label in zip(answers, labels or (), strict=False)]
        self.accuracy = sum(right) / len(right) if right else None
        low, high = (float(f([f(e) for e in answers])) for f in (np.min, np.max))
        self.span = (high - low) or 1.0

    def _outputs(self, values: Inputs) -> Inputs:
        return {name: values[name] for name in self._names}

    def compare(self, number: int, values: Inputs) -> _Answer:
        """What a codec makes of the answer to input `number`; its outputs are among `values`."""
        expected, got = self.expected[number][self.output], values[self.output]
        score = 0.0 if self._measure is None else self._measure(self.expected[number], self._outputs(values))
        error = float(np.abs(expected.astype(np.float64) - got.astype(np.float64)).max()) if expected.size else 0.0
        right = self._labels is not None and int(got.argmax()) == self._labels[number]
        # What is not a number in either cannot be nearer than anything that is.
        error = float(np.nan_to_num(error, nan=_ABSURD, posinf=_ABSURD))
        return _Answer(min(1.0, max(0.0, score)) if isfinite(score) else 0.0, cosine(expected, got), error, right)

    def quality(self, answers: Sequence[_Answer]) -> Quality:
        """What they come to."""
        score, near, error, right = zip(*answers, strict=True)
        return Quality(
            inputs=len(answers),
            agreement=None if self._measure is None else sum(score) / len(score),
            cosine=round(min(near), 9),
            error=max(error) / self.span,
            least=None if self.name in ("", "top1") else lower_end(score),
            accuracy=None if self._labels is None else sum(right) / len(right),
        )


def lower_end(scores: Sequence[float]) -> float:
    """The mean of `scores` that 95 % of resamplings of the inputs are above (the percentile bootstrap, fixed seed).

    >>> lower_end([1.0] * 50), round(lower_end([1.0, 0.5] * 50), 2)
    (1.0, 0.71)
    """
    drawn = np.random.default_rng(0).choice(np.asarray(scores), (2000, len(scores)))
    return float(np.quantile(drawn.mean(axis=1), 0.05))
