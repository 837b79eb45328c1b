"""A small linear model in each of the ways that a file may hold its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto

import nets
from nets import node, value, weight
from splitpoint.models.model import Model
from splitpoint.segments import verify


def linear(w: Any, **more: Any) -> Any:
    """x[1,n] @ w → tanh."""
    return nets.proto(
        [node("MatMul", ["x", "w"], ["m"], name="fc"), node("Tanh", ["m"], ["y"], name="tanh")],
        [value("x", [1, w.dims[0]])],
        [value("y", [1, w.dims[1]])],
        [w],
        **more,
    )


def run(model: Model, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    inputs = {
        t.name: rng.standard_normal(tuple(int(d) for d in t.bind({"batch": 1}).shape)).astype(t.dtype)
        for t in model.inputs
    }
    session = nets.ENGINE.compile(model.whole())
    try:
        return session.run(inputs)
    finally:
        session.close()


def all_equal(model: Model) -> None:
    assert [str(c) for c in verify(model, nets.ENGINE, model.graph.prefixes()) if not c.ok] == []


# --- storage ------------------------------------------------------------------------------------------------------

W = np.random.default_rng(1).standard_normal((64, 32)).astype(np.float32)


def raw() -> Any:
    return weight("w", W)


def outside(folder: Path, *, offset: int = 0, length: bool = True, location: str = "weights.bin") -> Any:
    (folder / "weights.bin").write_bytes(b"\0" * offset + W.tobytes())
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=W.shape)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    if offset:
        tensor.external_data.add(key="offset", value=str(offset))
    if length:
        tensor.external_data.add(key="length", value=str(W.nbytes))
    return tensor
