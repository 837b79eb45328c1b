"""Rows of a profile by layers."""

from __future__ import annotations

import pytest
from profile_cases import example

from splitpoint.models import load as open_model
from splitpoint.models.model import Model
from splitpoint.report.layer_study import cost_rows, kind_of


@pytest.fixture(scope="module")
def lenet() -> Model:
    return open_model("zoo:lenet5")


def test_rows_follow_the_graph(lenet: Model) -> None:
    profile = example(lenet)
    rows = cost_rows(profile)
    assert [r.layer for r in rows[4:8]] == ["normalize", "conv1", "tanh1", "pool1"]
    assert rows[0].output_bytes == lenet.inputs[0].bind({"batch": 1}).nbytes
    assert rows[5].shape == "1x6x28x28"
    assert sum(r.share for r in rows) == pytest.approx(1, abs=1e-3)
    assert sum(r.ms for r in rows) == pytest.approx(sum(profile.nodes))
    assert [r.measured for r in rows].count(True) == 3
    assert rows[-1].head_ms == pytest.approx(profile.whole.median)


def test_kinds_of_layers(lenet: Model) -> None:
    graph = open_model("zoo:efficientnet_lite0").graph
    kinds = {n.layer: kind_of([n], graph) for n in graph.nodes}
    assert kinds["blocks.1.depthwise.norm"] == "depthwise convolution"
    assert kinds["blocks.1.expand.norm"] == "convolution"
    assert kinds["stem.norm"] == "convolution"
    assert kinds["fc"] == "linear"
    assert {kind_of([n], lenet.graph) for n in lenet.graph.nodes if n.op == "Conv"} == {"convolution"}
