"""Small files whose cuts would be endless."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from profile_cases import Wire, quantised, row, wired

from splitpoint.errors import (
    InputError,
)
from splitpoint.graph import Cut, Graph
from splitpoint.models import load as open_model
from splitpoint.models.model import Model
from splitpoint.profile.files import parse_profile
from splitpoint.profile.limits import _crossing, _reach


def fan(width: int) -> list[Wire]:
    """Nodes whose outputs one last node reads."""
    names = [f"t{k}" for k in range(width)]
    return [*((n, "Relu", ["x"], [n], True, -1) for n in names), ("y", "Sum", names, ["y"], True, -1)]


def shapes_of_shapes(depth: int) -> list[Wire]:
    made: list[Wire] = [(s, "Shape", ["x"], [s], False, -1) for s in ("a0", "b0")]
    for k in range(1, depth):
        made.append((f"c{k}", "Concat", [f"a{k - 1}", f"b{k - 1}"], [f"c{k}"], False, -1))
        made.extend((f"{s}{k}", "Shape", [f"c{k}"], [f"{s}{k}"], False, -1) for s in "ab")
    return [*made, ("y", "Reshape", ["x", f"a{depth - 1}"], ["y"], True, -1)]


def copied_sums(count: int) -> list[Wire]:
    """Copied nodes each of which needs all that was made before it."""
    made: list[Wire] = []
    for k in range(count):
        made.append((f"t{k}", "Relu", ["x"], [f"t{k}"], True, -1))
        made.append((f"c{k}", "Concat", [f"t{k}", *([f"c{k - 1}"] if k else [])], [f"c{k}"], False, -1))
    return [*made, ("y", "Relu", [f"c{count - 1}"], ["y"], True, -1)]


@pytest.mark.parametrize(
    ("nodes", "output", "says"),
    [
        (fan(4000), "y", "8,00.,000 tensors that cross, over all cuts, and may have 2,000,000"),
        (shapes_of_shapes(60), "y", "shapes that cross"),
        (copied_sums(2200), "y", "copied nodes"),
        (row(15_000, group=1), "t14999", "steps through its groups"),
        (row(20_001), "t20000", "20,001 nodes and may have 20,000"),
        ([("y", "Sum", ["x"] * 200_000, ["y"], True, -1)], "y", "connections and may have 200,000"),
    ],
    ids=["fan", "shapes", "copied", "group", "nodes", "connections"],
)
def test_small_files_whose_cuts_would_be_endless_are_refused_before(
    lenet: Model, nodes: Sequence[Wire], output: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def built(graph: Graph) -> tuple[Cut, ...]:
        raise AssertionError("the cuts were built")

    monkeypatch.setattr(Graph, "prefixes", built)
    with pytest.raises(InputError, match=says):
        parse_profile(wired(lenet, nodes, output), "a file")


def test_what_crosses_is_counted_as_the_cuts_have_it(lenet: Model) -> None:
    for nodes, output in ((fan(20), "y"), (row(9), "t8"), (copied_sums(6), "y"), (shapes_of_shapes(4), "y")):
        graph = parse_profile(wired(lenet, nodes, output), "a file").graph
        crossing = sum(len(c.crossing) for c in graph.prefixes())
        assert abs(_crossing(graph, _reach(graph)[0]) - crossing) <= 1
    for model in (lenet, quantised(), open_model("zoo:efficientnet-lite0")):
        crossing = sum(len(c.crossing) for c in model.graph.prefixes())
        assert _crossing(model.graph, _reach(model.graph)[0]) == pytest.approx(crossing, rel=0.1, abs=2)
