"""Is a plan's prediction what a request takes? On loopback, where the software at both ends counts most.

Both sides are profiled and the link is measured, as `splitpoint compare` does; then every row of the plan and cuts
spread over the network take turns. Edge and server on a core each, one thread each.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from statistics import median

import splitpoint as sp
from bench.common import EDGE_CORE, SERVE, header, helper, pin
from bench.nets import path_of
from bench.split import said
from splitpoint.measured_cuts import CompareRow, compare
from splitpoint.planning.plans import Option
from splitpoint.profile.measure import profile_model
from splitpoint.runtime.client.edge import Edge
from splitpoint.segments import samples_for
from splitpoint.survey import Survey, worth_running

NETWORKS = ("efficientnet_lite0", "mobilenet_v2", "lenet5")
#: Single-tensor cuts beside the plan's rows.
CUTS = 8
#: What is asked for: as shares in the middle and at worst; of networks of less than a millisecond, milliseconds.
MIDDLE, WORST, SHORT_MS, WITHIN_MS = 0.03, 0.10, 1.0, 0.1
#: A row is undisturbed if its median is at most so many times its 10th percentile.
CALM = 1.1


def run(name: str, budget_s: float, repeat: int) -> list[CompareRow]:
    """The rows of one network."""
    source = path_of(name)
    model, engine = sp.load(source), sp.open_engine(threads=1)
    pin(EDGE_CORE)
    with helper(SERVE, source) as server, Edge(said(server), model, at="input", engine=engine) as edge:
        here = profile_model(model, engine, budget_s=budget_s)
        known = Survey(here, edge.profile_server(budget_s), edge.measure_link())
        print(f"{name}: {known.link}")
        planner, chain = known.planner(model.graph), model.graph.chain()
        spread = [planner.price(c, ["raw"] * len(c.crossing), known.link) for c in chain[:: max(1, len(chain) // CUTS)]]
        options: dict[frozenset[int], Option] = {}
        for option in [*worth_running(planner.plan(known.link)), *spread]:
            options.setdefault(frozenset(option.on_edge), option)
        return compare(edge, list(options.values()), samples_for(model, 1), repeat=repeat)


def report(name: str, rows: Sequence[CompareRow]) -> None:
    """Each row with its stages, predicted/measured, and how far predictions are off."""
    for row in sorted(rows, key=lambda r: len(r.option.on_edge)):
        net, spent = row.option.stages, row.stages
        print(
            f"  {row.option.label:44.44} predicted {row.option.total.ms:7.3f}  measured {row.measured.ms:7.3f} "
            f"({row.measured.low:.3f}…{row.measured.high:.3f})  {row.error:+6.1%}  "
            f"edge {net['edge'].ms:.3f}/{spent['edge']:.3f}  server {net['server'].ms:.3f}/{spent['server']:.3f}  "
            f"net {net['up'].ms + net['down'].ms:.3f}/{spent['net']:.3f}"
        )
    judge(f"{name}, all", rows)
    # On a shared machine some rows' medians are of requests that had to wait for a core.
    judge(f"{name}, undisturbed", [r for r in rows if r.measured.ms <= CALM * r.measured.low])


def judge(title: str, rows: Sequence[CompareRow]) -> None:
    """How far the predictions of `rows` are off."""
    if not rows:
        print(f"{title}: none")
    elif max(r.option.total.ms for r in rows) < SHORT_MS:
        off = [abs(r.option.total.ms - r.measured.ms) for r in rows]
        print(f"{title} ({len(off)}): {median(off):.3f} ms off in the middle, {max(off):.3f} at worst (≤ {WITHIN_MS})")
    else:
        off = [abs(r.error) for r in rows]
        print(
            f"{title} ({len(off)}): {median(off):.1%} off in the middle (≤ {MIDDLE:.0%}), {max(off):.1%} at worst "
            f"(≤ {WORST:.0%}); signed {median(r.error for r in rows):+.1%}"
        )


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(description="Predicted beside measured, on loopback.")
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--profile-s", type=float, default=20.0)
    parser.add_argument("--repeat", type=int, default=20)
    given = parser.parse_args(arguments)
    for name in given.networks:
        report(name, run(name, given.profile_s, given.repeat))


if __name__ == "__main__":
    import sys

    print(header())
    main(sys.argv[1:])
