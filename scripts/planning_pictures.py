"""Draws the pictures of docs/explanation/planning.md from one profile: every cut on one link, the plan by bandwidth.

    splitpoint profile zoo:efficientnet_lite0 --threads 1 -o cloud.json
    python scripts/planning_pictures.py cloud.json --slower 12 --link 3mbit/20mbit,40ms -o docs/explanation

The edge is this machine computing so many times slower: nothing is run, all is predicted. slow.json beside the pictures
is its profile, for ``splitpoint plan --edge``. In cuts.png a bar is one cut of the chain with what crosses as it is
(raw): the head on the edge, the way there and back, the tail on the server. A dot is the fastest codec at the same cut
(at the input also JPEG) that keeps 95 % of the answers by the model's calibration.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import splitpoint as sp
from splitpoint.calibration.calibrations import Calibration
from splitpoint.calibration.files import load_calibration
from splitpoint.graph import Cut
from splitpoint.link import Link
from splitpoint.link.parse import parse_link
from splitpoint.models.zoo import zoo_path
from splitpoint.planning.constraints import Constraints
from splitpoint.planning.planner import Planner
from splitpoint.planning.plans import Option
from splitpoint.profile.files import profile_bytes
from splitpoint.report.files import bare, picture
from splitpoint.report.plan_table import draw

AGREEMENT = 0.95
PARTS = (("head on the edge", "#4c78a8", ("edge", "encode")), ("the link, both ways", "#f58518", ("up", "down")),
         ("tail on the server", "#54a24b", ("server",)))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/planning_pictures.py", description="Draws every cut on one link.")
    parser.add_argument("profile", type=Path)
    parser.add_argument("--slower", type=float, default=12.0, metavar="TIMES")
    parser.add_argument("--link", default="3mbit/20mbit,40ms")
    parser.add_argument("-o", "--output", type=Path, default=Path(), metavar="DIR")
    options = parser.parse_args()
    cloud = sp.load_profile(options.profile)
    edge = cloud.slowed(options.slower)
    (options.output / "slow.json").write_bytes(profile_bytes(edge))
    calibration = load_calibration(zoo_path(edge.graph.name).with_suffix(".calib.json"))
    link = parse_link(options.link)
    if not isinstance(link, Link):
        parser.error("a link is needed, not a trace")
    planner = Planner(None, (edge, cloud), constraints=Constraints(agreement=AGREEMENT), calibration=calibration)
    cuts = edge.graph.chain()
    rows = [planner.price(cut, ["raw"] * len(cut.crossing), link) for cut in cuts]
    coded = {k: best for k, cut in enumerate(cuts) if (best := fastest(planner, calibration, cut, link)) is not None}
    with picture(options.output / "cuts.png", size=(11, 5.2)) as (figure, [axes]):
        bottom = [0.0] * len(rows)
        for name, colour, stages in PARTS:
            heights = [sum(row.stages[stage].ms for stage in stages) for row in rows]
            axes.bar(range(len(rows)), heights, 0.82, bottom, color=colour, label=name)
            bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
        dots = {k: option.total.ms for k, option in coded.items()}
        if (jpeg := planner.plan(link).option("jpeg")) is not None:
            dots[0] = min(dots.get(0, jpeg.total.ms), jpeg.total.ms)
        axes.plot(
            list(dots), list(dots.values()), "o", color="black", label=f"coded, {AGREEMENT:.0%} of the answers kept"
        )
        axes.set_xlim(-1, len(rows))
        axes.set_xticks(range(len(rows)), [cut.name for cut in cuts], rotation=90, fontsize=7)
        axes.set_ylim(0, 1.1 * rows[0].total.ms)  # the highest bars go on
        axes.set_ylabel("milliseconds a request, predicted")
        axes.set_title(
            f"{edge.graph.name}, {options.link}, the edge {options.slower:g} times slower: every cut", fontsize=10
        )
        figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
        bare(axes, "top", "right")
    draw(planner.plan(link), planner.curves(link), options.output / "plan.png")
    for k, option in coded.items():
        print(f"{cuts[k].name}: {rows[k].total.ms:.0f} ms raw, {option.total.ms:.0f} ms {' + '.join(option.codecs)}")


def fastest(planner: Planner, calibration: Calibration, cut: Cut, link: Link) -> Option | None:
    """The least of the codecs that were calibrated at `cut` and are allowed there; None if none is."""
    at = next(k for k, one in enumerate(planner.graph.prefixes()) if one.nodes == cut.nodes)
    names = {row.codec for row in calibration.rows if row.prefix == at}
    priced = [planner.price(cut, [name], link) for name in names if name in planner.costs.codecs]
    return min((o for o in priced if not o.refused), key=lambda o: o.total.ms, default=None)


if __name__ == "__main__":
    main()
