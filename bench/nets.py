"""Networks that benchmarks run, exported once into out/nets."""

from __future__ import annotations

from pathlib import Path

#: The six of docs/benchmarks.md.
SIX = ("mobilenet_v2", "resnet50", "googlenet", "efficientnet_lite0", "vgg16_bn", "vit_b_16")
#: Those of the multi-task experiment of the Neurosurgeon replica (LeNet-5 stands for its LeNet).
MIX = ("alexnet", "vgg16_bn", "lenet5", "mobilenet_v2")
_ZOO = ("efficientnet_lite0", "lenet5")
_FOLDER = Path("out") / "nets"


def path_of(name: str) -> str:
    """What `load` takes for a network of the tables.

    The weights of torchvision's are random: they do not change how long a network takes, and downloading them would.
    """
    if name in _ZOO:
        return f"zoo:{name}"
    path = _FOLDER / f"{name}.onnx"
    if not path.exists():
        from splitpoint.models.torch import export

        _FOLDER.mkdir(parents=True, exist_ok=True)
        export(f"torchvision:{name}", path, weights="random:0")
    return str(path)
