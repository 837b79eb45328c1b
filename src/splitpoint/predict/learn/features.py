"""What explains a kernel's time, worked out from its columns: terms that time is a sum of, and features for trees.

Terms are amounts of work (multiply-adds, elements read and written, weights); a kernel takes so many ms for a unit of
each. Features are what that price depends on: sizes, what is over when a size is cut into blocks of 8, 32 or 128,
how often an element is used. FLOPs columns are not read: they follow from the shapes, and tables count them differently
(the seed's depthwise ones have a pointwise convolution in them that never ran).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from splitpoint.errors import InputError
from splitpoint.predict.kernels.kernel_kinds import KINDS

FloatArray = NDArray[np.float64]
Named = dict[str, FloatArray]

#: Columns (or sizes) whose values are kernels of their own, each of which costs by sizes in its own way. (Not of plain
#: convolutions: those are all matrix products, and a common base is nearer than one for each kernel and stride.)
_APART: Mapping[str, tuple[str, ...]] = {
    "dw_conv": ("kernel", "stride"), "group_conv": ("block",), "activation": ("op",), "elementwise": ("op",),
    "move": ("op",),
}  # fmt: skip
#: Blocks that vector units, cache tiles and GPU waves cut channels and pixels into.
_BLOCKS = (8, 32, 128)


def columns_of(kind: str, configs: Mapping[str, FloatArray]) -> Named:
    """Every column of `kind` as an array, defaults where `configs` has none. InputError names a missing one."""
    missing = [name for name in KINDS[kind].required if name not in configs]
    if missing:
        raise InputError(f"a kernel of kind {kind} needs the column {missing[0]}")
    complete = {name: np.asarray(configs[name], np.float64) for name in KINDS[kind].required}
    like = next(iter(complete.values()))
    for name, default in KINDS[kind].optional.items():
        complete[name] = np.asarray(configs[name], np.float64) if name in configs else np.full(like.shape, default)
    return complete


def terms_of(kind: str, columns: Named) -> Named:
    """The amounts of work in kernels with these columns (`columns_of`), in 10⁶ and "1" for the fixed cost."""
    amounts = dict(_WORK[kind](columns))
    if "reorder" in columns:
        amounts["reorder"] = columns["reorder"]
    if "act" in columns:  # an activation that the kernel itself has not: once more over what it wrote
        amounts["over"] = amounts["written"] * (columns["act"] > 1)
    terms = {name: amount / 1e6 for name, amount in amounts.items()}
    return {"1": np.ones(len(next(iter(columns.values())))), **terms}


def cells_of(kind: str, columns: Named) -> NDArray[np.str_]:
    """The cell of each kernel, such as ``kernel=3,stride=2``: what has a base of its own. All "" in most kinds."""
    apart = _APART.get(kind, ())
    if not apart:
        return np.full(len(next(iter(columns.values()))), "")
    known = columns if set(apart) <= set(columns) else columns | _sizes(kind, columns)
    rows = zip(*(known[name].tolist() for name in apart), strict=True)
    return np.array([",".join(f"{n}={v:g}" for n, v in zip(apart, row, strict=True)) for row in rows])


def features_of(kind: str, columns: Named, names: tuple[str, ...] | None = None) -> FloatArray:
    """One row a kernel, one column a feature: those in `names`, or all that `feature_names` has."""
    features = _all_features(kind, columns)
    return np.stack([features[name] for name in names or tuple(features)], axis=1)


def feature_names(kind: str) -> tuple[str, ...]:
    """The features that trees of this kind are trained on, in order."""
    one = {name: np.ones(1) for name in KINDS[kind].columns}
    return tuple(_all_features(kind, one))


def term_names(kind: str) -> tuple[str, ...]:
    """The terms of this kind, "1" first."""
    return tuple(terms_of(kind, {name: np.ones(1) for name in KINDS[kind].columns}))


def _all_features(kind: str, columns: Named) -> Named:
    work = _WORK[kind](columns)
    features = {name: values for name, values in columns.items() if name != "FLOPs"} | work | _sizes(kind, columns)
    if "macs" in work:
        moved = np.sum([work[name] for name in ("read", "written", "weights") if name in work], axis=0)
        features |= {"moved": moved, "intensity": work["macs"] / np.maximum(moved, 1.0)}
    for name in ("Cin", "Cout", "in_features", "out_features", "pixels", "width"):
        if name in features:
            features |= {f"{name}%{block}": features[name] % block for block in _BLOCKS}
    return features | _pairs({name: columns[name] for name in KINDS[kind].required if name not in ("FLOPs", "op")})


def _pairs(sizes: Named) -> Named:
    """Product and ratio of every two columns: engines choose among their kernels by such, and a tree that has only the
    columns would need a staircase of splits for it (on the seed's GPU 3 % more of the convolutions within 10 %).
    """
    pairs: Named = {}
    for (a, x), (b, y) in combinations(sizes.items(), 2):
        pairs |= {f"{a}*{b}": x * y, f"{a}/{b}": x / y}
    return pairs


def _sizes(kind: str, c: Named) -> Named:
    """Lengths that kernels loop over, and their ratios."""
    if kind in ("conv", "dw_conv", "group_conv"):
        out = _out(c)
        pixels = out**2 * c["batch"]
        sizes = {"out": out, "pixels": pixels, "skipped": np.maximum(c["stride"] - c["kernel"], 0.0)}
        if kind == "dw_conv":
            return sizes
        groups = c.get("groups", np.ones_like(out))
        depth, wide = c["Cin"] / groups * c["kernel"] ** 2, c["Cout"] / groups
        if kind == "group_conv":
            sizes["block"] = _block(c)
        return sizes | {
            "wide": wide,
            "tiles128": _tiles(pixels, wide, 128) * groups,
            "tiles32": _tiles(pixels, wide, 32) * groups,
            "pixels/Cout": pixels / c["Cout"],
            "depth/Cout": depth / c["Cout"],
            "depth/pixels": depth / pixels,
        }
    if kind in ("maxpool", "avgpool"):
        out = _pool_out(kind, c)
        return {"out": out, "pixels": out**2 * c["batch"], "HW%out": c["HW"] % out}
    if kind in ("linear", "matmul"):
        tiles = _tiles(c["out_features"], c["rows"], 64)
        return {"tiles": tiles}
    return {}


def _block(c: Named) -> FloatArray:
    """16 or 8 where a group is made of whole blocks of so many channels, as engines lay them out; 1 where it is not:
    those run another kernel, here up to five times as long.
    """
    whole = np.gcd(np.asarray(c["Cin"] / c["groups"], np.int64), np.asarray(c["Cout"] / c["groups"], np.int64))
    return np.where(whole % 16 == 0, 16.0, np.where(whole % 8 == 0, 8.0, 1.0))


def _tiles(a: FloatArray, b: FloatArray, side: int) -> FloatArray:
    """Blocks of so many rows and columns of a matrix: what cores, or the multiprocessors of a GPU, take turns with."""
    return np.asarray(np.ceil(a / side) * np.ceil(b / side))


def _out(c: Named) -> FloatArray:
    """Height and width of a convolution's output: as given, or those of padding that keeps HW ÷ stride."""
    return np.where(c["out"] > 0, c["out"], np.ceil(c["HW"] / c["stride"]))


def _pool_out(kind: str, c: Named) -> FloatArray:
    return c["output"] if kind == "avgpool" else _out(c)


def _conv(c: Named) -> Named:
    """A matrix product of `pixels` × `depth` by `depth` × Cout, or what engines do instead of one.

    Sums of `depth` products take their time however few pixels there are, and pixels and channels are handed out in
    blocks: on a GPU most small convolutions cost just that.
    """
    groups = c.get("groups", np.ones_like(c["HW"]))
    out, wide = _out(c), c["Cout"] / groups
    pixels, depth = out**2 * c["batch"], c["Cin"] / groups * c["kernel"] ** 2
    planes = c["Cin"] * wide * c["batch"]
    return {
        "macs": pixels * depth * c["Cout"],
        "read": c["HW"] ** 2 * c["batch"] * c["Cin"] + c["added"],
        "written": pixels * c["Cout"],
        "weights": depth * c["Cout"],
        "patches": pixels * depth * groups,
        "depth": depth,
        "depth128": _tiles(pixels, wide, 128) * groups * depth,
        "depth32": _tiles(pixels, wide, 32) * groups * depth,
        "depth16": pixels * np.ceil(wide / 16) * groups * depth,
        "winograd": np.ceil(out / 4) ** 2 * planes,
        "fourier": c["HW"] ** 2 * planes,
        "calls": groups * c["batch"],
        "passes": pixels * c["Cout"] * (c["act"] > 1),
    }


def _dw_conv(c: Named) -> Named:
    pixels = _out(c) ** 2 * c["batch"]
    return {
        "macs": pixels * c["kernel"] ** 2 * c["Cin"],
        "read": c["HW"] ** 2 * c["batch"] * c["Cin"] + c["added"],
        "written": pixels * c["Cin"],
        # Engines without a kernel for these sizes call that of plain convolution once a channel.
        "calls": c["Cin"] * c["batch"],
        "passes": pixels * c["Cin"] * (c["act"] > 1),
    }


def _linear(c: Named) -> Named:
    return {
        "macs": c["rows"] * c["in_features"] * c["out_features"],
        "read": c["rows"] * c["in_features"],
        "written": c["rows"] * c["out_features"],
        "weights": c["in_features"] * c["out_features"],
    }


def _matmul(c: Named) -> Named:
    rows, width, columns = c["rows"], c["in_features"], c["out_features"]
    return {
        "macs": c["batch"] * rows * width * columns,
        "read": c["batch"] * (rows + columns) * width,
        "written": c["batch"] * rows * columns,
    }


def _maxpool(c: Named) -> Named:
    written = _out(c) ** 2 * c["batch"] * c["Cin"]
    return {"macs": written * c["kernel"] ** 2, "read": c["HW"] ** 2 * c["batch"] * c["Cin"], "written": written}


def _avgpool(c: Named) -> Named:
    # The seed's are adaptive: an output pixel has HW ÷ output pixels in each direction, or one more.
    kernel = np.where(c["kernel"] > 0, c["kernel"], np.ceil(c["HW"] / np.maximum(c["output"], 1.0)))
    written = c["output"] ** 2 * c["batch"] * c["Cin"]
    return {"macs": written * kernel**2, "read": c["HW"] ** 2 * c["batch"] * c["Cin"], "written": written}


def _global_pool(c: Named) -> Named:
    return {"read": c["HW"] ** 2 * c["batch"] * c["Cin"], "written": c["batch"] * c["Cin"]}


def _batchnorm(c: Named) -> Named:
    return {"read": c["HW"] ** 2 * c["batch"] * c["Cin"], "weights": c["Cin"]}


def _elements(c: Named) -> Named:
    return {"read": c["elements"]}


def _rows(c: Named) -> Named:
    return {"read": c["rows"] * c["width"], "written": c["rows"]}


def _elementwise(c: Named) -> Named:
    return {"read": c["elements"] * np.where(c["broadcast"] > 0, 1.0, c["inputs"]), "written": c["elements"]}


def _attention(c: Named) -> Named:
    scores = c["batch"] * c["rows"] * c["columns"]
    return {
        "macs": 2 * scores * c["width"],
        "read": c["batch"] * (c["rows"] + 2 * c["columns"]) * c["width"],
        "written": scores,
    }


_WORK: Mapping[str, Callable[[Named], Named]] = {
    "conv": _conv, "dw_conv": _dw_conv, "group_conv": _conv, "linear": _linear, "matmul": _matmul,
    "maxpool": _maxpool, "avgpool": _avgpool, "global_pool": _global_pool, "batchnorm": _batchnorm,
    "activation": _elements, "elementwise": _elementwise, "concat": _elements, "softmax": _rows, "layernorm": _rows,
    "attention": _attention, "move": _elements, "other": _elements,
}  # fmt: skip
