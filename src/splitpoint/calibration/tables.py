"""Tables of codecs that are calibrated: learnt from real inputs, checked against a model, and given to a codec.

They belong to one tensor of one model, whichever cuts it crosses at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from splitpoint.calibration.calibrations import Calibration, TensorTables
from splitpoint.calibration.measures import compared_output
from splitpoint.calibration.tail_metric import of_probabilities, passes, samples_worth, tail_metric
from splitpoint.callbacks import call
from splitpoint.codecs import FLOATS
from splitpoint.codecs.klt import learn
from splitpoint.codecs.klt_learn import LEAST_SAMPLES
from splitpoint.codecs.klt_tables import KltTables
from splitpoint.documents import require_model
from splitpoint.engines import Engine
from splitpoint.errors import InputError, UsageError
from splitpoint.graph import Cut, Graph
from splitpoint.models.model import Model
from splitpoint.tensors import Array, TensorSpec

T = TypeVar("T")
#: Values of all inputs together that are held while tables are learnt: of one tensor after the other, or of several.
_HELD_NBYTES = 256 << 20
#: Inputs from which half, which is learnt from, are enough for tables.
LEAST_APART = 2 * LEAST_SAMPLES


def fits(spec: TensorSpec, tables: KltTables) -> bool:
    """Whether `tables` are for tensors like `spec`, whose free dimensions can be anything."""
    rows = spec.shape[0] if spec.shape and isinstance(spec.shape[0], int) else 1
    return spec.dtype in FLOATS and spec.fits(spec.dtype, (rows, *tables.shape))


def tables_of(calibration: Calibration, model: Model, where: str = "the calibration") -> dict[str, KltTables]:
    """The tables in `calibration` by tensor. InputError if they are not those of `model`; `where` they are from."""
    ours = model.name, model.fingerprint
    require_model(where, (calibration.model, calibration.fingerprint), ours, "calibrate this model")
    tables: dict[str, KltTables] = {}
    for entry in calibration.tables:
        spec, one = model.specs.get(entry.tensor), KltTables.from_bytes(entry.data)
        if spec is None or not fits(spec, one):
            what = "no tensor of that name can travel" if spec is None else f"it is {spec.type}"
            shape = ",".join(map(str, one.shape))
            raise InputError(f"{where} has tables of {entry.tensor} for [batch,{shape}], but in {model.name} {what}")
        tables[entry.tensor] = one
    return tables


def levels_within(calibration: Calibration, graph: Graph, tensor: str, max_drop: float) -> list[int]:
    """The levels of klt for `tensor` that are shown to lose at most `max_drop` of the answers, with 95 % confidence,
    wherever it crosses alone and was measured."""
    cuts, shown = graph.prefixes(), dict[int, bool]()
    for row in calibration.rows:
        kind, _, level = row.codec.partition(":")
        if kind == "klt" and [t.name for t in cuts[row.prefix].crossing] == [tensor]:
            shown[int(level)] = shown.get(int(level), True) and row.quality.bound <= max_drop
    return [level for level, kept in shown.items() if kept]


def apart(inputs: Sequence[T]) -> tuple[list[T], list[T]]:
    """`inputs` in turns: those that tables are learnt from, and those that are measured, which are others.

    UsageError for fewer than `LEAST_APART`.
    """
    if len(inputs) < LEAST_APART:
        raise UsageError(
            f"tables for klt are learnt from every other input and measured with the rest: {LEAST_APART} inputs are "
            f"the least, and 60 are better, but {len(inputs)} came; or name other codecs with --codec"
        )
    return list(inputs[::2]), list(inputs[1::2])


def learn_tables(
    model: Model,
    engine: Engine,
    inputs: Sequence[Mapping[str, Array]],
    cuts: Sequence[Cut],
    *,
    metric: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    on_note: Callable[[str], None] = lambda text: None,
) -> tuple[TensorTables, ...]:
    """Tables for all that crosses at `cuts`, each tensor once, from these `inputs` (which the model takes).

    With `metric` those of a classifier are learnt in the metric of the tail (`tail_metric`) for tensors that cross
    alone, unless that takes too many passes: then, and of other models, in the tensor's own values.
    `on_note` is told of a tensor that none can be learnt for, and why; `on_progress` of passes through tails, and
    tensors, that are done.
    """
    wanted = {t.name: t for cut in cuts for t in cut.crossing if t.dtype in FLOATS and len(t.shape) > 1}
    sole = (
        {cut.crossing[0].name: cut for cut in cuts if len(cut.crossing) == 1} if metric and _classifies(model) else {}
    )
    counts = {name: min(_metric_samples(t), len(inputs)) if name in sole else 0 for name, t in wanted.items()}
    total = len(wanted) + sum(n * passes(_example(wanted[name])) for name, n in counts.items() if n)
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        call(on_progress, done, total)

    learnt: list[TensorTables] = []
    for group in _groups(list(wanted.values()), len(inputs)):
        samples = _values(model, engine, inputs, group)
        for name in group:
            its = samples.pop(name)
            try:
                weights = _metric(model, engine, sole[name], its[: counts[name]], step) if counts[name] else None
                learnt.append(TensorTables(name, learn(its, weights).to_bytes()))
            except InputError as exc:
                call(on_note, f"no tables for {name}: {exc}")
            step()
    return tuple(learnt)


def _classifies(model: Model) -> bool:
    """Whether distances between answers are known: those of a classifier for one input."""
    spec, output = model.input_spec, compared_output(model)
    flat = any(t.name == output and len(t.shape) == 2 and t.dtype in FLOATS for t in model.outputs)
    return spec is not None and spec.task == "classify" and flat


def _example(spec: TensorSpec) -> tuple[int, ...]:
    """The shape of one example, free dimensions taken as one."""
    return tuple(n if isinstance(n, int) else 1 for n in spec.shape[1:])


def _metric_samples(spec: TensorSpec) -> int:
    """How many values of `spec` a metric is learnt from; 0: none is, as for what no tables are made for."""
    try:
        return samples_worth(_example(spec)) if all(isinstance(n, int) for n in spec.shape[1:]) else 0
    except InputError:
        return 0


def _metric(model: Model, engine: Engine, cut: Cut, samples: Sequence[Array], step: Callable[[], None]) -> Array | None:
    """What the answers are sensitive to in the tensor that crosses at `cut`; None where they are made before it."""
    tail, name, output = model.tail(cut), cut.crossing[0].name, compared_output(model)
    if output not in {t.name for t in tail.outputs} or any(len(one) != 1 for one in samples):
        return None
    session = engine.compile(tail)
    try:
        return tail_metric(lambda f: of_probabilities(session.run({name: f})[output]), samples, on_pass=step)
    finally:
        session.close()


def _groups(specs: Sequence[TensorSpec], inputs: int) -> Iterator[list[str]]:
    """Tensors that are computed and held together."""
    group: list[str] = []
    held = 0
    for spec in specs:
        nbytes = inputs * spec.bind({d: 1 for d in spec.shape if isinstance(d, str)}).nbytes
        if group and held + nbytes > _HELD_NBYTES:
            yield group
            group, held = [], 0
        group.append(spec.name)
        held += nbytes
    if group:
        yield group


def _values(
    model: Model, engine: Engine, inputs: Sequence[Mapping[str, Array]], names: Sequence[str]
) -> dict[str, list[Array]]:
    """The tensors of those `names` for each of `inputs`."""
    segment = model.segment([t.name for t in model.inputs], names)
    session = engine.compile(segment) if segment.outputs else None
    try:
        known = [{**one, **(session.run(one) if session else {})} for one in inputs]
    finally:
        if session:
            session.close()
    return {name: [one[name] for one in known] for name in names}
