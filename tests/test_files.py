"""What -o names stays what it was: a device, a pipe, a link, a mode, an owner; and no file is ever half of anything."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from splitpoint import files
from splitpoint.certificates import make
from splitpoint.errors import StorageError
from splitpoint.files import (
    check_writable,
    is_special,
    is_stdout,
    make_folder,
    publish,
    read_file,
    temporary_folder,
    write_atomic,
)
from splitpoint.models import load
from splitpoint.models.model import Segment
from splitpoint.segments import split

NEW = b"new" * 1000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "here").mkdir()
    return tmp_path / "here" / "x.json"


def drain(descriptor: int) -> bytes:
    os.set_blocking(descriptor, False)
    data = b""
    while True:
        try:
            piece = os.read(descriptor, 1 << 16)
        except BlockingIOError:
            return data
        if not piece:
            return data
        data += piece


# --- what is no regular file ------------------------------------------------------------------------------------------


def test_a_device_is_written_to() -> None:
    near, far = os.openpty()
    try:
        device = Path(os.ttyname(far))
        assert is_special(device)
        check_writable(device)
        write_atomic(device, b"0123")
        assert os.read(near, 100) == b"0123"
        assert stat.S_ISCHR(device.stat().st_mode)
    finally:
        os.close(near)
        os.close(far)


def test_a_fifo_is_written_to_and_looking_at_it_ends_nothing(path: Path) -> None:
    os.mkfifo(path)
    came: list[bytes] = []
    reader = threading.Thread(target=lambda: came.append(path.read_bytes()))
    reader.start()
    check_writable(path)  # opening it here would give the reader an end, and no data
    write_atomic(path, NEW)
    reader.join(30)
    assert came == [NEW]
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_a_socket_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s")
        listener.listen()
        check_writable(Path("s"))
        write_atomic(Path("s"), NEW)
        peer, _ = listener.accept()
        with peer:
            assert peer.makefile("rb").read() == NEW
        assert stat.S_ISSOCK(Path("s").stat().st_mode)


@pytest.mark.parametrize("name", ["/dev/fd/{}", "/proc/self/fd/{}", "/proc/{pid}/fd/{}", "/proc/thread-self/fd/{}"])
@pytest.mark.parametrize("kind", ["pipe", "socket", "appended"])
def test_a_descriptor_is_written_to_whatever_it_is(name: str, kind: str, path: Path) -> None:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc")
    path.write_bytes(b"before ")
    if kind == "appended":
        near, far = os.open(path, os.O_RDONLY), os.open(path, os.O_WRONLY | os.O_APPEND)
    elif kind == "pipe":
        near, far = os.pipe()
    else:
        a, b = socket.socketpair()
        near, far = a.detach(), b.detach()
    try:
        to = Path(name.format(far, pid=os.getpid()))
        assert is_special(to)
        check_writable(to)
        write_atomic(to, b"new")
        os.fstat(far)  # it is open still
        link = path.with_name("link")
        link.symlink_to(to)
        write_atomic(link, b"est")
        assert link.is_symlink()
        assert drain(near) == (b"before " if kind == "appended" else b"") + b"newest"
    finally:
        os.close(near)
        os.close(far)


def test_a_pipe_that_does_not_wait_gets_all_the_same(tmp_path: Path) -> None:
    near, far = os.pipe()
    os.set_blocking(far, False)
    data, came = bytes(1 << 20), list[bytes]()

    def read() -> None:
        with open(near, "rb") as file:
            came.append(file.read())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        write_atomic(Path(f"/dev/fd/{far}"), data)
    finally:
        os.close(far)
        reader.join(30)
    assert came == [data]


def test_a_descriptor_that_is_closed_or_only_read_is_said() -> None:
    near, far = os.pipe()
    try:
        with pytest.raises(StorageError, match=f"/dev/fd/{near} cannot be written"):
            check_writable(Path(f"/dev/fd/{near}"))
    finally:
        os.close(near)
        os.close(far)
    with pytest.raises(StorageError, match="cannot be written"):
        check_writable(Path(f"/dev/fd/{far}"))


def test_a_descriptor_of_another_process_is_not_ours() -> None:
    assert not is_stdout(Path("/proc/1/fd/1"))
    assert is_stdout(Path("/dev/stdout"))
    assert is_stdout(Path("/dev/../dev/fd/1"))
    assert not is_stdout(Path("/dev/stderr"))
    assert not is_stdout(Path("stdout"))


# --- links ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_followed_and_stays(path: Path, there: bool) -> None:
    folder = path.parent.parent / "real"
    folder.mkdir()
    real = folder / "p.json"
    if there:
        real.write_text("old")
    (folder / "second").symlink_to("p.json")
    (folder / "first").symlink_to("../real/second")
    path.symlink_to("../real/first")  # relative to where it is, not to where we are
    check_writable(path)
    write_atomic(path, NEW)
    assert real.read_bytes() == NEW
    assert not real.is_symlink()
    assert [p.is_symlink() for p in (path, folder / "first", folder / "second")] == [True] * 3
    assert sorted(p.name for p in folder.iterdir()) == ["first", "p.json", "second"]
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]


def test_links_that_lead_nowhere_are_said(path: Path) -> None:
    path.symlink_to("x.json")
    for act in (check_writable, lambda p: write_atomic(p, NEW)):
        with pytest.raises(StorageError, match=r"x.json cannot be written: .*links"):
            act(path)
    path.unlink()
    path.symlink_to("nowhere/x.json")
    with pytest.raises(StorageError, match=r"there is no folder .*nowhere"):
        check_writable(path)


def test_a_link_that_the_system_refuses_to_follow_is_not_followed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In /tmp another user's link could lead root anywhere: fs.protected_symlinks."""
    target = path.with_name("target")
    path.symlink_to(target)
    real = os.stat

    def refusing(name: object, *args: object, **more: object) -> object:
        if name == path:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(name, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(files.os, "stat", refusing)
    with pytest.raises(StorageError, match="Permission denied"):
        write_atomic(path, NEW)
    assert not target.exists()


def test_a_folder_that_a_link_leads_to_is_made(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("real/deep")
    make_folder(tmp_path / "link")
    assert (tmp_path / "real" / "deep").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be written"):
        make_folder(tmp_path / "file" / "x")


# --- what a file was, it stays ----------------------------------------------------------------------------------------


def test_a_new_file_has_the_usual_mode_and_an_old_one_keeps_its_own(path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomic(path, b"1")
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o604)
        write_atomic(path, b"2")
        assert stat.S_IMODE(path.stat().st_mode) == 0o604
    finally:
        os.umask(before)


def test_names_of_one_file_stay_names_of_one_file(path: Path) -> None:
    path.write_bytes(b"old and longer than what comes")
    other = path.with_name("other")
    other.hardlink_to(path)
    for data in (NEW, b"short", b""):
        write_atomic(path, data)
        assert other.read_bytes() == data
        assert other.samefile(path)


@pytest.mark.parametrize("why", ["owner", "mount", "folder"])
def test_what_cannot_be_replaced_is_written_in_place(path: Path, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user's file, one that docker mounts by itself, one in a folder that may not be written."""
    path.write_bytes(b"old")
    inode = path.stat().st_ino

    def fails(code: int) -> Callable[..., None]:
        def fail(*_: object, **__: object) -> None:
            raise OSError(code, os.strerror(code))

        return fail

    if why == "owner":
        monkeypatch.setattr(files.os, "chown", fails(errno.EPERM))
        mine = path.stat()
        monkeypatch.setattr(
            Path, "stat",
            lambda self, real=Path.stat: os.stat_result(
                (*real(self)[:4], mine.st_uid + (self == path), *real(self)[5:])
            ),
        )  # fmt: skip
    elif why == "mount":
        monkeypatch.setattr(Path, "replace", fails(errno.EBUSY))
    else:
        real = Path.open
        monkeypatch.setattr(
            Path, "open",
            lambda self, mode="r", **more: fails(errno.EROFS)() if "x" in mode else real(self, mode, **more),
        )  # fmt: skip
        monkeypatch.setattr(Path, "touch", fails(errno.EROFS))
    check_writable(path)
    write_atomic(path, NEW)
    monkeypatch.undo()
    assert path.read_bytes() == NEW
    assert path.stat().st_ino == inode
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]


# --- a full disk, an interruption -------------------------------------------------------------------------------------

_FULL = """
import resource, sys
from pathlib import Path
from splitpoint.errors import StorageError
from splitpoint.files import write_atomic
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
try:
    write_atomic(Path(sys.argv[1]), b"new" * 100_000)
except StorageError as exc:
    print(exc)
"""


@pytest.mark.parametrize("linked", [False, True])
def test_where_there_is_no_room_the_old_file_is_left(path: Path, linked: bool) -> None:
    """The system's own limit of a file's size, in a process of its own: a write fails half-way, as on a full disk."""
    old = b"old" * 10_000
    path.write_bytes(old)
    if linked:
        path.with_name("y.json").hardlink_to(path)
    ran = subprocess.run([sys.executable, "-c", _FULL, str(path)], capture_output=True, text=True, check=True)
    assert "cannot be written: File too large" in ran.stdout
    assert path.read_bytes() == old
    assert sorted(p.name for p in path.parent.iterdir()) == (["x.json", "y.json"] if linked else ["x.json"])


def test_an_interruption_leaves_the_old_file_and_nothing_else(path: Path) -> None:
    path.write_bytes(b"old")

    def interrupted() -> None:
        with files.beside(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]


def test_an_interruption_in_place_leaves_all_of_the_old_or_all_of_the_new(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(b"old")
    path.with_name("y.json").hardlink_to(path)
    real = files._write_all
    to_come = [False]  # whether the next write is interrupted, the one after it, …

    def maybe(descriptor: int, data: bytes) -> None:
        if to_come and to_come.pop(0):
            real(descriptor, data[:1])
            raise KeyboardInterrupt
        real(descriptor, data)

    monkeypatch.setattr(files, "_write_all", maybe)
    for which, left in (([True], b"old"), ([False, True], NEW)):
        to_come[:] = which
        with pytest.raises(KeyboardInterrupt):
            write_atomic(path, NEW)
        assert path.read_bytes() == left


def test_an_earlier_split_stays_until_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, folder = load("zoo:lenet5"), tmp_path / "parts"
    split(model, "pool1", folder)
    (folder / "head.onnx.data").write_bytes(b"of a larger model that was split there before")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    real = Segment.save

    def full(self: Segment, path: Path) -> None:
        if path.name == "tail.onnx":
            raise StorageError("no room")
        real(self, path)

    monkeypatch.setattr(Segment, "save", full)
    with pytest.raises(StorageError):
        split(model, "pool2", folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    monkeypatch.undo()
    split(model, "input", folder)
    assert sorted(p.name for p in folder.iterdir()) == ["manifest.json", "tail.onnx"]


def test_half_a_set_of_keys_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cryptography")
    from datetime import datetime, timezone

    now, real = datetime(2026, 11, 30, tzinfo=timezone.utc), os.fdopen

    def full(descriptor: int, mode: str) -> object:
        if len(list((tmp_path / "k").iterdir())) == 3:
            os.close(descriptor)
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, mode)

    monkeypatch.setattr("splitpoint.certificates.os.fdopen", full)
    with pytest.raises(StorageError, match="No space left"):
        make(tmp_path / "k", ["localhost"], now=now)
    assert list((tmp_path / "k").iterdir()) == []
    monkeypatch.undo()
    make(tmp_path / "k", ["localhost"], now=now)


def test_a_finished_file_is_published_where_links_lead(path: Path) -> None:
    real = path.with_name("real")
    path.symlink_to("real")
    real.write_bytes(b"old")
    real.chmod(0o600)
    made = path.parent.parent / "made"
    made.write_bytes(NEW)
    publish(made, path)
    assert (real.read_bytes(), stat.S_IMODE(real.stat().st_mode), path.is_symlink()) == (NEW, 0o600, True)


# --- reading, temporary files -----------------------------------------------------------------------------------------


def test_a_pipe_is_read_and_no_more_than_was_allowed(path: Path) -> None:
    for most, words in ((4000, None), (2999, "too large")):
        near, far = os.pipe()
        os.write(far, NEW)
        os.close(far)
        try:
            if words is None:
                assert read_file(Path(f"/dev/fd/{near}"), most, "a plan", "splitpoint plan") == NEW
            else:
                with pytest.raises(Exception, match=words):
                    read_file(Path(f"/dev/fd/{near}"), most, "a plan", "splitpoint plan")
        finally:
            os.close(near)


def test_without_room_for_temporary_files_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(files.tempfile, "mkdtemp", full)
    with pytest.raises(StorageError, match="TMPDIR"), temporary_folder():
        raise AssertionError
