"""What the tests of transports, server and attacks share: small models, an engine one can hold up, leak checks."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import nets
from splitpoint.models import load
from splitpoint.models.model import Model, Segment
from splitpoint.tensors import Array, TensorSpec


def affine(folder: Path, *, name: str = "affine", size: int = 1024, layers: int = 4, seed: int = 0) -> Model:
    """x → (x * w + b) and so on, `layers` times: cheap, with a weight blob (> 1 KiB) at every layer."""
    rng = np.random.default_rng(seed)
    nodes, weights, last = [], [], "x"
    for k in range(layers):
        weights.append(numpy_helper.from_array(rng.uniform(0.5, 1.5, size).astype(np.float32), f"w{k}"))
        weights.append(numpy_helper.from_array(rng.normal(size=size).astype(np.float32), f"b{k}"))
        nodes.append(helper.make_node("Mul", [last, f"w{k}"], [f"m{k}"], name=f"mul{k}"))
        nodes.append(helper.make_node("Add", [f"m{k}", f"b{k}"], [f"y{k}"], name=f"add{k}"))
        last = f"y{k}"
    shape = ["batch", size]
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, shape)],
        weights,
    )
    path = folder / f"{name}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return load(path)


def evaluate(model: Model, x: Array) -> Array:
    """What an `affine` model answers, computed with numpy alone."""
    by_name = {t.name: t for t in model.skeleton.graph.initializer}
    segment = model.whole()
    value = x
    hashes = nets.blob_hashes(segment)
    for k in range(len(by_name) // 2):
        w, b = (np.frombuffer(model.blob(hashes[f"{n}{k}"]), np.float32) for n in "wb")
        value = value * w + b
    return value


class Gate:
    """An engine whose sessions wait at a gate, and that counts what it compiles and what runs at once."""

    name, device, threads = "gate", "none", 1

    def __init__(self, *, is_open: bool = True, nbytes: int = 1000, fails: Exception | None = None) -> None:
        self.open = threading.Event()
        if is_open:
            self.open.set()
        self.compile_gate = threading.Event()
        self.compile_gate.set()
        self.compiled: list[str] = []
        self.closed: list[str] = []
        self.entered = threading.Semaphore(0)
        self.nbytes = nbytes
        self.fails = fails

    def compile(self, segment: Segment) -> GateSession:
        self.compile_gate.wait(10)
        self.compiled.append(segment.key)
        return GateSession(self, segment)


class GateSession:
    def __init__(self, gate: Gate, segment: Segment) -> None:
        self.gate, self.segment = gate, segment
        self.inputs: tuple[TensorSpec, ...] = segment.inputs
        self.outputs: tuple[TensorSpec, ...] = segment.outputs
        self.nbytes = gate.nbytes

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.gate.entered.release()
        assert self.gate.open.wait(10), "the test never opened the gate"
        if self.gate.fails is not None:
            raise self.gate.fails
        first = inputs[self.inputs[0].name]
        return {t.name: first.astype(t.dtype) for t in self.outputs}  # a copy

    def close(self) -> None:
        self.gate.closed.append(self.segment.key)


def sockets() -> set[str]:
    """The sockets this process has open."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
        if target.startswith("socket:"):
            found.add(target)
    return found


@contextmanager
def nothing_leaks() -> Iterator[None]:
    """Fails if threads or sockets are left that were not there before."""
    threads, before = set(threading.enumerate()), sockets()
    yield
    gc.collect()
    end = time.monotonic() + 5
    while time.monotonic() < end:
        left = [t for t in threading.enumerate() if t not in threads and t.is_alive()]
        if not left and sockets() <= before:
            return
        time.sleep(0.01)  # threads end on their own time; what is waited for is named below
    left = [t.name for t in threading.enumerate() if t not in threads and t.is_alive()]
    raise AssertionError(f"left behind: threads {left}, sockets {sockets() - before}")


def until(condition: object, seconds: float = 5.0) -> bool:
    """Whether `condition()` comes true within `seconds`."""
    assert callable(condition)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.005)
    return bool(condition())


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """Fails a test that leaves threads or sockets."""
    with nothing_leaks():
        yield


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C works here and in what is started here, even where whoever started the tests ignores it (nohup, `&`)."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
