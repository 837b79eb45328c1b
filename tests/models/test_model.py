"""Models and their graphs: what is measured goes with a graph, and what came must be what it says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto
from onnx_files import all_equal, linear, raw

import nets
from nets import node, value, weight
from splitpoint.errors import ModelError, StorageError
from splitpoint.models import reading
from splitpoint.models.model import from_graph
from splitpoint.models.weights import ModelWeights
from splitpoint.segments import verify

# --- shapes that exist only at run time ---------------------------------------------------------------------------


def test_measured_shapes_go_with_the_graph() -> None:
    """A device that holds only its head's weights must know the shapes of the rest."""
    model = nets.load(nets.measured())
    assert model.specs["where"].type == "int64[2,where.1]"
    assert isinstance(model.graph.tensors["where"].shape[1], int)
    far = from_graph(model.graph_bytes(), ModelWeights(), name="net", expected=model.fingerprint)
    assert far.graph == model.graph
    assert far.specs == model.specs
    assert far.graph_bytes() == model.graph_bytes()
    with pytest.raises(StorageError, match="is not here"):
        nets.ENGINE.compile(far.whole())
    all_equal(model)


def detections() -> Any:
    return nets.proto(
        [
            node("Conv", ["x", "w"], ["c"], name="conv"),  # [1, 6, 8, 8]
            node("Reshape", ["c", "shape"], ["flat"], name="view"),  # [1, 6, 64]
            node("Transpose", ["flat"], ["rows"], name="rows", perm=[0, 2, 1]),  # [1, 64, 6]
            node("Slice", ["rows", "from0", "to4", "axis2"], ["boxes"], name="boxes"),
            node("Slice", ["flat", "from4", "to6", "axis1"], ["scores"], name="scores"),
            node("NonMaxSuppression", ["boxes", "scores", "most", "iou", "score"], ["picked"], name="nms"),
            node("Gather", ["picked", "two"], ["index"], name="index", axis=1),
            node("Gather", ["boxes", "index"], ["found"], name="found", axis=1),
        ],
        [value("x", [1, 3, 8, 8])],
        [value("found", None), value("picked", None, TensorProto.INT64)],
        [
            nets.normal("w", 6, 3, 1, 1), weight("shape", [1, 6, 64], np.int64),
            weight("from0", [0], np.int64), weight("to4", [4], np.int64), weight("axis2", [2], np.int64),
            weight("from4", [4], np.int64), weight("to6", [6], np.int64), weight("axis1", [1], np.int64),
            weight("most", [10], np.int64), weight("iou", [0.5], np.float32), weight("score", [0.1], np.float32),
            weight("two", 2, np.int64),
        ],
    )  # fmt: skip


def test_detections_of_another_number_pass_every_cut() -> None:
    """With no free dimension, too: what one run measured is no promise for the next."""
    model = nets.load(detections())
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 3, 8, 8)).astype(np.float32)
    samples = [{"x": x}, {"x": -np.abs(x)}, {"x": np.abs(x) * 3}]
    counts = {len(nets.ENGINE.compile(model.whole()).run(s)["picked"]) for s in samples}
    assert len(counts) > 1
    checks = list(verify(model, nets.ENGINE, model.graph.prefixes(), samples))
    assert [str(c) for c in checks if not c.ok] == []
    assert all(isinstance(d, int) for c in model.graph.prefixes() for t in c.crossing for d in t.shape)


@pytest.mark.parametrize(
    ("note", "message"),
    [
        ("{", "metadata is broken"),
        ('{"tensors": {}, "opaque": []}', "does not fit its tensor"),
        ('{"tensors": {"x": ["float32", [-1], null]}, "opaque": []}', "metadata is broken"),
        ('{"tensors": {"x": ["object", [1], null]}, "opaque": []}', "does not fit its tensor"),
    ],
)
def test_broken_shapes_from_a_server_are_refused(note: str, message: str) -> None:
    skeleton = reading.parse_skeleton(nets.load(nets.residual()).graph_bytes())
    (entry,) = (p for p in skeleton.metadata_props if p.key == "splitpoint.shapes")
    entry.value = note
    with pytest.raises(ModelError, match=message):
        from_graph(skeleton.SerializeToString(), ModelWeights(), name="net")


# --- a graph that came over a wire --------------------------------------------------------------------------------


def test_a_graph_that_came_must_have_its_fingerprint() -> None:
    model = nets.load(nets.residual())
    with pytest.raises(ModelError, match=r"fingerprint .* refused"):
        from_graph(model.graph_bytes(), model.weights, name="net", expected="0" * 64)


def test_a_blob_of_the_wrong_length_is_refused() -> None:
    model = nets.load(linear(raw()))

    class Short:
        def open(self, hash: str) -> memoryview:
            return model.blob(hash)[:-4]

    far = from_graph(model.graph_bytes(), Short(), name="net")
    with pytest.raises(StorageError, match=r"blob .* has 8188 bytes, weight w needs 8192"):
        nets.ENGINE.compile(far.whole())
