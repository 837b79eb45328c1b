"""Kernel times of an engine as times of nodes."""

from __future__ import annotations

from pathlib import Path

import pytest
from profile_cases import quantised

from nets import ENGINE
from splitpoint.models import load as open_model
from splitpoint.models.model import Model
from splitpoint.profile.kernel_times import is_estimated, marked, node_times
from splitpoint.segments import samples_for


def test_kernels_are_found_under_fused_names(lenet: Model) -> None:
    graph = lenet.graph
    conv, tanh = 4, 5
    kernels = [
        ("@0@", 1.0),
        (f"{graph.nodes[tanh].outputs[0]}_nchwc", 10.0),  # conv and tanh in one, called after what it makes
        ("ReorderOutput", 2.0),  # a change of layout: belongs to the one before
        ("fused @6@", 3.0),
    ]
    times = node_times(lenet, kernels)
    assert times.sum() == pytest.approx(16.0)
    assert times[0] == pytest.approx(1.0 * times[0] / times[0])
    assert times[1:6].sum() == pytest.approx(12.0)
    assert times[conv] > 0.8 * 12
    assert times[6:].sum() == pytest.approx(3.0)
    assert not is_estimated(graph, times.tolist())


def test_without_kernel_times_shares_follow_work(lenet: Model) -> None:
    for kernels in ([], [("nobody knows", 3.0)]):
        times = node_times(lenet, kernels)
        assert (times > 0).all()
        assert times.sum() == pytest.approx(3.0 if kernels else 1.0)
        assert times[4] > times[5]
        assert is_estimated(lenet.graph, times.tolist())


@pytest.mark.parametrize("name", ["zoo:lenet5", "qdq"])
def test_the_engines_own_kernels_cover_the_graph(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    model = open_model(name) if name != "qdq" else quantised()
    kernels = ENGINE.kernel_times(marked(model), samples_for(model, 1)[0], 3, 1)
    times = node_times(model, kernels)
    assert times.sum() == pytest.approx(sum(ms for _, ms in kernels))
    assert len(kernels) >= 3
    heavy = [i for i, n in enumerate(model.graph.nodes) if n.op in ("Conv", "Gemm")]
    assert all(times[i] > 0 for i in heavy)
    assert all(times[i] == 0 for i, n in enumerate(model.graph.nodes) if not n.placed)
    assert list(tmp_path.iterdir()) == [], "the engine's own file is gone"
