"""A shaped link before a TCP server: an address of its own that carries every byte late and no faster than told.

`forwarder.Forwarder` says what it can be told, docs/lab.md has an example. `Relay` runs one in a process of its own, so
that it waits for no interpreter lock of whoever measures, and tells it in the words of `obey`.
"""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from math import isfinite

import msgspec

from splitpoint.errors import SplitpointError, UsageError
from splitpoint.lab.forwarder import Forwarder, Status
from splitpoint.lab.process import Process, run_splitpoint
from splitpoint.link import Link
from splitpoint.link.link_trace import LinkTrace
from splitpoint.link.parse import parse_link

AnyLink = Link | LinkTrace
#: Python and the command line must start; a loaded single-board computer takes its time.
_START_S = 60.0
_ANSWER_S = 10.0
#: A stall or refusal longer than a day is a slip of the pen, and so is damage to more than this.
_MOST_S = 86_400.0
_MOST_CHANGED = 1_000_000


class Relay:
    """A relay to `target` in a process of its own (`splitpoint lab link`), for as long as the with statement lasts.

    `port` 0 is any free one; `seed` decides the jitter. ServerError if nothing answers at `target` or the port is in
    use, UsageError for what makes no sense.
    """

    address = ""
    """``host:port`` to connect to, once started."""

    def __init__(self, target: str, link: AnyLink, *, host: str = "127.0.0.1", port: int = 0, seed: int = 0) -> None:
        self._link = link
        self._arguments = ["--to", target, "--host", host, "--port", str(port), "--seed", str(seed)]
        self._process: Process | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Relay:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        if self._process is not None:
            return
        words = ("lab", "link", "--control", "--link", "lan", *self._arguments)
        # Ctrl-C is for whoever measures; the end of stdin is for the relay.
        self._process = run_splitpoint("", *words, start_new_session=True)
        try:
            self.address = self._answer(self._process, _START_S)
            self.set_link(self._link)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            assert process.process.stdin is not None
            with suppress(OSError):
                process.process.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                process.process.wait(5.0)
            process.close()

    @property
    def pid(self) -> int:
        """Its process: who measures may pin it to a core of its own. UsageError before `start`."""
        return self._running().process.pid

    def set_link(self, link: AnyLink) -> None:
        self._tell("link " + msgspec.json.encode(link).decode())

    def stall(self, seconds: float) -> None:
        self._tell(f"stall {seconds!r}")

    def blackhole(self, seconds: float) -> None:
        self._tell(f"blackhole {seconds!r}")

    def corrupt(self, direction: str, after_nbytes: int = 0, count: int = 1) -> None:
        self._tell(f"corrupt {direction} {after_nbytes} {count}")

    def cut(self, refuse_s: float = 0.0, after_nbytes: int = 0) -> None:
        self._tell(f"cut {refuse_s!r} {after_nbytes}")

    def status(self) -> Status:
        return msgspec.json.decode(self._tell("status"), type=Status)

    def _running(self) -> Process:
        if self._process is None:
            raise UsageError("the relay is not started: use it in a with statement, or call start()")
        return self._process

    def _tell(self, line: str) -> str:
        """The answer to one line, in the words of `obey`."""
        with self._lock:
            process = self._running()
            process.say(line)
            return self._answer(process, _ANSWER_S)

    def _answer(self, process: Process, timeout_s: float) -> str:
        """Its next line. The error that it reports, or ended with, is raised."""
        kind, _, text = process.line(timeout_s).partition(" ")
        if kind == "error":
            raise UsageError(text)
        return text


def control(forwarder: Forwarder, lines: Iterable[str], answer: Callable[[str], None]) -> None:
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
    """Does what one line says (a link as --link takes it, or as JSON), and returns what it answers. UsageError names
    all that can be said."""
    verb, _, rest = line.strip().partition(" ")
    words = rest.split()
    if verb == "link" and rest:
        forwarder.ask(partial(forwarder.set_link, _read_link(rest)))
    elif verb == "stall" and len(words) == 1:
        forwarder.ask(partial(forwarder.stall, _seconds(words[0])))
    elif verb == "blackhole" and len(words) == 1:
        forwarder.ask(partial(forwarder.blackhole, _seconds(words[0])))
    elif verb == "cut" and len(words) <= 2:
        refuse_s = _seconds(words[0]) if words else 0.0
        after = _count(words[1], "to cut after") if len(words) > 1 else 0
        forwarder.ask(partial(forwarder.cut, refuse_s, after))
    elif verb == "corrupt" and 1 <= len(words) <= 3 and words[0] in ("up", "down"):
        after = _count(words[1], "to pass first") if len(words) > 1 else 0
        count = _count(words[2], "to change") if len(words) > 2 else 1
        if not 1 <= count <= _MOST_CHANGED:
            raise UsageError(f"from 1 to {_MOST_CHANGED} bytes can be changed, not {count}")
        forwarder.ask(partial(forwarder.corrupt, words[0], after, count))
    elif verb == "status" and not rest:
        return msgspec.json.encode(forwarder.ask(forwarder.status)).decode()
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
