"""A scenario, run: a server process, a relay process, a device process; what they measured as rows and as files."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from splitpoint.callbacks import call
from splitpoint.files import make_folder, write_atomic
from splitpoint.lab.process import ROW_S, Process, run_splitpoint, serving
from splitpoint.lab.relay import Relay
from splitpoint.lab.scenario import LinkEvent, Scenario
from splitpoint.lab.scenario_device import ScenarioRow
from splitpoint.lab.slow_device import slowed
from splitpoint.link import Link
from splitpoint.machine import this_machine, versions
from splitpoint.report.files import write_csv

#: While both halves are made ready: a device that is measured has fetched before.
_READY = Link(1e6, 1e6, 0.0, 0.0, "unshaped")
_SPANS = ("head", "encode", "up", "decode", "queue", "tail", "reply", "down")
_COLUMNS = (
    "scenario", "cut", "codec", "requests", "failed", "up_nbytes", "down_nbytes", "median_ms", "p10_ms", "p90_ms",
    *(f"{name}_ms" for name in _SPANS), "note",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class CutSummary:
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
    rows: tuple[ScenarioRow, ...]

    def summary(self) -> list[CutSummary]:
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
        write_csv(folder / "summary.csv", [self._cells(s) for s in self.summary()], _COLUMNS)
        write_atomic(folder / "about.json", msgspec.json.format(msgspec.json.encode(about), indent=2) + b"\n")
        if self.scenario.source:
            write_atomic(folder / "scenario.toml", self.scenario.source.encode())

    def _cells(self, summary: CutSummary) -> dict[str, Any]:
        values = asdict(summary) | {f"{name}_ms": summary.spans_ms.get(name, 0.0) for name in _SPANS}
        cells = {name: f"{value:.4f}" if isinstance(value, float) else value for name, value in values.items()}
        return {"scenario": self.scenario.name, **cells, "note": self.note}


def _summarise(cut: str, rows: Sequence[ScenarioRow]) -> CutSummary:
    good = [r for r in rows if not r.error]
    if not good:
        return CutSummary(cut, "raw", len(rows), len(rows), 0, 0, 0.0, 0.0, 0.0, {})
    p10, median, p90 = (float(ms) for ms in np.percentile([r.total_ms for r in good], (10, 50, 90)))
    return CutSummary(
        cut=cut,
        codec=" + ".join(dict.fromkeys(good[0].codecs.values())) or "raw",
        requests=len(rows),
        failed=len(rows) - len(good),
        up_nbytes=int(np.median([r.up_nbytes for r in good])),
        down_nbytes=int(np.median([r.down_nbytes for r in good])),
        median_ms=median,
        p10_ms=p10,
        p90_ms=p90,
        spans_ms={s: float(np.median([r.spans_ms.get(s, 0.0) for r in good])) for s in _SPANS},
    )


def run(scenario: Scenario, file: Path, *, on_row: Callable[[ScenarioRow], None] = lambda _: None) -> Results:
    """Runs `scenario` (from `file`, which the device reads too) and returns what was measured.

    Raises what its parts do: ServerError if one of the processes ends, UsageError, ModelError, CutError as they say.
    """
    shaped = scenario.shaped()
    asked = scenario.server
    options = ["--engine", asked.engine, "--device", asked.device, "--threads", str(asked.threads)]
    with (
        serving("server", scenario.located, *options) as server,
        Relay(server, _READY, seed=scenario.seed) as relay,
        _device(scenario, file, relay.address) as device,
    ):
        device.expect("ready")
        relay.set_link(shaped)
        device.say()
        device.expect("measuring")
        relay.set_link(shaped)  # a trace begins with the first request
        with _events(scenario, relay):
            device.say()
            rows = []
            for _ in range(len(scenario.at or "1") * scenario.requests):
                rows.append(msgspec.json.decode(device.line(ROW_S), type=ScenarioRow))
                call(on_row, rows[-1])
    about = f"{shaped.name}, {shaped}".removeprefix(", ") if isinstance(shaped, Link) else f"trace {shaped.name}"
    note = "; ".join(filter(None, (f"emulated link: {about}", rows[0].note)))
    return Results(scenario, note, tuple(msgspec.structs.replace(row, note=note) for row in rows))


# --- the processes ---------------------------------------------------------------------------------------------------


@contextmanager
def _device(scenario: Scenario, file: Path, address: str) -> Iterator[Process]:
    """The device's process, under a CPU limit if the scenario wants one."""
    words = ("lab", "edge", str(file), "--cloud", address)
    asked = scenario.device
    with ExitStack() as stack:
        start: Callable[..., subprocess.Popen[Any]] = subprocess.Popen
        if asked.method != "stretched" and asked.slowdown > 1:
            start = stack.enter_context(slowed(asked.slowdown, threads=asked.threads, method=asked.method)).start
        yield stack.enter_context(closing(run_splitpoint("device", *words, start=start)))


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

    with ThreadPoolExecutor(1, thread_name_prefix="events") as pool:
        player = pool.submit(play)
        try:
            yield
        finally:
            over.set()
        player.result()  # one that did not happen makes the results those of another scenario


def _happen(scenario: Scenario, relay: Relay, event: LinkEvent) -> None:
    if event.do == "link":
        relay.set_link(scenario.shaped(event.link))
    elif event.do == "corrupt":
        relay.corrupt(event.direction, event.after_nbytes, event.count)
    elif event.do == "cut":
        relay.cut(event.seconds)
    else:
        (relay.stall if event.do == "stall" else relay.blackhole)(event.seconds)
