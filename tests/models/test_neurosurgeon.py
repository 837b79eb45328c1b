"""The Neurosurgeon replica's networks: their parameters, layers and sizes as its own code has them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from splitpoint.engines import open_engine
from splitpoint.errors import ModelError, UsageError
from splitpoint.models import load
from splitpoint.models.names import BUILT
from splitpoint.models.neurosurgeon import NETWORKS, _Net, mobile_net, neurosurgeon_path
from splitpoint.segments import verify


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where they are kept; LeNet's 200 MB are not left behind."""
    folder = tmp_path_factory.mktemp("neurosurgeon")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def cache(built: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPLITPOINT_CACHE", str(built))
    return built


#: Of the replica's own modules, run with PyTorch: layer → output without the batch.
SIZES = {
    "le_net": {
        "features.0": (6, 224, 224), "features.2": (6, 112, 112), "features.3": (16, 108, 108),
        "features.5": (16, 54, 54), "classifier.0": (46656,), "classifier.1": (1024,), "classifier.5": (1000,),
    },
    "mobile_net": {
        "features.0.0": (32, 112, 112), "features.1.conv.1": (16, 112, 112), "features.2.conv.0.0": (16, 56, 56),
        "features.4.conv.0.0": (12, 56, 56), "features.4.conv.2": (64, 28, 28), "features.5": (64, 28, 28),
        "features.8.conv.0.2": (32, 28, 28), "features.8.conv.2": (96, 28, 28), "features.11.conv.2": (160, 14, 14),
        "features.12.conv.2": (160, 7, 7), "features.13": (160, 7, 7), "features.14.conv.3": (320, 7, 7),
        "features.15.0": (1280, 7, 7), "classifier.0": (1280, 1, 1), "classifier.3": (1000,),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_layers_have_the_sizes_that_the_replica_has(name: str) -> None:
    graph = load(BUILT + name).graph
    made = {n.layer: tuple(graph.tensors[n.outputs[0]].shape)[1:] for n in graph.nodes}
    assert {layer: made[layer] for layer in SIZES[name]} == SIZES[name]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("alex_net", 61_100_840), ("vgg_net", 133_792_258), ("le_net", 49_854_240), ("mobile_net", 3_006_716)],
)
def test_they_have_as_many_parameters(name: str, parameters: int) -> None:
    """Without what PyTorch does not count: running statistics, and the ends of ReLU6."""
    net = _Net(0)
    NETWORKS[name].build(net)
    others = (".running_mean", ".running_var", ".min", ".max")
    small = sum(prod(t.dims) for t in net.small if not t.name.endswith(others))
    assert small + sum(prod(shape) for _, shape, _ in net.weights) == parameters
    assert net.shape == (1000,)


def test_alexnets_pooling_is_adaptive_from_5_to_6() -> None:
    """As PyTorch's: place i is the mean of those from floor(5 i / 6) to ceil(5 (i + 1) / 6)."""
    net = _Net(0)
    NETWORKS["alex_net"].build(net)
    node = next(n for n in net.nodes if n.name == "layers.13")
    x = np.random.default_rng(0).random((1, 2, 5, 5)).astype(np.float32)
    kind = onnx.TensorProto.FLOAT
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node], "g", [value(node.input[0], kind, [1, 2, 5, 5])], [value(node.output[0], kind, None)]
    )
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    [got] = ReferenceEvaluator(proto).run(None, {node.input[0]: x})
    bins = [slice(i * 5 // 6, -(-(i + 1) * 5 // 6)) for i in range(6)]
    expected = np.array([[[[x[0, c, r, k].mean() for k in bins] for r in bins] for c in range(2)]])
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_the_answers_depend_on_the_input_and_every_cut_gives_them() -> None:
    model = load(BUILT + "mobile_net")
    cuts = [model.graph.cut(at) for at in ("features.0.1", "features.5", "11.conv.0.2", "classifier.2")]
    for check in verify(model, open_engine(), cuts):
        assert check.ok, check


def test_a_seed_is_a_model_and_is_built_once(cache: Path) -> None:
    first = mobile_net()
    before = first.stat().st_mtime_ns
    assert mobile_net() == first
    assert first.stat().st_mtime_ns == before
    assert first.is_relative_to(cache)
    assert load(BUILT + "mobile_net").fingerprint == load(BUILT + "mobile_net@random").fingerprint
    assert load(BUILT + "mobile_net", weights="random:7").fingerprint != load(BUILT + "mobile_net").fingerprint
    # The same on every machine: else a server and a device that both built it would not have the same model.
    assert load(BUILT + "mobilenet").fingerprint[:12] == "5922948e81a3"


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(ModelError, match="has no network lexnet; did you mean"):
        neurosurgeon_path("lexnet")
    with pytest.raises(ModelError, match=r"--weights takes random\[:SEED\]"):
        load(BUILT + "le_net", weights="weights.pt")
    with pytest.raises(UsageError, match="must be a whole number"):
        load(BUILT + "le_net@random:x")


def test_what_differs_is_said() -> None:
    model = load(BUILT + "mobile_net")
    assert model.name == "mobile_net"
    assert "as torchvision's mobilenet_v2, but" in model.source
    assert "seed 0" in model.source
