"""A server is replaced under traffic, at the same port: real `splitpoint serve` processes, and nothing is lost."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
from serving import affine, evaluate, until

from splitpoint.engines import open_engine
from splitpoint.errors import SplitpointError
from splitpoint.lab.process import PIPES, Process
from splitpoint.models.model import Model
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.edge_settings import ModelPolicy
from splitpoint.runtime.client.timeouts import Patience
from splitpoint.runtime.result import Result

pytestmark = pytest.mark.usefixtures("no_leaks")


#: A lost server is tried again twice a second at least: what is tested is that it is, and not how seldom.
EAGER = Patience(longest_pause_s=0.5, seed=1)


class Serving:
    """A `splitpoint serve` process, of the models in `folders`."""

    def __init__(self, *folders: Path, port: int = 0) -> None:
        models = [str(folder / "affine.onnx") for folder in folders]
        options = ["--port", str(port), "--threads", "1", "--until-stdin-ends"]
        command = [sys.executable, "-u", "-m", "splitpoint", "serve", *models, *options]
        self.process = Process(subprocess.Popen(command, **PIPES), "server")
        self.address = self.process.expect("serving on ").split()[2]
        self.port = int(self.address.rpartition(":")[2])

    def replaced_by(self, *folders: Path) -> Serving:
        """Drains, and another process begins at the same port. What it was asked for it still answers."""
        self.process.process.send_signal(signal.SIGTERM)
        self.process.expect("answering what is in flight")
        made = Serving(*folders, port=self.port)
        assert self.process.process.wait(20) == 0
        assert not self.process.complaints()
        self.process.close()
        return made


@contextmanager
def serving(*folders: Path) -> Iterator[list[Serving]]:
    """A list with one server; whatever is in it at the end is ended."""
    servers = [Serving(*folders)]
    try:
        yield servers
    finally:
        for server in servers:
            if server.process.process.returncode is None:
                server.process.close()


class Device:
    """An edge that asks for one answer after the other, and looks at each."""

    def __init__(self, edge: Edge, model: Model) -> None:
        self.edge, self.model = edge, model
        self.results: list[Result] = []
        self.failed: list[Exception] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()

    def _ask(self) -> None:
        rng = np.random.default_rng(1)
        while not self._stop.is_set():
            x = rng.normal(size=(1, 1024)).astype(np.float32)
            try:
                result = self.edge.infer(x)
                (got,) = result.outputs.values()
                np.testing.assert_allclose(got, evaluate(self.model, x), rtol=1e-5, atol=1e-5)
            except (AssertionError, SplitpointError) as exc:
                self.failed.append(exc)
                return
            self.results.append(result)
            self._stop.wait(2e-3)  # a camera's pace: the machine is the servers' too

    def is_served(self, more: int = 20) -> bool:
        """Whether the server itself answers `more` of its requests from now on, within a while."""
        seen, wanted = len(self.results), len(self.results) + more

        def enough() -> bool:
            return bool(self.failed) or sum(not r.fallback for r in self.results[seen:]) >= wanted - seen

        return until(enough, 30) and not self.failed

    def close(self) -> None:
        self._stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive(), "a request was never answered"
        self.edge.close()


def engine() -> object:
    return open_engine(threads=1)


@pytest.mark.parametrize("fallback", ["wait", "local"])
def test_a_server_is_replaced_under_traffic_and_nothing_is_lost(tmp_path: Path, fallback: str) -> None:
    model = affine(tmp_path)
    cuts = ("input", "y1", "y2")
    with serving(tmp_path) as servers, ExitStack() as stack:
        devices = []
        for cut in cuts:
            edge = Edge(servers[0].address, model, at=cut, fallback=fallback, engine=engine(), patience=EAGER)
            devices.append(Device(edge, model))
            stack.callback(devices[-1].close)
        assert all(device.is_served() for device in devices)
        servers.append(servers[-1].replaced_by(tmp_path))
        assert all(device.is_served() for device in devices)
    for device in devices:
        assert not device.failed
        if fallback == "wait":
            assert not any(r.fallback for r in device.results), "only servers answer"


def test_a_new_version_is_served_beside_the_old_one_and_edges_move_one_by_one(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    old, new = (affine(folder, seed=seed) for seed, folder in enumerate(folders))
    assert old.name == new.name
    assert old.fingerprint != new.fingerprint

    one, two = folders
    with serving(one) as servers, ExitStack() as stack:

        def device(model: Model, fallback: str = "wait", local: bool = False) -> Device:
            edge = Edge(
                servers[-1].address,
                model if local else None,
                at="y1",
                fallback=fallback,
                engine=engine(),
                cache=tmp_path / "cache",
                patience=EAGER,
                models=ModelPolicy(pinned=None if local else model.fingerprint),
            )
            made = Device(edge, model)
            stack.callback(made.close)
            return made

        first, second = device(old), device(old)
        kept = device(old, "local", local=True)
        assert all(d.is_served() for d in (first, second, kept))
        servers.append(servers[-1].replaced_by(one, two))
        assert all(d.is_served() for d in (first, second, kept)), "nobody has to move"
        first.close()
        moved = device(new)
        assert all(d.is_served() for d in (moved, second, kept)), "two versions at once"
        second.close()
        also = device(new)
        assert all(d.is_served() for d in (moved, also, kept))
        servers.append(servers[-1].replaced_by(two))
        assert all(d.is_served() for d in (moved, also))
        before = len(kept.results)
        assert until(lambda: kept.failed or len(kept.results) > before + 20, 20)
        assert not kept.failed
        assert kept.results[-1].fallback, "who keeps to the old version finishes on its own"
        assert until(lambda: "no longer has affine" in kept.edge._line.why, 20)
    for made in (first, second, moved, also, kept):
        assert not made.failed
