"""A shaped link before a TCP server: an address of its own that carries every byte late and no faster than told.

    with Relay("127.0.0.1:3277", PRESETS["4g"]) as relay:
        edge = Edge(relay.address, at="middle")
        relay.set_link(PRESETS["3g"])       # from now on
        relay.stall(2.0)                    # not a byte for two seconds
        relay.cut(refuse_s=5.0)             # every connection is reset, new ones are refused for a while
        relay.blackhole(10.0)               # nothing passes, not even an end or a reset: as if it had no signal
        relay.corrupt("down", 1000)         # after 1000 bytes more, one of an answer arrives with a bit flipped

`Relay` is a process of its own, so that it waits for no interpreter lock of whoever measures; `ThreadRelay` is the same
in a thread, for tests of what is carried rather than when.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from math import isfinite
from typing import IO, Protocol, TypeVar

import msgspec

from splitpoint.errors import ServerError, SplitpointError, UsageError
from splitpoint.lab.forwarder import Forwarder, Status
from splitpoint.link import Link
from splitpoint.link.link_trace import LinkTrace
from splitpoint.link.parse import parse_link
from splitpoint.security import unguarded

AnyLink = Link | LinkTrace
_Self = TypeVar("_Self", bound="_Controlled")
#: Python and the command line must start; a loaded single-board computer takes its time.
_START_S = 60.0
_ANSWER_S = 10.0
#: A stall or refusal longer than a day is a slip of the pen, and so is damage to more than this.
_MOST_S = 86_400.0
_MOST_CHANGED = 1_000_000


class _Controlled(ABC):
    """What both relays can be told, in the words of `obey`."""

    address = ""
    """``host:port`` to connect to, once started."""

    def __enter__(self: _Self) -> _Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def start(self) -> None:
        """Begins to listen."""

    @abstractmethod
    def close(self) -> None:
        """Resets every connection and stops listening."""

    @abstractmethod
    def _tell(self, line: str) -> str:
        """The answer to one line."""

    def set_link(self, link: AnyLink) -> None:
        """Shapes by `link` from now on; a trace begins at its beginning."""
        self._tell("link " + msgspec.json.encode(link).decode())

    def stall(self, seconds: float) -> None:
        """Not a byte arrives for `seconds`, in either direction; none is lost."""
        self._tell(f"stall {seconds!r}")

    def blackhole(self, seconds: float) -> None:
        """Nothing passes for `seconds`: not a byte, no new connection, no end or reset of one. Then all of it does."""
        self._tell(f"blackhole {seconds!r}")

    def corrupt(self, direction: str, after_nbytes: int = 0, count: int = 1) -> None:
        """Flips one bit of each of `count` bytes, once `after_nbytes` more have gone ``"up"`` or ``"down"``."""
        self._tell(f"corrupt {direction} {after_nbytes} {count}")

    def cut(self, refuse_s: float = 0.0, after_nbytes: int = 0) -> None:
        """Resets every connection, once `after_nbytes` more have gone up; then refuses new ones for `refuse_s`."""
        self._tell(f"cut {refuse_s!r} {after_nbytes}")

    def status(self) -> Status:
        """How many connections there are, and how much was carried."""
        return msgspec.json.decode(self._tell("status"), type=Status)


class Relay(_Controlled):
    """A relay to `target` in a process of its own (`splitpoint lab link`), for as long as the with statement lasts.

    `port` 0 is any free one; `seed` decides the jitter. ServerError if nothing answers at `target` or the port is in
    use, UsageError for what makes no sense.
    """

    def __init__(self, target: str, link: AnyLink, *, host: str = "127.0.0.1", port: int = 0, seed: int = 0) -> None:
        self._link = link
        self._arguments = ["--to", target, "--host", host, "--port", str(port), "--seed", str(seed)]
        self._process: subprocess.Popen[str] | None = None
        self._said: deque[str] = deque(maxlen=20)
        self._lock = threading.Lock()

    def start(self) -> None:
        if self._process is not None:
            return
        command = [sys.executable, "-m", "splitpoint", "lab", "link", "--control", "--link", "lan", *self._arguments]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=unguarded(),
            start_new_session=True,  # Ctrl-C is for whoever measures; the end of stdin is for the relay
        )
        self._listener = threading.Thread(target=self._listen, args=(self._process.stderr,), daemon=True)
        self._listener.start()
        try:
            self.address = self._answer(_START_S)
            self.set_link(self._link)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        with suppress(OSError):
            process.stdin.close()
        try:
            process.wait(5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._listener.join()
        process.stdout.close()
        process.stderr.close()

    @property
    def pid(self) -> int:
        """Its process: who measures may pin it to a core of its own. UsageError before `start`."""
        if self._process is None:
            raise UsageError("the relay is not started: use it in a with statement, or call start()")
        return self._process.pid

    @property
    def said(self) -> list[str]:
        """What it last reported, such as a target that could not be reached."""
        return list(self._said)

    def _listen(self, stream: IO[str]) -> None:
        for line in stream:
            self._said.append(line.strip().removeprefix("splitpoint: "))

    def _tell(self, line: str) -> str:
        with self._lock:
            if self._process is None or self._process.stdin is None:
                raise UsageError("the relay is not started: use it in a with statement, or call start()")
            try:
                self._process.stdin.write(line + "\n")
                self._process.stdin.flush()
            except OSError:
                pass  # it has ended: why is what it said last
            return self._answer(_ANSWER_S)

    def _answer(self, timeout_s: float) -> str:
        """Its next line. The error that it reports, or ended with, is raised."""
        process = self._process
        assert process is not None
        assert process.stdout is not None
        watchdog = threading.Timer(timeout_s, process.kill)  # readline knows no time limit
        watchdog.start()
        try:
            line = process.stdout.readline()
        finally:
            watchdog.cancel()
            watchdog.join()
        kind, _, text = line.strip().partition(" ")
        if kind == "ok":
            return text
        if kind == "error":
            raise UsageError(text)
        status = process.wait()
        self._listener.join()
        why = self._said[-1] if self._said else f"exit status {status}"
        raise (UsageError if status == UsageError.exit_code else ServerError)(why)


class ThreadRelay(_Controlled):
    """The same in a thread of this process."""

    def __init__(self, target: str, link: AnyLink, *, host: str = "127.0.0.1", port: int = 0, seed: int = 0) -> None:
        self._make = partial(Forwarder, target, link, host=host, port=port, seed=seed)
        self._forwarder: Forwarder | None = None

    def start(self) -> None:
        if self._forwarder is None:
            self._forwarder = self._make()
            self.address = self._forwarder.address
            self._thread = threading.Thread(target=self._forwarder.run, name="relay", daemon=True)
            self._thread.start()

    def close(self) -> None:
        forwarder, self._forwarder = self._forwarder, None
        if forwarder is not None:
            forwarder.stop()
            self._thread.join()

    def _tell(self, line: str) -> str:
        if self._forwarder is None:
            raise UsageError("the relay is not started: use it in a with statement, or call start()")
        return obey(self._forwarder, line)


class _Answering(Protocol):
    def __call__(self, line: str) -> None: ...


def control(forwarder: Forwarder, lines: Iterable[str], answer: _Answering) -> None:
    """Obeys `lines` one by one, says ``ok …`` or ``error …`` to each, and stops the forwarder at their end."""
    answer(f"ok {forwarder.address}")
    try:
        for line in lines:
            if line.strip():
                try:
                    answer(f"ok {obey(forwarder, line)}")
                except SplitpointError as exc:
                    answer(f"error {exc}")
    finally:
        forwarder.stop()


def obey(forwarder: Forwarder, line: str) -> str:
    """Does what one line says, and returns what it answers. UsageError for what it does not know.

    ``link LINK`` (what --link takes, or JSON) · ``stall SECONDS`` · ``blackhole SECONDS`` · ``cut [SECONDS [BYTES]]`` ·
    ``corrupt up|down [BYTES [COUNT]]`` · ``status``
    """
    verb, _, rest = line.strip().partition(" ")
    words = rest.split()
    if verb == "link" and rest:
        link = _read_link(rest)
        forwarder.ask(lambda: forwarder.set_link(link))
    elif verb == "stall" and len(words) == 1:
        seconds = _seconds(words[0])
        forwarder.ask(lambda: forwarder.stall(seconds))
    elif verb == "blackhole" and len(words) == 1:
        seconds = _seconds(words[0])
        forwarder.ask(lambda: forwarder.blackhole(seconds))
    elif verb == "cut" and len(words) <= 2:
        refuse_s = _seconds(words[0]) if words else 0.0
        after = _count(words[1], "to cut after") if len(words) > 1 else 0
        forwarder.ask(lambda: forwarder.cut(refuse_s, after))
    elif verb == "corrupt" and 1 <= len(words) <= 3 and words[0] in ("up", "down"):
        after = _count(words[1], "to pass first") if len(words) > 1 else 0
        count = _count(words[2], "to change") if len(words) > 2 else 1
        if not 1 <= count <= _MOST_CHANGED:
            raise UsageError(f"from 1 to {_MOST_CHANGED} bytes can be changed, not {count}")
        forwarder.ask(lambda: forwarder.corrupt(words[0], after, count))
    elif verb == "status" and not rest:
        statuses: list[Status] = []
        forwarder.ask(lambda: statuses.append(forwarder.status()))
        return msgspec.json.encode(statuses[0]).decode()
    else:
        raise UsageError(
            f"a relay does not know {line.strip()[:60]}: say link LINK, stall SECONDS, blackhole SECONDS, "
            "cut [SECONDS [BYTES]], corrupt up|down [BYTES [COUNT]] or status"
        )
    return ""


def _count(text: str, what: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise UsageError(f"{text[:20]} is no number of bytes {what}")
    return int(text)


def _read_link(text: str) -> AnyLink:
    """A link as `set_link` sends it, or as a person types it."""
    if not text.startswith("{"):
        return parse_link(text)
    try:
        if '"times"' in text:
            return msgspec.json.decode(text, type=LinkTrace)
        return msgspec.json.decode(text, type=Link)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise UsageError(f"this is no link: {exc}") from exc


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not isfinite(seconds) or not 0 <= seconds <= _MOST_S:
        raise UsageError(f"{text} is no time: give seconds, from 0 to {_MOST_S:.0f}")
    return seconds
