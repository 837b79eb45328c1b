"""How soon `splitpoint run` gives its first answer, from the moment it is connected, and what of that is fetching and
compiling for it.

    python -m bench.first [--rounds N] [MODEL [OPTION …]]     # options are `splitpoint run`'s, such as --profile-first
    python -m bench.first --beside [--ahead] [--rounds N] [MODEL]  # what profiling costs the requests beside it

Cold: a new server and an empty cache. Warm: the same command again, with what both have kept. The link is shaped (the
lab's relay), device and server have a core each. *fetch* is the graph and the weights that the first answer waited
for; *compile* is the head here and, with a round trip, the tail there; *rest* is all else. Measured on the thread that
asks: what is done beside it costs the first answer nothing.

--ahead is for a machine that does other work, too: requests are of the class SCHED_FIFO (as root), so that nobody is
ahead of them, and what profiles is of the lowest, as ever. Nothing is streamed then, as threads of one class wait for
each other. It shows what is left (locks, caches, who reads answers), not whether the core is given up at once.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import Any

import numpy as np

import splitpoint as sp
from bench.common import EDGE_CORE, SERVE, header, helper, pin
from splitpoint.engines import Engine
from splitpoint.lab.relay import Relay
from splitpoint.link import Link
from splitpoint.profile.measure import profile_model
from splitpoint.profile.spare import Spare
from splitpoint.segments import samples_for

LINK = Link(20.0, 20.0, 20.0)
#: What the first answer may take beside fetching and compiling.
TARGET_S = 2.0
PHOTO = Path(__file__).parent.parent / "src" / "splitpoint" / "zoo" / "photos" / "cat.jpg"
_MARK = "#bench"
#: Of each kind in a round: requests one after the other, the pause between them, and requests of a stream.
_ALONE, _GAP_S, _STREAMED = 100, 0.02, 100
EDGE = """
import sys
from bench.common import pin
from bench.first import watched
pin(int(sys.argv[1]))
watched()
from splitpoint.cli.verbs import main
sys.exit(main(sys.argv[2:]))
"""


def watched() -> None:
    """From now on what the main thread fetches and compiles is written to standard error, with its seconds."""
    from splitpoint.engines.onnxruntime import OnnxRuntimeEngine
    from splitpoint.profile.measure import ProfileRun
    from splitpoint.runtime.client.held_weights import Holding
    from splitpoint.runtime.client.wire_remote import WireProvider, WireTail

    inside: list[str] = []

    def timed(owner: Any, name: str, what: str) -> None:
        method: Callable[..., Any] = getattr(owner, name)

        def wrapper(*args: Any, **more: Any) -> Any:
            mine = threading.current_thread() is threading.main_thread()
            if what != "connect" and (inside or not mine):  # the first connection is made in a thread of its own
                return method(*args, **more)
            inside.append(what)
            began = perf_counter()
            try:
                return method(*args, **more)
            finally:
                inside.pop()
                print(_MARK, what, began, perf_counter(), file=sys.stderr, flush=True)

        setattr(owner, name, wrapper)

    timed(WireProvider, "connect", "connect")
    for name in ("prepare", "visit"):
        timed(ProfileRun, name, "profile")  # what is compiled for that is not for the first answer
    for name in ("_fetch_graph", "pull"):
        timed(Holding, name, "fetch")
    timed(OnnxRuntimeEngine, "compile", "compile")
    timed(WireTail, "ready", "compile")


def first_answer(address: str, cache: Path, options: Sequence[str]) -> dict[str, float]:
    """Seconds from the connection to the first answer, the parts of it, and to the end of the command."""
    words = [str(EDGE_CORE), "run", str(PHOTO), "--cloud", address, "--cache", str(cache), "--threads", "1", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-c", EDGE, *words, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout
        assert process.stderr
        said: list[str] = []
        listening = threading.Thread(target=lambda: said.extend(process.stderr or ()))
        listening.start()
        answered = perf_counter() if process.stdout.readline() else 0.0
        process.stdout.read()
        listening.join()
    ended = perf_counter()
    if process.returncode or not answered:
        raise SystemExit("".join(said))
    spans = [(what, float(a), float(b)) for mark, what, a, b in map(str.split, (s for s in said if _MARK in s))]
    connected = next(b for what, _, b in spans if what == "connect")
    parts: dict[str, float] = defaultdict(float, {"fetch": 0.0, "compile": 0.0})
    for what, began, end in spans:
        if what in parts and connected <= began < answered:
            parts[what] += min(end, answered) - began
    total = answered - connected
    return {"first answer": total, **parts, "rest": total - sum(parts.values()), "command": ended - connected}


def ahead() -> None:
    """From now on this thread, and those that it starts, come before what all others do. PermissionError."""
    if sys.platform == "linux":
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))


def beside(model_name: str, rounds: int, first: bool) -> None:
    """What requests take while both sides are profiled beside them, and while nothing is (twice, as A/A)."""
    pin(EDGE_CORE)
    if first:
        ahead()  # the server, too: a process begins as its parent is
    engine = sp.open_engine(threads=1)
    seen: dict[str, dict[str, list[float]]] = {k: defaultdict(list) for k in ("without", "again", "with profiling")}
    wholes: list[float] = []
    with helper(SERVE, model_name) as server, tempfile.TemporaryDirectory() as folder:
        assert server.stdout
        address = server.stdout.readline().strip()
        alone = profile_model(sp.load(model_name), engine, budget_s=2.0).whole.median
        with sp.Edge(address, sp.load(model_name), engine=engine, cache=Path(folder)) as edge:
            image = samples_for(edge.model, 1)[0]
            for _ in range(20):
                edge.infer(image)
            for _ in range(rounds):
                for kind, row in seen.items():
                    with _profiling(edge, engine, wholes) if kind == "with profiling" else nullcontext():
                        for _ in range(_ALONE):
                            began = perf_counter()
                            edge.infer(image)
                            row["alone ms"].append((perf_counter() - began) * 1e3)
                            sleep(_GAP_S)
                        if first:
                            continue
                        began = perf_counter()
                        for _ in edge.stream((image for _ in range(_STREAMED)), window=4):
                            pass
                        row["stream /s"].append(_STREAMED / (perf_counter() - began))
    print(f"\n{model_name}, cut in the middle, loopback: one request after the other, with pauses; and streamed")
    for kind, row in seen.items():
        p50, p90, p99 = np.percentile(row["alone ms"], (50, 90, 99))
        print(
            f"{kind:<15} p50 {p50:.2f} ms  p90 {p90:.2f}  p99 {p99:.2f}"
            + "".join(
                f"   stream p50 {median(s):.1f}/s ({min(s):.1f} to {max(s):.1f})" for s in [row["stream /s"]] if s
            )
        )
    print(f"whole model on the device: {alone:.2f} ms measured alone, {median(wholes):.2f} ms beside requests")


@contextmanager
def _profiling(edge: sp.Edge, engine: Engine, wholes: list[float]) -> Iterator[None]:
    """Inside, device and server measure themselves, as an edge that plans by itself has them do."""
    over = threading.Event()

    def here() -> None:
        with Spare(lambda: edge.begun, over) as spare:
            stand_in = edge.model.with_stand_ins()
            profile = profile_model(
                stand_in, engine, budget_s=1e3, clock=spare.clock, proceed=spare.proceed, pause=spare.pause
            )
        wholes.append(profile.whole.median)

    def there() -> None:
        edge.profile_server(2.0, fresh=True, within_s=600.0)

    threads = [threading.Thread(target=work) for work in (here, there)]
    for thread in threads:
        thread.start()
    yield
    over.set()
    for thread in threads:
        thread.join()


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.first")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--beside", action="store_true", help="what profiling costs the requests that it runs beside")
    parser.add_argument("model", nargs="?", default="zoo:efficientnet_lite0")
    parser.add_argument("--ahead", action="store_true", help="with --beside: requests come before all other work")
    asked, options = parser.parse_known_args(arguments)
    if asked.beside:
        beside(asked.model, asked.rounds, asked.ahead)
        return
    print(f"{asked.model}, {LINK}, one photo{' ' + ' '.join(options) if options else ''}: seconds, p50 (p90)")
    seen: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    for _ in range(asked.rounds):
        with tempfile.TemporaryDirectory() as folder, helper(SERVE, asked.model) as server:
            assert server.stdout
            with Relay(server.stdout.readline().strip(), LINK) as relay:
                for kind in seen:
                    seen[kind].append(first_answer(relay.address, Path(folder), options))
    for kind, runs in seen.items():
        row = (f"{part} {median(values):.2f} ({np.percentile(values, 90):.2f})"
               for part, values in ((part, [r[part] for r in runs]) for part in runs[0]))  # fmt: skip
        met = median(r["rest"] for r in runs) <= TARGET_S
        print(f"{kind}  {'  '.join(row)}  rest <= {TARGET_S:g} s: {'yes' if met else 'NO'}")


if __name__ == "__main__":
    print(header())
    main(sys.argv[1:])
