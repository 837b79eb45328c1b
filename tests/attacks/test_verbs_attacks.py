"""`compare` and `tasks` against a server that answers wrongly: one sentence and an exit status, or a right answer from
here. No traceback, no numbers that are none, no wait without an end."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile import Hostile, Says, hostile, silent
from msgspec import structs
from serving import affine
from test_device_attacks import errs, rows

from splitpoint import wire
from splitpoint.cli import main
from splitpoint.cli.options.model_options import Here
from splitpoint.engines import open_engine
from splitpoint.models.model import Model
from splitpoint.profile.files import profile_bytes
from splitpoint.profile.measure import profile_model
from splitpoint.runtime.client import edge as asking
from splitpoint.runtime.client import ready_cuts as cuts
from splitpoint.runtime.client.timeouts import PATIENCE, Patience
from splitpoint.tasks import fleet
from splitpoint.wire import Kind


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("verbs")
    np.save(made / "x.npy", np.ones((1, 1024), np.float32))
    (made / "tasks.toml").write_text('[[tasks]]\nmodel = "affine.onnx"\ninput = "x.npy"\ncount = 3\n')
    return made


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return affine(folder)


@pytest.fixture(scope="module")
def profile(model: Model) -> bytes:
    return profile_bytes(profile_model(model.with_stand_ins(), open_engine(threads=1), budget_s=0.2))


@pytest.fixture(autouse=True)
def _short(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is waited for in vain is not waited for as long as elsewhere."""
    lie = request.node.callspec.params["lie"]
    if lie in ("not opened", "no profile"):
        for module in (asking, cuts):
            monkeypatch.setattr(module, "COMPILE_S", 1.0)
    if lie == "silent":
        reach = Here.edge
        monkeypatch.setattr(Here, "edge", lambda *args, **more: _edge(reach, *args, **more))
        monkeypatch.setattr(fleet, "Edge", partial(_edge, fleet.Edge))
        monkeypatch.setattr(fleet, "_PATIENCE", Patience(first_s=0.2, least_s=0.2, need_server=True))


def _edge(edge: Callable[..., Any], *args: Any, **more: Any) -> Any:
    patience = structs.replace(more.get("patience", PATIENCE), answer_s=1.0)
    return edge(*args, **{**more, "patience": patience})


def dtype(server: Hostile, id: int, header: Any, body: bytes) -> bool:
    server.result(id, np.zeros((1, 1024), np.float64))
    return True


def nan(server: Hostile, id: int, header: Any, body: bytes) -> bool:
    server.result(id, np.full((1, 1024), np.nan, np.float32))
    return True


def two(server: Hostile, id: int, header: Any, body: bytes) -> bool:
    server.result(id, *[np.zeros((1, 1024), np.float32)] * 2)
    return True


def none(server: Hostile, id: int, header: Any, body: bytes) -> bool:
    server.result(id)
    return True


def impossible(server: Hostile, id: int, header: Any, body: bytes) -> bool:
    server.times = (float("nan"), -1.0, 1e300, float("inf"), 0.0, 0.0, 2.0, -3.0)
    return False


def busy(server: Hostile, id: int, header: Any, body: bytes) -> bool:
    server.send(Kind.BUSY, id, wire.Busy(0.001, "no"))
    return True


def never(server: Hostile, id: int, header: Any, body: bytes) -> bool:
    raise EOFError


#: What the server does, and whether that is an answer.
LIES: dict[str, tuple[dict[Kind, Says], bool]] = {
    "rows 0": ({Kind.INFER: rows(0)}, False),
    "rows 2": ({Kind.INFER: rows(2)}, False),
    "dtype": ({Kind.INFER: dtype}, False),
    "two outputs": ({Kind.INFER: two}, False),
    "no outputs": ({Kind.INFER: none}, False),
    "NaN": ({Kind.INFER: nan}, True),
    "impossible times": ({Kind.INFER: impossible}, True),
    "engine": ({Kind.INFER: errs("engine")}, False),
    "busy": ({Kind.INFER: busy}, False),
    "gone": ({Kind.INFER: never}, False),
    "silent": ({Kind.INFER: silent}, False),
}
#: What it does before there is a request: with that nothing is begun, but tasks of models that are here.
FIRST: dict[str, dict[Kind, Says]] = {
    "unauthorized": {Kind.HELLO: errs("unauthorized")},
    "hello engine": {Kind.HELLO: errs("engine")},
    "not opened": {Kind.OPEN: silent},
    "open input": {Kind.OPEN: errs("input")},
    "no profile": {Kind.PROFILE: silent},
    "profile engine": {Kind.PROFILE: errs("engine")},
    "no probes": {Kind.PROBE: errs("refused")},
}


def told(status: int, said: str) -> None:
    """An error as it should be."""
    assert status in range(1, 8)
    *_, last = said.splitlines()
    assert last.startswith("splitpoint: ")
    assert "Traceback" not in said
    assert len(last) < 2000


def profiles(profile: bytes) -> Says:
    def says(server: Hostile, id: int, header: Any, body: bytes) -> bool:
        server.send(Kind.PROFILED, id, wire.Profiled(server.fingerprint), profile)
        return True

    return says


Verb = Callable[[Hostile, Path], list[str]]


def compare(server: Hostile, folder: Path) -> list[str]:
    return ["compare", str(folder / "affine.onnx"), "--images", str(folder / "x.npy"), *_more(server, folder),
            "--repeat", "1"]  # fmt: skip


def tasks(server: Hostile, folder: Path) -> list[str]:
    return ["tasks", str(folder / "tasks.toml"), *_more(server, folder)]


def _more(server: Hostile, folder: Path) -> list[str]:
    return ["--cloud", server.address, "--budget", "0.2s", "--threads", "1", "--cache", str(folder / "cache"), "--json"]


@pytest.mark.parametrize("verb", [compare, tasks], ids=["compare", "tasks"])
@pytest.mark.parametrize("lie", LIES)
def test_a_wrong_answer(
    model: Model, profile: bytes, folder: Path, verb: Verb, lie: str, capsys: pytest.CaptureFixture[str]
) -> None:
    says, answers = LIES[lie]
    with hostile(model, {Kind.PROFILE: profiles(profile), **says}) as server:
        status = main(verb(server, folder))
    found = capsys.readouterr()
    assert "NaN" not in found.out
    assert "Infinity" not in found.out
    if status:
        told(status, found.err)
    assert (status == 0) or not answers, found.err


@pytest.mark.parametrize("verb", [compare, tasks], ids=["compare", "tasks"])
@pytest.mark.parametrize("lie", FIRST)
def test_a_server_that_is_none_is_said(
    model: Model, profile: bytes, folder: Path, verb: Verb, lie: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with hostile(model, {Kind.PROFILE: profiles(profile), **FIRST[lie]}) as server:
        status = main(verb(server, folder))
    found = capsys.readouterr()
    if verb is tasks and Kind.OPEN in FIRST[lie]:
        assert (status, "requests are answered here" in found.err) == (0, True), found.err
    else:
        told(status, found.err)
