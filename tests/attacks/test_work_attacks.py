"""What a request may cost the server while it is computed: by its batch, and by the values it feeds."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from attacking import LIMITS, Attacker, under_attack
from onnx import TensorProto
from onnx.helper import make_graph, make_node
from serving import Gate, GateSession, affine, nothing_leaks, until

import nets
from splitpoint.engines import open_engine
from splitpoint.engines.onnxruntime import shrink_workspace
from splitpoint.engines.process_memory import resident_bytes
from splitpoint.errors import UsageError
from splitpoint.models.model import Model, Segment
from splitpoint.runtime.server import run_limits as watch
from splitpoint.runtime.server import server as server_module
from splitpoint.runtime.server.server import Server
from splitpoint.tensors import Array
from splitpoint.wire import Kind, Limits

WORK = dataclasses.replace(LIMITS, work_bytes=1 << 20)
#: A row of `affine`, read and made at once, with what an engine takes over it.
ROW = 2 * 2 * 4096


# --- a batch ----------------------------------------------------------------------------------------------------------


def test_a_batch_of_more_memory_than_a_request_may_take_is_refused_before_it_is_received(tmp_path: Path) -> None:
    rows = WORK.work_bytes // ROW + 1
    with under_attack(tmp_path, WORK) as target:
        attacker = target.attacker()
        segment = attacker.open(target.model.fingerprint)
        compiled = len(target.gate.compiled)
        attacker.send(32, 5, [segment, [["float32", [rows, 1024], 4096 * rows, ""]]], bytes(4096 * rows))
        kind, id, header, _ = attacker.receive()
        assert (kind, id, header["code"]) == (Kind.ERROR, 5, "input")
        assert header["message"].startswith(f"a batch of {rows} rows would take about 1.1 MB here; the limit is 1.0 MB")
        assert not target.gate.entered.acquire(blocking=False), "it was computed"
        assert len(target.gate.compiled) == compiled
        attacker.send(
            32, 6, [segment, [["float32", [rows - 1, 1024], 4096 * (rows - 1), ""]]], bytes(4096 * (rows - 1))
        )
        assert attacker.receive()[:2] == (Kind.RESULT, 6)


def test_a_row_is_always_served(tmp_path: Path) -> None:
    """Whoever serves a model has said that one row of it is not too much."""
    with under_attack(tmp_path, dataclasses.replace(LIMITS, work_bytes=1)) as target:
        attacker = target.attacker()
        segment = attacker.open(target.model.fingerprint)
        attacker.infer(5, segment)
        assert attacker.receive()[:2] == (Kind.RESULT, 5)
        attacker.send(32, 6, [segment, [["float32", [2, 1024], 8192, ""]]], bytes(8192))
        assert attacker.receive()[2]["code"] == "input"


def test_requests_that_would_take_too_much_together_do_not_run_as_one_batch(tmp_path: Path) -> None:
    """Eight of them may be joined: eight times their memory."""
    with under_attack(tmp_path, dataclasses.replace(WORK, work_bytes=4 * ROW)) as target:
        attacker = target.attacker()
        segment = attacker.open(target.model.fingerprint)
        attacker.infer(5, segment)
        assert attacker.receive()[:2] == (Kind.RESULT, 5)
        (peer,) = target.server._peers
        (opened,) = peer.requests.tails.values()
        assert opened.tail._tail.most == 8
        assert opened.checked.kind.gain is None


def test_what_a_large_run_has_left_is_given_back() -> None:
    """The engine's workspace, which all share, grew to the largest run and stayed so."""
    model = nets.load(nets.residual())
    session = open_engine(threads=1).compile(model.whole())
    before = resident_bytes()
    session.run({"x": np.zeros((20_000, 3, 8, 8), np.float32)})
    grown = resident_bytes() - before
    assert grown > 50 << 20
    shrink_workspace()
    assert resident_bytes() < before + grown / 3
    session.close()


def test_a_server_gives_it_back_after_the_last_of_large_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    monkeypatch.setattr(watch, "_SETTLED_S", -1.0)
    looking = watch.Watch(1.0, 0, lambda: None, lambda: None, lambda: given.append(1), print)
    looking.close()
    looking.run(_Echo(), {}, watch.Like(watch.LARGE_BYTES), "a client")
    looking.look()
    assert not given
    looking.run(_Echo(), {}, watch.Like(watch.LARGE_BYTES + 1), "a client")
    looking.look()
    looking.look()
    assert given == [1]


class _Echo:
    inputs = outputs = ()
    nbytes = 0

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return dict(inputs)

    def close(self) -> None:
        """It holds nothing."""


# --- values that decide -----------------------------------------------------------------------------------------------


def deciding(folder: Path) -> Model:
    """What is fed at `h` and `n` counts the turns of a loop, the elements of a Range, and is divided."""
    body = make_graph(
        [make_node("Identity", ["c"], ["c2"], name="b0"), make_node("Mul", ["s", "s"], ["s2"], name="b1")],
        "body",
        [nets.value("i", [], TensorProto.INT64), nets.value("c", [], TensorProto.BOOL), nets.value("s", ["b", 4])],
        [nets.value("c2", [], TensorProto.BOOL), nets.value("s2", ["b", 4])],
    )
    model = nets.proto(
        [
            make_node("Relu", ["x"], ["h"], name="relu"),
            make_node("Loop", ["n", "yes", "h"], ["y"], name="loop", body=body),
            make_node("Range", ["zero", "n", "one"], ["r"], name="range"),
            make_node("ReduceSum", ["r"], ["z"], name="sum", keepdims=0),
            make_node("Div", ["least", "n"], ["q"], name="div"),
        ],
        [nets.value("x", ["batch", 4]), nets.value("n", [], TensorProto.INT64)],
        [nets.value("y", None), nets.value("z", [], TensorProto.INT64), nets.value("q", [], TensorProto.INT64)],
        [
            nets.weight("yes", True),
            nets.weight("zero", 0, np.int64),
            nets.weight("one", 1, np.int64),
            nets.weight("least", -(2**63), np.int64),
        ],
    )
    onnx.save(model, folder / "deciding.onnx")
    return nets.load(model)


class Decider(Attacker):
    """Feeds `deciding` with a number."""

    def ask(self, id: int, model: Model, output: str, n: int) -> None:
        if not hasattr(self, "segments"):
            self.segments: dict[str, int] = {}
        if output not in self.segments:
            names = ["h", "n"] if output == "y" else ["n"]
            self.send(20, 1, {"fingerprint": model.fingerprint, "inputs": names, "outputs": [output]})
            kind, _, header, _ = self.receive()
            assert kind == Kind.OPENED, header
            self.segments[output] = int(header["segment"])
        number = ["int64", [], 8, ""]
        tensors = [["float32", [1, 4], 16, ""], number] if output == "y" else [number]
        data = (bytes(16) if output == "y" else b"") + n.to_bytes(8, "little", signed=True)
        self.send(32, id, [self.segments[output], tensors], data)

    def answer(self, id: int) -> Any:
        """The header of the answer to that request; of BUSY with the code that an ERROR would have."""
        while (got := self.receive())[0] == Kind.BYE:
            continue
        assert got[1] == id
        assert got[0] in (Kind.RESULT, Kind.ERROR, Kind.BUSY), got
        return {"code": "busy", **got[2]} if got[0] == Kind.BUSY else got[2]


@contextmanager
def served(folder: Path, **limits: Any) -> Iterator[tuple[Server, Model]]:
    model = deciding(folder)
    with nothing_leaks():
        settings = dataclasses.replace(Limits(), **limits)
        with Server([model, affine(folder)], engine=open_engine(threads=1), port=0, limits=settings) as server:
            yield server, model


def test_a_loop_without_end_holds_up_only_who_asked_for_it(tmp_path: Path) -> None:
    """One worker, and a run that lasts for years: others are answered meanwhile, and closing the server ends it."""
    with served(tmp_path, run_s=3600.0) as (server, model):
        attacker, honest = Decider(server.address), Decider(server.address, source="127.0.0.9")
        attacker.ask(5, model, "y", 2**40)
        honest.sock.settimeout(30)
        honest.ask(6, model, "z", 4)  # another tail
        assert isinstance(honest.answer(6), list)
        assert until(lambda: server.services.runner.compute.workers == 2)
        honest.ask(7, model, "y", 4)  # the very tail that is held up: told, not kept
        assert honest.answer(7)["code"] == "busy"
        beside = Decider(server.address)
        beside.ask(8, model, "z", 4)  # what cannot be known has one turn an address
        assert beside.answer(8)["code"] == "busy"
        server.close(drain_s=0.01)
        assert not server.hanging
        assert "the server is ending" in attacker.answer(5)["message"]
        for one in (attacker, honest, beside):
            one.close()


def test_what_takes_too_long_is_given_up_and_counted_to_who_asked(tmp_path: Path) -> None:
    with served(tmp_path, run_s=0.5) as (server, model):
        attacker, honest = Decider(server.address), Decider(server.address, source="127.0.0.9")
        attacker.sock.settimeout(30)
        attacker.ask(5, model, "y", 2**40)
        assert attacker.answer(5)["message"].startswith("this run was given up after 0.5 s")
        attacker.ask(6, model, "y", 1)
        refused = attacker.answer(6)
        assert refused["code"] == "busy"
        assert 0 < refused["retry_after_s"] <= 10
        for k in range(1, 4):  # a new process; it may take longer than 0.5 s to begin where the machine is busy
            honest.ask(k, model, "y", 1)
            if isinstance(honest.answer(k), list):
                break
        assert until(lambda: server.services.runner.compute.workers == 1)
        attacker.close()
        honest.close()


def test_memory_that_values_ask_for_is_bounded(tmp_path: Path) -> None:
    with served(tmp_path, work_bytes=64 << 20) as (server, model):
        attacker = Decider(server.address)
        before = resident_bytes()
        attacker.ask(5, model, "z", 100_000_000)  # 800 MB
        assert attacker.answer(5)["code"] == "engine"
        attacker.ask(6, model, "z", 100)
        assert isinstance(attacker.answer(6), list)
        assert resident_bytes() < before + (40 << 20)
        attacker.close()


def test_values_that_end_an_engine_end_its_process_only(tmp_path: Path) -> None:
    """The least integer divided by minus one is a SIGFPE on x86."""
    with served(tmp_path) as (server, model):
        attacker, honest = Decider(server.address), Decider(server.address, source="127.0.0.9")
        honest.ask(4, model, "q", 2)
        assert isinstance(honest.answer(4), list)
        attacker.ask(5, model, "q", -1)
        if isinstance(answered := attacker.answer(5), dict):  # another processor divides without a word
            assert "has ended (SIGFPE)" in answered["message"]
            attacker.ask(6, model, "q", 2)
            assert attacker.answer(6)["code"] == "busy"
        honest.ask(7, model, "q", 2)
        assert isinstance(honest.answer(7), list)
        attacker.close()
        honest.close()


def test_a_shape_vector_is_measured_in_bytes(tmp_path: Path) -> None:
    """Elements were compared with a limit of bytes: eight times as much passed."""
    model = nets.load(nets.flattening())
    with (
        nothing_leaks(),
        Server(
            [model], engine=open_engine(threads=1), port=0, limits=dataclasses.replace(Limits(), tensor_bytes=800)
        ) as server,
    ):
        attacker = Attacker(server.address)
        header = {"fingerprint": model.fingerprint, "inputs": ["r1"], "outputs": ["flat"], "vectors": ["s"]}
        attacker.send(20, 1, header)
        segment = attacker.receive()[2]["segment"]
        for id, vector, code in ((5, [-101, 1, 1, 1], "input"), (6, [1, 0, -1, 1], "")):
            attacker.send(32, id, [segment, [["float32", [1, 5, 4, 4], 320, ""]], [vector]], bytes(320))
            kind, got, answer, _ = attacker.receive()
            assert (kind, got) == (Kind.ERROR if code else Kind.RESULT, id), answer
        attacker.close()


# --- a run that does not hear -----------------------------------------------------------------------------------------


class _Deaf(Gate):
    """An engine whose runs do not end before the gate opens, but for those of another tensor than zeros."""

    def compile(self, segment: Segment) -> GateSession:
        return _DeafSession(self, segment)


class _DeafSession(GateSession):
    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        if inputs[self.inputs[0].name].any():
            return {t.name: inputs[self.inputs[0].name] for t in self.outputs}
        self.gate.open.wait(60)
        raise ValueError("it has ended at last")


def test_a_worker_that_hangs_is_replaced_and_does_not_keep_the_server_from_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_HEARING_S", 0.0)
    monkeypatch.setattr(server_module, "_END_S", 0.2)
    model, gate = affine(tmp_path), _Deaf(is_open=False)
    told: list[str] = []
    with nothing_leaks():
        limits = dataclasses.replace(LIMITS, run_s=0.1)
        server = Server([model], engine=gate, port=0, limits=limits, on_event=lambda e: told.append(e.sentence))
        server.start()
        attacker, honest = Attacker(server.address), Attacker(server.address, source="127.0.0.9")
        attacker.infer(5, attacker.open(model.fingerprint))
        segment = honest.open(model.fingerprint)
        assert until(lambda: server.services.runner.compute.workers == 2)
        honest.infer(6, segment, np.ones(1024, np.float32).tobytes())
        assert honest.receive()[:2] == (Kind.RESULT, 6)
        server.close()
        assert server.hanging
        assert any("another worker works in its place" in text for text in told)
        assert any("is left behind" in text for text in told)
        gate.open.set()
        attacker.close()
        honest.close()


def test_a_run_in_this_process_is_told_to_end(tmp_path: Path) -> None:
    """ONNX Runtime looks at each node, in the body of a Loop too."""
    model = deciding(tmp_path)
    session = open_engine(threads=1).compile(model.segment(["h", "n"], ["y"]))
    looking = watch.Watch(0.05, 0, lambda: None, lambda: None, lambda: None, lambda text: None)
    thread = threading.Thread(target=lambda: [None for _ in iter(looking.look, False)])
    thread.start()
    feed = {"h": np.zeros((1, 4), np.float32), "n": np.array(2**40)}
    try:
        with pytest.raises(Exception, match=r"given up after 0\.05 s"):
            looking.run(session, feed, watch.Like(0.0), "a client")
    finally:
        looking.close()
        thread.join()
    assert session.run(feed | {"n": np.array(3)})["y"].shape == (1, 4)
    session.close()


def test_what_its_like_takes_says_what_is_too_long() -> None:
    like = watch.Like(0.0)
    assert like.limit_s(60.0) == 60.0
    for _ in range(3):
        like.took(1.0)
    assert like.limit_s(60.0) == 20.0
    assert like.limit_s(10.0) == 10.0
    for _ in range(100):
        like.took(0.001)
    assert like.limit_s(60.0) == 5.0


# --- processes --------------------------------------------------------------------------------------------------------

#: `serve` with a short drain, so that a test need not wait for it.
SERVE = "import splitpoint.cli.serve as s; s._DRAIN_S = 0.2; from splitpoint.cli import script; script()"


def test_sigterm_ends_a_server_that_hangs(tmp_path: Path) -> None:
    model = deciding(tmp_path)
    command = [
        sys.executable,
        "-u",
        "-c",
        SERVE,
        "serve",
        str(tmp_path / "deciding.onnx"),
        "--port",
        "0",
        "--threads",
        "1",
    ]
    with subprocess.Popen(
        [*command, "--max-run", "1h"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        address = next(line.split()[2] for line in process.stdout if line.startswith("serving on"))
        attacker = Decider(address)
        attacker.ask(5, model, "y", 2**40)
        attacker.ask(6, model, "y", 1)  # which waits for its turn, or is told
        process.send_signal(signal.SIGTERM)
        rest = process.stdout.read()
        assert process.wait(60) == 0, rest
        assert "Traceback" not in rest
        attacker.close()


#: The same where runs hear nothing: native code that never looks.
DEAF = f"""
import time
from splitpoint.engines.onnxruntime import OnnxRuntimeSession
from splitpoint.runtime.server import server
server._END_S = 0.1
OnnxRuntimeSession.run = lambda *_: print("computing", flush=True) or time.sleep(3600)
{SERVE}
"""


def test_sigterm_ends_a_server_in_which_a_run_hears_nothing(tmp_path: Path) -> None:
    model = affine(tmp_path)
    command = [
        sys.executable,
        "-u",
        "-c",
        DEAF,
        "serve",
        str(tmp_path / "affine.onnx"),
        "--port",
        "0",
        "--threads",
        "1",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        address = next(line.split()[2] for line in process.stdout if line.startswith("serving on"))
        attacker = Attacker(address)
        attacker.infer(5, attacker.open(model.fingerprint))
        assert any(line.startswith("computing") for line in process.stdout)
        process.send_signal(signal.SIGTERM)
        rest = process.stdout.read()
        assert process.wait(60) == 143, rest
        assert "is left behind" in rest
        assert "Traceback" not in rest
        attacker.close()


BEGIN = """
import os, sys, numpy as np
sys.path[:] = %r
from pathlib import Path
from splitpoint.engines import open_engine
from splitpoint.engines.apart import Apart
from splitpoint.models import load
model = load(sys.argv[1])
session = Apart(open_engine(threads=1), 1 << 28).compile(model.segment(["h", "n"], ["y"]))
print(session._child._process.pid, flush=True)
session.run({"h": np.zeros((1, 4), np.float32), "n": np.array(2**40)})
"""


def test_a_process_apart_ends_with_its_parent(tmp_path: Path) -> None:
    """Also in the middle of a run, and where nobody could tell it: the parent was killed."""
    deciding(tmp_path)
    command = [sys.executable, "-c", BEGIN % sys.path, str(tmp_path / "deciding.onnx")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.kill()
    try:
        assert until(lambda: not _runs(child), 30)
    finally:
        with suppress(ProcessLookupError):
            if _runs(child):
                os.kill(child, signal.SIGKILL)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_limits_that_make_no_sense_are_said() -> None:
    for wrong in ({"work_bytes": 0}, {"run_s": 0.0}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            Limits(**wrong)
