"""What each codec costs on this machine: a fixed part and a part a megabyte."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from statistics import median
from time import perf_counter

import numpy as np

from splitpoint.codecs import CODECS, FLOATS, Codec, dims, open_codec, takes, usual_name
from splitpoint.models.model import Model
from splitpoint.profile.profiles import CodecCost
from splitpoint.tensors import Array, TensorSpec

#: Two sizes tell the fixed part from the other: this many values, and this many times as many.
_SMALL, _RATIO = 1 << 13, 32
_LEAST_ROUNDS, _MOST_ROUNDS = 3, 9


def codec_costs(
    model: Model, budget_s: float, run: Callable[[], object] | None = None, *, clock: Callable[[], float] = perf_counter
) -> dict[str, CodecCost]:
    """Codec → its cost for tensors like those that cross in `model`, measured in about `budget_s` seconds.

    `run` runs the model: what a codec costs more right after that, as in a request, than in a row is measured with
    int8 and added to all, if there is time for it.
    """
    costs: dict[str, CodecCost] = {}
    # What a codec with tables costs is a matter of these, not of bytes alone: a calibration measures it.
    for codec in (open_codec(usual_name(kind)) for kind, entry in CODECS.items() if not entry.tables):
        spec = next((s for s in _specs(model) if codec.accepts(s)), None)
        if spec is not None:
            costs[codec.name] = measure(codec, spec, budget_s / len(CODECS))
    if run is None:
        return costs
    encode_ms, decode_ms = _after(run, _specs(model)[0], budget_s, clock)
    return {
        name: CodecCost(
            cost.encode_fixed_ms + encode_ms, cost.encode_ms_per_mb, cost.decode_fixed_ms + decode_ms,
            cost.decode_ms_per_mb,
        )
        if name != "raw"  # nothing is computed for it
        else cost
        for name, cost in costs.items()
    }  # fmt: skip


def _after(
    run: Callable[[], object], spec: TensorSpec, budget_s: float, clock: Callable[[], float]
) -> tuple[float, float]:
    """Milliseconds that int8 takes longer, encoding and decoding, after a `run` than after itself: caches are cold."""
    codec, array = open_codec("int8"), sample(sized(spec, _SMALL))
    data, decoded = codec.encode(array), TensorSpec(spec.name, array.dtype.name, array.shape)
    actions: list[Callable[[], Array]] = [lambda: codec.encode(array), lambda: codec.decode(data, decoded)]
    more: list[list[float]] = [[], []]
    end = clock() + budget_s
    while len(more[0]) < _MOST_ROUNDS:
        began = clock()
        for each, action in zip(more, actions, strict=True):
            run()
            taken = []
            for _ in range(3):
                start = clock()
                action()
                taken.append((clock() - start) * 1e3)
            each.append(taken[0] - min(taken))
        if 2 * clock() - began > end:  # another round would end too late
            break
    encode_ms, decode_ms = map(median, more)
    return encode_ms, decode_ms


def _specs(model: Model) -> tuple[TensorSpec, ...]:
    """A tensor of the middle size among those that cross one by one, then a photo."""
    crossing = {c.crossing[0].name: c.crossing[0] for c in model.graph.chain() if len(c.crossing) == 1}
    floats = sorted((t for t in crossing.values() if t.dtype in ("float32", "float16")), key=lambda t: t.nbytes)
    usual = floats[len(floats) // 2] if floats else TensorSpec("features", "float32", (1, 64, 28, 28))
    photos = [t for t in crossing.values() if t.dtype == "uint8"]
    return (usual, *photos, TensorSpec("photo", "uint8", (1, 224, 224, 3)))


def measure(
    codec: Codec, spec: TensorSpec, budget_s: float = 0.05, *, clock: Callable[[], float] = perf_counter
) -> CodecCost:
    """What `codec` costs for tensors like `spec`: medians of runs at two sizes, interleaved, in about `budget_s`.

    Two tensors are made with the proportions of `spec` and values like a network's features (a photo's, for uint8).
    InputError if `codec` does not take such tensors.
    """
    takes(codec, spec)
    arrays = [sample(sized(spec, _SMALL * ratio)) for ratio in (1, _RATIO)]
    specs = [TensorSpec(spec.name, a.dtype.name, a.shape) for a in arrays]
    data = [codec.encode(a) for a in arrays]
    taken: list[list[float]] = [[] for _ in range(4)]
    actions: list[Callable[[], Array]] = [
        lambda: codec.encode(arrays[0]), lambda: codec.decode(data[0], specs[0]),
        lambda: codec.encode(arrays[1]), lambda: codec.decode(data[1], specs[1]),
    ]  # fmt: skip
    end = clock() + budget_s
    while len(taken[0]) < _LEAST_ROUNDS or clock() < end:
        for times, action in zip(taken, actions, strict=True):
            start = clock()
            action()
            times.append((clock() - start) * 1e3)
    encode_small, decode_small, encode, decode = (median(times) for times in taken)
    small, large = (s.nbytes / 1e6 for s in specs)
    return CodecCost(*_line(small, encode_small, large, encode), *_line(small, decode_small, large, decode))


def _line(small: float, at_small: float, large: float, at_large: float) -> tuple[float, float]:
    """(fixed, a megabyte) through two points; neither is negative."""
    if large <= small:  # one channel has more values than either size asked for: next to it, nothing is fixed
        return 0.0, at_large / large
    slope = min(max(0.0, (at_large - at_small) / (large - small)), at_large / large)
    return max(0.0, at_large - slope * large), slope


def sized(spec: TensorSpec, elements: int) -> TensorSpec:
    """A spec of about `elements` values with the proportions of `spec`, batch 1.

    Pictures (uint8) and tokens grow along their length, feature maps in channels: the length of a channel stays.
    """
    shape = [max(1, n) for n in dims(spec)] or [1]
    axis = min(1, len(shape) - 1)
    shape[: axis + 1] = [1] * (axis + 1)
    shape[axis] = max(1, round(elements / prod(shape)))
    return TensorSpec(spec.name, spec.dtype, tuple(shape))


def sample(spec: TensorSpec, seed: int = 0) -> Array:
    """Values like those of a network: neighbours alike, half of the floats zero; whole numbers are small."""
    rng = np.random.default_rng(seed)
    count = spec.elements
    noise = rng.standard_normal(count, np.float32)
    smooth = np.convolve(rng.standard_normal(count, np.float32), np.full(24, 24**-0.5, np.float32))[:count]
    mixed: Array = (0.9 * smooth + 0.4 * noise).reshape(dims(spec))
    if spec.dtype == "uint8":
        mixed = np.clip(mixed * 40 + 128, 0, 255)
    elif spec.dtype in FLOATS:
        mixed = np.maximum(mixed, 0)
    else:
        mixed = mixed > 0
    return mixed.astype(spec.dtype)
