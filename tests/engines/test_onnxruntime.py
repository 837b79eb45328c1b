"""ONNX Runtime: its providers, threads and memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import nets
from nets import node, value, weight
from splitpoint.engines import ENGINES, Engine, open_engine
from splitpoint.engines.onnxruntime import DEVICES, OnnxRuntimeEngine, install_line
from splitpoint.errors import EngineError, InputError

X = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)


@pytest.fixture(params=sorted(ENGINES))
def engine(request: pytest.FixtureRequest) -> Engine:
    return open_engine(request.param, device="cpu", threads=1)


@pytest.mark.parametrize("device", [d for d in DEVICES if d != "cpu"])
def test_a_provider_that_is_not_there_names_the_wheel(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime as ort

    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(EngineError) as caught:
        open_engine(device=device)
    assert DEVICES[device].provider in str(caught.value)
    assert install_line(device) in str(caught.value)


def test_a_provider_that_is_there_and_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime falls back to the CPU without a word; that must not pass for a GPU."""
    import onnxruntime as ort

    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    engine = open_engine(device="cuda")
    monkeypatch.setattr("splitpoint.engines.onnxruntime._providers", lambda device: ["CPUExecutionProvider"])
    with pytest.raises(
        EngineError,
        match=r"could not start CUDAExecutionProvider .* uninstall -y onnxruntime && .* onnxruntime-gpu",
    ):
        engine.compile(nets.load(nets.residual()).whole())


def test_threads_default_to_the_cores_it_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 2, 5}, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert OnnxRuntimeEngine().threads == 3
    assert OnnxRuntimeEngine(threads=2).threads == 2
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr("os.cpu_count", lambda: 5)  # there it may use all of them
    assert OnnxRuntimeEngine().threads == 5


def test_spinning_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime as ort

    entries: list[tuple[str, str]] = []

    class Options(ort.SessionOptions):  # type: ignore[misc]
        def add_session_config_entry(self, key: str, text: str) -> None:
            entries.append((key, text))
            super().add_session_config_entry(key, text)

    monkeypatch.setattr(ort, "SessionOptions", Options)
    segment = nets.load(nets.residual()).whole()
    OnnxRuntimeEngine(threads=2).compile(segment).close()
    spins = [text for key, text in entries if key == "session.intra_op.allow_spinning"]
    assert spins == ["0"]


def test_weights_are_copied_once_at_most() -> None:
    """No serialised model in between: a table of 64 MB costs the session's own copy and next to nothing more."""
    table = np.ones((4000, 4000), np.float32)
    model = nets.load(
        nets.proto(
            [node("Gather", ["table", "ids"], ["y"], name="embed")],
            [value("ids", [2], 7)],
            [value("y", None)],
            [weight("table", table)],
        )
    )
    before = anonymous_bytes()
    session = nets.ENGINE.compile(model.whole())
    assert session.run({"ids": np.array([0, 3999])})["y"].sum() == 8000
    assert anonymous_bytes() - before < table.nbytes + (16 << 20)
    assert session.nbytes >= table.nbytes
    session.close()


_BATCHES = """
import numpy as np
from splitpoint.engines import open_engine
from splitpoint.engines.process_memory import few_arenas, resident_bytes
from splitpoint.models import load
few_arenas()
model, engine = load("zoo:efficientnet_lite0"), open_engine(threads=1)
cuts = [c for c in model.graph.chain() if c.name != "output"][:5]
sessions = [engine.compile(model.tail(c)) for c in cuts]
batch = [{t.name: np.zeros(t.bind({"batch": 8}).shape, t.dtype) for t in s.inputs} for s in sessions]
sessions[0].run(batch[0])
one = resident_bytes()
for session, inputs in zip(sessions, batch):
    session.run(inputs)
many = resident_bytes()
for session in sessions:
    session.close()
print((many - one) / 1e6, (many - resident_bytes()) / 1e6)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted as Linux does")
def test_sessions_share_what_they_compute_in_and_give_the_rest_back() -> None:
    """Five tails that have run a batch of eight hold the memory for one such batch, not for five (some 300 MB)."""
    said = subprocess.run([sys.executable, "-c", _BATCHES], capture_output=True, text=True, check=True).stdout
    more, given_back = map(float, said.split())
    assert more < 100
    assert given_back > 50, "five times the weights, packed as the engine likes them"


def anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon"))) << 10


def test_nothing_is_printed_when_it_fails(capfd: pytest.CaptureFixture[str]) -> None:
    """`--json` has standard output to itself."""
    model = nets.load(nets.residual())
    session = nets.ENGINE.compile(model.whole())
    with pytest.raises(InputError):
        session.run({"x": X[0]})
    proto = nets.proto([node("Frobnicate", ["x"], ["y"])], [value("x", [4])], [value("y", [4])])
    with pytest.raises(Exception, match="Frobnicate"):
        nets.load(proto)
    assert capfd.readouterr() == ("", "")
