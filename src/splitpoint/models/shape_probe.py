"""Measure the shapes that inference cannot know by running the whole model once, unoptimised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from splitpoint.errors import ModelError, StorageError
from splitpoint.models.dataflow import Proto, reads
from splitpoint.models.input_values import Values, advice, with_values
from splitpoint.models.reasons import reason_of
from splitpoint.models.shapes import sample_inputs
from splitpoint.models.soundness import blob_hash, nbytes
from splitpoint.models.weights import Weights
from splitpoint.tensors import ITEM_SIZES, Array, TensorSpec


def run_once(
    skeleton: Proto,
    weights: Weights,
    values: Values,
    inputs: Sequence[TensorSpec],
    names: Sequence[str],
    sized: Sequence[str] = (),
) -> tuple[Mapping[str, Array | None], Mapping[str, tuple[int, ...]]]:
    """The value of each tensor in `names` (None for what is not an array) and the shape of each in `sized`.

    For one input of `values`, the others made up. ModelError if ONNX Runtime cannot run the model on it.
    """
    import onnx
    import onnxruntime as ort

    full = onnx.ModelProto()
    full.CopyFrom(skeleton)
    known = {o.name for o in full.graph.output}
    for name in names:
        if name not in known:
            full.graph.output.add().name = name
    # Of most tensors the shape is enough, and they need not be kept until the end.
    shape_of = {name: f"splitpoint.shape.{k}" for k, name in enumerate(sized)}
    for name, shape in shape_of.items():
        full.graph.node.add(op_type="Shape", name=shape, input=[name], output=[shape])
        full.graph.output.add().name = shape
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    held = give_weights(options, full, weights)
    cpu = ["CPUExecutionProvider"]
    try:
        session = ort.InferenceSession(full.SerializeToString(), options, providers=cpu, enable_fallback=0)
    except Exception as exc:  # ONNX Runtime's exceptions share no base of their own
        raise ModelError(
            f"ONNX Runtime cannot run this model: {reason_of(exc)} (it was tried because no inference knows the "
            f"shape of {(*names, *sized)[0]})"
        ) from exc
    try:
        outputs = session.run([*names, *shape_of.values()], with_values(sample_inputs(inputs), inputs, values))
    except Exception as exc:
        raise ModelError(f"ONNX Runtime cannot run this model: {reason_of(exc)} ({advice(inputs, values)})") from exc
    del held
    arrays = {n: v if isinstance(v, np.ndarray) else None for n, v in zip(names, outputs, strict=False)}
    return arrays, {n: tuple(map(int, v)) for n, v in zip(sized, outputs[len(names) :], strict=True)}


def give_weights(options: Any, proto: Proto, weights: Weights) -> dict[str, Any]:
    """Let a session of `options` copy the blobs of `proto`'s weights; the caller holds what is returned until then.

    StorageError if a blob is not there or not as long as the weight.

    Not with `options.add_initializer`, which would share a weight's memory with the kernels and save a copy of what
    ONNX Runtime does not repack: the kernels would then see the weight as it was before the optimiser reshaped it
    (ConvNeXt's layer scale [384,1,1] behind a moved Transpose: wrong broadcast, and where sizes agree a wrong answer).
    """
    import onnx
    import onnxruntime as ort

    # By name, over the blobs' own memory (no copy on the CPU).
    held: dict[str, Any] = {}
    # Those that nothing reads ONNX Runtime would drop first, and then miss.
    used = {t for n in proto.graph.node for t in reads(n)} | {o.name for o in proto.graph.output}
    for t in proto.graph.initializer:
        digest = blob_hash(t)
        if not digest or t.name not in used:
            continue
        data = weights.open(digest)
        if data.nbytes != nbytes(t):
            raise StorageError(f"weight blob {digest[:12]}… has {data.nbytes} bytes, weight {t.name} needs {nbytes(t)}")
        raw = np.frombuffer(data, dtype=np.uint8)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(t.data_type)
        if dtype.name in ITEM_SIZES:
            array = raw.view(dtype).reshape(tuple(t.dims))
            held[t.name] = ort.OrtValue.ortvalue_from_numpy(np.require(array, requirements="A"))
        else:
            held[t.name] = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(_stand_in(raw, t), t.data_type)
    options.add_external_initializers(list(held), list(held.values()))
    return held


def _stand_in(raw: Array, tensor: Proto) -> Array:
    """`raw` as an array of the weight's own shape, for a type numpy has not (bfloat16, packed 4-bit values).

    ONNX Runtime takes the shape from the array and the values from its memory, of which packed ones fill a part.
    """
    count = int(np.prod(tensor.dims, dtype=np.int64))
    if raw.nbytes >= count:
        return raw.view(f"u{raw.nbytes // count}").reshape(tuple(tensor.dims))
    padded = np.zeros(count, np.uint8)
    padded[: raw.nbytes] = raw
    return padded.reshape(tuple(tensor.dims))
