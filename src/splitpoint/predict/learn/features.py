"""What explains a kernel's time, worked out from its columns: terms that time is a sum of, and features for trees.

Terms are amounts of work (multiply-adds, elements read and written, weights); a kernel takes so many ms for a unit of
each. Features are what that price depends on: sizes, what is over when a size is cut into blocks of 8, 32 or 128,
how often an element is used. FLOPs columns are not read: they follow from the shapes, and tables count them differently
(the seed's depthwise ones have a pointwise convolution in them that never ran).
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from splitpoint.errors import InputError
from splitpoint.predict.kernels.kernel_kinds import KINDS, Named, out_side, tiles
from splitpoint.profile.costs import Floats

#: Blocks that vector units, cache tiles and GPU waves cut channels and pixels into.
_BLOCKS = (8, 32, 128)


def columns_of(kind: str, configs: Mapping[str, Floats]) -> Named:
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
    amounts = dict(KINDS[kind].work(columns))
    if "reorder" in columns:
        amounts["reorder"] = columns["reorder"]
    if "act" in columns:  # an activation that the kernel itself has not: once more over what it wrote
        amounts["over"] = amounts["written"] * (columns["act"] > 1)
    terms = {name: amount / 1e6 for name, amount in amounts.items()}
    return {"1": np.ones(len(next(iter(columns.values())))), **terms}


def cells_of(kind: str, columns: Named) -> NDArray[np.str_]:
    """The cell of each kernel, such as ``kernel=3,stride=2``: what has a base of its own. All "" in most kinds."""
    apart = KINDS[kind].apart
    if not apart:
        return np.full(len(next(iter(columns.values()))), "")
    known = columns if set(apart) <= set(columns) else columns | _sizes(kind, columns)
    rows = zip(*(known[name].tolist() for name in apart), strict=True)
    return np.array([",".join(f"{n}={v:g}" for n, v in zip(apart, row, strict=True)) for row in rows])


def features_of(kind: str, columns: Named, names: tuple[str, ...] | None = None) -> Floats:
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
    work = KINDS[kind].work(columns)
    features = {name: values for name, values in columns.items() if name != "FLOPs"} | work | _sizes(kind, columns)
    if "macs" in work:
        moved = np.sum([work[name] for name in ("read", "written", "weights") if name in work], axis=0)
        features |= {"moved": moved, "intensity": work["macs"] / np.maximum(moved, 1.0)}
    for name in ("Cin", "Cout", "in_features", "out_features", "pixels", "width"):
        if name in features:
            features |= {f"{name}%{block}": features[name] % block for block in _BLOCKS}
    # Product and ratio of every two columns: engines choose among their kernels by such, and a tree that has only the
    # columns would need a staircase of splits for it (on the seed's GPU 3 % more of the convolutions within 10 %).
    for a, b in combinations([name for name in KINDS[kind].required if name not in ("FLOPs", "op")], 2):
        features |= {f"{a}*{b}": columns[a] * columns[b], f"{a}/{b}": columns[a] / columns[b]}
    return features


def _sizes(kind: str, c: Named) -> Named:
    """Lengths that kernels loop over, and their ratios."""
    if kind in ("conv", "dw_conv", "group_conv"):
        out = out_side(c)
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
            "tiles128": tiles(pixels, wide, 128) * groups,
            "tiles32": tiles(pixels, wide, 32) * groups,
            "pixels/Cout": pixels / c["Cout"],
            "depth/Cout": depth / c["Cout"],
            "depth/pixels": depth / pixels,
        }
    if kind in ("maxpool", "avgpool"):
        out = c["output"] if kind == "avgpool" else out_side(c)
        return {"out": out, "pixels": out**2 * c["batch"], "HW%out": c["HW"] % out}
    if kind in ("linear", "matmul"):
        return {"tiles": tiles(c["out_features"], c["rows"], 64)}
    return {}


def _block(c: Named) -> Floats:
    """16 or 8 where groups are whole blocks of so many channels; else 1: another kernel, up to five times as long."""
    whole = np.gcd(np.asarray(c["Cin"] / c["groups"], np.int64), np.asarray(c["Cout"] / c["groups"], np.int64))
    return np.where(whole % 16 == 0, 16.0, np.where(whole % 8 == 0, 8.0, 1.0))
