"""Reading and writing files. A file is written whole or not at all; links to it, its mode and its owner stay.

A device, a pipe, a socket or a descriptor such as /dev/stdout is written to, never replaced.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import select
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import BinaryIO

from splitpoint.errors import InputError, StorageError

#: Where ``-o -`` leads. Our own descriptors are known by their names: that needs neither /dev nor /proc.
STDOUT = Path("/dev/stdout")
_NUMBERS = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
_DESCRIPTOR = re.compile(r"(?:/dev|/proc/(?:self|thread-self|(?P<pid>\d+)(?:/task/\d+)?))/fd/(?P<number>\d{1,9})")
#: As many as Linux follows.
_MOST_LINKS = 40
#: A file that may be written in a folder that may not, or that is a mount point of its own (docker -v FILE:FILE).
_NO_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS)
_NOT_REPLACED = (*_NO_PLACE, errno.EBUSY, errno.EXDEV)


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path`; on a full disk, or if interrupted, the old file is left.

    A file with several names (hard links), one of another user's and a mount point are written in place, what needs
    room first. StorageError; BrokenPipeError if `path` is standard output and nobody reads it.
    """
    with _named(path):
        target = _target(path)
        if isinstance(target, int):
            _write_all(_open_descriptor(target), data)
        elif _is_node(target):
            _write_special(target, data)
        else:
            try:
                with beside(target) as file:
                    file.write(data)
            except OSError as exc:
                if exc.errno not in _NO_PLACE or not target.exists():
                    raise
                _overwrite(target, data)


def check_writable(path: Path) -> None:
    """StorageError if `write_atomic` could not write `path`: to be called before the work."""
    with _named(path):
        target = _target(path)
        if isinstance(target, int):
            os.write(_open_descriptor(target), b"")
            return
        if not target.parent.is_dir():
            raise StorageError(f"{path} cannot be written: there is no folder {target.parent}")
        if target.is_dir():
            raise StorageError(f"{path} cannot be written: it is a folder")
        if target.exists() and not os.access(target, os.W_OK):  # replacing it might work, but who locked it meant it
            raise StorageError(f"{path} cannot be written: it is write-protected")
        if _is_node(target):  # opening it to see would be seen at the other end
            return
        part = _part(target)
        try:
            part.touch()  # permissions alone do not tell of a read-only disk, of /proc, of a name that is too long
            part.unlink()
        except OSError as exc:
            if exc.errno not in _NO_PLACE or not target.exists():
                raise


def is_stdout(path: Path) -> bool:
    """Whether `path` is standard output, by any of its names."""
    try:
        return _target(path) == 1
    except OSError:
        return False


def is_special(path: Path) -> bool:
    """Whether `path` is no regular file: it is written once, and cannot be read again."""
    try:
        return _regular(path) is None
    except OSError:
        return False


def make_folder(folder: Path) -> None:
    """Make `folder` (where a link leads, too) if it is not there. StorageError."""
    try:
        Path(os.path.realpath(folder)).mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise StorageError(f"the folder {folder} cannot be written: {exc.strerror or exc}") from exc


def private_folder(folder: Path) -> Path:
    """`folder`, made if it is not there, which only this user may open: its files are believed.

    StorageError where another user (root excepted) could have put something there: it is a link, it or the folder
    around it is another's, or everybody may write there.
    """
    ours = (os.geteuid(), 0)
    try:
        make_folder(folder.parent)
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        around = folder.parent.stat()
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if os.fstat(descriptor).st_uid == ours[0]:
                os.fchmod(descriptor, 0o700)  # made by an earlier version, or with a mild umask
            status = os.fstat(descriptor)
        finally:
            os.close(descriptor)
    except OSError as exc:
        raise StorageError(f"the folder {folder} cannot be used: {exc.strerror or exc}") from exc
    shared = around.st_mode & stat.S_IWOTH and not around.st_mode & stat.S_ISVTX
    if status.st_uid not in ours or around.st_uid not in ours or status.st_mode & 0o022 or shared:
        raise StorageError(
            f"other users can change what is in {folder}, so it is not used: name another cache with SPLITPOINT_CACHE"
        )
    return folder


@contextmanager
def beside(path: Path) -> Iterator[BinaryIO]:
    """A new file beside `path` (no link) that replaces it at the end, and is removed on any error. OSError."""
    part = _part(path)
    try:
        with part.open("xb") as file:
            yield file
        _replace(part, path)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


@contextmanager
def scratch(path: Path, prefix: str = ".splitpoint-") -> Iterator[Path]:
    """A folder for files that `publish` then moves to `path`; removed at the end. StorageError.

    It is beside `path`, or among the temporary files where that is not possible.
    """
    with _named(path):
        target = _regular(path)
        try:
            folder = tempfile.mkdtemp(prefix=prefix, dir=target and target.parent)
        except OSError as exc:
            if exc.errno not in _NO_PLACE or target is None or not os.path.exists(path):
                raise
            folder = tempfile.mkdtemp(prefix=prefix)
        try:
            yield Path(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder among the temporary files, or in memory, that is removed at the end. StorageError if neither can be."""
    folder = None
    for where in (None, "/dev/shm"):  # a container's disk may be read-only
        with suppress(OSError):
            folder = folder or tempfile.mkdtemp(prefix="splitpoint-", dir=where)
    if folder is None:
        raise StorageError("there is no folder for temporary files that can be written: name one with TMPDIR=DIR")
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(finished: Path, path: Path) -> None:
    """Move the file `finished` to `path`, as `write_atomic` writes. StorageError."""
    with _named(path):
        target = _regular(path)
        if target is None:
            write_atomic(path, finished.read_bytes())
        else:
            _replace(finished, target)


def destination(path: Path) -> Path:
    """The file that `path` leads to. StorageError if its links lead nowhere."""
    with _named(path):
        target = _target(path)
        return path if isinstance(target, int) else target


# --- where a path leads -----------------------------------------------------------------------------------------------


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """An OSError becomes a StorageError that names `path` as the user did."""
    try:
        yield
    except BrokenPipeError as exc:
        if is_stdout(path):
            raise  # `| head`: who runs us knows
        raise StorageError(f"{path} cannot be written: who read it has gone") from exc
    except OSError as exc:
        raise StorageError(f"{path} cannot be written: {exc.strerror or exc}") from exc


def _target(path: Path) -> Path | int:
    """The file that the links of `path` lead to, which need not be there, or a descriptor of this process."""
    here = path
    for hop in range(_MOST_LINKS):
        here = Path(os.path.realpath(here.parent)) / here.name
        number = _descriptor(here.as_posix())
        if number is not None:
            return number
        if hop == 0:
            with suppress(FileNotFoundError):  # a new file, or a link to one
                os.stat(path)  # the system refuses links that another user put into /tmp; so do we
        try:
            link = os.readlink(here)
        except OSError:
            return here
        here = here.parent / link
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def _regular(path: Path) -> Path | None:
    """The file that `path` leads to, which need not be there; None if it is a descriptor or no regular file."""
    target = _target(path)
    return None if isinstance(target, int) or _is_node(target) else target


def _descriptor(path: str) -> int | None:
    if path in _NUMBERS:
        return _NUMBERS[path]
    number = _DESCRIPTOR.fullmatch(path)
    if number is None or (number["pid"] and number["pid"] not in _own_pids()):
        return None
    return int(number["number"])


def _own_pids() -> Iterator[str]:
    yield str(os.getpid())
    with suppress(OSError):
        yield os.readlink("/proc/self")  # another one where /proc is of another namespace


def _open_descriptor(number: int) -> int:
    """`number`. OSError for a standard stream that was closed when Python began: it may be another file by now."""
    if (number == 1 and sys.__stdout__ is None) or (number == 2 and sys.__stderr__ is None):
        raise OSError(errno.EBADF, "it is closed")
    return number


def _is_node(path: Path) -> bool:
    """Whether `path` is there, and neither a regular file nor a folder."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


# --- writing ----------------------------------------------------------------------------------------------------------


def _part(path: Path) -> Path:
    """A name of its own for every writer: process numbers repeat from container to container."""
    return path.with_name(f".{path.name[:16]}.{secrets.token_hex(6)}")


def _replace(part: Path, path: Path) -> None:
    """Rename `part` to `path`, with the mode and owner of the old file; where that cannot be, copy its bytes there."""
    try:
        there = path.stat()
    except FileNotFoundError:
        part.replace(path)
        return
    if there.st_nlink == 1 and _made_like(part, there):
        try:
            part.replace(path)
            return
        except OSError as exc:
            if exc.errno not in _NOT_REPLACED or path.is_dir():
                raise
    _overwrite(path, part.read_bytes())


def _made_like(part: Path, there: os.stat_result) -> bool:
    """Give `part` the owner and mode of `there`; False if it may not have them."""
    try:
        status = part.stat()
        if (status.st_uid, status.st_gid) != (there.st_uid, there.st_gid):
            os.chown(part, there.st_uid, there.st_gid)
        os.chmod(part, stat.S_IMODE(there.st_mode))
    except OSError:
        return False
    return True


def _overwrite(path: Path, data: bytes) -> None:
    """Write in place, what needs room first: on a full disk the old bytes stay."""
    new = memoryview(data)
    with path.open("r+b", buffering=0) as file:
        old_size = os.fstat(file.fileno()).st_size

        def rest() -> None:
            file.seek(0)
            _write_all(file.fileno(), new[:old_size])
            file.truncate(len(new))

        try:
            file.seek(old_size)
            _write_all(file.fileno(), new[old_size:])
        except BaseException:
            file.truncate(old_size)
            raise
        try:
            rest()
        except BaseException:  # Ctrl-C between two writes: rather whole than half
            rest()
            raise


def _write_special(path: Path, data: bytes) -> None:
    """Write to a device, a pipe (which waits for a reader) or a socket."""
    if stat.S_ISSOCK(path.stat().st_mode):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
            peer.connect(str(path))
            peer.sendall(data)
        return
    descriptor = os.open(path, os.O_WRONLY | os.O_NOCTTY)
    try:
        _write_all(descriptor, data)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes | memoryview) -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and descriptor in (1, 2):
            stream.flush()  # what was printed before comes before
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(descriptor, left) :]
        except BlockingIOError:  # who shares the pipe with us has made it so
            room = select.poll()
            room.register(descriptor, select.POLLOUT)
            room.poll()


# --- reading ----------------------------------------------------------------------------------------------------------


#: How long a pipe may have nobody who writes into it.
_WRITER_S = 5.0


def open_file(path: Path) -> BinaryIO:
    """A regular file for reading, a pipe, or a descriptor of ours that `path` names (``/dev/stdin``, ``<(…)``).

    OSError for all else, because a device has no end, and for a pipe that nobody writes into.
    """
    try:
        ours = isinstance(_target(path), int)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | (0 if ours else os.O_NONBLOCK | os.O_NOCTTY))
    except ValueError as exc:  # a null byte in its name
        raise OSError(errno.EINVAL, str(exc)) from exc
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        if stat.S_ISFIFO(mode) and not ours:
            waiting = select.poll()
            waiting.register(descriptor, select.POLLIN)
            if not waiting.poll(_WRITER_S * 1e3):
                raise OSError(errno.EINVAL, "it is a pipe, and nobody writes into it")
            os.set_blocking(descriptor, True)
        elif not (stat.S_ISREG(mode) or ours):
            raise OSError(errno.EINVAL, "it is a device or a socket, no file")
        return os.fdopen(descriptor, "rb")
    except OSError:
        os.close(descriptor)
        raise


def read_file(path: Path, most: int, what: str, made_by: str = "") -> bytes:
    """The bytes of a file that should hold `what` (``a plan``), at most `most`. InputError says what is wrong."""
    try:
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(most + 1) if size <= most else b""  # a pipe has no size
    except FileNotFoundError as exc:
        raise InputError(f"there is no file {path}{made_by and f': {made_by} writes one'}") from exc
    except OSError as exc:
        raise InputError(f"{path} cannot be read: {exc.strerror or exc}") from exc
    if max(size, len(data)) > most:
        raise InputError(f"{path} is too large to be {what}: {max(size, len(data)) >> 20} MiB")
    return data


def read_text(path: Path, most: int, what: str) -> str:
    """As `read_file`, the text of a UTF-8 file, with or without a byte order mark. InputError also if it is none."""
    try:
        return read_file(path, most, what).decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise InputError(f"{path} is not {what}: it is not UTF-8 text") from exc


# --- files that files name --------------------------------------------------------------------------------------------
# A file from a stranger (a model, an input spec, a scenario, tasks) may name any path, and its archive may hold links.
# So names are looked up in the file's own folder and below, and where a link leads out of it, nothing is read.
# A user who opens a link chose where it leads: a file that is not beside the link may be beside its target.
# In the cache of the Hugging Face hub both are links into one folder of blobs.


def linked_folders(path: Path) -> list[Path]:
    """The folders that its links lead to, one by one, if `path` is a link; in the last the file really lies."""
    folders: list[Path] = []
    try:
        while path.is_symlink() and len(folders) < _MOST_LINKS:
            path = path.parent.resolve() / path.readlink()
            folders.append(path.parent.resolve())
    except (OSError, RuntimeError):  # a loop of links
        return []
    return folders


def named(name: str, folder: Path, linked: Sequence[Path] = ()) -> Path:
    """The path, in `folder` or below, that a file there (perhaps a link to the folders `linked`) means by `name`.

    ValueError for a path elsewhere: a sentence that begins with `name`.
    """
    wanted = PurePath(name)
    if wanted.is_absolute() or ".." in wanted.parts:
        raise ValueError(f"{name} is outside its folder: put the file beside the one that names it")
    try:
        folder = folder.resolve()
        home = next((f for f in (folder, *linked) if os.path.lexists(f / wanted)), folder)
        whole = home / wanted
        path = whole.resolve()
        mode = path.stat().st_mode if path.exists() else stat.S_IFREG
    except (OSError, ValueError, RuntimeError) as exc:  # a loop of links, a null byte
        raise ValueError(f"{name!r} is no path: {exc}") from exc
    if not path.is_relative_to(home) and not (linked and path.parent == linked[-1]):
        raise ValueError(
            f"{name} is a link that leads outside its folder: put the file itself beside the one that names it"
        )
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # a device has no end, a pipe waits for a writer
        raise ValueError(f"{name} is no regular file")
    return whole
