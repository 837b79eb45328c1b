"""A server that is not there yet, or is there with another model: what an edge does by its fallback."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs
from serving import affine, evaluate
from serving import until as until_in

from splitpoint.cli import main
from splitpoint.engines import open_engine
from splitpoint.errors import AccessError, ModelError, ServerError, SplitpointError, UnreachableError, UsageError
from splitpoint.models.model import Model
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.edge_settings import AutoPlan, ModelPolicy
from splitpoint.runtime.client.timeouts import Patience
from splitpoint.runtime.events import Event
from splitpoint.runtime.result import Result
from splitpoint.runtime.server.server import Server
from splitpoint.security import Security, ServerSecurity
from splitpoint.tasks.fleet import Fleet
from splitpoint.tensors import Array

#: A server is tried again at once, and nothing is late.
EAGER = Patience(first_s=20.0, least_s=20.0, pause_s=0.01, longest_pause_s=0.02)


pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return affine(tmp_path)


@pytest.fixture
def port() -> int:
    """One that nothing listens at."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def ort() -> Any:
    return open_engine(threads=1)


def until(condition: object) -> bool:
    return until_in(condition, 30.0)


def x(seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(1, 1024)).astype(np.float32)


def right(model: Model, result: Result, seed: int = 0) -> None:
    np.testing.assert_allclose(result.outputs["y3"], evaluate(model, x(seed)), rtol=1e-4, atol=1e-5)


def serve(model: Model, port: int, **options: Any) -> Server:
    return Server([model], engine=ort(), port=port, **options)


def served(edge: Edge) -> bool:
    return until(lambda: not edge.infer(x()).fallback)


# --- not there yet ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", ["input", "add0", "add1", "output"])
def test_with_local_it_answers_here_at_once_and_goes_to_the_server_when_it_comes(
    model: Model, port: int, at: str
) -> None:
    told: list[Event] = []
    address = f"127.0.0.1:{port}"
    with Edge(
        address, model, at=at, fallback="local", engine=ort(), patience=EAGER, codec="fp16", on_event=told.append
    ) as edge:
        assert (edge.link_state, edge.reached, edge.served) == ("down", False, ())
        assert edge.info.fingerprint == model.fingerprint
        assert edge.clock_error_ms == float("inf")
        (said,) = [e.sentence for e in told]
        assert said.startswith(f"nothing listens at {address}")
        assert said.endswith("until it is there, requests are answered here")
        for seed in range(3):
            result = edge.infer(x(seed))
            right(model, result, seed)
            assert result.cut == edge.cut.name
            assert at == "output" or result.fallback.startswith("the server is not there: nothing listens")
        right(model, edge.infer(x(), at="add2"))
        assert [r.outputs["y3"].shape for r in edge.stream([x(), x()])] == [(1, 1024)] * 2
        assert edge.ping() is None
        with serve(model, port):
            assert until(lambda: edge.reached)
            assert served(edge)
            np.testing.assert_allclose(edge.infer(x()).outputs["y3"], evaluate(model, x()), rtol=2e-2, atol=2e-2)
            assert edge.served[0].fingerprint == model.fingerprint
            assert edge.clock_error_ms < 1e3
        assert len([e for e in told if "until it is there" in e.sentence]) == 1


@pytest.mark.parametrize("here", [True, False])
def test_with_wait_it_waits_for_the_server(tmp_path: Path, model: Model, port: int, here: bool) -> None:
    told: list[Event] = []
    edges: list[Edge] = []

    def begin() -> None:
        edges.append(
            Edge(
                f"127.0.0.1:{port}", model if here else None, at="add0", fallback="wait", engine=ort(), patience=EAGER,
                cache=tmp_path / "cache", on_event=told.append,
            )
        )  # fmt: skip

    thread = threading.Thread(target=begin)
    thread.start()
    assert until(lambda: told)
    assert told[0].sentence.endswith("; waiting for it")
    with serve(model, port):
        thread.join(30)
        (edge,) = edges
        with edge:
            right(model, edge.infer(x()))
    assert len([e for e in told if "waiting for it" in e.sentence]) == 1


def test_with_wait_and_a_deadline_it_waits_so_long(model: Model, port: int) -> None:
    with pytest.raises(UnreachableError, match="nothing listens"):
        Edge(f"127.0.0.1:{port}", model, fallback="wait", deadline_s=0.1, patience=EAGER)


def test_with_error_and_where_a_server_is_needed_it_is_an_error(model: Model, port: int) -> None:
    address = f"127.0.0.1:{port}"
    with pytest.raises(UnreachableError, match="nothing listens"):
        Edge(address, model)
    with pytest.raises(UnreachableError, match="nothing listens"):
        Edge(address, model, fallback="local", patience=Patience(need_server=True))
    with Fleet(address, engine=ort(), fallback="auto") as fleet, pytest.raises(UnreachableError):
        fleet.add(("affine", ""), model)


def test_without_the_model_nothing_can_be_answered_here(port: int) -> None:
    with pytest.raises(ServerError, match="nothing can be answered here without the model's own file"):
        Edge(f"127.0.0.1:{port}", "affine", fallback="local")


def test_a_name_that_is_not_known_yet_is_looked_up_again(
    model: Model, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, look_up = threading.Event(), socket.getaddrinfo

    def getaddrinfo(host: str, *others: Any, **more: Any) -> Any:
        if host != "server.test":
            return look_up(host, *others, **more)
        if not known.is_set():
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return look_up("127.0.0.1", *others, **more)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with (
        serve(model, port),
        Edge(f"server.test:{port}", model, at="add0", fallback="local", engine=ort(), patience=EAGER) as edge,
    ):
        result = edge.infer(x())
        right(model, result)
        assert "the name server.test cannot be looked up" in result.fallback
        known.set()
        assert served(edge)


def test_a_name_that_takes_long_to_look_up_is_not_waited_for(
    model: Model, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, look_up = threading.Event(), socket.getaddrinfo

    def getaddrinfo(host: str, *others: Any, **more: Any) -> Any:
        if host == "server.test":
            assert known.wait(30)
        return look_up("127.0.0.1", *others, **more)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with (
        serve(model, port),
        Edge(
            f"server.test:{port}",
            model,
            at="add0",
            fallback="local",
            engine=ort(),
            patience=structs.replace(EAGER, connect_s=0.1),
        ) as edge,
    ):
        result = edge.infer(x())
        right(model, result)
        assert "no answer from server.test" in result.fallback
        known.set()
        assert served(edge)


@pytest.mark.parametrize("need_server", [False, True])
@pytest.mark.parametrize("fallback", ["error", "wait", "local"])
def test_a_server_that_refuses_is_no_server_that_is_not_there(
    tmp_path: Path, model: Model, fallback: str, need_server: bool
) -> None:
    other = affine(tmp_path, name="other", seed=5)
    patience = structs.replace(EAGER, need_server=need_server)
    more: dict[str, Any] = {"fallback": fallback, "engine": ort(), "patience": patience}
    guarded = serve(model, 0, security=ServerSecurity(token="one" * 8))
    with guarded as server:
        refused = partial(Edge, server.address, model, security=Security(token="two" * 8), at="add0", **more)
        _said(refused, AccessError, "not the token", done_without=fallback == "local" and not need_server)
    with serve(model, 0) as server:
        refused = partial(Edge, server.address, other, at="add0", **more)
        _said(refused, ModelError, "does not have this other", done_without=fallback == "local" and not need_server)


def _said(refused: Callable[..., Edge], kind: type[SplitpointError], words: str, *, done_without: bool) -> None:
    """It is an error; or what the server said is told at once, warned of where nobody hears, and done without."""
    if not done_without:
        with pytest.raises(kind, match=words):
            refused()
        return
    with pytest.warns(RuntimeWarning, match=words), refused() as edge:
        assert edge.infer(x()).fallback
    told: list[Event] = []
    with refused(on_event=told.append) as edge:
        assert [words in e.sentence for e in told] == [True]
        assert words.split()[-1] in edge.infer(x()).fallback
        tries = edge._line._breaker._opened
        assert until(lambda: edge._line._breaker._opened > tries + 3), "it is tried again"
        edge.infer(x())
        assert len(told) == 1, told


def test_a_server_that_has_the_model_later_is_taken(tmp_path: Path, model: Model, port: int) -> None:
    other, told = affine(tmp_path, name="other", seed=5), list[Event]()
    server = serve(other, port)
    server.start()
    with Edge(
        f"127.0.0.1:{port}", model, at="add0", fallback="local", engine=ort(), patience=EAGER, on_event=told.append
    ) as edge:
        right(model, edge.infer(x()))
        server.close()
        with serve(model, port):
            assert served(edge)
    assert "the server is there: requests go to it" in [e.sentence for e in told]


def test_a_pinned_model_that_is_another_than_the_one_here_is_the_users_mistake(model: Model, port: int) -> None:
    with pytest.raises(ModelError, match="not the pinned one"):
        Edge(f"127.0.0.1:{port}", model, fallback="local", models=ModelPolicy(pinned="0" * 12))


def test_it_plans_when_the_server_comes(tmp_path: Path, model: Model, port: int) -> None:
    told: list[Event] = []
    with Edge(
        f"127.0.0.1:{port}",
        model,
        plan=AutoPlan(budget_s=0.2),
        fallback="local",
        engine=ort(),
        cache=tmp_path / "cache",
        on_event=told.append,
        patience=EAGER,
    ) as edge:
        assert edge.cut.name == "output"
        right(model, edge.infer(x()))
        with serve(model, port):
            assert until(lambda: edge.adaptive is not None), told
            right(model, edge.infer(x()))


@pytest.mark.parametrize(("fallback", "status"), [("local", 0), ("wait", 6), ("error", 6)])
@pytest.mark.parametrize("at", ["auto", "add0"])
def test_run_before_its_server(
    tmp_path: Path, model: Model, port: int, fallback: str, status: int, at: str, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", x())
    run = ["run", str(tmp_path / "affine.onnx"), "--cloud", f"127.0.0.1:{port}", "--fallback", fallback, "--at", at]
    assert main([*run, "--deadline", "300ms", "--threads", "1", str(tmp_path / "x.npy")]) == status
    said = capsys.readouterr()
    assert f"nothing listens at 127.0.0.1:{port}" in said.err
    assert ("until it is there, requests are answered here" in said.err) == (fallback == "local")
    assert ("x.npy" in said.out) == (fallback == "local")


# --- there, with another model ----------------------------------------------------------------------------------------


@pytest.fixture
def versions(tmp_path: Path) -> tuple[Model, Model]:
    """Two models of one name."""
    made = []
    for seed, folder in enumerate((tmp_path / "one", tmp_path / "two")):
        folder.mkdir()
        made.append(affine(folder, seed=seed))
    return made[0], made[1]


@pytest.mark.parametrize("fallback", ["wait", "local"])
@pytest.mark.parametrize("here", [True, False])
def test_a_newer_model_is_told_of_once_and_the_old_one_is_served_again(
    tmp_path: Path, versions: tuple[Model, Model], port: int, fallback: str, here: bool
) -> None:
    old, new = versions
    told: list[Event] = []
    server = serve(old, port)
    server.start()
    with Edge(
        f"127.0.0.1:{port}", old if here else "affine", at="add0", fallback=fallback, engine=ort(), patience=EAGER,
        cache=tmp_path / "cache", on_event=told.append,
    ) as edge:  # fmt: skip
        edge.pull()
        assert served(edge)
        server.close()
        with serve(new, port):
            assert until(lambda: any(e.kind == "changed" for e in told))
            assert until(lambda: "no longer has affine" in edge._line.why), "told first, and then it is the reason"
            for seed in range(3):
                if fallback == "local":
                    result = edge.infer(x(seed))
                    right(old, result, seed)
                    assert "no longer has affine" in result.fallback
                else:
                    with pytest.raises(ModelError, match=rf"no longer has affine .* has affine {new.fingerprint[:9]}"):
                        edge.infer(x(seed))
            tries = edge._line._breaker._opened
            assert until(lambda: edge._line._breaker._opened > tries + 3), "it is tried again"
            assert len([e for e in told if e.kind == "changed"]) == 1
        with serve(old, port):
            assert until(lambda: edge.link_state != "down")
            assert served(edge)
            right(old, edge.infer(x()))


@pytest.mark.parametrize("fallback", ["wait", "local"])
def test_a_newer_model_is_followed_between_two_requests(
    tmp_path: Path, versions: tuple[Model, Model], port: int, fallback: str
) -> None:
    old, new = versions
    told: list[Event] = []
    answers: list[Array] = []
    stop = threading.Event()
    failed: list[Exception] = []
    server = serve(old, port)
    server.start()
    with Edge(
        f"127.0.0.1:{port}",
        "affine",
        at="add0",
        fallback=fallback,
        engine=ort(),
        cache=tmp_path / "cache",
        on_event=told.append,
        patience=EAGER,
        models=ModelPolicy(follow=True),
    ) as edge:
        edge.pull()

        def ask() -> None:
            try:
                while not stop.is_set():
                    answers.append(edge.infer(x()).outputs["y3"])
                answers.extend(r.outputs["y3"] for r in edge.stream([x()] * 3))
            except Exception as exc:
                failed.append(exc)

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        for current, other in ((new, old), (old, new), (new, old)):
            server.close()
            server = serve(current, port)
            server.start()
            assert until(lambda now=current: edge.info.fingerprint == now.fingerprint or failed), told
            assert until(lambda: not edge._followed._old or failed), "what was left is closed"
            assert not failed
            right(current, edge.infer(x()))
            assert edge.model.fingerprint == current.fingerprint != other.fingerprint
        assert served(edge)
        stop.set()
        for thread in threads:
            thread.join(30)
    server.close()
    assert not failed
    known = [evaluate(m, x()) for m in versions]
    assert all(any(np.allclose(a, k, rtol=1e-4, atol=1e-5) for k in known) for a in answers)
    assert [e.sentence.split(":")[0] for e in told if e.sentence.startswith("following")] == ["following affine"] * 3


@pytest.mark.parametrize("fallback", ["wait", "local"])
def test_a_newer_model_that_takes_something_else_is_not_followed(tmp_path: Path, port: int, fallback: str) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    old, new = affine(one), affine(two, size=64)
    told: list[Event] = []
    server = serve(old, port)
    server.start()
    with Edge(
        f"127.0.0.1:{port}",
        old,
        at="add0",
        fallback=fallback,
        engine=ort(),
        cache=tmp_path / "cache",
        on_event=told.append,
        patience=EAGER,
        models=ModelPolicy(follow=True),
    ) as edge:
        assert served(edge)
        server.close()
        with serve(new, port):
            assert until(lambda: any("has other inputs" in e.sentence for e in told)), told
            if fallback == "local":
                right(old, edge.infer(x()))
            else:
                with pytest.raises(ModelError, match=r"has other inputs \(x: float32\[batch,64\]\) than"):
                    edge.infer(x())
        with serve(old, port):
            assert until(lambda: edge.link_state != "down")
            assert served(edge)


def test_what_makes_no_sense_with_a_model_that_is_followed(model: Model) -> None:
    with pytest.raises(UsageError, match="pinned by its fingerprint cannot be followed"):
        Edge("127.0.0.1:1", model, fallback="local", models=ModelPolicy(pinned=model.fingerprint, follow=True))
    with pytest.raises(UsageError, match="choose the fallback wait or local"):
        Edge("127.0.0.1:1", model, models=ModelPolicy(follow=True))
