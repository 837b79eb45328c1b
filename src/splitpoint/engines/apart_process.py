"""The process behind a session of `engines.apart`: compiles one segment and runs it when asked.

Its parent may kill it at any moment. It ends by itself when the pipe is closed, even in the middle of a run or when
the parent was killed: so one thread reads and another computes.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread

import msgspec

from splitpoint.engines import Session, open_engine, pipe
from splitpoint.engines.onnxruntime import shrink_workspace
from splitpoint.engines.process_memory import resident_bytes
from splitpoint.errors import EngineError, InputError, SplitpointError
from splitpoint.models.model import Segment
from splitpoint.tensors import Array

#: What a run has left beyond that is given back after it.
_LEFT_BYTES = 64 << 20
#: Room for threads and for Python itself beside what a run may take.
_BESIDE_BYTES = 64 << 20


class _Blobs(dict[str, memoryview]):
    def open(self, hash: str) -> memoryview:
        return self[hash]


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    asked, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):  # whatever a library prints must not come between
        os.dup2(nothing, fd)
    _limit("RLIMIT_CORE", 0)
    jobs: SimpleQueue[list[Array]] = SimpleQueue()
    build = msgspec.msgpack.decode(pipe.read_header(asked), type=pipe.Build)
    parts = pipe.read_arrays(asked, pipe.read(asked).arrays)
    Thread(target=_listen, args=(asked, jobs), daemon=True).start()
    try:
        session = _compile(build, parts)
    except SplitpointError as exc:
        pipe.write(answers, pipe.PipeMessage(error="engine", text=str(exc)))
        return
    del parts
    settled = resident_bytes()
    pipe.write(answers, pipe.PipeMessage(nbytes=settled))
    if data := _data_bytes():
        _limit("RLIMIT_DATA", data + build.work_bytes + _BESIDE_BYTES)
    while True:
        _answer(answers, session, jobs.get())
        if resident_bytes() > settled + _LEFT_BYTES:
            with suppress(Exception):
                shrink_workspace()


def _answer(answers: int, session: Session, arrays: list[Array]) -> None:
    names = [t.name for t in session.inputs]
    try:
        results = session.run(dict(zip(names, arrays, strict=True)))
        outputs = pipe.listed(session.outputs, results)
    except (SplitpointError, MemoryError) as exc:
        kind = "input" if isinstance(exc, InputError) else "engine"
        pipe.write(answers, pipe.PipeMessage(error=kind, text=str(exc) or "there is not enough memory for it"))
        return
    pipe.write(answers, pipe.PipeMessage(arrays=pipe.kinds(outputs)), outputs)


def _listen(asked: int, jobs: SimpleQueue[list[Array]]) -> None:
    try:
        while True:
            jobs.put(pipe.read_arrays(asked, pipe.read(asked).arrays))
    except EOFError:
        os._exit(0)
    except BaseException:  # no memory for what was sent: the rest of it cannot be told from what comes after
        os._exit(1)


def _compile(build: pipe.Build, parts: list[Array]) -> Session:
    import onnx

    proto = onnx.ModelProto.FromString(parts[0].tobytes())
    blobs = _Blobs((h, p.data) for h, p in zip(build.hashes, parts[1:], strict=True))
    segment = Segment(build.fingerprint, build.inputs, build.outputs, proto, blobs)
    engine = open_engine(build.engine, device=build.device, threads=build.threads)
    try:
        return engine.compile(segment)
    except MemoryError as exc:
        raise EngineError("there is not enough memory for it") from exc


def _data_bytes() -> int:
    """Private writable memory of this process; 0 where the system does not say."""
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmData"))
    except (OSError, ValueError, StopIteration):
        return 0


def _limit(name: str, value: int) -> None:
    if sys.platform == "win32":
        return
    import resource

    with suppress(OSError, ValueError):
        resource.setrlimit(getattr(resource, name), (value, value))
