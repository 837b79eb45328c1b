"""A cut → head and tail: written as ONNX files, or proven to give the whole model's answer."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from splitpoint.codecs.klt_tables import MAX_TABLES_BYTES, KltTables
from splitpoint.documents import Count, Documents
from splitpoint.engines import Engine
from splitpoint.errors import EngineError, InputError, UsageError
from splitpoint.files import make_folder, named, publish, read_file, read_text, scratch
from splitpoint.graph import Cut
from splitpoint.models.dataflow import drawing
from splitpoint.models.input_values import advice, default_input, varied, with_values
from splitpoint.models.model import Model
from splitpoint.models.shapes import sample_inputs
from splitpoint.tensors import Array, TensorSpec
from splitpoint.text import listed

#: Largest difference allowed, as a share of how much the output changes between inputs.
RELATIVE_TOLERANCE = 1e-3
#: Below this share of its own size an output's change drowns in rounding, and a match proves nothing.
SIGNAL_FLOOR = 1e-3
#: What `split` calls a file with tables.
_TABLES = re.compile(r"[0-9a-f]{64}\.klt")
#: Bytes of a list of layers' names.
_MOST_NAMES = 16 << 20


class PinnedTables(msgspec.Struct, frozen=True):
    """The tables that a tensor is encoded with (`codecs.klt`): their SHA-256 and bytes, and the file beside the
    manifest that has them."""

    tensor: str
    hash: str
    nbytes: Count
    file: str


class Manifest(msgspec.Struct, frozen=True):
    """`manifest.json` beside head.onnx and tail.onnx: what they are parts of and what goes between them.

    `passed` names model inputs that the tail reads too; `head` and `tail` are null where a side has nothing to do.
    `tables` are those of tensors that cross, where there is a calibration.
    """

    model: str
    fingerprint: str
    cut: str
    crossing: tuple[TensorSpec, ...]
    shapes: tuple[str, ...]
    passed: tuple[str, ...]
    results: tuple[str, ...]
    head: str | None
    tail: str | None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    tables: tuple[PinnedTables, ...] = ()
    format: int = 1


_MANIFESTS = Documents(
    what="a manifest", holds=Manifest, format=1, made_by="splitpoint split MODEL --at CUT -o", most_bytes=16 << 20,
    marks=("crossing", "head", "tail"),
)  # fmt: skip


def load_manifest(folder: Path | str) -> Manifest:
    """The manifest in `folder`, whose tables have been compared with what it says. InputError for other ones."""
    folder = Path(folder)
    manifest = _MANIFESTS.load(folder / "manifest.json")
    for pinned in manifest.tables:
        try:
            data = read_file(named(pinned.file, folder), MAX_TABLES_BYTES, "codec tables")
        except ValueError as exc:
            raise InputError(f"the manifest in {folder} names tables elsewhere: {exc}") from exc
        if len(data) != pinned.nbytes or hashlib.sha256(data).hexdigest() != pinned.hash:
            raise InputError(
                f"{folder / pinned.file} does not hold the tables {pinned.hash[:12]} that the manifest pins for "
                f"{pinned.tensor}: split again, or get that file anew"
            )
    return manifest


def split(
    model: Model, at: str | int | Cut, folder: Path | str, tables: Mapping[str, KltTables] | None = None
) -> Manifest:  # fmt: skip
    """Write ``head.onnx``, ``tail.onnx`` and ``manifest.json`` into `folder`; any ONNX runtime runs them. Of `tables`,
    by tensor, those of what crosses are written there, too, and pinned in the manifest.

    >>> manifest = split(load("zoo:lenet5"), "pool1", tmp / "parts")
    >>> [t.type for t in manifest.crossing]
    ['float32[1,6,14,14]']

    Raises CutError for an unknown cut, StorageError if the folder cannot be written.
    """
    cut = at if isinstance(at, Cut) else model.graph.cut(at)
    folder = Path(folder)
    make_folder(folder)
    head, tail = model.head(cut), model.tail(cut)
    inputs = {t.name for t in model.inputs}
    packed = {t.name: tables[t.name] for t in cut.crossing if tables and t.name in tables}
    manifest = Manifest(
        model=model.name,
        fingerprint=model.fingerprint,
        cut=cut.name,
        crossing=cut.crossing,
        shapes=cut.shapes,
        passed=tuple(t.name for t in cut.crossing if t.name in inputs),
        results=cut.results,
        head="head.onnx" if head.outputs else None,
        tail="tail.onnx" if tail.outputs else None,
        inputs=model.inputs,
        outputs=model.outputs,
        tables=tuple(PinnedTables(n, t.hash, len(t.to_bytes()), f"{t.hash}.klt") for n, t in packed.items()),
    )
    with scratch(folder / "manifest.json") as new:  # an earlier split stays until this one is all there
        for segment, name in ((head, manifest.head), (tail, manifest.tail)):
            if name:
                segment.save(new / name)
        for pinned in manifest.tables:
            (new / pinned.file).write_bytes(packed[pinned.tensor].to_bytes())
        (new / "manifest.json").write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
        # No manifest may stand beside another's files: it goes first, and comes last.
        (folder / "manifest.json").unlink(missing_ok=True)
        written = {t.file for t in manifest.tables} | {p.name for p in folder.iterdir() if _TABLES.fullmatch(p.name)}
        for name in ("head.onnx.data", "head.onnx", "tail.onnx.data", "tail.onnx", *sorted(written), "manifest.json"):
            if (new / name).exists():
                publish(new / name, folder / name)
            else:
                (folder / name).unlink(missing_ok=True)
    return manifest


class Halves:
    """Head and tail of one cut, compiled on one engine. A side with nothing to compute has no session."""

    def __init__(self, model: Model, cut: Cut, engine: Engine) -> None:
        head, tail = model.head(cut), model.tail(cut)
        self.cut = cut
        self.head = engine.compile(head) if head.outputs else None
        self.tail = engine.compile(tail) if tail.outputs else None

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The model's outputs by way of the boundary: only what crosses reaches the tail."""
        crossing = self.head.run(inputs) if self.head else {}
        known = {**inputs, **crossing}
        outputs = {name: known[name] for name in self.cut.results if name in known}
        if self.tail:
            outputs |= self.tail.run({name: known[name] for name in self.cut.boundary})
        return outputs

    def close(self) -> None:
        for session in (self.head, self.tail):
            if session:
                session.close()


@dataclass(frozen=True, slots=True)
class Check:
    """One cut against the whole model.

    `error` is the largest difference as a share of `signal`, the largest change of that output between two inputs.
    `verdict` is ``equal``, ``different`` or ``inconclusive`` (the output hardly depends on the input: no proof).
    """

    cut: Cut
    verdict: str
    error: float
    output: str

    @property
    def ok(self) -> bool:
        """Whether the match is proven; *inconclusive* is not."""
        return self.verdict == "equal"

    def __str__(self) -> str:
        return f"{self.cut.name}: {self.verdict}, worst relative error {self.error:.1e} (output {self.output})"


def verify(
    model: Model,
    engine: Engine,
    cuts: Iterable[Cut],
    inputs: Sequence[Mapping[str, Array]] | None = None,
    tolerance: float = RELATIVE_TOLERANCE,
) -> Iterator[Check]:
    """Run the two halves of every cut against the whole model on at least two inputs; one `Check` a cut.

    Every output must change between the inputs, or the match proves nothing: *inconclusive*, which is a failure. A
    model without inputs has one answer, which must be each cut's. One cut's sessions are in memory at a time.
    """
    samples = list(inputs) if inputs is not None else samples_for(model, 2)
    if len(samples) < 2:
        raise UsageError("verification needs at least two inputs: one input cannot show that the answer depends on it")
    samples = [check_inputs(model, sample) for sample in samples]
    if model.inputs and all(_same(samples[0], sample) for sample in samples[1:]):
        raise UsageError("the inputs are all equal: verification needs two that differ, to see the answer change")
    expected = _answers(model, engine, samples, made_up=inputs is None)
    for cut in cuts:
        both = Halves(model, cut, engine)
        try:
            yield compare(model, cut, expected, [both.run(s) for s in samples], tolerance)
        finally:
            both.close()


def random_note(model: Model) -> str:
    """What to add to a verdict where the model draws random numbers; nothing where it does not."""
    drawn = drawing(model.skeleton.graph)
    if not drawn:
        return ""
    more = f" and {len(drawn) - 1} more" if len(drawn) > 1 else ""
    return f": the model draws random numbers, at {drawn[0]}{more}, so that no two runs of it are equal"


def _same(a: Mapping[str, Array], b: Mapping[str, Array]) -> bool:
    # Bytes, so that a NaN equals itself.
    return all(a[n].shape == b[n].shape and a[n].tobytes() == b[n].tobytes() for n in a)


def _answers(
    model: Model, engine: Engine, samples: Sequence[Mapping[str, Array]], *, made_up: bool
) -> list[dict[str, Array]]:
    """The whole model's outputs; those that are inputs handed through are the inputs."""
    whole = model.whole()
    if not whole.outputs:
        return [dict(s) for s in samples]
    session = engine.compile(whole)
    try:
        with tried_with(model, made_up):
            return [{**s, **session.run(s)} for s in samples]
    finally:
        session.close()


def compare(
    model: Model,
    cut: Cut,
    expected: Sequence[Mapping[str, Array]],
    got: Sequence[Mapping[str, Array]],
    tolerance: float = RELATIVE_TOLERANCE,
) -> Check:
    """The verdict over all outputs; `expected` and `got` hold one dict an input.

    An output that depends on no input (a constant) must be equal, but proves nothing.
    """
    differences = []
    for spec in model.outputs:
        rank, error = _judge([e[spec.name] for e in expected], [g.get(spec.name) for g in got], tolerance)
        if rank != _INCONCLUSIVE or _depends_on_input(model, spec.name):
            differences.append((rank, error, spec.name))
    nothing = _INCONCLUSIVE if model.inputs else _EQUAL
    rank, error, name = max(differences, default=(nothing, 0.0, model.outputs[0].name))
    return Check(cut, VERDICTS[rank], error, name)


_EQUAL, _INCONCLUSIVE, _DIFFERENT = 0, 1, 2
VERDICTS = ("equal", "inconclusive", "different")


def verdict_of(expected: Sequence[Array], got: Sequence[Array]) -> str:
    """``equal``, ``different`` or ``inconclusive``, of one output for two inputs or more, as `Check` has it."""
    return VERDICTS[_judge(expected, got, RELATIVE_TOLERANCE)[0]]


def strays(expected: Array, got: Array) -> bool:
    """Whether `got` is further from `expected` than rounding takes it, by the size of `expected`."""
    return _distance(expected, got) > _allowed(expected.dtype, RELATIVE_TOLERANCE) * _largest(expected)


def _allowed(dtype: np.dtype[Any], tolerance: float) -> float:
    # Half precision has three digits, and a cut rounds to them what the whole keeps in float32: measured on light
    # ResNet-50, SqueezeNet and DenseNet in half precision, 0.6–1.0 % of the change (float32: 1e-6).
    return max(tolerance, 16 * float(np.finfo(dtype).eps)) if dtype.kind == "f" else 0.0


def _judge(expected: Sequence[Array], got: Sequence[Array | None], tolerance: float) -> tuple[int, float]:
    """(verdict, worst error as a share of the output's change). Whole numbers must be equal, NaNs be in place."""
    first = expected[0]
    moves = [_distance(first, e) for e in expected[1:]]
    signal, size = max(moves), max(_largest(e) for e in expected)
    error = max(float("inf") if g is None else _distance(e, g) for e, g in zip(expected, got, strict=True))
    allowed = _allowed(first.dtype, tolerance)
    if signal == 0.0 or (first.dtype.kind == "f" and signal < SIGNAL_FLOOR * size):
        return (_INCONCLUSIVE, 0.0) if error <= allowed * size else (_DIFFERENT, float("inf"))
    error /= signal if np.isfinite(signal) else size or 1.0
    return (_EQUAL if error <= allowed else _DIFFERENT), error


def _distance(a: Array, b: Array) -> float:
    """The largest difference of two arrays; infinite where shape, dtype or what is not a number differ."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    if a.dtype.kind != "f":
        # float64 does not see the last bits of an int64, so what differs differs by one at least.
        different = a != b
        return max(1.0, _largest(a[different].astype("f8") - b[different])) if different.any() else 0.0
    finite = np.isfinite(a) & np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return float("inf")
    return _largest(a[finite].astype("f8") - b[finite])


def _largest(array: Array) -> float:
    """The largest magnitude of the finite values; 0 if there are none."""
    values = array[np.isfinite(array)]
    return max(abs(float(values.min())), abs(float(values.max()))) if values.size else 0.0


def _depends_on_input(model: Model, output: str) -> bool:
    values = model.graph.answer(output)[0]
    return any(v in model.graph.producer for v in values) or any(t.name in values for t in model.inputs)


def samples_for(model: Model, count: int, seed: int = 0) -> list[dict[str, Array]]:
    """`count` inputs for the bound shapes: the model's `values`, the others made up.

    Large values are those of the first sample only. Token ids stay inside the vocabulary the model has.
    """
    specs = [t.bind(model.graph.assumed) for t in model.inputs]
    samples = [sample_inputs(specs, seed + k, _vocabulary(model)) for k in range(count)]
    return [(varied if k else with_values)(sample, specs, model.values) for k, sample in enumerate(samples)]


@contextmanager
def tried_with(model: Model, made_up: bool = True) -> Iterator[None]:
    """Inside, an EngineError on made-up inputs says what to do about it."""
    try:
        yield
    except EngineError as exc:
        if not made_up or not model.inputs:
            raise
        raise EngineError(f"{exc} ({advice(model.inputs, model.values)})") from exc


def _vocabulary(model: Model) -> int:
    """The rows of the smallest table that integer inputs index (2 where there is none)."""
    integers = {t.name for t in model.inputs if t.dtype in ("int64", "int32")}
    rows = [2]
    sizes = {t.name: list(t.dims) for t in model.skeleton.graph.initializer}
    for node in model.skeleton.graph.node:
        if node.op_type == "Gather" and node.input[1] in integers and len(sizes.get(node.input[0], ())) == 2:
            rows.append(int(sizes[node.input[0]][0]))
    inner = [r for r in rows if r > 2]  # token types have 2 rows: the ids may use the larger table only where alone
    return min(inner) if inner and len(integers) == 1 else 2


def check_inputs(model: Model, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The inputs, contiguous, if their names, dtypes and shapes are the model's. InputError says what is wrong."""
    known = {t.name for t in model.inputs}
    weights = {t.name for t in model.skeleton.graph.initializer} if set(inputs) - known else set[str]()
    if default := next((name for name in inputs if name in weights), None):
        raise InputError(f"{default_input(default)}: leave it out")
    return check_specs(model.inputs, inputs)


def by_name(specs: Sequence[TensorSpec], inputs: Mapping[str, Array] | Array) -> Mapping[str, Array]:
    """`inputs` by name: one array is the only input's. InputError if there is another number of inputs."""
    if not isinstance(inputs, np.ndarray):
        return inputs
    if len(specs) != 1:
        how = "give them by name" if specs else "give {}"
        raise InputError(f"the model has {len(specs) or 'no'} inputs: {how}")
    return {specs[0].name: inputs}


def check_specs(specs: Sequence[TensorSpec], inputs: Mapping[str, Array]) -> dict[str, Array]:
    known = {t.name for t in specs}
    extra = [name for name in inputs if name not in known]
    missing = [t for t in specs if t.name not in inputs]
    if extra or missing:
        what = f"has no input {extra[0]}" if extra else f"needs the input {missing[0]}"
        raise InputError(f"the model {what} (its inputs: {listed(specs)})")
    return {t.name: t.check(inputs[t.name]) for t in specs}


def select(model: Model, which: str) -> list[Cut]:
    """Cuts for ``chain`` (single-tensor cuts), ``all`` (every topological prefix), a number N spread over all, or a
    file of names, one a line: just these, called as they are called there. CutError for a name that is none."""
    if which == "chain":
        return list(model.graph.chain())
    cuts = list(model.graph.prefixes())
    if which == "all":
        return cuts
    count = int(which) if which.isdecimal() else 0
    if count < 1 and Path(which).is_file():
        lines = (line.strip() for line in read_text(Path(which), _MOST_NAMES, "a list of layers").splitlines())
        return [model.graph.cut(name) for name in dict.fromkeys(filter(None, lines))]
    if count < 1:
        raise UsageError(
            f"--cuts is chain, all or a number of cuts, or a file of layers' names, one a line; not {which}"
        )
    picks = np.linspace(0, len(cuts) - 1, min(count, len(cuts))).round().astype(int)
    return [cuts[i] for i in dict.fromkeys(picks.tolist())]
