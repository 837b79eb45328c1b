"""Codecs on one core: gigabytes of tensor a second, both ways, and the bytes left. `python -m bench.codecs`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import perf_counter

import numpy as np

from bench.common import EDGE_CORE, header, pin
from splitpoint.codecs import CODECS, open_codec
from splitpoint.profile.codec_times import sample
from splitpoint.tensors import Array, TensorSpec

FEATURES = ((1, 32, 112, 112), (1, 96, 14, 14), (1, 197, 768), (1, 128, 128, 128))
NAMES = tuple(kind for kind, entry in CODECS.items() if kind != "raw" and not entry.qualities)
QUALITIES = (75, 90, 95)
ROUNDS = 15

#: Gigabytes of float32 a second, encoding: what the project asks of itself.
TARGETS = {"fp16": 1.0, "int8": 0.3}


def main() -> None:
    pin(EDGE_CORE)
    print(header())
    print(f"codecs: best of {ROUNDS} interleaved rounds, GB of the decoded tensor a second")
    print(
        f"{'tensor':<26}{'codec':<12}{'encode ms':>10}{'GB/s':>8}{'decode ms':>11}{'GB/s':>8}{'bytes':>9}{'of raw':>8}"
    )
    for shape in FEATURES:
        spec = TensorSpec("features", "float32", shape)
        for line in table(spec, sample(spec), NAMES):
            print(line)
    spec = TensorSpec("photo", "uint8", (1, 224, 224, 3))
    for line in table(spec, photo(), tuple(f"jpeg:{q}" for q in QUALITIES)):
        print(line)


def table(spec: TensorSpec, array: Array, names: tuple[str, ...]) -> Iterator[str]:
    codecs = [open_codec(name) for name in names]
    data = [codec.encode(array) for codec in codecs]
    encode, decode = [9.0] * len(names), [9.0] * len(names)
    for _ in range(ROUNDS):
        for k, codec in enumerate(codecs):
            encode[k] = min(encode[k], seconds(lambda codec=codec: codec.encode(array)))
            decode[k] = min(decode[k], seconds(lambda codec=codec, k=k: codec.decode(data[k], spec)))
    for k, name in enumerate(names):
        rates = [spec.nbytes / t / 1e9 for t in (encode[k], decode[k])]
        missed = " below the target" if spec.nbytes > 1e6 and rates[0] < TARGETS.get(name, 0) else ""
        yield (
            f"{spec.type:<26}{name:<12}{encode[k] * 1e3:>10.3f}{rates[0]:>8.2f}{decode[k] * 1e3:>11.3f}{rates[1]:>8.2f}"
            f"{data[k].nbytes:>9}{data[k].nbytes / spec.nbytes:>8.1%}{missed}"
        )


def seconds(action: Callable[[], object]) -> float:
    start = perf_counter()
    action()
    return perf_counter() - start


def photo() -> Array:
    from PIL import Image

    from splitpoint.models.zoo import photos

    with Image.open(photos()[0]) as image:
        return np.asarray(image.convert("RGB").resize((224, 224)))[None]


if __name__ == "__main__":
    main()
