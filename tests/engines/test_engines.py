"""What every engine must do, and what ONNX Runtime's own options and errors look like through it."""

from __future__ import annotations

import sys
import threading
import types
from typing import Any

import numpy as np
import pytest

import nets
from nets import node, value, weight
from splitpoint.engines import ENGINES, Engine, open_engine
from splitpoint.errors import EngineError, InputError, UsageError
from splitpoint.tensors import TensorSpec

X = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)


@pytest.fixture(params=sorted(ENGINES))
def engine(request: pytest.FixtureRequest) -> Engine:
    return open_engine(request.param, device="cpu", threads=1)


# --- the contract -------------------------------------------------------------------------------------------------


def test_an_engine_says_what_it_is(engine: Engine) -> None:
    assert engine.name in ENGINES
    assert engine.device == "cpu"
    assert engine.threads == 1
    assert engine.device in repr(engine)


def test_a_session_computes_what_its_segment_does(engine: Engine) -> None:
    model = nets.load(nets.residual())
    session = engine.compile(model.segment(["x"], ["r1", "pool"]))
    assert session.inputs == (TensorSpec("x", "float32", ("batch", 3, 8, 8)),)
    assert [t.name for t in session.outputs] == ["r1", "pool"]
    assert session.nbytes >= model.segment(["x"], ["r1", "pool"]).nbytes
    made = session.run({"x": X})
    assert list(made) == ["r1", "pool"]
    weights = {t.name: np.frombuffer(t.raw_data, np.float32).reshape(t.dims) for t in nets.residual().graph.initializer}
    padded = np.pad(X[0], ((0, 0), (1, 1), (1, 1)))
    corner = (padded[:, 4:7, 2:5] * weights["w1"][2]).sum() + weights["b1"][2]
    assert made["r1"][0, 2, 4, 2] == pytest.approx(max(0, corner), abs=1e-5)
    np.testing.assert_array_equal(session.run({"x": X})["pool"], made["pool"])
    session.close()


def test_a_session_takes_any_batch_and_what_it_does_not_need(engine: Engine) -> None:
    session = engine.compile(nets.load(nets.residual()).whole())
    three = session.run({"x": np.concatenate([X, X * 2, X * 3]), "other": X})
    assert three["y"].shape == (3, 5)
    np.testing.assert_allclose(three["y"][:1], session.run({"x": X})["y"], rtol=1e-4)
    session.close()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, r"input x is missing \(this segment needs: x: float32\[batch,3,8,8\]\)"),
        ({"y": X}, "input x is missing"),
        ({"x": X.astype(np.float64)}, r"input x must be float32\[batch,3,8,8\], but float64\[1,3,8,8\] came"),
        ({"x": X[0]}, r"but float32\[3,8,8\] came"),
        ({"x": X[:, :2]}, r"but float32\[1,2,8,8\] came"),
        ({"x": None}, "input x must be a numpy array, not NoneType"),
        ({"x": np.array(["a"])}, "input x must be float32"),
    ],
)
def test_wrong_inputs(engine: Engine, inputs: dict[str, Any], message: str) -> None:
    session = engine.compile(nets.load(nets.residual()).whole())
    with pytest.raises(InputError, match=message):
        session.run(inputs)
    assert session.run({"x": X})["y"].shape == (1, 5)  # and goes on
    session.close()


def test_strided_inputs_are_taken(engine: Engine) -> None:
    session = engine.compile(nets.load(nets.residual()).whole())
    strided = np.ascontiguousarray(X.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    assert not strided.flags.c_contiguous
    np.testing.assert_array_equal(session.run({"x": strided})["y"], session.run({"x": X})["y"])
    session.close()


def test_a_closed_session(engine: Engine) -> None:
    session = engine.compile(nets.load(nets.residual()).whole())
    session.close()
    session.close()
    with pytest.raises(EngineError, match=r"^this session is closed$"):
        session.run({"x": X})


def test_a_session_serves_several_threads(engine: Engine) -> None:
    session = engine.compile(nets.load(nets.residual()).whole())
    expected = [session.run({"x": X * k})["y"] for k in range(8)]
    got: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda k=k: got.__setitem__(k, session.run({"x": X * k})["y"])) for k in range(8)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for k in range(8):
        np.testing.assert_array_equal(got[k], expected[k])
    session.close()


def test_results_outlive_the_session(engine: Engine) -> None:
    """An array that pointed into freed memory would show here, or crash."""
    session = engine.compile(nets.load(nets.residual()).whole())
    first = session.run({"x": X})["y"]
    kept = first.copy()
    session.run({"x": X * 5})
    session.close()
    del session
    np.testing.assert_array_equal(first, kept)


def test_an_operator_it_does_not_have(engine: Engine) -> None:
    proto = nets.proto([node("Frobnicate", ["x"], ["y"])], [value("x", [4])], [value("y", [4])])
    from splitpoint.models.model import extract

    segment = nets.load(nets.residual()).whole()
    broken = type(segment)(
        segment.fingerprint,
        (TensorSpec("x", "float32", (4,)),),
        (TensorSpec("y", "float32", (4,)),),
        extract(proto, ["x"], ["y"], {t: TensorSpec(t, "float32", (4,)) for t in "xy"}),
        segment.weights,
    )
    with pytest.raises(EngineError, match=r"cannot build this segment: .*Frobnicate") as caught:
        engine.compile(broken)
    assert "\n" not in str(caught.value)


def test_a_failure_while_running_is_an_engine_error(engine: Engine) -> None:
    """Inputs that fit and still fail: a Gather out of bounds."""
    model = nets.load(
        nets.proto(
            [node("Gather", ["table", "ids"], ["y"], name="embed")],
            [value("ids", ["batch"], 7)],
            [value("y", None)],
            [weight("table", np.ones((3, 2), np.float32))],
        )
    )
    session = engine.compile(model.whole())
    with pytest.raises(EngineError, match=r"failed: .*") as caught:
        session.run({"ids": np.array([7])})
    assert "\n" not in str(caught.value)
    assert session.run({"ids": np.array([2])})["y"].shape == (1, 2)
    session.close()


# --- opening ------------------------------------------------------------------------------------------------------


def test_unknown_engines_and_devices() -> None:
    with pytest.raises(UsageError, match=r"no engine is called onnxruntim; did you mean onnxruntime\? \(known: onnx"):
        open_engine("onnxruntim")
    with pytest.raises(EngineError, match="engine no_such_module:Engine cannot be loaded"):
        open_engine("no_such_module:Engine")
    with pytest.raises(EngineError, match=r"engine splitpoint.errors:Nothing cannot be loaded"):
        open_engine("splitpoint.errors:Nothing")
    with pytest.raises(EngineError, match=r"no device is called cudaa; did you mean cuda or cpu\? \(known: cpu, cuda"):
        open_engine(device="cudaa")
    with pytest.raises(EngineError, match=r"number of threads must be 0 .* not -1"):
        open_engine(threads=-1)


def test_an_engine_from_elsewhere() -> None:
    module = types.ModuleType("outsiders_engine")
    module.TheirEngine = lambda device, threads: (device, threads)  # type: ignore[attr-defined]
    sys.modules["outsiders_engine"] = module
    try:
        assert open_engine("outsiders_engine:TheirEngine", device="npu", threads=3) == ("npu", 3)  # type: ignore[comparison-overlap]
    finally:
        del sys.modules["outsiders_engine"]
