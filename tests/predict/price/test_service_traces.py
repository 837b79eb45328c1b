"""Times of a running device correct a prediction."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from plans import FOUR_G, model_of
from predicted_nets import EFFICIENT, FAST, LENET, SLOW

from splitpoint.errors import InputError
from splitpoint.planning.planner import Planner
from splitpoint.predict.price.prediction import predict_latency
from splitpoint.predict.price.service_traces import read_traces
from splitpoint.profile.profiles import Stat
from splitpoint.runtime.adapt.conditions import Observer, Ran


def test_a_running_device_corrects_the_predicted_profile() -> None:
    """What `run` does with every head it computes: the planner is told by how much the device is slower."""
    model = model_of(EFFICIENT)
    edge, cloud = predict_latency(model, SLOW).profile(), predict_latency(model, FAST).profile()
    observer, profiled_ms = Observer(FOUR_G), edge.head(model.graph.prefixes()[-1]).median
    for k in range(8):
        observer.computed(float(k), Ran(2 * edge.whole.median, profiled_ms, edge.whole.median))
    device = observer.conditions(8.0).device
    assert device == pytest.approx(2.0, rel=0.05)
    slowed = Planner(None, (edge, cloud)).slowed(device, 1.0)
    assert slowed.local(FOUR_G).total.ms == pytest.approx(2 * edge.whole.median, rel=0.05)


def test_traces_are_heads_that_were_measured(tmp_path: Path) -> None:
    graph = model_of(LENET).graph
    lines = [{"cut": "pool1", "spans_ms": {"head": ms, "up": 3.0, "tail": 0.5}} for ms in (9.0, 4.0, 4.1, 4.2, 3.9)]
    lines += [
        {"cut": "pool1", "spans_ms": {"head": 90.0}, "fallback": "local"},
        {"cut": "fc1", "spans_ms": {"head": 5}},
    ]
    lines += [{"cut": "nowhere", "spans_ms": {"head": 5.0}}] * 3
    path = tmp_path / "run.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    segments, said = read_traces(path, graph)
    assert [graph.prefixes()[s.prefix].name for s in segments] == ["pool1"]
    assert segments[0].head == Stat(4.1, 3.94, 7.08, 5)
    assert segments[0].tail is None
    assert len(said) == 2
    assert "1 request cut at fc1, fewer than 3" in said[0] + said[1]
    path.write_text('{"cut": "pool1", "spans_ms": {"head": 4.0}}\nnot json\n')
    with pytest.raises(InputError, match=r"run.jsonl line 2 is no request's trace"):
        read_traces(path, graph)
