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

#: Name → the cuts to check.
NETWORKS = {
    "torchvision:mobilenet_v2": "chain",
    "torchvision:alexnet": "8",
    "torchvision:convnext_tiny": "6",
    "hf:bert": "4",
}
#: Exporting and running these takes half a minute each: `make networks` checks them too.
HEAVY = {
    "torchvision:googlenet": "8",
    "torchvision:shufflenet_v2_x1_0": "12",
    "torchvision:lraspp_mobilenet_v3_large": "10",
    "torchvision:vgg16_bn": "6",
    "torchvision:resnet50": "12",
    "torchvision:inception_v3": "12",
    "torchvision:densenet121": "12",
    "torchvision:efficientnet_b0": "20",
    "torchvision:vit_b_16": "8",
    "torchvision:swin_t": "12",
    "torchvision:deeplabv3_mobilenet_v3_large": "10",
    "timm:levit_128s": "20",
    "timm:mobilevit_s": "12",
    "hf:gpt2": "8",
}
CUTS = NETWORKS | HEAVY
NAMES = [*NETWORKS, *(pytest.param(name, marks=pytest.mark.heavy) for name in HEAVY)]


@pytest.mark.torch
@pytest.mark.parametrize("name", NAMES)
def test_cuts_of_exported_networks(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from splitpoint.models.torch import export

    path = tmp_path / "net.onnx"
    report = export(name, path, weights="random:0")
    assert "random" in report.weights
    model = load(path)
    checks = list(verify(model, ENGINE, select(model, CUTS[name])))
    assert len(checks) >= 3
    assert [str(c) for c in checks if not c.ok] == []


@pytest.mark.parametrize(("name", "files"), [("zoo:efficientnet_lite0", photos()), ("zoo:lenet5", digits())])
def test_every_cut_of_the_zoo_on_real_photos(name: str, files: list[Path]) -> None:
    model = load(name)
    cuts = select(model, "all")
    checks = list(verify(model, ENGINE, cuts, [read_inputs(model, p) for p in files[:3]]))
    assert len(checks) == len(cuts) > 15
    assert [str(c) for c in checks if not c.ok] == []
