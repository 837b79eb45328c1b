"""Forty requests for four models, one queue: each with its own best plan (fifo), or planned together (joint).

    python -m bench.tasks                  # 4g and wifi, a device 4 times slower, raw and with int8 and JPEG allowed
    python -m bench.tasks --simulate       # profiles and predictions alone, for ten seeds
    python -m bench.tasks --rounds 5
    python -m bench.tasks --device here    # the device's heads are computed beside the server
    python -m bench.tasks --commands       # the command on one machine: both processes on all cores, fifo and joint

Read this first. One machine plays all parts: the device on one core, the server on another (one thread each), a relay
that shapes the link. Slow device and link are *emulated*; server and wire are real. Weights are random. All tasks are
there at the start; what each policy uses is compiled and run before, also several at once, so that the server has tried
its batches; a first round is not counted. The policies run in the same pipeline on the same server and take turns.
After it every answer is compared with the whole model's.

The header says how much the two cores disturb each other, which a device and a server do not do: measured with AlexNet,
whose weights do not fit their caches. So heads are computed before the queue starts, and while it runs the device waits
as long as it would compute (`bench.apart`); what it did compute meanwhile, as a plan was changed, is counted and said.
With ``--device here`` it computes beside the server and then waits (`splitpoint.lab.slow_device`).

``--commands`` is what a user sees who tries it on one machine: a server and `splitpoint tasks`, neither of them pinned,
with the default threads and with one each. Profiles are kept, all else is new for each command. Fifo is run twice in
each round: that says what noise is. Target: joint's makespan and its command's time at most fifo's and the noise.

Target else: joint's makespan at most 0.85 of fifo's, both links, with what a user gets by default (raw).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from subprocess import Popen
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import NamedTuple

import numpy as np

from bench.apart import Apart
from bench.common import EDGE_CORE, SERVE, SERVER_CORE, header, helper, pin
from bench.nets import MIX, path_of
from bench.split import said
from splitpoint.engines import open_engine
from splitpoint.lab.relay import Relay
from splitpoint.lab.slow_device import Stretched
from splitpoint.link.presets import PRESETS
from splitpoint.models import load
from splitpoint.planning.constraints import Constraints
from splitpoint.profile.files import load_profile, save_profile
from splitpoint.profile.measure import profile_model
from splitpoint.profile.profiles import Profile
from splitpoint.survey import Survey, placement
from splitpoint.tasks.fleet import Fleet, inputs_of
from splitpoint.tasks.queue_run import Planned, QueueRun, predict
from splitpoint.tasks.task import QueueSummary, Task, mix
from splitpoint.tensors import Array

LINKS, SLOWDOWN, COUNT, SEED = ("4g", "wifi"), 4, 40, 1
POLICIES = ("fifo", "sjf", "joint")
TARGET = 0.15
DEVICES = {"apart": Apart, "here": Stretched}
CODECS = {"raw": (), "int8, JPEG allowed": ("int8", "jpeg:90")}
PROFILE_S = 25.0


class Known(NamedTuple):
    """A model's profiles at full speed, on the device's core and on the server's."""

    edge: Profile
    cloud: Profile


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(description="One queue, several policies.")
    parser.add_argument("--simulate", action="store_true", help="predictions alone")
    parser.add_argument("--commands", action="store_true", help="whole commands, on one machine")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile-s", type=float, default=PROFILE_S)
    parser.add_argument("--links", nargs="+", default=LINKS, choices=tuple(PRESETS))
    parser.add_argument("--policies", nargs="+", default=POLICIES, choices=POLICIES)
    parser.add_argument("--codecs", nargs="+", default=tuple(CODECS), choices=tuple(CODECS))
    parser.add_argument("--device", default="apart", choices=DEVICES, help="where its heads are computed")
    parser.add_argument("--keep", type=Path, help="a folder for the profiles, to use them again")
    given = parser.parse_args(list(arguments))
    if given.commands:
        for threads in (0, 1):
            commands([path_of(name) for name in MIX], given.rounds, threads, given.profile_s)
        return
    pin(EDGE_CORE)
    names = [path_of(name) for name in MIX]
    print(f"the server's core takes {disturbance(path_of('alexnet')):.2f}x as long while the device's computes")
    with helper(SERVE, *names) as server, Relay(said(server), PRESETS["lan"]) as relay:
        # A link is neither's work: it is with whoever computes less here.
        os.sched_setaffinity(relay.pid, {EDGE_CORE if given.device == "apart" else SERVER_CORE})
        known = profiles(relay.address, names, given.profile_s, given.keep)
        for codecs in given.codecs:
            for link in given.links:
                with fleet_of(relay, names, known, codecs, given.device) as fleet:
                    if given.simulate:
                        simulate(fleet, codecs, link)
                    else:
                        measure(fleet, relay, codecs, link, given.rounds, given.policies)


def tasks_of(seed: int) -> list[Task]:
    return mix(list(MIX), COUNT, seed)


def profiles(address: str, names: Sequence[str], budget_s: float, keep: Path | None) -> dict[str, Known]:
    """Each model on both cores; read from `keep` where an earlier run has left it there."""
    surveys = {}
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
    with Fleet(address, engine=open_engine(threads=1)) as fleet:
        for name, file in zip(MIX, names, strict=True):
            kept = [keep / f"{name}.{side}.profile.json" for side in ("edge", "cloud")] if keep else []
            if kept and all(path.exists() for path in kept):
                known = Known(*(load_profile(path) for path in kept))
            else:
                model = load(file)
                here = profile_model(model, open_engine(threads=1), budget_s=budget_s)
                known = Known(here, fleet.add((name, ""), model).profile_server(budget_s))
                for path, profile in zip(kept, known, strict=False):
                    save_profile(path, profile)
            surveys[name] = known
            print(
                f"{name}: whole {known.edge.whole.median:.1f} ms on the device's core, "
                f"{known.cloud.whole.median:.1f} ms on the server's",
                flush=True,
            )
    return surveys


@contextmanager
def fleet_of(relay: Relay, names: Sequence[str], known: dict[str, Known], codecs: str, device: str) -> Iterator[Fleet]:
    """The four models, on a device as slow as it is emulated."""
    relay.set_link(PRESETS["lan"])
    engine = DEVICES[device](open_engine(threads=1), SLOWDOWN)
    constraints = Constraints(codecs=CODECS[codecs])
    with Fleet(relay.address, engine=engine, constraints=constraints) as fleet:
        for name, file in zip(MIX, names, strict=True):
            fleet.add((name, ""), load(file))
            edge, cloud = known[name]
            fleet.know((name, ""), Survey(edge.slowed(SLOWDOWN), cloud, PRESETS["lan"]))
        yield fleet


def disturbance(file: str) -> float:
    """How many times as long the server's core takes for a network while the device's computes it too."""
    with helper(WHOLE, file, str(SERVER_CORE)) as one, helper(WHOLE, file, str(EDGE_CORE)) as other:
        for process in (one, other):
            said(process)
        alone, beside = [], []
        for _ in range(3):
            alone.append(_asked([one]))
            beside.append(_asked([one, other]))
    return median(beside) / median(alone)


def _asked(processes: Sequence[Popen[str]]) -> float:
    """What the first of them takes for a few runs while the others compute, too."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    taken = [float(said(process)) for process in processes]
    return taken[0]


#: Runs a network on a core when asked with a line, and answers with the seconds of a run.
WHOLE = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[2])})
from time import perf_counter
import splitpoint as sp
from splitpoint.segments import samples_for
model = sp.load(sys.argv[1])
session = sp.open_engine(threads=1).compile(model.tail(model.graph.cut("input")))
inputs = samples_for(model, 1, 0)[0]
session.run(inputs)
print("ready", flush=True)
for _ in sys.stdin:
    start = perf_counter()
    for _ in range(20):
        session.run(inputs)
    print((perf_counter() - start) / 20, flush=True)
"""


def commands(names: Sequence[str], rounds: int, threads: int, budget_s: float) -> None:
    """Whole commands by fifo, fifo again and joint, in turns: makespans and seconds until the command has ended."""
    taken: dict[str, list[tuple[float, float]]] = {"fifo": [], "fifo again": [], "joint": []}
    print(f"{threads or 'default'} threads, device and server on all cores, neither pinned", flush=True)
    with helper(SERVE_HERE, str(threads), *names) as server, TemporaryDirectory() as cache:
        command = [
            *(sys.executable, "-m", "splitpoint", "tasks", "--mix", ",".join(MIX), "--count", str(COUNT)),
            *("--seed", str(SEED), "--cloud", said(server), "--cache", cache, "--budget", f"{budget_s:g}s", "--json"),
            *(("--threads", str(threads)) if threads else ()),
        ]
        subprocess.run([*command, "--dry-run"], check=True, capture_output=True)  # profiles both sides
        for _ in range(rounds):
            for by, runs in taken.items():
                began = perf_counter()
                asked = [*command, "--policy", by.split()[0]]
                ended = subprocess.run(asked, check=True, capture_output=True, text=True)
                summary = json.loads(ended.stdout)["summary"]
                runs.append((summary["makespan_ms"], perf_counter() - began))
                print(
                    f"  {by:10} {runs[-1][0]:6.0f} ms (predicted {summary['predicted_ms']:.0f}), ready after "
                    f"{summary['compile_s']:.1f} s, command {runs[-1][1]:.1f} s; shared {summary['shared']:.2f}",
                    flush=True,
                )
    print(f"commands, {threads or 'default'} threads, medians of {rounds} (largest):")
    for by, runs in taken.items():
        (span, most), (whole, longest) = ((median(values), max(values)) for values in zip(*runs, strict=True))
        print(f"  {by:10} {span:6.0f} ms ({most:.0f}), command {whole:.1f} s ({longest:.1f})", flush=True)
    for by in ("fifo again", "joint"):
        each = [one[0] / first[0] for one, first in zip(taken[by], taken["fifo"], strict=True)]
        print(f"  {by} / fifo, of one round: {median(each):.2f} ({min(each):.2f} to {max(each):.2f})", flush=True)


#: A server on all cores, with so many threads (0: the default).
SERVE_HERE = """
import sys
import splitpoint as sp
threads = int(sys.argv[1])
models = [sp.load(m) for m in sys.argv[2:]]
with sp.Server(models, engine=sp.open_engine(threads=threads) if threads else sp.open_engine(), port=0) as server:
    print(server.address, flush=True)
    sys.stdin.read()
"""


def simulate(fleet: Fleet, codecs: str, link: str) -> None:
    """Predicted makespans for ten seeds."""
    fleet.link = PRESETS[link]
    for seed in range(10):
        plans = {by: predict(fleet, tasks_of(seed), by) for by in POLICIES}
        show(f"{codecs}, {link}, seed {seed}", {by: [p.summary] for by, p in plans.items()})
        if seed == SEED:
            describe(plans["fifo"])
            describe(plans["joint"])


def measure(fleet: Fleet, relay: Relay, codecs: str, link: str, rounds: int, policies: Sequence[str]) -> None:
    """The seed's queue by every policy, in turns."""
    tasks = tasks_of(SEED)
    inputs = inputs_of(fleet, tasks)
    relay.set_link(PRESETS[link])
    fleet.link = next(iter(fleet.edges.values())).measure_link()
    print(f"\n{codecs}, {link}: {fleet.link}; device {note_of(fleet)}", flush=True)
    taken: dict[str, list[QueueSummary]] = {by: [] for by in policies}
    relay.set_link(PRESETS["lan"])
    for by in policies:  # compiled before the first measured run
        describe(QueueRun(fleet, tasks, by, inputs).prepare(ahead=True))
    compute_all(fleet, tasks, inputs)
    relay.set_link(PRESETS[link])
    answers: list[tuple[Task, Mapping[str, Array]]] = []
    for k in range(rounds + 1):
        for by in policies:
            run = QueueRun(fleet, tasks, by, inputs)
            run.on_answer = lambda row, result: answers.append((row.task, result.outputs))
            before = computed(fleet)
            run.run()
            if k:  # in the first round the server still tries batches: whoever comes first would pay for all
                taken[by].append(run.summary)
            report(run.summary, computed(fleet) - before, "" if k else "not counted: ")
    show(f"{codecs}, {link}, measured, medians of {rounds}", taken)
    if codecs == "raw":
        compare(fleet, inputs, answers)


def compute_all(fleet: Fleet, tasks: Sequence[Task], inputs: Mapping[str, Mapping[str, Array]]) -> None:
    """Every head that is ready, for every input it may get: then nothing is left to be computed in the queue."""
    if not isinstance(fleet.device.engine, Apart):
        return
    for source, edge in fleet.edges.items():
        different = {id(inputs[t.name]): inputs[t.name] for t in tasks if t.source == source}
        for option in fleet.ready[source]:
            cut, codecs = placement(edge.model.graph, option)
            for given in different.values():
                edge.infer(given, at=cut, codec=codecs)


def computed(fleet: Fleet) -> int:
    """How many heads have been computed so far, and not only waited for."""
    return fleet.device.engine.computed if isinstance(fleet.device.engine, Apart) else 0


def note_of(fleet: Fleet) -> str:
    assert isinstance(fleet.device.engine, Apart | Stretched)
    return fleet.device.engine.note


def compare(
    fleet: Fleet, inputs: Mapping[str, Mapping[str, Array]], answers: Sequence[tuple[Task, Mapping[str, Array]]]
) -> None:
    """Says whether every answer is the whole model's. SystemExit if one is not."""
    wholes: dict[tuple[object, int], Mapping[str, Array]] = {}
    for task, outputs in answers:
        given, model = inputs[task.name], fleet.edges[task.source].model
        key = task.source, id(given)
        if key not in wholes:
            session = open_engine(threads=1).compile(model.tail(model.graph.cut("input")))
            wholes[key] = session.run(given)
            session.close()
        for name, expected in wholes[key].items():
            scale = float(np.abs(expected).max())
            if not np.allclose(outputs[name], expected, rtol=1e-4, atol=1e-5 * scale):
                raise SystemExit(f"{task.name}: not the whole model's answer")
    print(f"all {len(answers)} answers are the whole model's", flush=True)


def describe(planned: Planned) -> None:
    """How a policy serves each model, and what it expects."""
    counts: dict[tuple[str, str], int] = {}
    for row in planned.rows:
        key = row.task.model, row.option
        counts[key] = counts.get(key, 0) + 1
    s = planned.summary
    bound = f", bound {s.bound_ms:.0f} ms" if s.bound_ms else ""
    print(f"  {s.policy}: predicted {s.makespan_ms:.0f} ms{bound}, planned in {s.planning_ms:.0f} ms")
    for (model, option), count in sorted(counts.items()):
        print(f"    {count:3} x {model}: {option}")


def report(s: QueueSummary, heads: int, why: str) -> None:
    busy = f"device {s.usage.device:.0%}, link {s.usage.link:.0%}, server {s.usage.server:.0%}"
    again = f", planned again {s.replans} times" if s.replans else ""
    again += f", {heads} heads computed meanwhile" if heads else ""
    print(
        f"  {why}{s.policy:6} {s.makespan_ms:7.0f} ms (predicted {s.predicted_ms:.0f}), mean {s.mean_ms:.0f}, "
        f"p95 {s.p95_ms:.0f}; busy: {busy}{again}",
        flush=True,
    )


def show(title: str, taken: dict[str, list[QueueSummary]]) -> None:
    spans = {by: median(s.makespan_ms for s in all_of_them) for by, all_of_them in taken.items()}
    gain = 1 - spans.get("joint", 0.0) / spans.get("fifo", 1.0)
    every = ", ".join(f"{by} {ms:.0f} ms" for by, ms in spans.items())
    verdict = "met" if gain >= TARGET else "missed"
    print(f"{title}: {every}; joint needs {gain:.1%} less than fifo (target {TARGET:.0%}: {verdict})", flush=True)


if __name__ == "__main__":
    print(header(pinned="--commands" not in sys.argv))
    main(sys.argv[1:])
