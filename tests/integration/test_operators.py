"""Every operator test that onnx has: sizes are the runtime's, no other values make one that is refused, and rows of a
batch that are said to stay apart do.

Making the tests takes onnx 20 s and trying them two minutes: run with SPLITPOINT_OPERATORS=1.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import nets
from splitpoint.errors import ModelError, SplitpointError
from splitpoint.models import reading, shapes
from splitpoint.models.model import Segment
from splitpoint.runtime.server.batching import run_stacked
from splitpoint.runtime.server.compiled_tails import Tail
from splitpoint.segments import strays
from splitpoint.tensors import ITEM_SIZES, Array, TensorSpec

pytestmark = pytest.mark.skipif(
    not os.environ.get("SPLITPOINT_OPERATORS"),
    reason="tries 1,400 operator tests (3 min); SPLITPOINT_OPERATORS=1 runs it",
)


def compiled(proto: Any) -> Any:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def others(name: str, array: Array, op: str) -> Iterator[Array]:
    """Other values for an input."""
    made = [np.zeros_like(array), array[::-1] if array.ndim else array]
    if array.size <= 8 and array.dtype != bool:
        made += [array + 1, array - 1, array * 2, np.ones_like(array), -array if array.dtype.kind != "u" else array]
    for values in made:
        # ONNX Runtime 1.32 divides by a step of zero, and the process is gone.
        if not (op == "STFT" and name != "signal" and (values < 1).any()):
            yield np.ascontiguousarray(values, array.dtype).reshape(array.shape)


def probe(skeleton: Any, feed: Mapping[str, Array]) -> shapes.ShapeProbe:
    def run(_: Sequence[TensorSpec], names: Sequence[str], sized: Sequence[str] = ()) -> Any:
        wanted = [*names, *sized]
        full = onnx.ModelProto.FromString(skeleton.SerializeToString())
        known = {o.name for o in full.graph.output}
        for name in wanted:
            if name not in known:
                full.graph.output.add().name = name
        try:
            made = dict(zip(wanted, compiled(full).run(wanted, dict(feed)), strict=True))
        except Exception as exc:  # ONNX Runtime's
            raise ModelError(str(exc)) from exc
        arrays = {n: made[n] if isinstance(made[n], np.ndarray) else None for n in names}
        return arrays, {n: made[n].shape for n in sized}

    return run


@pytest.mark.filterwarnings("ignore")
def test_no_right_tensor_is_refused() -> None:
    from onnx.backend.test.case.node import collect_testcases

    tried, refused = 0, []
    for case in collect_testcases(None):
        given = case.data_sets[0][0] if case.data_sets else []
        if not all(isinstance(a, np.ndarray) and a.dtype.name in ITEM_SIZES and a.size for a in given):
            continue
        proto = onnx.ModelProto.FromString(case.model.SerializeToString())
        feed = {i.name: a for i, a in zip(proto.graph.input, given, strict=False)}
        for declared in proto.graph.input:
            shape = feed[declared.name].shape
            kind = declared.type.tensor_type.elem_type
            declared.CopyFrom(onnx.helper.make_tensor_value_info(declared.name, kind, shape))
        try:
            session = compiled(proto)
            answers = [session.run(None, feed)]
        except Exception:  # not every operator is in ONNX Runtime
            continue
        op = proto.graph.node[0].op_type
        try:
            skeleton, _ = reading.skeleton_of(proto, Path("."), case.name)
        except ModelError:  # an opset that is too old
            continue
        found = shapes.shapes_of(skeleton, probe(skeleton, feed))
        names = [o.name for o in skeleton.graph.output]
        tried += 1
        for name, array in zip(names, answers[0], strict=True):
            if name in found.bound and found.bound[name].shape != array.shape:
                refused.append(f"{case.name}: {found.bound[name]}, but {array.shape} was made")
        for name in feed:
            for values in others(name, feed[name], op):
                try:
                    answers.append(session.run(None, {**feed, name: values}))
                except Exception:  # values that make no sense
                    continue
        for answer in answers:
            for name, array in zip(names, answer, strict=True):
                if name in found.free and not found.free[name].fits(array.dtype.name, array.shape):
                    refused.append(f"{case.name}: {found.free[name]} refuses {array.shape}")
    assert tried > 1000
    assert not refused


@pytest.mark.filterwarnings("ignore")
def test_rows_that_are_said_to_stay_apart_do() -> None:
    """Every operator test as a model some of whose inputs have a batch first, and the others are weights."""
    from onnx.backend.test.case.node import collect_testcases

    said, wrong = 0, []
    for case in collect_testcases(None):
        given = case.data_sets[0][0] if case.data_sets else []
        names = [i.name for i in case.model.graph.input]
        if len(names) != len(given) or not all(isinstance(a, np.ndarray) and a.dtype.kind in "biuf" for a in given):
            continue
        rowed = [k for k, a in enumerate(given) if a.ndim and len(a)]
        for chosen in (c for count in range(1, min(3, len(rowed)) + 1) for c in combinations(rowed, count)):
            segment = with_batch(case.model, given, chosen)
            if segment is None or Tail(segment, most=2).most == 1:
                continue
            said += 1
            inputs = {t.name for t in segment.inputs}
            rows = [{names[k]: another(given[k], seed) for k in chosen if names[k] in inputs} for seed in range(3)]
            if mixed(segment, rows):
                wrong.append((case.name, chosen))
    assert said > 700
    assert not wrong


def with_batch(model: Any, given: Sequence[Array], chosen: Sequence[int]) -> Segment | None:
    """`model` with a free first dimension of the inputs `chosen`, the others constants; None if that is no model."""
    proto = onnx.ModelProto.FromString(model.SerializeToString())
    names = [i.name for i in proto.graph.input]
    del proto.graph.input[:]
    for k, (name, array) in enumerate(zip(names, given, strict=True)):
        if k in chosen:
            kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
            proto.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, ["N", *array.shape[1:]]))
        else:
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    try:
        return nets.load(proto).whole()
    except ModelError:
        return None


def another(array: Array, seed: int) -> Array:
    """One row, of `array`'s kind, of another size for another seed."""
    row = array[seed % len(array)][None]
    rng = np.random.default_rng(seed)
    if row.dtype.kind == "f":
        return np.asarray(row * (1, 1e-3, 1e3)[seed] * rng.uniform(0.5, 1.5, row.shape), row.dtype)
    return np.ascontiguousarray(rng.permutation(row.reshape(-1)).reshape(row.shape))


def mixed(segment: Segment, rows: Sequence[Mapping[str, Array]]) -> bool:
    """Whether a batch of `rows` gives one of them something else than alone; no, if they do not even run alone."""
    try:
        session = nets.ENGINE.compile(segment)
        alone = [session.run(row) for row in rows]
    except SplitpointError:
        return False
    try:
        made = run_stacked(session.run, rows)
    except (SplitpointError, ValueError):
        return True
    return any(strays(a[name], m[name]) for a, m in zip(alone, made, strict=True) for name in a)
