"""A slowed device is slower and says so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from sockets import LONG_S, until

from splitpoint import machine
from splitpoint.errors import EngineError, UsageError
from splitpoint.lab.slow_device import (
    LEAST_QUOTA_MS,
    LEAST_RUN_MS,
    Hierarchy,
    Share,
    Stretched,
    _is_ours,
    hierarchies,
    share,
    slowed,
)
from splitpoint.tensors import Array


class Clocked:
    """An engine in virtual time: every run takes `run_s`."""

    name, device, threads = "clocked", "none", 1

    def __init__(self, run_s: float) -> None:
        self.now, self.run_s, self.closed = 0.0, run_s, False
        self.inputs = self.outputs = ()
        self.nbytes = 12

    def compile(self, segment: object) -> Clocked:
        return self

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.now += self.run_s
        return dict(inputs)

    def close(self) -> None:
        self.closed = True


def test_a_stretched_run_takes_so_many_times_as_long() -> None:
    inner = Clocked(0.25)
    engine = Stretched(inner, 4, clock=lambda: inner.now, wait_until=lambda moment: setattr(inner, "now", moment))
    session = engine.compile(None)  # type: ignore[arg-type]
    x = {"x": np.ones(3)}
    assert session.run(x) == x
    assert inner.now == 1.0
    engine.factor = 16
    session.run(x)
    assert inner.now == 5.0
    assert engine.note == "emulated: 16x slower by waiting after every run of the engine"
    engine.factor = 1
    session.run(x)
    assert (inner.now, engine.note, session.nbytes, engine.name) == (5.25, "", 12, "clocked")
    session.close()
    assert inner.closed


@pytest.mark.parametrize("factor", [0.5, 0, -2, float("nan"), float("inf"), 1e9])
def test_a_factor_that_makes_no_sense(factor: float) -> None:
    with pytest.raises(UsageError, match="slowed by a factor"):
        Stretched(Clocked(1), factor)
    with pytest.raises(UsageError, match="above 1"):
        slowed(factor)


def test_a_command_is_not_slowed_by_1_or_by_magic() -> None:
    with pytest.raises(UsageError, match="above 1"):
        slowed(1)
    with pytest.raises(UsageError, match="auto, stretched, limit, quota, stop"):
        slowed(2, method="magic")
    with pytest.raises(UsageError, match="1 to 1024 threads"):
        slowed(2, threads=0)


def test_shares_of_a_period() -> None:
    assert share(4, LEAST_QUOTA_MS, 2) == Share(5.0, 10.0)  # two threads together
    assert share(100, LEAST_QUOTA_MS) == Share(1.0, 100.0)  # the kernel grants no less
    for factor in (1.5, 4, 16, 100):
        for least_ms in (LEAST_QUOTA_MS, LEAST_RUN_MS):
            runs = share(factor, least_ms)
            assert runs.period_ms / runs.run_ms == pytest.approx(factor)


def proc(folder: Path, mounts: str, groups: str) -> Path:
    """A root whose /proc/self says so."""
    process = folder / "proc" / "self"
    process.mkdir(parents=True)
    (process / "mountinfo").write_text(mounts)
    (process / "cgroup").write_text(groups)
    return folder


def test_where_a_group_may_be_made(tmp_path: Path) -> None:
    one, two = tmp_path / "cpu,cpuacct", tmp_path / "unified"
    (one / "docker").mkdir(parents=True)
    (two / "user" / "shell").mkdir(parents=True)
    mounts = (
        "31 23 0:26 / /cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n22 1 0:5 / /proc rw - proc proc rw\n"
        "32 23 0:27 / /unified rw - cgroup2 cgroup2 rw\n"
    )
    found = list(hierarchies(proc(tmp_path, mounts, "4:memory:/x\n2:cpu,cpuacct:/docker\n0::/user/shell\n")))
    assert found == [Hierarchy(1, one / "docker"), Hierarchy(2, two / "user" / "shell"), Hierarchy(2, two / "user")]
    assert list(hierarchies(tmp_path / "nothing")) == []


def test_what_a_group_is_limited_to(tmp_path: Path) -> None:
    for file in ("cpu.max", "cpu.cfs_period_us", "cpu.cfs_quota_us"):
        (tmp_path / file).touch()
    Hierarchy(2, tmp_path).limit(tmp_path, Share(2.5, 10))
    Hierarchy(1, tmp_path).limit(tmp_path, Share(1, 16))
    assert (tmp_path / "cpu.max").read_text() == "2500 10000"
    assert (tmp_path / "cpu.cfs_period_us").read_text() == "16000"
    assert (tmp_path / "cpu.cfs_quota_us").read_text() == "1000"


def test_a_group_without_a_cpu_controller_is_not_used_and_not_left(tmp_path: Path) -> None:
    (tmp_path / "group").mkdir()
    root = proc(tmp_path, "32 23 0:27 / /group rw - cgroup2 cgroup2 rw\n", "0::/\n")
    with pytest.raises(EngineError, match="may not set CPU quotas"):
        slowed(2, method="quota", root=root)
    assert list((tmp_path / "group").iterdir()) == []
    with slowed(2, method="limit", root=root) as slow:
        assert slow.method == "stop"


#: Burns a fifth of a second of processor time; prints how long that took, and the note it was given.
BURN = """
import os, time
began = time.monotonic()
while time.process_time() < 0.2: pass
print(time.monotonic() - began, os.environ["SPLITPOINT_EMULATED"], sep="|")
"""


@pytest.fixture(params=["stop", "quota"])
def method(request: pytest.FixtureRequest) -> str:
    if request.param == "quota":
        try:
            slowed(2, method="quota").close()
        except EngineError:
            pytest.skip("this user may not set CPU quotas")
    return str(request.param)


def groups() -> list[Path]:
    return [p for h in hierarchies() for p in h.folder.glob(f"splitpoint-{os.getpid()}-*")]


def test_a_slowed_command_gets_its_share_and_says_so(method: str) -> None:
    with slowed(4, method=method) as slow:
        process = slow.start([sys.executable, "-c", BURN], stdout=subprocess.PIPE, text=True)
        text, _ = process.communicate(timeout=10 * LONG_S)
    taken, note = text.strip().split("|")
    # Some of the fifth of a second went into starting Python.
    assert float(taken) > 0.3
    assert note == slow.note
    assert note.startswith("emulated: 4x slower by ")
    assert process.returncode == 0
    assert groups() == []


def test_a_command_that_still_runs_is_ended_with_its_limit(method: str) -> None:
    before = threading.active_count()
    with slowed(4, method=method) as slow:
        process = slow.start(["sleep", "60"])
        guards = list(slow._guards)
    assert process.returncode == -signal.SIGTERM
    assert all(guard.poll() is not None for guard in guards)
    assert groups() == []
    assert threading.active_count() == before


def test_what_is_left_when_we_are_killed_tidies_itself_up(method: str) -> None:
    """SIGKILL runs no clean-up of ours: the group must go, and the command must not stay stopped."""
    code = (
        "import sys, time\nfrom splitpoint.lab.slow_device import slowed\n"
        f"slow = slowed(4, method={method!r})\n"
        "command = slow.start(['sleep', '1.5'])\nprint(command.pid, slow.group, flush=True)\ntime.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid, group = parent.stdout.readline().split()

    def state() -> str:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return "gone"

    if method == "stop":
        until(lambda: state() == "T")
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until(lambda: state() in ("Z", "gone"))
    until(lambda: group == "None" or not Path(group).exists())


#: Prints the factor and the note that it was given, as one of splitpoint's commands.
TOLD = """
import os
from splitpoint.engines import open_engine
print(open_engine().slowdown, os.environ["SPLITPOINT_EMULATED"], sep="|")
"""


def test_a_command_of_splitpoint_has_its_engine_slowed(monkeypatch: pytest.MonkeyPatch) -> None:
    for factor, told in ((4.0, "1"), (12.0, "3")):  # the second in a command that is slowed itself
        monkeypatch.setenv("SPLITPOINT_SLOWDOWN", told)
        with slowed(4, method="stretched") as slow:
            process = slow.start([sys.executable, "-c", TOLD], stdout=subprocess.PIPE, text=True)
            text, _ = process.communicate(timeout=10 * LONG_S)
        assert text.strip().split("|") == [str(factor), slow.note]
        assert slow.note == f"emulated: {factor:g}x slower by waiting after every run of the engine"


def test_what_cannot_be_slowed_truly_is_refused() -> None:
    with slowed(4) as slow, pytest.raises(UsageError, match=r"sleep is no command of splitpoint.*--method limit"):
        slow.start(["sleep", "60"])
    for command in (["/usr/bin/splitpoint", "doctor"], ["python", "-m", "splitpoint"], ["nice", "splitpoint"]):
        assert _is_ours(command)
    assert not _is_ours(["python", "-c", "import splitpoint"])


def test_an_unknown_command() -> None:
    with slowed(2, method="stop") as slow, pytest.raises(UsageError, match="there is no command nonsuch"):
        slow.start(["nonsuch"])


def test_a_note_reaches_measurements_by_this_name() -> None:
    assert machine.EMULATED == "SPLITPOINT_EMULATED"
