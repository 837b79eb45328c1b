"""What a container may have is what this machine has; and where things are kept without a home."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from splitpoint import cgroup, machine
from splitpoint.engines import open_engine
from splitpoint.machine import Machine, default_cache, this_machine, usable_cores
from splitpoint.models import load
from splitpoint.profile.measure import profile_model
from splitpoint.runtime.server.server import Server

# --- control groups ---------------------------------------------------------------------------------------------------

#: A line of /proc/self/mountinfo: the group that is mounted, where, and what it is.
V2 = "29 24 0:26 {mounted} {place} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1 = "30 24 0:27 {mounted} {place} rw shared:5 - cgroup cgroup rw,{names}"


def tree(root: Path, groups: str, mounts: list[str], files: dict[str, str]) -> Path:
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    other = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw"
    (root / "proc/self/mountinfo").write_text("\n".join([other, "nonsense", *mounts]) + "\n")
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


G = "sys/fs/cgroup"


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "expected"),
    [
        pytest.param(
            "0::/a/b\n", [V2.format(mounted="/", place="/" + G)],
            {f"{G}/a/b/cpu.max": "50000 100000\n", f"{G}/a/b/memory.max": "943718400\n"},
            (0.5, 900 << 20), id="version 2",
        ),
        pytest.param(
            "0::/a/b/c\n", [V2.format(mounted="/", place="/" + G)],
            {
                f"{G}/a/b/c/cpu.max": "400000 100000", f"{G}/a/b/cpu.max": "150000 100000",
                f"{G}/a/cpu.max": "max 100000",
                f"{G}/a/b/c/memory.max": "max", f"{G}/a/b/memory.max": "3000", f"{G}/a/memory.max": "2000",
            },
            (1.5, 2000), id="the smallest of all parents",
        ),
        pytest.param(
            "0::/\n", [V2.format(mounted="/", place="/" + G)],
            {f"{G}/cpu.max": "25000 50000", f"{G}/memory.max": "4096"},
            (0.5, 4096), id="in a namespace of its own",
        ),
        pytest.param(
            "0::/../../docker/ab\n", [V2.format(mounted="/../..", place="/" + G)],
            {f"{G}/cpu.max": "100000 100000", f"{G}/memory.max": "8192", "docker/ab/memory.max": "1"},
            (1.0, 8192), id="a path that leads out of the namespace",
        ),
        pytest.param(
            "4:memory:/docker/ab\n2:cpu,cpuacct:/docker/ab\n0::/system.slice\n",
            [
                V1.format(mounted="/docker/ab", place=f"/{G}/cpu,cpuacct", names="cpu,cpuacct"),
                V1.format(mounted="/docker/ab", place=f"/{G}/memory", names="memory"),
            ],
            {
                f"{G}/cpu,cpuacct/cpu.cfs_quota_us": "50000\n", f"{G}/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
                f"{G}/memory/memory.limit_in_bytes": "943718400\n",
            },
            (0.5, 900 << 20), id="version 1, a container's part of it",
        ),
        pytest.param(
            "4:cpu,memory:/x\n", [V1.format(mounted="/", place=f"/{G}/both\\040here", names="memory,cpu")],
            {
                f"{G}/both here/cpu.cfs_quota_us": "-1", f"{G}/both here/cpu.cfs_period_us": "100000",
                f"{G}/both here/x/cpu.cfs_quota_us": "200000", f"{G}/both here/x/cpu.cfs_period_us": "100000",
                f"{G}/both here/x/memory.limit_in_bytes": "9223372036854771712",
                f"{G}/both here/memory.limit_in_bytes": "12345",
            },
            (2.0, 12345), id="version 1, together, and a blank in the name",
        ),
        pytest.param(
            "3:memory:/\n2:cpu:/\n0::/\n",
            [
                V1.format(mounted="/", place=f"/{G}/cpu", names="cpu"),
                V1.format(mounted="/", place=f"/{G}/pids", names="pids"),
                V2.format(mounted="/", place=f"/{G}/unified"),
            ],
            {f"{G}/cpu/cpu.cfs_quota_us": "-1", f"{G}/cpu/cpu.cfs_period_us": "100000", f"{G}/pids/cpu.max": "1 1"},
            (0.0, 0), id="no limit",
        ),
        pytest.param(
            "0::/a\n", [V2.format(mounted="/", place="/" + G)],
            {
                f"{G}/a/cpu.max": "ten 0", f"{G}/a/memory.max": "9" * 5000,
                f"{G}/cpu.max": "100 0", f"{G}/memory.max": "",
            },
            (0.0, 0), id="nonsense",
        ),
        pytest.param("", [], {}, (0.0, 0), id="none"),
        pytest.param("nonsense\n::\n0\n", [V2.format(mounted="", place="")], {}, (0.0, 0), id="nonsense in /proc"),
    ],
)  # fmt: skip
def test_the_smallest_limit_of_the_group_and_all_above_counts(
    groups: str, mounts: list[str], files: dict[str, str], expected: tuple[float, int], tmp_path: Path
) -> None:
    assert cgroup.limits(tree(tmp_path, groups, mounts, files)) == expected


def test_without_proc_nothing_is_limited(tmp_path: Path) -> None:
    assert cgroup.limits(tmp_path) == (0.0, 0)


@pytest.mark.parametrize(
    ("cpus", "cores", "said"),
    [(0.5, 1, 0.5), (1.0, 1, 1.0), (1.2, 2, 1.2), (8.0, 8, 0.0), (20.0, 8, 0.0), (0.0, 8, 0.0)],
)
def test_threads_and_the_machine_are_what_the_container_has(
    cpus: float, cores: int, said: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroup, "limits", lambda: cgroup.Limits(cpus, 900 << 20))
    monkeypatch.setattr(machine, "_affine", lambda: 8)
    found = this_machine()
    assert (found.cores, found.cpus, found.memory_bytes) == (cores, said, min(900 << 20, machine._memory()))
    assert usable_cores() == open_engine().threads == cores
    assert open_engine(threads=5).threads == 5
    assert msgspec.json.decode(msgspec.json.encode(found), type=Machine) == found


def test_what_may_grow_is_bounded_by_half_of_what_the_container_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "limits", lambda: cgroup.Limits(0.0, 900 << 20))
    monkeypatch.setattr(machine, "_memory", lambda: 8 << 30)
    assert machine.half_the_memory(4 << 30) == 450 << 20
    assert machine.half_the_memory(1 << 20) == 1 << 20
    server = Server([load("zoo:lenet5")], engine=open_engine(threads=1), port=0)
    assert server.limits.memory_bytes == server._pool.keywords["tail_bytes"] == 450 << 20
    monkeypatch.setattr(machine, "_memory", lambda: 0)
    assert machine.half_the_memory(4 << 30) == 4 << 30, "not known"


def test_an_emulated_slower_core_is_no_missing_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "limits", lambda: cgroup.Limits(0.5, 900 << 20))
    monkeypatch.setattr(machine, "_affine", lambda: 8)
    monkeypatch.setenv(machine.EMULATED, "4x slower")
    assert usable_cores() == this_machine().cores == 8


def test_a_small_machine_says_what_it_has() -> None:
    text = str(Machine("Linux", "EPYC", 1, 900 << 20, "", "3.11", 0.5))
    assert text == "EPYC, 1 core (a quota of 0.5 CPU), 943.7 MB; Linux; Python 3.11"
    old = b'{"system":"Linux","processor":"EPYC","cores":2,"memory_bytes":0,"governor":"","python":"3.11"}'
    assert str(msgspec.json.decode(old, type=Machine)) == "EPYC, 2 cores; Linux; Python 3.11"


# --- where things are kept --------------------------------------------------------------------------------------------


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """No home, and a temporary folder of the test's own."""
    for name in ("SPLITPOINT_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # without an entry for this user
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(machine, "_noted", [])
    machine._temporary_cache.cache_clear()
    yield tmp_path
    machine._temporary_cache.cache_clear()


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"HOME": "{}"}, "{}/.cache/splitpoint"),
        ({"HOME": "{}", "XDG_CACHE_HOME": "{}/xdg"}, "{}/xdg/splitpoint"),
        ({"HOME": "{}", "XDG_CACHE_HOME": "xdg"}, "xdg/splitpoint"),
        ({"HOME": "{}", "XDG_CACHE_HOME": ""}, "{}/.cache/splitpoint"),
        ({"XDG_CACHE_HOME": "{}/xdg", "SPLITPOINT_CACHE": "{}/ours"}, "{}/ours"),
    ],
)
def test_the_cache_is_where_the_user_has_such_things(
    environ: dict[str, str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SPLITPOINT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    assert default_cache() == Path(expected.format(tmp_path))


def test_without_a_home_a_folder_of_ones_own_is_taken_and_said_once(nowhere: Path) -> None:
    told: list[str] = []
    folder = default_cache(told.append)
    assert folder == nowhere / f"splitpoint-{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert default_cache(told.append) == folder
    assert [t for t in told if "no home folder" in t and str(folder) in t] == told
    assert len(told) == 1


def test_a_home_that_cannot_be_written_is_no_home_but_what_is_there_is_read(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = nowhere / "home"
    home.mkdir()
    monkeypatch.setattr(os.path, "expanduser", lambda path: str(home))
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).startswith(str(home)))  # root may write anywhere
    assert default_cache() == nowhere / f"splitpoint-{os.getuid()}"
    (home / ".cache" / "splitpoint").mkdir(parents=True)  # an image with weights in it, run read-only
    assert default_cache() == home / ".cache" / "splitpoint"


@pytest.mark.parametrize("trap", ["for others", "a link", "a file"])
def test_a_folder_that_another_user_may_have_laid_is_not_taken(nowhere: Path, trap: str) -> None:
    laid, elsewhere = nowhere / f"splitpoint-{os.getuid()}", nowhere / "elsewhere"
    elsewhere.mkdir()
    if trap == "a link":
        laid.symlink_to(elsewhere)
    elif trap == "a file":
        laid.touch()
    else:
        laid.mkdir()
        laid.chmod(0o777)
    folder = default_cache()
    assert folder not in (laid, elsewhere)
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.rmdir()


def test_without_any_room_there_is_a_name_all_the_same(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError

    monkeypatch.setattr(tempfile, "gettempdir", none)
    assert default_cache().is_absolute()


def test_without_room_for_the_profiler_a_profile_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    made = profile_model(load("zoo:lenet5"), open_engine(threads=1), budget_s=0.5)
    assert made.whole.median > 0


# --- other systems ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rest", "status"),
    [
        ("import splitpoint", 1),
        ("sys.argv[0] = '/usr/bin/splitpoint'; from splitpoint.cli import script; script()", 2),
    ],
)
def test_on_another_system_one_sentence_is_said(rest: str, status: int) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", f"import socket, sys; del socket.MSG_DONTWAIT; {rest}"], capture_output=True, text=True
    )
    assert ran.returncode == status
    last = ran.stderr.strip().splitlines()[-1]
    assert "splitpoint needs Linux" in last
    assert "WSL 2" in last
    assert not last.startswith("ImportError")
    assert status == 1 or ran.stderr.count("\n") == 1


def test_who_catches_an_import_error_catches_that_too() -> None:
    rest = "\ntry:\n    import splitpoint\nexcept ImportError as exc:\n    print(type(exc).__name__)"
    ran = subprocess.run(
        [sys.executable, "-c", f"import socket; del socket.MSG_DONTWAIT{rest}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == "UnsupportedError\n"
