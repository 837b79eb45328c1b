"""A process that has many files open."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
from places import SUPPORT

pytestmark = pytest.mark.usefixtures("no_leaks")


MANY = """
import os, resource, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import numpy as np
from serving import affine, evaluate
from splitpoint.engines import open_engine
from splitpoint.lab.relay import Relay
from splitpoint.link import Link
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.timeouts import Patience
from splitpoint.runtime.server.server import Server
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (2048, hard))
held = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
model = affine(Path({folder!r}))
x = np.ones((1, 1024), np.float32)
with Server([model], engine=open_engine(threads=1), port=0) as server:
    with Relay(server.address, Link(1000.0, 1000.0, 0.0)) as relay:
        for address in (server.address, relay.address):
            with Edge(address, model, at="input", patience=Patience(connect_s=20)) as edge:
                np.testing.assert_allclose(edge.infer(x).outputs["y3"], evaluate(model, x), rtol=1e-5)
print("answered")
"""


@pytest.mark.skipif(resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 2048, reason="may open no more than 1024 files")
def test_a_process_with_more_than_1024_descriptors(tmp_path: Path) -> None:
    script = MANY.format(tests=str(SUPPORT), folder=str(tmp_path))
    made = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert made.stdout == "answered\n", made.stderr
    assert made.stderr == ""
