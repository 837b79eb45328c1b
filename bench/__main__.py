"""`make bench`: the numbers of docs/benchmarks.md, measured on this machine.

    python -m bench             # all of it but the long tables
    python -m bench wire split  # some of it, by name

The long ones are commands of their own: `python -m bench.truth` (every scenario), `bench.profile` (of more networks),
`bench.adapt`, `bench.tasks` (4g and wifi; here only whole commands on one machine), `bench.faults`, `bench.load`,
`bench.fuzz`, `bench.soak` and `bench.predict`. So are those that fetch photos (`bench.photos`): `bench.fidelity`,
`bench.klt`, `bench.calibrated`, `bench.cameras` (cameras that share an uplink), `bench.cells` (where a cut inside is
the best answer) and `bench.reconstruct` (what a decoder of klt's bits sees).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

from bench import (
    batches,
    codecs,
    compare,
    device,
    first,
    planning,
    profile,
    relay,
    slow,
    split,
    stream,
    tasks,
    throughput,
    truth,
    wire,
)
from bench.common import header
from bench.nets import path_of

PARTS: Mapping[str, Callable[[], object]] = {
    "wire": wire.main,
    "split": lambda: split.main(path_of("mobilenet_v2")),
    "stream": stream.main,
    "device": device.main,
    "codecs": codecs.main,
    "planning": planning.main,
    "compare": compare.main,
    "profile": lambda: profile.main(["zoo:lenet5", "zoo:efficientnet_lite0"], 20.0),
    "first": lambda: first.main([]),
    "beside": lambda: first.main(["--beside", "--rounds", "3"]),
    "throughput": lambda: throughput.main([]),
    "relay": relay.main,
    "slow": slow.main,
    "tasks": lambda: tasks.main(["--commands", "--rounds", "3", "--profile-s", "4"]),
    "batches": lambda: batches.main(["--rounds", "3", "--seconds", "2"]),
    "truth": lambda: truth.main(["--subset"]),
}


def main(names: list[str]) -> None:
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        raise SystemExit(f"there is no part {unknown[0]}: {', '.join(PARTS)}")
    print(header())  # what is not pinned so says it
    for name in names or PARTS:
        print(f"\n--- {name}")
        PARTS[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
