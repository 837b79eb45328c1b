"""What ONNX Runtime says, in a sentence: texts as its versions print them, and real failures of the one installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto

import nets
from splitpoint.models.reasons import reason_of

FAIL = "[ONNXRuntimeError] : 1 : FAIL : "
RUNNING = "Non-zero status code returned while running "
CORE = "/onnxruntime_src/onnxruntime/core"
SAID = [
    (
        f"{FAIL}{RUNNING}Add node. Name:'add' Status Message: {CORE}/providers/cpu/math/element_wise_ops.h:563 void "
        "onnxruntime::BroadcastIterator::Init(ptrdiff_t, ptrdiff_t) axis == 1 || axis == largest was false. Attempting "
        "to broadcast an axis by a dimension other than 1. 4 by 5\n",
        "node add (Add): Attempting to broadcast an axis by a dimension other than 1. 4 by 5",
    ),
    (
        f"{FAIL}{RUNNING}NonMaxSuppression node. Name:'nms' Status Message: non_max_suppression_helper.h:129 "
        "GetThresholdsFromInputs iou_threshold must be in range [0, 1].",
        "node nms (NonMaxSuppression): iou_threshold must be in range [0, 1].",
    ),
    (
        f"{FAIL}{CORE}/graph/model.cc:256 onnxruntime::Model::Model(onnx::ModelProto&&, const onnxruntime::PathString&,"
        " const onnxruntime::IOnnxRuntimeOpSchemaRegistryList*, const onnxruntime::logging::Logger&, const "
        "onnxruntime::ModelOptions&) Unsupported model IR version: 15, max supported IR version: 14\n",
        "Unsupported model IR version: 15, max supported IR version: 14",
    ),
    (
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Exception during initialization: /a/b/c-d/allocator.cc:12 static "
        "std::unique_ptr<T> ns::A<T>::Make(size_t, const std::function<void(int)>&) const [with T = float; D = "
        "std::vector<int>] size >= 0 was false. The size (12) is wrong",
        "Exception during initialization: The size (12) is wrong",
    ),
    ("x.cc:1 ns::F::operator()(int)::<lambda(ns::B*, int)> Left (a) fails", "Left (a) fails"),
    (
        f"{RUNNING}Loop node. Name:'loop' Status Message: {RUNNING}MatMul node. Name:'mm' Status Message: "
        "matmul_helper.h:59 Compute MatMul dimension mismatch",
        "node loop (Loop): node mm (MatMul): MatMul dimension mismatch",
    ),
    (
        '[ONNXRuntimeError] : 10 : INVALID_GRAPH : This is an invalid model. In Node, ("c", Foo, "my", -1) : ("a": '
        "tensor(float),) -> (\"y\": tensor(float),) , Error No opset import for domain 'my'",
        "node c (Foo): No opset import for domain 'my'",
    ),
    (
        "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got invalid dimensions for input: a for the following indices\n "
        "index: 0 Got: 3 Expected: 2\n Please fix either the inputs/outputs or the model.",
        "Got invalid dimensions for input: a for the following indices index: 0 Got: 3 Expected: 2",
    ),
    ("a model of version 1.5: all is well", "a model of version 1.5: all is well"),
    ("broken.h:7 ns::f(", "RuntimeError"),
    ("", "RuntimeError"),
    ("y" * 1000, "y" * 299 + "…"),
]


@pytest.mark.parametrize(("said", "reason"), SAID)
def test_the_news_of_what_onnx_runtime_says(said: str, reason: str) -> None:
    assert reason_of(RuntimeError(said)) == reason


FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64


@pytest.mark.parametrize(
    ("op", "shapes", "feeds"),
    [
        ("Add", (["N", "M"], ["K", "L"]), (np.ones((2, 4), "f"), np.ones((3, 5), "f"))),
        ("MatMul", (["N", "M"], ["K", "L"]), (np.ones((2, 4), "f"), np.ones((3, 5), "f"))),
        ("Reshape", (["N", "M"], ["K"]), (np.ones((2, 4), "f"), np.array([7]))),
        ("Expand", (["N", "M"], ["K"]), (np.ones((2, 4), "f"), np.array([7, 9]))),
    ],
)
def test_no_source_code_in_real_failures(op: str, shapes: Sequence[Any], feeds: Sequence[Any]) -> None:
    kinds = [FLOAT if f.dtype == np.float32 else INT for f in feeds]
    ins = [nets.value(n, s, k) for n, s, k in zip("ab", shapes, kinds, strict=True)]
    net = nets.proto([nets.node(op, ["a", "b"], ["y"], name="here")], ins, [nets.value("y", None)])
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(net.SerializeToString(), options)
    with pytest.raises(Exception, match="Status Message") as caught:
        session.run(None, dict(zip("ab", feeds, strict=True)))
    reason = reason_of(caught.value)
    assert reason.startswith(f"node here ({op}): ")
    assert not any(sign in reason for sign in ("::", ".cc", ".h:", "onnxruntime", "Status Message"))
