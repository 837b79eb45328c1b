"""`make bench`: every number of docs/benchmarks.md, measured on this machine."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from bench import device, split, stream, wire
from bench.common import header
from splitpoint.models.torch import export


def main() -> None:
    print(header())
    print()
    wire.main()
    print()
    with TemporaryDirectory() as folder:
        # Weights do not change how long a network takes; downloading them would.
        path = Path(folder) / "mobilenet_v2.onnx"
        export("torchvision:mobilenet_v2", path, weights="random:0")
        split.main(str(path))
    print()
    stream.main()
    print()
    device.main()


if __name__ == "__main__":
    main()
