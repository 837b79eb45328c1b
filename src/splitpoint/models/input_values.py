"""Real values for inputs that must make sense: a detection threshold, the size to scale to, a sampling rate.

Shapes are measured, and models timed and verified, on made-up inputs. A graph that refuses them needs real ones, given
once: they are kept on this machine by the model's fingerprint, and small ones travel with its graph, so that neither
the next command nor a server's clients have to be told again. A large one (a photo) never leaves this machine.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from splitpoint import text
from splitpoint.errors import InputError, ModelError, SplitpointError, StorageError, nearest
from splitpoint.files import private_folder, write_atomic
from splitpoint.machine import default_cache
from splitpoint.models.dataflow import Proto
from splitpoint.models.layer_names import VALUES_KEY, metadata
from splitpoint.parsing import parse_json
from splitpoint.tensors import ITEM_SIZES, Array, TensorSpec, load_arrays, npz_bytes

Values = Mapping[str, Array]

#: What makes a graph run is small: a value up to this size travels with the graph, and is the same in all samples.
SMALL_BYTES = 1024
#: Values of more bytes than this together are not kept.
_MOST_KEPT = 64 << 20
#: Of the metadata: this many inputs.
_MOST_NOTED = 256


def given(skeleton: Proto, inputs: Sequence[TensorSpec], values: Mapping[str, Any]) -> dict[str, Array]:
    """`values` as arrays of their inputs' dtypes and (bound) shapes. ``""`` is the only input's name.

    One number fills its input; numbers in a row fill it in order; of a free batch the first item is taken. InputError
    names the input, what it takes and what came.
    """
    specs = {t.name: t for t in inputs}
    arrays = {}
    for name, value in values.items():
        if not name and len(inputs) != 1:
            names = text.listed(specs)
            raise InputError(f"a value without a name is for a model with one input: its inputs are {names}")
        name = name or inputs[0].name
        if any(t.name == name for t in skeleton.graph.initializer):
            raise InputError(default_input(name))
        if name not in specs:
            raise InputError(f"the model has no input {name}{nearest(name, specs)} (its inputs: {text.listed(specs)})")
        arrays[name] = _as_input(specs[name], value)
    return arrays


def default_input(name: str) -> str:
    """Why `name` cannot be given: it had a default value in the file, so that cuts treat it as the weight it is."""
    return f"{name} has a default value in the model, which always counts: here it is a weight, not an input"


def _as_input(spec: TensorSpec, value: Any) -> Array:
    try:
        array = np.asarray(value)
    except ValueError as exc:  # rows of different lengths
        raise InputError(f"the value for input {spec} is no array of numbers: {exc}") from exc
    shape = tuple(int(d) for d in spec.shape)
    if array.dtype.kind not in "biuf":
        raise InputError(f"the value for input {spec} is no array of numbers")
    if array.size == 1:
        array = np.full(shape, array.reshape(-1)[0])
    elif array.ndim == 1 and array.size == spec.elements:
        array = array.reshape(shape)
    elif array.ndim == len(shape) - 1:
        array = array[None]
    if shape and array.ndim == len(shape) and array.shape[1:] == shape[1:] and len(array) > shape[0] > 0:
        array = array[: shape[0]]
    if array.shape != shape:
        came = "×".join(map(str, np.shape(value)))
        raise InputError(f"the value for input {spec} has another shape: {came} numbers came")
    with np.errstate(invalid="ignore", over="ignore"):
        values = array.astype(spec.dtype)
    if spec.dtype[:3] in ("int", "uin", "boo") and not np.array_equal(values, array):
        raise InputError(f"the value for input {spec} does not fit its type: {array.reshape(-1)[:4].tolist()}")
    return np.require(values, requirements="C")


def with_values(sample: Mapping[str, Array], inputs: Sequence[TensorSpec], values: Values) -> dict[str, Array]:
    """`sample` (for bound `inputs`) with `values` in place of what is made up, and likely ones where a name tells."""
    return {t.name: _fitted(values.get(t.name, _likely(t)), t, sample[t.name]) for t in inputs}


def varied(drawn: Mapping[str, Array], inputs: Sequence[TensorSpec], values: Values) -> dict[str, Array]:
    """Another sample: small values stay, which the graph needs; unless then nothing would differ from the first."""
    small = {n: v for n, v in values.items() if v.nbytes <= SMALL_BYTES}
    sample = with_values(drawn, inputs, small)
    told = {t.name for t in inputs if t.name in small or _likely(t) is not None}
    if len(told) == len(inputs):
        for name in (t.name for t in inputs if t.dtype.startswith("float")):
            value = sample[name]
            size = float(np.abs(value).max(initial=0.0)) or 1.0
            sample[name] = np.asarray(value + 0.1 * size * drawn[name], value.dtype)
    return sample


def _fitted(value: Array | None, spec: TensorSpec, sample: Array) -> Array:
    """`value` for the batch of `spec`, which may be another than it was given for; `sample` where there is none."""
    if value is None:
        return sample
    if value.shape != sample.shape:  # the free first dimension
        value = np.resize(value, sample.shape)
    return np.require(value, spec.dtype, requirements="C")  # unlike ascontiguousarray, it lets a scalar be one


#: What one number is likely to be, by its input's name.
_LIKELY: Sequence[tuple[re.Pattern[str], str, float]] = (
    (re.compile(r"sr|sample_?rate|sampling_?rate"), "iuf", 16000),
    (re.compile(r".*(iou|thresh|conf).*|score"), "f", 0.5),
    (re.compile(r"max_?(out|det|box|num|count).*|top_?k|k|num_?(det|box).*"), "iu", 10),
)


def _likely(spec: TensorSpec) -> Array | None:
    """A value that makes sense to most graphs for an input of one number with a telling name."""
    if any(d != 1 for d in spec.shape) or spec.dtype in ("bool", "int8", "uint8"):
        return None
    for name, kinds, value in _LIKELY:
        if name.fullmatch(spec.name.lower().rpartition(".")[2]) and np.dtype(spec.dtype).kind in kinds:
            return np.full(tuple(int(d) for d in spec.shape), value, spec.dtype)
    return None


def advice(inputs: Iterable[TensorSpec], values: Values) -> str:
    """What to do where a graph refuses made-up inputs."""
    left = [t for t in inputs if t.name not in values]
    if not left:
        return "with the values given: others may make more sense"
    telling = [t for t in left if not t.dtype.startswith("float")] or ([] if values else left)
    small = [t.name for t in telling if len(t.shape) < 2] or [t.name for t in telling] or list(values)
    tried = f"with {', '.join(values)} as given, the others made up" if values else "its inputs were made up"
    return (
        f"{tried}: give real ones with --input FILE.npz, or --value {small[0]}=… (in Python: values=), "
        "which later commands remember"
    )


class _NotedValue(msgspec.Struct, array_like=True, frozen=True):
    dtype: str
    shape: tuple[Annotated[int, msgspec.Meta(ge=0)], ...]
    data: str


def note(skeleton: Proto, values: Values) -> None:
    """Write the small ones of `values` into the skeleton's metadata."""
    rows = {
        n: _NotedValue(v.dtype.name, v.shape, b64encode(v.tobytes()).decode())
        for n, v in sorted(values.items()) if v.nbytes <= SMALL_BYTES
    }  # fmt: skip
    for k in reversed([k for k, p in enumerate(skeleton.metadata_props) if p.key == VALUES_KEY]):
        del skeleton.metadata_props[k]
    if rows:
        skeleton.metadata_props.add(key=VALUES_KEY, value=msgspec.json.encode(rows).decode())


def noted(skeleton: Proto, inputs: Sequence[TensorSpec]) -> dict[str, Array]:
    """The values in the skeleton's metadata, for bound `inputs`. ModelError if they are broken or do not fit."""
    text = metadata(skeleton).get(VALUES_KEY)
    if not text:
        return {}
    specs = {t.name: t for t in inputs}
    values = {}
    try:
        rows = parse_json(text, dict[str, _NotedValue])
        if len(rows) > _MOST_NOTED:
            raise ValueError(f"{len(rows)} values")
        for name, row in rows.items():
            data = b64decode(row.data, validate=True)
            if row.dtype not in ITEM_SIZES or len(data) > SMALL_BYTES:
                raise ValueError(f"a value for {name} of {row.dtype[:20]}, {len(data)} bytes")
            array = np.frombuffer(data, row.dtype).reshape(row.shape)
            if name in specs:  # the file may be a part of the model that has fewer inputs
                values[name] = _as_input(specs[name], array)
    except (ValueError, TypeError, Base64Error, InputError) as exc:
        raise ModelError(f"the model's {VALUES_KEY} metadata is broken: {exc}") from exc
    return values


def remembered(fingerprint: str, inputs: Sequence[TensorSpec]) -> dict[str, Array]:
    """The values that an earlier command was given for this model; none where they cannot be read any more."""
    place = _place(fingerprint)
    specs = {t.name: t for t in inputs}
    try:
        if not os.path.isfile(place):  # nor if it is for another user alone
            return {}
        private_folder(place.parent)
    except StorageError as exc:
        warnings.warn(f"values given earlier are not remembered: {exc}", RuntimeWarning, stacklevel=2)
        return {}
    with suppress(OSError, SplitpointError):
        return {n: _as_input(specs[n], v) for n, v in load_arrays(place, _MOST_KEPT).items() if n in specs}
    return {}


def remember(fingerprint: str, values: Values) -> None:
    """Keep `values` for the next command, if they are not too large and can be written."""
    place = _place(fingerprint)
    with suppress(OSError, SplitpointError):  # a read-only or full disk: the next command is told again
        if sum(v.nbytes for v in values.values()) <= _MOST_KEPT:
            private_folder(place.parent)
            write_atomic(place, npz_bytes(values))


def _place(fingerprint: str) -> Path:
    return default_cache() / "values" / f"{fingerprint[:32]}.npz"


def digest(values: Values) -> str:
    """8 hex digits of `values`; empty for none. What was measured with others is another measurement."""
    if not values:
        return ""
    hashed = hashlib.sha256()
    for name, value in sorted(values.items()):
        hashed.update(f"{name}\0{value.dtype}{value.shape}\0".encode())
        hashed.update(value.tobytes())
    return hashed.hexdigest()[:8]


def listed(values: Values) -> str:
    """Small ones in words: ``sr = 16000, iou = 0.5``."""
    few = [
        f"{n} = {','.join(f'{x:g}' for x in v.reshape(-1).tolist())}" if v.size <= 8 else f"{n} of {v.size} numbers"
        for n, v in values.items()
    ]
    return ", ".join(few)
