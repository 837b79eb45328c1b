"""What a container may have is what this machine has; and where things are kept without a home."""

from __future__ import annotations

import os
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


@pytest.mark.parametrize(
    ("cpus", "cores", "said"),
    [(0.5, 1, 0.5), (1.0, 1, 1.0), (1.2, 2, 1.2), (8.0, 8, 0.0), (20.0, 8, 0.0), (0.0, 8, 0.0)],
)
def test_threads_and_the_machine_are_what_the_container_has(
    cpus: float, cores: int, said: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroup, "limits", lambda: cgroup.GroupLimits(cpus, 900 << 20))
    monkeypatch.setattr(machine, "_affine", lambda: 8)
    found = this_machine()
    assert (found.cores, found.cpus, found.memory_bytes) == (cores, said, min(900 << 20, machine._memory()))
    assert usable_cores() == open_engine().threads == cores
    assert open_engine(threads=5).threads == 5
    assert msgspec.json.decode(msgspec.json.encode(found), type=Machine) == found


def test_what_may_grow_is_bounded_by_half_of_what_the_container_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "limits", lambda: cgroup.GroupLimits(0.0, 900 << 20))
    monkeypatch.setattr(machine, "_memory", lambda: 8 << 30)
    assert machine.half_the_memory(4 << 30) == 450 << 20
    assert machine.half_the_memory(1 << 20) == 1 << 20
    server = Server([load("zoo:lenet5")], engine=open_engine(threads=1), port=0)
    assert server.limits.memory_bytes == server._pool.keywords["tail_bytes"] == 450 << 20
    monkeypatch.setattr(machine, "_memory", lambda: 0)
    assert machine.half_the_memory(4 << 30) == 4 << 30, "not known"


def test_an_emulated_slower_core_is_no_missing_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "limits", lambda: cgroup.GroupLimits(0.5, 900 << 20))
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
