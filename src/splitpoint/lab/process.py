"""A process of ours that says lines."""

from __future__ import annotations

import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import IO, Any

from splitpoint.errors import ServerError, UsageError
from splitpoint.security import unguarded

#: Starting Python and compiling a network may take this long; one request may take longer than it should.
START_S, ROW_S = 300.0, 400.0
PIPES: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
PIPES |= {"text": True, "errors": "replace"}


class Process:
    """`process`, started with `PIPES`, and what it says; `name` is for messages. Without one, the error that it ended
    with is told as its own words."""

    def __init__(self, process: subprocess.Popen[Any], name: str) -> None:
        self.process, self.name = process, name
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._complaints: list[str] = []
        self._readers = [
            threading.Thread(target=self._read, args=(process.stdout, self._lines.put), daemon=True),
            threading.Thread(target=self._read, args=(process.stderr, self._complain), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: IO[str], put: Callable[[str | None], None]) -> None:
        try:
            for line in stream:
                put(line.rstrip("\n"))
        finally:
            put(None)

    def _complain(self, line: str | None) -> None:
        if line:
            self._complaints = [*self._complaints[-5:], line]

    def line(self, timeout_s: float) -> str:
        """What it says next. The error that it ended with is raised, as what it was."""
        try:
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            raise ServerError(f"the {self.name or 'process'} said nothing for {timeout_s:.0f} s") from None
        if line is None:
            status = self.process.wait()
            self._readers[1].join()
            said = self._complaints[-1] if self._complaints else f"exit status {status}"
            kind = UsageError if status == UsageError.exit_code else ServerError
            raise kind(f"the {self.name} ended: " * bool(self.name) + said.removeprefix("splitpoint: "))
        return line

    def said(self) -> list[str]:
        """What it has said and nobody has read yet."""
        lines = []
        with suppress(queue.Empty):
            while (line := self._lines.get_nowait()) is not None:
                lines.append(line)
        return lines

    def complaints(self) -> list[str]:
        """The last lines of its standard error."""
        return list(self._complaints)

    def expect(self, start: str) -> str:
        """The next line that begins with `start`; those before it are passed over."""
        while not (line := self.line(START_S)).startswith(start):
            pass
        return line

    def say(self, line: str = "go") -> None:
        assert self.process.stdin is not None
        with suppress(OSError):  # it has ended; its next line says why
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()

    def close(self) -> None:
        """Ends it, by force if it does not end by itself."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for reader in self._readers:
            reader.join()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                with suppress(OSError):
                    stream.close()


def run_splitpoint(
    name: str, *words: str, start: Callable[..., subprocess.Popen[Any]] = subprocess.Popen, **options: Any
) -> Process:
    """``splitpoint WORDS`` as a process that speaks with ours on loopback, without its tokens and keys; `start` makes
    it of a command and Popen's `options`."""
    command = [sys.executable, "-u", "-m", "splitpoint", *words]
    return Process(start(command, **PIPES, env=unguarded(), **options), name)


@contextmanager
def serving(name: str, model: str, *options: str) -> Iterator[str]:
    """Address of a ``splitpoint serve`` process. It ends with the with statement, or with us, whatever ends us."""
    with closing(run_splitpoint(name, "serve", model, "--port", "0", *options, "--until-stdin-ends")) as server:
        yield server.expect("serving on ").split()[2]
