"""A process that forks: the parent goes on undisturbed, every use in a child is one clear error, and nothing hangs."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle  # noqa: TID251 - that it refuses
import subprocess
import sys
from pathlib import Path

import pytest
from certificates import keys
from places import SUPPORT
from serving import affine, nothing_leaks

from splitpoint.engines import open_engine
from splitpoint.errors import UsageError
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.whole_model import Local
from splitpoint.runtime.server.server import Server

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
SCRIPT = SUPPORT / "forking.py"
#: ONNX Runtime's telemetry hangs in a child's exit by itself.
QUIET = {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}


def forked(*arguments: str | Path) -> list[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=180, env=QUIET)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stderr == ""
    return ran.stdout.splitlines()


@pytest.mark.parametrize(
    ("fallback", "how", "children"),
    [("error", "fork", 3), ("local", "fork", 3), ("wait", "multiprocessing", 3), ("local", "nested", 9)],
)
def test_after_a_fork_the_child_is_told_and_the_parent_goes_on(fallback: str, how: str, children: int) -> None:
    *said, parent = forked(fallback, how)
    assert said == ["child: wrong {}, an edge of its own: True"] * children
    assert parent == "parent: children [0, 0, 0], failed [], answered True, up"


def test_a_child_ends_no_encrypted_connection_of_its_parent() -> None:
    of = keys()
    *said, parent = forked("local", "fork", of.ca, of.server, of.server_key)
    assert said == ["child: wrong {}, an edge of its own: True"] * 3
    assert parent == "parent: children [0, 0, 0], failed [], answered True, up"


def test_what_belongs_to_a_process_is_not_pickled(tmp_path: Path) -> None:
    model, engine = affine(tmp_path), open_engine(threads=1)
    with (
        nothing_leaks(),
        Server([model], engine=engine, port=0) as server,
        Edge(server.address, model, engine=engine) as edge,
        Local(model, engine) as whole,
    ):
        for one in (server, edge, whole):
            with pytest.raises(UsageError, match=f"{type(one).__name__} cannot be pickled or copied"):
                pickle.dumps(one)
            with pytest.raises(UsageError, match="cannot be pickled"):
                copy.deepcopy(one)
        for copied in (pickle.dumps, copy.deepcopy):
            with pytest.raises(UsageError, match=r"the model affine cannot be pickled or copied.*load it there"):
                copied(model)
        worker = multiprocessing.get_context("spawn").Process(target=print, args=(edge,))
        with pytest.raises(UsageError, match="Make one in each process"):
            worker.start()
