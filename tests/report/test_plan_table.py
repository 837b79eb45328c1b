"""The honest table as printed, and as a picture."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from places import SUPPORT
from planning_cases import EFFICIENT, LENET, pair, planned
from plans import FOUR_G
from rich.console import Console

from splitpoint.cli.plan import show
from splitpoint.link import Link
from splitpoint.planning.advice import ALIKE
from splitpoint.planning.constraints import Constraints
from splitpoint.planning.files import plan_bytes
from splitpoint.planning.planner import Planner, plan
from splitpoint.planning.plans import Plan
from splitpoint.report.plan_table import draw, seed_lines
from splitpoint.units import ms


def test_one_answer_for_all_rates_says_which_rates() -> None:
    text = printed(plan(None, pair(LENET, 0.3, 0.2), Link(19862, 18000, 3)))
    assert "  from 0.05 to 39724 Mbit/s  all on the edge" in text
    assert "at any bandwidth" not in text
    assert "  from 0.05 to 2000 Mbit/s  all on the edge" in printed(plan(None, pair(LENET, 0.3, 0.2), FOUR_G))


def test_what_was_not_measured_is_marked_and_the_mark_explained() -> None:
    line = "~ modelled, not measured (a longer profile measures more cuts)"
    band = "± holds four times in five, while machines and link are as above"
    edge, there = pair(LENET, 60.0, 2.0)
    text = printed(plan(None, (edge, there), FOUR_G))
    assert line not in text
    assert band in text
    last = len(edge.graph.order)
    alone = msgspec.structs.replace(edge, segments=tuple(s for s in edge.segments if s.prefix in (0, last)))
    found = plan(None, (alone, there), FOUR_G)
    text = printed(found)
    assert line in text
    assert band in text
    split, device = found.option("split"), found.option("device")
    assert split is not None
    assert device is not None
    assert [h.modelled for h in split.hosts] == [True, False]
    assert [h.modelled for h in device.hosts] == [False, False]
    row = next(row for row in text.splitlines() if f"split: {split.cut}" in row)
    assert f" ~{ms(split.stages['edge'].ms)} " in row
    again = json.loads(plan_bytes(found))["options"]
    assert [o["hosts"][0]["modelled"] for o in again] == [o.hosts[0].modelled for o in found.options]


def test_only_a_least_latency_is_called_the_best() -> None:
    assert seed_lines(planned())[1] == "best latency: 90.0 ms"
    assert seed_lines(planned(objective="bytes"))[1] == "latency of the plan: 90.0 ms"


def test_the_picture_shows_each_kind_and_the_plan_below_them(tmp_path: Path) -> None:
    for objective in ("latency", "energy"):
        planner = Planner(None, pair(LENET, 3.0, 0.2), objective=objective)
        found = planner.plan(FOUR_G)
        lines = planner.curves(FOUR_G)
        assert set(lines.values) == {"device", "server", "jpeg", "split", "best"}
        for k in range(len(lines.rates)):
            least = min(lines.values[kind][k] for kind in ("device", "server", "split"))
            assert lines.values["best"][k] <= least * (1 + ALIKE)
        draw(found, lines, tmp_path / "plan.png")
        draw(found, lines, tmp_path / "measured.png", [("device", found.best.total.ms), ("server", 1e9)])
        plain, measured = ((tmp_path / f"{name}.png").read_bytes() for name in ("plan", "measured"))
        assert plain.startswith(b"\x89PNG")
        assert measured.startswith(b"\x89PNG")
        assert measured != plain


def printed(found: Plan, width: int = 110, **more: Any) -> str:
    text = io.StringIO()
    show(found, console=Console(file=text, width=width, highlight=False), **more)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


GOLDEN = SUPPORT / "golden"


@pytest.mark.parametrize(
    ("file", "name", "limits"),
    [
        ("plan_efficientnet.txt", EFFICIENT, {"codecs": ("int8", "int4")}),
        ("plan_lenet.txt", LENET, {}),
    ],
)
def test_a_plan_as_printed(file: str, name: str, limits: dict[str, Any]) -> None:
    edge_ms, cloud_ms = (90.0, 6.0) if name == EFFICIENT else (60.0, 2.0)
    planner = Planner(None, pair(name, edge_ms, cloud_ms), constraints=Constraints(**limits))
    assert printed(planner.plan(FOUR_G), 112, explain=True) + "\n" == (GOLDEN / file).read_text()


@pytest.mark.parametrize("width", [80, 100, 160])
def test_the_table_fits_the_terminal(width: int) -> None:
    text = printed(planned(codecs=("int8",), objective="energy"), width)
    assert max(map(len, text.splitlines())) <= width
    assert all(w in text for w in ("option", "ms ± band", "edge", "net", "server", "up", "best partition point: "))
    assert "mJ" in text.splitlines()[5]


@pytest.mark.parametrize("width", [80, 100, 120, 160])
@pytest.mark.parametrize("objective", ["latency", "energy", "throughput", "bytes", "server-time"])
def test_a_narrow_table_keeps_what_an_option_is_and_the_objectives_column(objective: str, width: int) -> None:
    found = planned(codecs=("int8",), objective=objective)
    lines = printed(found, width).splitlines()
    assert max(map(len, lines)) <= width
    own = {"energy": "mJ", "throughput": "req/s", "bytes": " up"}.get(objective, "server")
    assert own in lines[5]
    table = lines[7 : 7 + len(found.options)]
    assert all(any(f" {kind}" in row for kind in ("edge", "server", "split", "on the")) for row in table)
    assert not any(row[5] == "…" for row in table)
    for option, row in zip(found.options, table, strict=True):
        assert "int8" not in option.codecs or "int8" in row
