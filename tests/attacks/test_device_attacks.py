"""What a hostile server may try on a device: no answer that was not asked for, no wait without a bound of ours."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from math import inf, nan
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import certificates
import msgspec
import numpy as np
import onnx
import pytest
from attacking import Target
from hostile import Hostile, hostile, silent
from msgspec import structs
from onnx import TensorProto, helper, numpy_helper
from serving import affine, evaluate

from splitpoint import wire
from splitpoint.cli import main
from splitpoint.cli.console import bold, line
from splitpoint.engines import open_engine, underway
from splitpoint.errors import (
    EngineError,
    ModelError,
    ProtocolError,
    ServerError,
    StorageError,
    UnreachableError,
    UsageError,
)
from splitpoint.models import load
from splitpoint.models.fingerprint import fingerprint
from splitpoint.models.model import Model, from_graph
from splitpoint.models.weights import ModelWeights
from splitpoint.profile.measure import profile_model
from splitpoint.runtime.client import held_weights as holding_module
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.edge_settings import AutoPlan
from splitpoint.runtime.client.timeouts import Patience
from splitpoint.runtime.client.wire_remote import WireRemote
from splitpoint.runtime.events import Event
from splitpoint.runtime.server.server import Server
from splitpoint.security import OPEN
from splitpoint.tensors import Array
from splitpoint.text import listed
from splitpoint.transports import connect, framed
from splitpoint.transports.tcp import TcpConnection
from splitpoint.wire import Kind, Limits

#: Pauses are short, and nothing that is honest is ever late, however busy this machine is.
QUICK = Patience(
    first_s=30.0, least_s=30.0, pong_s=5.0, pause_s=0.02, longest_pause_s=0.05, open_s=0.05, profile_s=0.05,
    answer_s=5.0, seed=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return affine(tmp_path_factory.mktemp("model"))


def xs(rows: int = 1) -> Array:
    return np.random.default_rng(rows).normal(size=(rows, 1024)).astype(np.float32)


def edge(server: Hostile, model: Model | str | None, fallback: str = "error", **more: Any) -> Edge:
    security = certificates.client() if server._context is not None else OPEN
    more = {"at": "add1", "patience": QUICK, "engine": open_engine(threads=1), **more}
    return Edge(server.address, model, fallback=fallback, security=security, **more)


def right(model: Model, x: Array, found: Array) -> None:
    np.testing.assert_allclose(found, evaluate(model, x), rtol=1e-4, atol=1e-4)


# --- answers --------------------------------------------------------------------------------------------------------


def rows(count: int) -> Callable[[Hostile, int, Any, bytes], bool]:
    def says(server: Hostile, id: int, header: Any, body: bytes) -> bool:
        server.result(id, np.zeros((count, 1024), np.float32))
        return True

    return says


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("count", [0, 2, 1000])
def test_another_number_of_rows_is_no_answer(model: Model, count: int, tls: bool) -> None:
    with hostile(model, {Kind.INFER: rows(count)}, tls=tls) as server:
        words = rf"\[1,1024\], but .*\[{count},1024\]" if count < 3 else "4096 are the most that was asked for"
        with edge(server, model) as made, pytest.raises(ProtocolError, match=words):
            made.infer(xs())
        with edge(server, model, "local") as made:
            result = made.infer(xs())
            right(model, xs(), result.outputs["y3"])
            assert result.fallback


def test_an_answer_that_was_right_for_another_request_is_not_for_this_one(model: Model) -> None:
    """The same header as before, byte for byte, after another question."""
    with hostile(model) as server, edge(server, model) as made:
        right(model, xs(2), made.infer(xs(2)).outputs["y3"])
        server.says[Kind.INFER] = rows(2)
        made.infer(xs(2))
        with pytest.raises(ProtocolError, match=r"\[1,1024\], but"):
            made.infer(xs(1))


def saved(folder: Path, nodes: list[Any], weights: list[Any], output: str) -> Model:
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)], weights,
    )  # fmt: skip
    path = folder / "odd.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return load(path)


def numbers(name: str, *values: int) -> Any:
    return numpy_helper.from_array(np.array(values, np.int64), name)


@pytest.mark.parametrize(
    ("nodes", "weights", "wanted"),
    [
        ([helper.make_node("Concat", ["r", "r"], ["y"], axis=0)], [], 2 * 7),
        (
            [helper.make_node("Slice", ["r", "from", "to", "axes"], ["y"])],
            [numbers("from", 0), numbers("to", 5), numbers("axes", 0)],
            5,
        ),
    ],
    ids=["twice the batch", "the first five"],
)
def test_rows_that_are_no_batch_are_known_too(
    tmp_path: Path, nodes: list[Any], weights: list[Any], wanted: int
) -> None:
    relu = helper.make_node("Relu", ["x"], ["r"], name="relu")
    for k, node in enumerate(nodes):
        node.name = f"node{k}"
    odd = saved(tmp_path, [relu, *nodes], weights, "y")
    x = np.ones((7, 4), np.float32)
    with Server([odd], engine=open_engine(threads=1), port=0) as honest, Edge(honest.address, odd, at="relu") as made:
        assert made.infer(x).outputs["y"].shape == (wanted, 4)

    def one_more(server: Hostile, id: int, header: Any, body: bytes) -> bool:
        server.result(id, np.zeros((wanted + 1, 4), np.float32))
        return True

    words = rf"\[{wanted},4\], but float32\[{wanted + 1},4\] came"
    with (
        hostile(odd, {Kind.INFER: one_more}) as server,
        edge(server, odd, at="relu") as made,
        pytest.raises(ProtocolError, match=words),
    ):
        made.infer(x)


@pytest.mark.parametrize(
    "times",
    [(nan, inf, -1e308, 1e308, nan, -5.0, 1e9, inf), (1e300,) * 8, (1.0, 0, 0, -1e-3, 0, 0, 0, 0), (0.0,) * 7 + (7.0,)],
    ids=["nan", "huge", "negative", "busier than busy"],
)
def test_an_account_that_cannot_be_says_nothing(model: Model, times: tuple[float, ...]) -> None:
    with hostile(model) as server, edge(server, model) as made:
        before = made._line.remote.clock.best
        server.times = times
        result = made.infer(xs())
        right(model, xs(), result.outputs["y3"])
        assert result.times == wire.Times()
        assert result.offset is None
        stages = result.trace.stages()
        assert set(stages) == {"head", "encode", "wait"}
        assert sum(stages.values()) == pytest.approx(result.total_ms)
        assert made._line.remote.clock.best == before


def big(kind: Kind, id: int, nbytes: int = 512 << 20) -> bytes:
    """A frame up to its body, which never comes."""
    headers: dict[Kind, Any] = {
        Kind.RESULT: [[["uint8", [nbytes], nbytes]]], Kind.PROBED: [0.0] * 3, Kind.GRAPH_DATA: {"fingerprint": "f"},
        Kind.BLOB_DATA: {"hash": "h"},
    }  # fmt: skip
    encoded = msgspec.msgpack.encode(headers[kind])
    body = nbytes + 64 if kind == Kind.RESULT else min(nbytes, 60 << 20)
    return struct.pack("<4sBBBBIIQ", b"\xf5SPT", 1, 0, kind, 0, id, len(encoded), body) + encoded + bytes(64)


ASKED: dict[Kind, Callable[[Edge], Any]] = {
    Kind.INFER: lambda made: made.infer(xs()),
    Kind.PING: lambda made: made._channel.measure_clock(),
    Kind.OPEN: lambda made: made.switch("add2"),
}


@pytest.mark.parametrize(
    ("asked", "tls"), [(Kind.INFER, False), (Kind.INFER, True), (Kind.PING, False), (Kind.OPEN, False)],
    ids=["INFER", "INFER over TLS", "PING", "OPEN"],
)  # fmt: skip
@pytest.mark.parametrize("other", [0, 1, 1 << 20], ids=["to what was asked", "to the one before", "to nothing"])
@pytest.mark.parametrize("kind", [Kind.RESULT, Kind.GRAPH_DATA, Kind.BLOB_DATA, Kind.PROBED], ids=lambda k: k.name)
def test_no_memory_is_taken_for_an_answer_that_nobody_asked_for(
    model: Model, kind: Kind, other: int, asked: Kind, tls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    took: list[int] = []

    def allocate(tensors: Any) -> list[Array]:
        took.append(sum(t.nbytes for t in tensors))
        return wire.allocate(tensors)

    def empty(size: Any, *more: Any) -> Array:
        took.append(int(np.prod(size)))
        return np.zeros(size, *more)

    monkeypatch.setattr(framed, "allocate", allocate)
    monkeypatch.setattr(framed, "np", SimpleNamespace(empty=empty, uint8=np.uint8))

    def says(server: Hostile, id: int, header: Any, body: bytes) -> bool:
        server.raw(big(kind, {0: id, 1: id - 1, 1 << 20: 1 << 20}[other]))
        return True

    with hostile(model, tls=tls) as server, edge(server, model) as made:
        right(model, xs(), made.infer(xs()).outputs["y3"])
        server.says[asked] = says
        with pytest.raises(ProtocolError, match=rf"sent {kind.name} (of|as the answer)"):
            ASKED[asked](made)
    assert max(took) <= 4096, took


@pytest.mark.parametrize("fallback", ["error", "local"])
def test_an_answer_to_the_same_request_again_ends_the_connection(model: Model, fallback: str) -> None:
    def says(server: Hostile, id: int, header: Any, body: bytes) -> bool:
        for made in server.compute(header, body):
            server.result(id, made)
            server.result(id, 2 * made)
        return True

    with hostile(model, {Kind.INFER: says}) as server, edge(server, model, fallback) as made:
        right(model, xs(), made.infer(xs()).outputs["y3"])
        for seed in range(2, 4):
            if fallback == "local":
                right(model, xs(seed), made.infer(xs(seed)).outputs["y3"])
                continue
            with pytest.raises(ProtocolError, match="sent RESULT as the answer to a request that was not made, or has"):
                made.infer(xs(seed))


def test_an_answer_that_nobody_waits_for_any_more_is_thrown_away(model: Model) -> None:
    """Only the device knows that: whoever answers late has been asked."""
    late: list[tuple[int, list[Array]]] = []

    def says(server: Hostile, id: int, header: Any, body: bytes) -> bool:
        late.append((id, server.compute(header, body)))
        if len(late) == 1:
            return True
        for number, arrays in late:
            server.result(number, *arrays)
        late.clear()
        return True

    with (
        hostile(model, {Kind.INFER: says}) as server,
        edge(server, model, patience=structs.replace(QUICK, answer_s=0.2)) as made,
    ):
        with pytest.raises(ServerError, match="did not answer in time"):
            made.infer(xs())
        made._binding.requests._answer_s = 30.0
        right(model, xs(2), made.infer(xs(2)).outputs["y3"])
        assert made._channel.in_flight == 0
        assert not made._channel._owed


# --- clocks and limits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [nan, inf, -1e300])
def test_a_clock_that_says_no_time_is_no_clock(model: Model, value: float) -> None:
    def says(server: Hostile, id: int, header: Any, body: bytes) -> bool:
        server.send(Kind.PONG, id, wire.Pong(value, value, value))
        return True

    with hostile(model, {Kind.PING: says}) as server:
        with pytest.raises(ProtocolError, match="says no time"):
            edge(server, model)
        with edge(server, model, "local") as made:  # and who has all of it answers without
            right(model, xs(), made.infer(xs()).outputs["y3"])


def test_what_a_pong_says_of_our_own_clock_is_not_believed(model: Model) -> None:
    def says(server: Hostile, id: int, header: Any, body: bytes) -> bool:
        server.send(Kind.PONG, id, wire.Pong(header[0] + 1000.0, header[0], header[0]))
        return True

    with hostile(model, {Kind.PING: says}) as server, edge(server, model) as made:
        assert abs(made._line.remote.clock.offset_s) < 100
        for _ in range(3):
            made.infer(xs())
        assert abs(made._line.remote.clock.offset_s) < 100


@pytest.mark.parametrize(("name", "value"), [("blob_chunk", 1), ("blob_chunk", -5), ("in_flight", 0)])
def test_limits_that_nobody_can_keep_are_refused(model: Model, tmp_path: Path, name: str, value: int) -> None:
    with hostile(model) as server:
        server.limits[name] = value
        with pytest.raises(ProtocolError, match=f"limit {name} is {value}"):
            edge(server, None, cache=tmp_path)
        assert set(server.asked) <= {"HELLO", "BYE"}


def test_no_limit_makes_pieces_larger_than_ours(tmp_path: Path) -> None:
    large = affine(tmp_path, size=1 << 21, layers=1)  # weights of 8 MiB
    asked: list[int] = []

    def says(server: Hostile, id: int, header: Any, body: bytes) -> bool:
        asked.append(header["length"])
        return False

    with hostile(large, {Kind.BLOB: says}) as server:
        server.limits["blob_chunk"] = 2**63 - 1
        with edge(server, None, at="input", cache=tmp_path / "cache") as made:
            assert made.pull() == 16 << 20
    assert asked
    assert max(asked) <= 4 << 20


def test_a_graph_larger_than_any_is_refused_before_it_comes(model: Model, tmp_path: Path) -> None:
    def says(server: Hostile, id: int, header: Any, body: bytes) -> bool:
        packet = wire.encode(Kind.GRAPH_DATA, id, wire.GraphData(model.fingerprint), (), 2 << 30)
        server.raw(bytes(wire.flat(packet.buffers[0])))
        return True

    with hostile(model, {Kind.GRAPH: says}) as server, pytest.raises(ProtocolError, match="GRAPH_DATA are over the"):
        edge(server, None, cache=tmp_path)


# --- waits ------------------------------------------------------------------------------------------------------------


def test_a_greeting_in_drips_is_over_when_a_silent_one_is(model: Model) -> None:
    whole = 0

    def says(server: Hostile, id: int, header: Any, body: bytes) -> bool:
        nonlocal whole
        packet = wire.encode(Kind.WELCOME, id, server.welcome())
        whole = packet.nbytes
        server.drip(b"".join(bytes(wire.flat(b)) for b in packet.buffers))
        return True

    with hostile(model, {Kind.HELLO: says}) as server:
        with pytest.raises(UnreachableError, match=r"did not answer in 0\.2 s"):
            edge(server, model, patience=structs.replace(QUICK, connect_s=0.2))
        assert 0 < server.asked["dripped"] < whole / 2


def refuse(server: Hostile, id: int, header: Any, body: bytes) -> bool:
    server.send(Kind.ERROR, id, wire.Error("server", "not now"))
    return True


def other_segment(server: Hostile, id: int, header: Any, body: bytes) -> bool:
    server.send(Kind.PONG, id, wire.Pong())
    return True


@pytest.mark.parametrize("says", [silent, refuse, other_segment])
def test_a_tail_that_is_not_opened_keeps_nobody_who_has_the_model(model: Model, says: Any) -> None:
    with hostile(model, {Kind.OPEN: says}) as server, edge(server, model, "local") as made:
        for _ in range(3):
            result = made.infer(xs())
            right(model, xs(), result.outputs["y3"])
            assert result.fallback
        assert not server.asked["INFER"]


def test_a_tail_that_is_opened_late_is_used_then(model: Model) -> None:
    late = threading.Event()

    def says(server: Hostile, id: int, header: Any, body: bytes) -> bool:
        return not late.is_set()

    with hostile(model, {Kind.OPEN: says}) as server, edge(server, model, "local") as made:
        assert made.infer(xs()).fallback
        late.set()
        made._line.remote.abort("is tried again")  # what was asked before is never answered
        for _ in range(1000):
            if not made.infer(xs()).fallback:
                break
            made._line.wait(0.01)
        assert not made.infer(xs()).fallback


def busy(server: Hostile, id: int, header: Any, body: bytes) -> bool:
    server.send(Kind.BUSY, id, wire.Busy(0.01, "busy"))
    return True


@pytest.mark.parametrize("says", [silent, busy])
def test_a_profile_that_never_comes_keeps_nobody_who_has_the_model(model: Model, tmp_path: Path, says: Any) -> None:
    more: dict[str, Any] = {"at": None, "plan": AutoPlan(budget_s=0.1), "cache": tmp_path}
    with hostile(model, {Kind.PROFILE: says}) as server, edge(server, model, "local", **more) as made:
        right(model, xs(), made.infer(xs()).outputs["y3"])
        assert made.cut.name == "output"
        assert server.asked["PROFILE"]


@pytest.mark.parametrize("retry_s", [1e9, inf, nan, -1.0])
def test_a_busy_server_is_asked_again_when_we_like(model: Model, retry_s: float) -> None:
    def says(server: Hostile, id: int, header: Any, body: bytes) -> bool:
        if server.asked["INFER"] > 1:
            return False
        server.send(Kind.BUSY, id, wire.Busy(retry_s, "busy"))
        return True

    with hostile(model, {Kind.INFER: says}) as server, edge(server, model, "wait") as made:
        result = made.infer(xs())
        right(model, xs(), result.outputs["y3"])
        assert result.attempts == 2


def test_what_takes_long_takes_no_longer_than_we_allow(model: Model) -> None:
    """Pings are answered, the request never is."""
    with hostile(model, {Kind.OPEN: silent}) as server:
        remote = WireRemote(connect(server.address), software="", timeout_s=5.0)
        try:
            tail = remote.open(model.fingerprint, model.graph.cut("add1"), ("y3",))
            with pytest.raises(ServerError, match=r"did not answer in 0\.1 s"):
                tail.ready(0.1, 0.02)
            tail.close()
            assert not remote.ended
            assert server.asked["PING"]
        finally:
            remote.close()


def other_ends(server: Hostile, id: int, header: Any, body: bytes) -> bool:
    server.send(Kind.OPENED, id, wire.Opened(1, (wire.TensorInfo("z", "float32", (1,)),), ()))
    return True


def errs(code: str) -> Callable[[Hostile, int, Any, bytes], bool]:
    def says(server: Hostile, id: int, header: Any, body: bytes) -> bool:
        server.send(Kind.ERROR, id, wire.Error(code, f"no {code}"))
        return True

    return says


def hangs_up(server: Hostile, id: int, header: Any, body: bytes) -> bool:
    raise EOFError


def welcomes(**others: Any) -> Callable[[Hostile, int, Any, bytes], bool]:
    def says(server: Hostile, id: int, header: Any, body: bytes) -> bool:
        server.send(Kind.WELCOME, id, msgspec.structs.replace(server.welcome(), **others))
        return True

    return says


REFUSALS = {
    **{f"HELLO {code}": {Kind.HELLO: errs(code)} for code in ("unauthorized", "model", "input", "engine", "new")},
    **{f"OPEN {code}": {Kind.OPEN: errs(code)} for code in ("refused", "input", "engine")},
    "PING engine": {Kind.PING: errs("engine")},
    "other ends": {Kind.OPEN: other_ends},
    "hangs up": {Kind.OPEN: hangs_up},
    "hangs up at once": {Kind.HELLO: hangs_up},
    "no model": {Kind.HELLO: welcomes(models=())},
    "no codec": {Kind.HELLO: welcomes(features=())},
    "a head alone": {Kind.HELLO: welcomes(share="head")},
}


@pytest.mark.parametrize("said", REFUSALS, ids=list(REFUSALS))
def test_whatever_a_server_says_first_a_device_with_the_model_answers(model: Model, said: str) -> None:
    told: list[Event] = []
    with hostile(model, REFUSALS[said]) as server:  # type: ignore[arg-type]
        if said == "a head alone":
            head = welcomes(share="head", heads={model.fingerprint: "input"})
            server.says[Kind.HELLO] = head
        with edge(server, model, "local", codec="int8", on_event=told.append) as made:
            for _ in range(2):
                result = made.infer(xs())
                right(model, xs(), result.outputs["y3"])
                assert result.fallback
            assert [e for e in told if "requests are answered here" in e.sentence], told
            made.switch("add2")
            right(model, xs(), made.infer(xs(), at="mul1").outputs["y3"])


@pytest.mark.parametrize("code", ["refused", "model", "input", "engine", ""])
def test_a_server_that_tells_nothing_of_its_speed_is_done_without(
    model: Model, tmp_path: Path, code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`run` plans, and PROFILE is answered with an error or with nonsense."""
    np.save(tmp_path / "x.npy", xs())

    def nonsense(server: Hostile, id: int, header: Any, body: bytes) -> bool:
        server.send(Kind.PROFILED, id, wire.Profiled(model.fingerprint), b"{}")
        return True

    with hostile(model, {Kind.PROFILE: errs(code) if code else nonsense}) as server:
        assert main(run(model, server, tmp_path, "--budget", "0.1s")) == 0
        Edge(
            server.address, model, plan=AutoPlan(budget_s=0.1), fallback="local", cache=tmp_path,
            engine=open_engine(threads=1), patience=QUICK,
        ).close()  # fmt: skip
    assert "x.npy" in capsys.readouterr().out


def run(model: Model, server: Hostile, folder: Path, *more: str) -> list[str]:
    affine(folder)
    path, cache = str(folder / "affine.onnx"), str(folder / "cache")
    files = [path, "--cloud", server.address, "--threads", "1", "--cache", cache]
    return ["run", *files, *more, str(folder / "x.npy")]


@pytest.mark.parametrize("more", [(), ("--at", "add1"), ("--fallback", "local", "--at", "add1")])
def test_a_wrong_token_is_said_and_run_answers(
    model: Model, tmp_path: Path, more: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", xs())
    with hostile(model, {Kind.HELLO: errs("unauthorized")}) as server:
        assert main(run(model, server, tmp_path, *more)) == 0
        found = capsys.readouterr()
        assert found.err.count("no unauthorized; until that is mended, requests are answered here") == 1
        assert "x.npy" in found.out
        for fallback in ("wait", "error"):
            assert main(run(model, server, tmp_path, "--fallback", fallback, "--at", "add1")) == 6
            assert "no unauthorized" in capsys.readouterr().err


def test_no_sentence_is_as_long_as_a_peer_likes(model: Model) -> None:
    many = tuple(f"m{k}" for k in range(4096))
    with hostile(model) as server:
        [info] = server.welcome().models
        models = tuple(msgspec.structs.replace(info, name=n, fingerprint=f"{k:064x}") for k, n in enumerate(many))
        server.says[Kind.HELLO] = welcomes(models=models)
        for wanted in (model, "absent", None):
            with pytest.raises((ModelError, UsageError), match="4,076 more") as caught:
                edge(server, wanted)
            assert len(str(caught.value)) < 2000
        server.says[Kind.HELLO] = welcomes(features=tuple(f"codec:{name}" for name in many))
        with pytest.raises(ServerError, match=r"cannot decode int8 .*4,076 more") as refused:
            edge(server, model, codec="int8")
        assert len(str(refused.value)) < 1000
    assert len(listed(["x" * 100_000] * 100_000)) < 5000


def test_no_frame_takes_longer_than_we_allow() -> None:
    limits, stop = Limits(stall_s=0.05, slowest=0.0, frame_s=0.1), threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        connection = TcpConnection(listener.accept()[0], "peer", limits)

    def drip() -> None:
        try:
            packet = wire.encode(Kind.GRAPH_DATA, 1, wire.GraphData("x"), (), 1 << 20)
            theirs.sendall(bytes(wire.flat(packet.buffers[0])))
            while not stop.wait(0.01):
                theirs.sendall(b"x")
        except OSError:
            pass

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        with pytest.raises(ServerError, match="too slowly"):
            connection.receive(timeout_s=5)
    finally:
        stop.set()
        thread.join()
        connection.close()
        theirs.close()


# --- what it hands out ------------------------------------------------------------------------------------------------


class Odd:
    """What `Hostile` needs of a model, for a graph that no `load` would make."""

    def __init__(self, nodes: list[Any], weights: list[Any]) -> None:
        spec = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])
        out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        for k, node in enumerate(nodes):
            node.name = f"n{k}"
        graph = helper.make_graph(nodes, "g", [spec], [out], weights)
        self.proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        self.name, self.inputs, self.outputs = "odd", (), ()
        self.fingerprint = fingerprint(self.proto)

    def graph_bytes(self) -> bytes:
        return bytes(self.proto.SerializeToString())


def weighing(columns: int) -> Odd:
    """A graph with one weight of 16 bytes a column that the server is to hand out."""
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, columns], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value=f"sha256:{'ab' * 32}")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("ReduceSum", ["h", "axes"], ["q"]),
        helper.make_node("Add", ["x", "q"], ["y"]),
    ]
    return Odd(nodes, [weight, numbers("axes", 1)])


def test_weights_beyond_this_machine_are_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding_module, "usable_memory", lambda: 16 << 30)
    with hostile(weighing(1 << 36), {Kind.OPEN: other_opened}) as server:  # type: ignore[arg-type]
        with (
            edge(server, None, at="input", cache=tmp_path) as made,
            pytest.raises(StorageError, match=r"1099\.5 GB, more than this machine's memory"),
        ):
            made.pull()
        assert not server.asked["BLOB"]


def test_weights_beyond_the_disk_are_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding_module, "usable_memory", lambda: 1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with hostile(weighing(50_000), {Kind.OPEN: other_opened}) as server:  # type: ignore[arg-type]  # 800 kB
        with edge(server, None, at="input", cache=tmp_path) as made, pytest.raises(StorageError, match="make room"):
            made.pull()
        assert not server.asked["BLOB"]


def other_opened(server: Hostile, id: int, header: Any, body: bytes) -> bool:
    specs = tuple(wire.TensorInfo(name, "float32", ("batch", 4)) for name in header["inputs"])
    outputs = tuple(wire.TensorInfo(name, "float32", ("batch", 4)) for name in header["outputs"])
    server.send(Kind.OPENED, id, wire.Opened(1, specs, outputs))
    return True


def endless() -> list[Any]:
    """y: x after 2^62 turns of a loop."""
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["c2"], name="b"), helper.make_node("Mul", ["s", "s"], ["s2"], name="m")],
        "body",
        [info("i", TensorProto.INT64, []), info("c", TensorProto.BOOL, []), info("s", TensorProto.FLOAT, None)],
        [info("c2", TensorProto.BOOL, []), info("s2", TensorProto.FLOAT, None)],
    )  # fmt: skip
    return [helper.make_node("Loop", ["trip", "cond", "x"], ["y"], body=body)]


@pytest.fixture
def turning(tmp_path: Path) -> Model:
    """A model that is never done, whose shapes are noted, so that nobody has to run it to find them out."""
    [loop] = endless()
    loop.input[2] = "r"
    once = [numbers("trip", 1), numpy_helper.from_array(np.array(True), "cond")]
    once[0].ClearField("dims")
    graph = onnx.ModelProto.FromString(
        saved(tmp_path, [helper.make_node("Relu", ["x"], ["r"], name="relu"), loop], once, "y").graph_bytes()
    )
    [trip] = [t for t in graph.graph.initializer if t.name == "trip"]
    trip.raw_data = np.array(1 << 62, np.int64).tobytes()
    return from_graph(graph.SerializeToString(), ModelWeights(), name="turning")


def test_what_is_measured_or_tried_here_takes_no_longer_than_we_allow(
    turning: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(underway, "LONGEST_S", 0.2)
    engine = open_engine(threads=1)
    with pytest.raises(EngineError, match=r"turning on made-up inputs took longer than 0\.2 s in one run"):
        profile_model(turning, engine, budget_s=1.0)
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    with pytest.raises(EngineError, match="the rest of turning behind relu, on zeros, took longer"):
        Edge(f"127.0.0.1:{port}", turning, at="relu", fallback="local", engine=engine, on_event=lambda _: None)
    assert not underway.noted


def test_several_short_runs_are_not_one_long_one(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(underway, "_LOOKS", 0.01)
    session = open_engine(threads=1).compile(model.whole())
    with underway.limited("it", 10.0):
        for _ in range(50):
            session.run({"x": xs()})
    session.close()


def test_a_strangers_graph_is_not_run_to_find_its_shapes() -> None:
    trip = numpy_helper.from_array(np.array(1 << 62, np.int64), "trip")
    odd = Odd(endless(), [trip, numpy_helper.from_array(np.array(True), "cond")])
    with pytest.raises(ModelError, match="is not run to find them out"):
        from_graph(odd.graph_bytes(), ModelWeights(), name="odd")


def test_what_inference_knows_need_not_be_noted() -> None:
    odd = Odd([helper.make_node("Relu", ["x"], ["y"])], [])
    assert from_graph(odd.graph_bytes(), ModelWeights(), name="odd").outputs[0].shape == ("batch", 4)


# --- the user ---------------------------------------------------------------------------------------------------------

#: `verify` runs a loop without end, in ONNX Runtime.
STUCK = """
import os, sys, threading, time
import click, numpy as np, onnxruntime as ort
import splitpoint.cli.signals as signals, splitpoint.cli.verify as verb
from splitpoint.cli import script

path, stuck_s = sys.argv[1:]
signals._STUCK_S, signals._IMPATIENT_S = float(stuck_s), 0.05

def tell():
    place, same = None, 0
    while same < 10:  # the main thread is in native code for good
        time.sleep(0.01)
        frame = sys._current_frames()[threading.main_thread().ident]
        here = frame.f_code.co_name, frame.f_lasti
        same, place = (same + 1 if here == place and here[0] == "run" else 0), here
    os.write(1, b".")

def loop():
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    threading.Thread(target=tell, daemon=True).start()
    session.run(None, {"x": np.ones((1, 4), np.float32)})

verb.command = click.Command("verify", callback=loop)
sys.argv[1:] = ["verify"]
script()
"""


@pytest.mark.parametrize(
    ("sent", "stuck_s", "status", "word"),
    [
        ((signal.SIGINT,), 0.2, 130, b"interrupted"),
        ((signal.SIGTERM,), 0.2, 143, b"terminated"),
        ((signal.SIGINT, signal.SIGINT), 600, 130, b"interrupted"),
    ],
    ids=["ctrl-c", "sigterm", "a second ctrl-c"],
)
def test_a_run_that_does_not_end_is_ended_by_force(
    tmp_path: Path, sent: tuple[int, ...], stuck_s: float, status: int, word: bytes
) -> None:
    trip = numpy_helper.from_array(np.array(1 << 62, np.int64), "trip")
    path = tmp_path / "endless.onnx"
    path.write_bytes(Odd(endless(), [trip, numpy_helper.from_array(np.array(True), "cond")]).graph_bytes())

    def before() -> None:  # whoever runs the tests may ignore some
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)

    process = subprocess.Popen(
        [sys.executable, "-c", STUCK, str(path), str(stuck_s)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, preexec_fn=before, env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.read(1) == b"."
    for number in sent:
        process.send_signal(number)
        threading.Event().wait(0.1)  # two at one moment are one
    _, said = process.communicate(timeout=60)
    assert process.returncode == status
    assert said.splitlines()[-1].startswith(b"splitpoint: " + word + b", by force")


@pytest.mark.parametrize("name", ["a\\", "a\\\\\\", "[/]", "[bold]x", "[link=http://x]y[/link]"])
def test_a_name_is_no_markup(name: str) -> None:
    assert line("model ", bold(name), " 12").plain == f"model {name} 12"


# --- and a server's side ----------------------------------------------------------------------------------------------


def test_no_request_has_the_connections_id(target: Target) -> None:
    attacker = target.attacker()
    attacker.infer(0, attacker.open(target.model.fingerprint))
    assert "id 0" in attacker.refusal()
