"""How many cameras one uplink carries, at a frame a second each and 95 % agreement: `python -m bench.cameras`.

    python -m bench.cameras [--ways jpeg klt …] [--cut CUT …] [--seconds 20] [--seeds 1 2 3] [--short]

Read this first. Every camera is a process with an `Edge` of its own. All share one relay (`splitpoint.lab`), which
carries 1 Mbit/s up and 10 down with a round trip of 30 ms and lets connections take turns; the server is real. A camera
takes a test photo (`bench.photos`) every second. When it begins is drawn by the seed, the same for all ways. Devices
are *emulated*: what their heads compute was computed before, and is waited for, eight times as long as it takes here
(two cores cannot be fifty devices; the server's core would be theirs). Encoding, wire, link and tails are real.

A frame is late if its answer comes more than a second after its photo, when the next one is taken. Searched is the
largest number of cameras without a late frame: by halving, so that one camera more had one (or would need more bytes
than the uplink has). Settings are those of the fewest bytes that kept 95 % of the answers on calibration photos, by
`bench.calibrated`; next to them stands what they keep on the 226 test photos.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from statistics import median
from time import monotonic, perf_counter, sleep

import msgspec
import numpy as np

from bench.calibrated import calibrated, cheapest, judged, place_of, read
from bench.common import EDGE_CORE, SERVE, SERVER_CORE, header, helper, pin
from bench.fidelity import interval
from bench.nets import path_of
from bench.split import said
from splitpoint.calibration.calibrations import Calibration
from splitpoint.engines import Session, open_engine
from splitpoint.lab.relay import Relay
from splitpoint.link import Link
from splitpoint.models import load
from splitpoint.models.model import Model, Segment
from splitpoint.runtime.client.edge import Edge
from splitpoint.runtime.client.timeouts import Patience
from splitpoint.segments import Halves
from splitpoint.tensors import Array, TensorSpec

NETWORK = "efficientnet_lite0"
UPLINK = Link(1.0, 10.0, 30.0)
EVERY_S = 1.0
AGREEMENT = 0.95
#: How many times slower than a core of this machine a camera computes.
SLOWER = 8.0
#: What is compared: kinds of codecs, at the input those that are pictures.
PICTURES = ("jpeg", "jpeg444")
WAYS = (*PICTURES, "int8", "int4+zstd", "klt")
CUTS = ("blocks.5.project.norm", "blocks.11.project.norm")
_START_S, _END_S = 120.0, 60.0

SERVE_CALIBRATED = (
    SERVE.replace("sys.argv[1:]", "sys.argv[1:2]")
    .replace("port=0", "port=0, calibrations=[load_calibration(Path(sys.argv[2]))]")
    .replace(
        "import sys\n",
        "import sys\nfrom pathlib import Path\nfrom splitpoint.calibration.files import load_calibration\n",
    )
)


@dataclass(frozen=True)
class Way:
    """What a camera sends, and what that keeps: `kept` there, where it was chosen, and `same` on the test photos."""

    kind: str
    cut: str
    codec: str
    nbytes: int
    kept: float
    same: float
    low: float
    high: float

    @property
    def label(self) -> str:
        return f"{self.codec} at {self.cut}"


@dataclass(frozen=True)
class Tried:
    """`cameras` at once: how many frames, how many of them late, milliseconds, and bytes of a frame on the wire."""

    cameras: int
    frames: int
    late: int
    p50: float
    p95: float
    worst: float
    nbytes: float
    used: float
    """Share of the uplink that was used while all of them sent."""
    same: float

    def __str__(self) -> str:
        return (
            f"{self.cameras:3} cameras: {self.late:3} of {self.frames} frames late, p50 {self.p50:.0f}, p95 "
            f"{self.p95:.0f}, worst {self.worst:.0f} ms; {self.nbytes:.0f} bytes a frame, {self.used:.0%} of the uplink"
        )


@dataclass(frozen=True)
class Result:
    """The most cameras without a late frame, for the moments that a seed draws."""

    way: Way
    seed: int
    seconds: int
    most: Tried


class Recorded:
    """An engine (splitpoint.engines) whose runs answer with what was computed before, after as long as `spent_s`."""

    name, device, threads = "recorded", "none", 1

    def __init__(self, outputs: Mapping[int, dict[str, Array]], spent_s: float) -> None:
        self.outputs, self.spent_s = outputs, spent_s

    def compile(self, segment: Segment) -> Session:
        return _RecordedSession(segment.inputs, segment.outputs, self)


@dataclass
class _RecordedSession:
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    engine: Recorded
    nbytes: int = 0

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        sleep(self.engine.spent_s)
        (image,) = inputs.values()
        return dict(self.engine.outputs[id(image)])

    def close(self) -> None:
        pass


class Scene:
    """What all cameras see, and what the model says of it."""

    def __init__(self, model: Model) -> None:
        self.model, self.inputs = model, read(model, "test")
        self.name, self.output = model.inputs[0].name, model.outputs[0].name
        whole = open_engine(threads=1).compile(model.whole())
        self.labels = [int(whole.run(one)[self.output].argmax()) for one in self.inputs]
        whole.close()

    def head(self, at: str) -> Recorded:
        """The head at a cut for every photo, computed once."""
        if at == "input":
            return Recorded({}, 0.0)
        half = Halves(self.model, self.model.graph.cut(at), open_engine(threads=1))
        assert half.head
        outputs, taken = {}, []
        for one in self.inputs:
            began = perf_counter()
            outputs[id(one[self.name])] = half.head.run(one)
            taken.append(perf_counter() - began)
        half.close()
        return Recorded(outputs, SLOWER * median(taken))


def ways(known: Calibration, scene: Scene, kinds: Sequence[str], cuts: Sequence[str]) -> list[Way]:
    """The settings to compare, of the fewest bytes that kept `AGREEMENT` on the calibration photos."""
    places = {cut.name: k for k, cut in enumerate(scene.model.graph.prefixes())}
    chosen = []
    for kind in kinds:
        for cut in ("input",) if kind in PICTURES else cuts:
            row = cheapest(known, places[cut], AGREEMENT, (kind,))
            if row is None:
                print(f"{kind} at {cut}: no setting keeps {AGREEMENT:.0%}")
                continue
            test = judged(scene.model, known, cut, [row.codec], scene.inputs)
            there = test.row(places[cut], row.codec)
            assert there
            same = there.quality.agreement or 0.0
            low, high = interval(same, test.inputs)
            kept = row.quality.agreement or 0.0
            chosen.append(Way(kind, cut, row.codec, sum(there.nbytes), kept, same, low, high))
    return chosen


def camera(
    number: int, pipe: Connection, address: str, way: Way, scene: Scene, engine: Recorded, calibration: Calibration,
    frames: int, seed: int,
) -> None:  # fmt: skip
    """A camera's process: says when it is ready, is told when to begin, and says how its frames fared."""
    pin(EDGE_CORE)
    random = Random(f"{seed}:{number}")
    phase = random.random() * EVERY_S
    order = random.sample(range(len(scene.inputs)), frames)
    with Edge(
        address, scene.model, at=way.cut, codec=way.codec, engine=engine, calibration=calibration,
        patience=Patience(answer_s=120),
    ) as edge:  # fmt: skip
        edge.infer(scene.inputs[order[0]])
        assert way.codec in edge.codecs.values(), f"{way.label} travels as {dict(edge.codecs)}"
        pipe.send("ready")
        began = pipe.recv()
        answers = []
        for k, which in enumerate(order):
            due = began + phase + k * EVERY_S
            sleep(max(0.0, due - monotonic()))
            result = edge.infer(scene.inputs[which])
            taken = monotonic() - due
            same = int(result.outputs[scene.output].argmax()) == scene.labels[which]
            answers.append((taken * 1e3, same, result.up_nbytes))
    pipe.send(answers)


def play(cameras: int, way: Way, engine: Recorded, scene: Scene, relay: Relay, calibration: Calibration, frames: int,
         seed: int) -> Tried:  # fmt: skip
    """All `cameras` at once for so many frames each."""
    fork = multiprocessing.get_context("fork")
    pipes, processes = [], []
    try:
        for number in range(cameras):
            ours, theirs = fork.Pipe()
            process = fork.Process(
                target=camera,
                args=(number, theirs, relay.address, way, scene, engine, calibration, frames, seed),
                daemon=True,
            )
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        for pipe in pipes:
            _receive(pipe, _START_S)
        began = monotonic() + 0.5
        for pipe in pipes:
            pipe.send(began)
        sleep(max(0.0, began + EVERY_S - monotonic()))
        before = relay.status().up_nbytes
        sleep(max(0.0, began + (frames - 1) * EVERY_S - monotonic()))
        sent = relay.status().up_nbytes - before
        answers = [a for pipe in pipes for a in _receive(pipe, frames * EVERY_S * 2 + _END_S)]
        for process in processes:
            process.join(_END_S)
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()
        for pipe in pipes:
            pipe.close()
    took = np.array([a[0] for a in answers])
    return Tried(
        cameras=cameras, frames=len(answers), late=int((took > EVERY_S * 1e3).sum()),
        p50=float(np.percentile(took, 50)), p95=float(np.percentile(took, 95)), worst=float(took.max()),
        nbytes=float(np.mean([a[2] for a in answers])),
        used=sent * 8e-6 / UPLINK.up_mbps / ((frames - 2) * EVERY_S),
        same=float(np.mean([a[1] for a in answers])),
    )  # fmt: skip


def _receive(pipe: Connection, within_s: float) -> list[tuple[float, bool, int]]:
    if not pipe.poll(within_s):
        raise SystemExit("a camera does not answer")
    answer: list[tuple[float, bool, int]] = pipe.recv()
    return answer


def most(tries: Callable[[int], Tried], bytes_each: float) -> Tried:
    """The run with the most cameras and none late, by halving; SystemExit if one camera alone is late."""
    full = int(UPLINK.up_mbps * 125e3 * EVERY_S / bytes_each)
    low, high = 0, full + full // 10 + 2  # that many need more than there is, whatever the mean is beside the median
    best: Tried | None = None
    while high - low > 1:
        # Most of a link can be used: the search begins there.
        middle = round(0.85 * full) if low == 0 and high > full > 3 else (low + high) // 2
        tried = tries(min(max(middle, low + 1), high - 1))
        print(f"    {tried}", flush=True)
        if tried.late:
            high = tried.cameras
        else:
            low, best = tried.cameras, tried
    if best is None:
        raise SystemExit("one camera alone is late")
    return best


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.cameras", description="Cameras that share an uplink.")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--cuts", nargs="+", default=CUTS)
    parser.add_argument("--seconds", type=int, default=20, help="frames of each camera")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="of the moments at which cameras begin")
    parser.add_argument("--short", action="store_true", help="JPEG and klt at the first cut, ten seconds a run")
    parser.add_argument(
        "--out", type=Path, default=Path("out") / "cameras.json", help="results, added to what is there"
    )
    given = parser.parse_args(arguments)
    if given.short:
        given.ways, given.cuts, given.seconds = ["jpeg", "klt"], CUTS[:1], 10
    print(header(), flush=True)
    known, scene = calibrated(NETWORK), Scene(load(path_of(NETWORK)))
    results = load_results(given.out)
    with (
        helper(SERVE_CALIBRATED, path_of(NETWORK), str(place_of(NETWORK))) as server,
        Relay(said(server), UPLINK) as relay,
    ):
        os.sched_setaffinity(relay.pid, {SERVER_CORE})
        pin(EDGE_CORE)
        print(f"{UPLINK}, shared; a frame every {EVERY_S:g} s; devices emulated, {SLOWER:g}x slower")
        for way in ways(known, scene, given.ways, given.cuts):
            engine = scene.head(way.cut)
            print(
                f"{way.label}: {way.nbytes} bytes, keeps {way.kept:.1%} of calibration and {way.same:.1%} "
                f"({way.low:.1%}–{way.high:.1%}) of test photos; head {engine.spent_s * 1e3:.0f} ms"
            )
            for seed in given.seeds:
                of = partial(play, way=way, scene=scene, engine=engine, relay=relay, calibration=known)
                best = most(partial(of, frames=given.seconds, seed=seed), way.nbytes)
                print(f"  seed {seed}: {best}", flush=True)
                results = [r for r in results if (r.way.label, r.seed) != (way.label, seed)]
                results.append(Result(way, seed, given.seconds, best))
                given.out.parent.mkdir(exist_ok=True)
                given.out.write_bytes(msgspec.json.format(msgspec.json.encode(results)))
    report(results)


def load_results(path: Path) -> list[Result]:
    return msgspec.json.decode(path.read_bytes(), type=list[Result]) if path.exists() else []


def report(results: Sequence[Result]) -> None:
    """Of every way the least of its seeds, and how many times as many as with the better JPEG."""
    least: dict[str, Result] = {}
    for one in results:
        label = one.way.label
        if label not in least or one.most.cameras < least[label].most.cameras:
            least[label] = one
    plain = max((one.most.cameras for one in least.values() if one.way.kind in PICTURES), default=0)
    print(f"{'what crosses':<38}{'bytes':>7}{'test photos':>13}{'cameras':>9}{'p50':>6}{'p95':>6}{'worst':>7} ms")
    for label, one in least.items():
        most = one.most
        times = f"  {most.cameras / plain:.1f} x JPEG's" if plain else ""
        print(
            f"{label:<38}{one.way.nbytes:>7}{one.way.same:>13.1%}{most.cameras:>9}{most.p50:>6.0f}{most.p95:>6.0f}"
            f"{most.worst:>7.0f}{times}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
