"""An engine in a process of its own, for segments whose work nobody can know beforehand: it can be ended.

One process a session. A run that takes too long, or that the engine does not survive, ends with its process, and the
next one has a new one. On Linux a run may take `work_bytes` of memory beyond what the compiled segment holds.
What goes in and out is copied through a pipe.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress

import numpy as np

from splitpoint.engines import Reopenable, pipe, underway
from splitpoint.errors import EngineError, InputError
from splitpoint.lifetime import foreign, watch
from splitpoint.models.model import Segment
from splitpoint.tensors import Array

#: How the child begins: with this process's search path, whatever its environment is.
_BEGIN = "import sys; sys.path[:] = {path!r}; from splitpoint.engines.apart_process import main; main()"
#: A pipe holds 64 KiB unless it is told to hold more.
_PIPE_BYTES = 1 << 20


class DiedError(EngineError):
    """The process that computed has ended in the middle of it: it was given up, or the engine crashed."""


class Apart:
    """Compiles as `engine` does, into sessions that run in processes of their own."""

    def __init__(self, engine: Reopenable, work_bytes: int) -> None:
        self.name, self.device, self.threads = engine.name, engine.device, engine.threads
        self.opened_as, self.work_bytes = engine.opened_as, work_bytes

    def compile(self, segment: Segment) -> ApartSession:
        return ApartSession(segment, self)


class ApartSession:
    """A session in a process. Runs take turns; DiedError (an EngineError) if the process ends during one."""

    def __init__(self, segment: Segment, engine: Apart) -> None:
        self.inputs, self.outputs = segment.inputs, segment.outputs
        self._segment, self._engine = segment, engine
        self._lock = threading.Lock()
        self._over: Exception | None = None
        watch(self)
        self._child: _Child | None = _Child(segment, engine)
        self.nbytes = self._child.nbytes

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        try:
            arrays = [t.check(inputs[t.name]) for t in self.inputs]
        except KeyError as exc:
            raise InputError(f"input {exc.args[0]} is missing") from exc
        with self._lock:
            if self._over is not None:
                raise self._over
            if self._child is None:
                self._child = _Child(self._segment, self._engine)
            try:
                _, outputs = self._child.ask(arrays)
            except DiedError:
                self._child = None
                raise
        return {t.name: array for t, array in zip(self.outputs, outputs, strict=True)}

    def forked(self) -> None:
        self._over, child = foreign("session"), self._child
        if child is not None:
            child.forget()

    def close(self) -> None:
        if self._over is None:
            self._over = EngineError("this session is closed")
        child = self._child
        if child is not None:
            child.end()


class _Child:
    """The process. `terminate` ends it, from any thread."""

    def __init__(self, segment: Segment, engine: Apart) -> None:
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", _BEGIN.format(path=sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                start_new_session=True,  # Ctrl-C at a terminal is not for it
            )
        except OSError as exc:
            raise EngineError(f"no process can be started to compute this: {exc}") from exc
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
        self._given_up = False
        if sys.platform == "linux":
            import fcntl

            for end in (self._to, self._from):
                with suppress(OSError):  # a user has so many pages for pipes
                    fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        build = pipe.Build(
            engine.opened_as, engine.device, engine.threads, engine.work_bytes,
            segment.fingerprint, segment.inputs, segment.outputs, segment.blobs,
        )  # fmt: skip
        proto = np.frombuffer(segment.proto.SerializeToString(), np.uint8)
        try:
            parts = [proto, *(np.frombuffer(segment.weights.open(h), np.uint8) for h in segment.blobs)]
        except BaseException:
            self.end()
            raise
        self.nbytes = self.ask(parts, build)[0].nbytes

    @property
    def terminate(self) -> bool:
        """Whether the run was given up; setting it kills the process."""
        return self._given_up

    @terminate.setter
    def terminate(self, value: bool) -> None:
        self._given_up = value
        with suppress(OSError):
            self._process.kill()

    def ask(self, arrays: list[Array], build: pipe.Build | None = None) -> tuple[pipe.PipeMessage, list[Array]]:
        """What it answers to these inputs, or to what it is to `build`. DiedError, InputError, EngineError."""
        thread = underway.get_ident()
        underway.noted[thread] = self
        try:
            if build is not None:
                pipe.write(self._to, build)
            pipe.write(self._to, pipe.PipeMessage(arrays=pipe.kinds(arrays)), arrays)
            answer = pipe.read(self._from)
            outputs = pipe.read_arrays(self._from, answer.arrays)
        except (OSError, EOFError) as exc:
            self.end()
            raise DiedError(self._how_it_ended()) from exc
        except MemoryError as exc:  # here, for the answer
            self.end()
            raise DiedError("there is not enough memory for the answer") from exc
        finally:
            underway.noted.pop(thread, None)
        if answer.error:
            if build is not None:
                self.end()
            raise (InputError if answer.error == "input" else EngineError)(answer.text)
        return answer, outputs

    def _how_it_ended(self) -> str:
        if self._given_up:
            return "this run was given up"
        code = self._process.returncode
        how = signal.Signals(-code).name if -code in set(signal.Signals) else f"status {code}"
        return f"the process that computed this has ended ({how}): what it was given is more than the engine can bear"

    def end(self) -> None:
        """Kills the process and waits for its end; a thread that waits for its answer gets a DiedError."""
        with suppress(OSError):
            self._process.kill()
        self._process.wait()

    def __del__(self) -> None:
        # Not in `end`: another thread that reads there would read what else is opened under that number.
        self.forget()

    def forget(self) -> None:
        """Closes this side of the pipes. (In a forked process these are copies; the child belongs to the parent.)"""
        process = getattr(self, "_process", None)
        if process is not None:
            process.stdin.close()
            process.stdout.close()
