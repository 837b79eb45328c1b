"""A scenario, run: a server process, a relay process, a device process; what they measured as rows and as files."""

from __future__ import annotations

import csv
import io
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np

from splitpoint.errors import ServerError, StorageError, UsageError
from splitpoint.files import write_atomic
from splitpoint.lab.device import slowed
from splitpoint.lab.relay import Relay
from splitpoint.lab.scenario import LinkEvent, Scenario
from splitpoint.lab.worker import Row, model_name
from splitpoint.link import Link
from splitpoint.machine import this_machine, versions
from splitpoint.report.files import safe

#: While both halves are made ready: a device that is measured has fetched before.
_READY = Link(1e6, 1e6, 0.0, 0.0, "unshaped")
#: Starting Python and compiling a network may take this long; one request may take longer than it should.
_START_S, _ROW_S = 300.0, 400.0
#: Stages of a table: title → spans of a trace that it adds up.
STAGES = {
    "edge": ("head", "encode"),
    "up": ("up",),
    "server": ("decode", "queue", "tail", "reply"),
    "down": ("down",),
}
_SPANS = ("head", "encode", "up", "decode", "queue", "tail", "reply", "down")


@dataclass(frozen=True, slots=True)
class Summary:
    """One cut of a scenario: medians over its requests that were answered, in milliseconds."""

    cut: str
    codec: str
    requests: int
    failed: int
    up_nbytes: int
    down_nbytes: int
    median_ms: float
    p10_ms: float
    p90_ms: float
    spans_ms: dict[str, float]


@dataclass(frozen=True, slots=True)
class Results:
    """What came out. `note` says how it is emulated; it is in every row and file."""

    scenario: Scenario
    note: str
    rows: tuple[Row, ...]

    def summary(self) -> list[Summary]:
        """One line a cut, in the scenario's order."""
        return [
            _summarise(cut, [r for r in self.rows if r.cut == cut]) for cut in dict.fromkeys(r.cut for r in self.rows)
        ]

    def save(self, folder: Path) -> None:
        """Writes requests.jsonl, summary.csv, about.json and the scenario into `folder`. StorageError if it cannot."""
        make_folder(folder)
        lines = b"".join(msgspec.json.encode(row) + b"\n" for row in self.rows)
        about = {"note": self.note, "machine": this_machine(), "versions": versions(), "scenario": self.scenario}
        write_atomic(folder / "requests.jsonl", lines)
        write_atomic(folder / "summary.csv", self._csv().encode())
        write_atomic(folder / "about.json", msgspec.json.format(msgspec.json.encode(about), indent=2) + b"\n")
        if self.scenario.source:
            write_atomic(folder / "scenario.toml", self.scenario.source.encode())

    def _csv(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        titles = ["scenario", "cut", "codec", "requests", "failed", "up_nbytes", "down_nbytes"]
        writer.writerow([*titles, "median_ms", "p10_ms", "p90_ms", *(f"{s}_ms" for s in _SPANS), "note"])
        for s in self.summary():
            spans = [f"{s.spans_ms.get(name, 0.0):.4f}" for name in _SPANS]
            counts = [s.cut, s.codec, s.requests, s.failed, s.up_nbytes, s.down_nbytes]
            times = [f"{ms:.4f}" for ms in (s.median_ms, s.p10_ms, s.p90_ms)]
            writer.writerow([safe(cell) for cell in (self.scenario.name, *counts, *times, *spans, self.note)])
        return text.getvalue()


def _summarise(cut: str, rows: Sequence[Row]) -> Summary:
    good = [r for r in rows if not r.error]
    p10, median, p90 = np.percentile([r.total_ms for r in good], (10, 50, 90)) if good else (0.0, 0.0, 0.0)
    spans = {s: float(np.median([r.spans_ms.get(s, 0.0) for r in good])) for s in _SPANS} if good else {}
    codec = " + ".join(dict.fromkeys(good[0].codecs.values())) if good else ""
    return Summary(
        cut=cut,
        codec=codec or "raw",
        requests=len(rows),
        failed=len(rows) - len(good),
        up_nbytes=int(np.median([r.up_nbytes for r in good])) if good else 0,
        down_nbytes=int(np.median([r.down_nbytes for r in good])) if good else 0,
        median_ms=float(median),
        p10_ms=float(p10),
        p90_ms=float(p90),
        spans_ms=spans,
    )


def make_folder(folder: Path) -> None:
    """`folder`, made if it is not there. StorageError if it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise StorageError(f"{folder} cannot be made: {exc.strerror or exc}") from exc


def run(scenario: Scenario, file: Path, *, on_row: Callable[[Row], None] = lambda _: None) -> Results:
    """Runs `scenario` (from `file`, which the device reads too) and returns what was measured.

    Raises what its parts do: ServerError if one of the processes ends, UsageError, ModelError, CutError as they say.
    """
    shaped = scenario.shaped()
    with (
        _server(scenario) as server,
        Relay(server, _READY, seed=scenario.seed) as relay,
        _device(scenario, file, relay.address) as device,
    ):
        device.expect("ready")
        relay.set_link(shaped)
        device.go()
        device.expect("measuring")
        relay.set_link(shaped)  # a trace begins with the first request
        with _events(scenario, relay):
            device.go()
            rows = []
            for line in device.lines(len(scenario.at or "1") * scenario.requests):
                rows.append(msgspec.json.decode(line, type=Row))
                on_row(rows[-1])
    about = f"{shaped.name}, {shaped}".removeprefix(", ") if isinstance(shaped, Link) else f"trace {shaped.name}"
    note = "; ".join(filter(None, (f"emulated link: {about}", rows[0].note)))
    return Results(scenario, note, tuple(msgspec.structs.replace(row, note=note) for row in rows))


# --- the processes ---------------------------------------------------------------------------------------------------


class _Process:
    """A process of ours that says lines."""

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
        for line in stream:
            put(line.rstrip("\n"))
        put(None)

    def _complain(self, line: str | None) -> None:
        if line:
            self._complaints = [*self._complaints[-5:], line]

    def line(self, timeout_s: float) -> str:
        """What it says next. The error that it ended with is raised, as what it was."""
        try:
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            raise ServerError(f"the {self.name} said nothing for {timeout_s:.0f} s") from None
        if line is None:
            status = self.process.wait()
            self._readers[1].join()
            said = self._complaints[-1] if self._complaints else f"exit status {status}"
            kind = UsageError if status == UsageError.exit_code else ServerError
            raise kind(f"the {self.name} ended: {said.removeprefix('splitpoint: ')}")
        return line

    def expect(self, word: str) -> None:
        while self.line(_START_S) != word:
            pass

    def lines(self, count: int) -> Iterator[str]:
        for _ in range(count):
            yield self.line(_ROW_S)

    def go(self) -> None:
        assert self.process.stdin is not None
        with suppress(OSError):  # it has ended; its next line says why
            self.process.stdin.write("go\n")
            self.process.stdin.flush()

    def close(self) -> None:
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


_PIPES: dict[str, Any] = {
    "stdin": subprocess.PIPE,
    "stdout": subprocess.PIPE,
    "stderr": subprocess.PIPE,
    "text": True,
}


@contextmanager
def _server(scenario: Scenario) -> Iterator[str]:
    """Address of a `splitpoint serve` process."""
    options = ["--port", "0", "--threads", str(scenario.server.threads), "--device", scenario.server.device]
    options.append("--until-stdin-ends")  # so that it ends with us, whatever ends us
    command = [sys.executable, "-u", "-m", "splitpoint", "serve", model_name(scenario), *options]
    server = _Process(subprocess.Popen(command, **_PIPES), "server")
    try:
        while not (line := server.line(_START_S)).startswith("serving on "):
            pass
        yield line.split()[2]
    finally:
        server.close()


@contextmanager
def _device(scenario: Scenario, file: Path, address: str) -> Iterator[_Process]:
    """The device's process, under a CPU limit if the scenario wants one."""
    command = [sys.executable, "-u", "-m", "splitpoint", "lab", "edge", str(file), "--cloud", address]
    asked = scenario.device
    if asked.method == "stretched" or asked.slowdown == 1:
        device = _Process(subprocess.Popen(command, **_PIPES), "device")
        try:
            yield device
        finally:
            device.close()
        return
    method = "auto" if asked.method == "limit" else asked.method
    with slowed(asked.slowdown, threads=asked.threads, method=method) as limited:
        device = _Process(limited.start(command, **_PIPES), "device")
        try:
            yield device
        finally:
            device.close()


@contextmanager
def _events(scenario: Scenario, relay: Relay) -> Iterator[None]:
    """What the scenario does to the link, at its time, in a thread of its own."""
    over = threading.Event()
    began = time.monotonic()

    def play() -> None:
        for event in sorted(scenario.events, key=lambda e: e.at_s):
            if over.wait(max(0.0, began + event.at_s - time.monotonic())):
                return
            _happen(scenario, relay, event)

    player = threading.Thread(target=play, name="events", daemon=True)
    player.start()
    try:
        yield
    finally:
        over.set()
        player.join()


def _happen(scenario: Scenario, relay: Relay, event: LinkEvent) -> None:
    if event.do == "stall":
        relay.stall(event.seconds)
    elif event.do == "cut":
        relay.cut(event.seconds)
    else:
        relay.set_link(scenario.shaped(event.link))
