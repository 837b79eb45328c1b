"""Real networks, exported with random weights that carry signal: cut models give the whole model's answer.

Every cut of the small ones, a spread of the large ones. The relative tolerance is that of `splitpoint verify`; at
least two inputs; an output that ignores its input is a failure.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from splitpoint.engines import open_engine
from splitpoint.inputs import read_inputs
from splitpoint.models import load
from splitpoint.models.zoo import digits, photos
from splitpoint.segments import select, verify

ENGINE = open_engine(threads=1)

#: Name → the cuts to check. Each is exported, which takes 1 to 5 s, so that a number stays small where cuts are dear.
NETWORKS = {
    "torchvision:mobilenet_v2": "chain",
    "torchvision:alexnet": "8",
    "torchvision:vgg16_bn": "3",
    "torchvision:resnet50": "6",
    "torchvision:googlenet": "8",
    "torchvision:inception_v3": "6",
    "torchvision:densenet121": "6",
    "torchvision:efficientnet_b0": "10",
    "torchvision:shufflenet_v2_x1_0": "12",
    "torchvision:vit_b_16": "4",
    "torchvision:swin_t": "6",
    "torchvision:convnext_tiny": "6",
    "torchvision:lraspp_mobilenet_v3_large": "10",
    "timm:levit_128s": "10",
    "hf:bert": "4",
    "hf:gpt2": "4",
}


@pytest.mark.torch
@pytest.mark.parametrize("name", NETWORKS)
def test_cuts_of_exported_networks(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from splitpoint.models.torch import export

    path = tmp_path / "net.onnx"
    report = export(name, path, weights="random:0")
    assert "random" in report.weights
    model = load(path)
    checks = list(verify(model, ENGINE, select(model, NETWORKS[name])))
    assert len(checks) >= 3
    assert [str(c) for c in checks if not c.ok] == []


@pytest.mark.parametrize(("name", "files"), [("zoo:efficientnet_lite0", photos()), ("zoo:lenet5", digits())])
def test_every_cut_of_the_zoo_on_real_photos(name: str, files: list[Path]) -> None:
    model = load(name)
    cuts = select(model, "all")
    checks = list(verify(model, ENGINE, cuts, [read_inputs(model, p) for p in files[:3]]))
    assert len(checks) == len(cuts) > 15
    assert [str(c) for c in checks if not c.ok] == []
