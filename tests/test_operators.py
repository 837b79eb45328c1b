"""Every operator test that onnx has: sizes are the runtime's, and no other values make one that is refused.

Making the tests takes onnx 20 s and trying them a minute: run with SPLITPOINT_OPERATORS=1.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from splitpoint.errors import ModelError
from splitpoint.models import reading, shapes
from splitpoint.tensors import ITEM_SIZES, Array, TensorSpec

pytestmark = pytest.mark.skipif(
    not os.environ.get("SPLITPOINT_OPERATORS"),
    reason="tries 1,400 operator tests (80 s); SPLITPOINT_OPERATORS=1 runs it",
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


def probe(skeleton: Any, feed: Mapping[str, Array]) -> shapes.Probe:
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
