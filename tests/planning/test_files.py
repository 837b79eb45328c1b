"""Plans as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from planning_cases import pair, planned
from plans import FOUR_G

from splitpoint.errors import InputError
from splitpoint.planning.constraints import Constraints
from splitpoint.planning.files import load_plan, parse_plan, plan_bytes, save_plan
from splitpoint.planning.planner import Planner


def test_a_plan_loads_back_from_its_file(tmp_path: Path) -> None:
    found = Planner(None, pair(), constraints=Constraints(codecs=("int8",))).plan(FOUR_G)
    save_plan(tmp_path / "plan.json", found)
    assert load_plan(tmp_path / "plan.json") == found
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


def damaged(change: dict[str, Any], option: dict[str, Any] | None = None, hop: dict[str, Any] | None = None) -> bytes:
    found = msgspec.json.decode(plan_bytes(planned()))
    found["options"][1]["hops"][0] |= hop or {}
    found["options"][1] |= option or {}
    return msgspec.json.encode(found | change)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"{", "is not a plan"),
        (b"[]", "is not a plan"),
        (b"[" * 100_000, "is not a plan"),
        (damaged({"format": 99}), "is a plan of format 99, and this version reads format 2: make it anew with"),
        (damaged({"objective": "fun"}), r"objective is 'fun' - at `\$.objective`"),
        (damaged({"bound": -1.0}), r"Expected `float` >= 0.0 - at `\$.bound`"),
        (damaged({"bound": None}), r"Expected `float`, got `null` - at `\$.bound`"),
        (damaged({"options": []}), "best is not one of options"),
        (damaged({}, {"kind": "magic"}), r"Invalid enum value 'magic' - at `\$.options\[1\].kind`"),
        (damaged({}, hop={"nodes": [3, 1]}), r"node numbers in order, each once - at `\$.options\[1\].hops\[0\]`"),
        (damaged({}, {"total": [5.0, 6.0, 7.0]}), "low ≤ ms ≤ high"),
        (damaged({}, hop={"up_nbytes": -4}), r"Expected `int` >= 0 - at `\$.options\[1\].hops\[0\].up_nbytes`"),
        (damaged({}, {"hosts": []}), r"it has 0 hosts and 1 hops between them, not 2 and 1 - at `\$.options\[1\]`"),
        (damaged({}, {"hops": []}), "it has 2 hosts and 0 hops"),
        (damaged({"links": []}), r"2 hosts with 0 links between them - at `\$.links`"),
        (damaged({"links": [{"up_mbps": -1, "down_mbps": 1, "rtt_ms": 1}]}), "up_mbps"),
    ],
)  # fmt: skip
def test_a_damaged_plan_is_refused_with_a_sentence(data: bytes, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_plan(data)
