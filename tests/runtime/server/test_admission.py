"""Who has connected and is not let in yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import affine, evaluate, until

from splitpoint.engines import open_engine
from splitpoint.errors import ServerError
from splitpoint.models.model import Model
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.timeouts import Patience
from splitpoint.runtime.events import Event
from splitpoint.runtime.server.admission import Admission
from splitpoint.runtime.server.server import Server
from splitpoint.transports.tcp import TcpListener

X = np.ones((1, 1024), np.float32)


pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return affine(tmp_path)


@pytest.mark.parametrize("where", [(TcpListener, "_comes"), (Admission, "_begin")], ids=["waiting", "greeting"])
def test_a_server_whose_accepting_fails_accepts_again(
    model: Model, monkeypatch: pytest.MonkeyPatch, where: tuple[type, str]
) -> None:
    kind, name = where
    real, fails = getattr(kind, name), [ValueError("filedescriptor out of range"), MemoryError()]

    def sometimes(self: Any, *arguments: Any) -> Any:
        if fails:
            failure = fails.pop()  # before the device can notice
            if name == "_begin":  # as if it were gone: what is accepted and not served is closed
                arguments[0].connection.close()
                self.gone(arguments[0])
            raise failure
        return real(self, *arguments)

    monkeypatch.setattr(kind, name, sometimes)
    told: list[Event] = []
    with Server([model], engine=open_engine(threads=1), port=0, on_event=told.append) as server:
        while fails:
            with pytest.raises(ServerError):
                Edge(
                    server.address, model, at="input", patience=Patience(connect_s=10)
                ) if name == "_begin" else until_gone(fails)
        with Edge(server.address, model, at="input", patience=Patience(connect_s=30)) as edge:
            np.testing.assert_allclose(edge.infer(X).outputs["y3"], evaluate(model, X), rtol=1e-5)
    failures = [e.sentence for e in told if "accepting connections failed" in e.sentence]
    assert len(failures) == 2
    assert "MemoryError" in failures[0]


def until_gone(fails: list[Exception]) -> None:
    assert until(lambda: not fails)
    raise ServerError("nothing to see")
