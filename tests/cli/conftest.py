"""A server process, an empty cache and latency files, for tests of verbs that need them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Serving
from latencies import latency
from predicted_nets import FAST

from splitpoint.predict.learn.files import save_latency


@pytest.fixture(scope="module")
def serving() -> Iterator[Serving]:
    server = Serving("zoo:efficientnet_lite0", "zoo:lenet5")
    yield server
    server.end()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPLITPOINT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def latency_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """device.latency.json and server.latency.json, of which the first knows no global pool."""
    folder = tmp_path_factory.mktemp("latency")
    save_latency(folder / "device.latency.json", latency(name="device", without=("other", "global_pool")))
    save_latency(folder / "server.latency.json", FAST)
    return folder
