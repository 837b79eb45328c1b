"""split() writes files any runtime runs; verify() tells equal from different from inconclusive; real networks."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto
from tabled import AT, TENSOR, calibration, lenet

import nets
from nets import node, value, weight
from splitpoint.calibration.tables import tables_of
from splitpoint.engines import Engine, Session
from splitpoint.errors import CutError, InputError, StorageError, UsageError
from splitpoint.graph import Cut
from splitpoint.models.dataflow import drawing
from splitpoint.models.model import Model, Segment
from splitpoint.runtime.client.whole_model import Local
from splitpoint.runtime.result import Request
from splitpoint.segments import (
    Check,
    Halves,
    check_inputs,
    compare,
    load_manifest,
    random_note,
    samples_for,
    select,
    split,
    verify,
)
from splitpoint.tensors import Array


def failed(checks: Iterator[Check]) -> list[str]:
    found = list(checks)
    assert found
    return [str(c) for c in found if not c.ok]


# --- split --------------------------------------------------------------------------------------------------------


def run_by_manifest(folder: Path, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The two files in plain ONNX Runtime, wired as manifest.json says; nothing of splitpoint."""
    manifest = json.loads((folder / "manifest.json").read_text())
    known = dict(inputs)
    boundary = {t["name"] for t in manifest["crossing"]} | set(manifest["shapes"])
    if manifest["head"]:
        head = ort.InferenceSession(folder / manifest["head"], providers=["CPUExecutionProvider"])
        made = [o.name for o in head.get_outputs()]
        known |= dict(zip(made, head.run(made, {i.name: inputs[i.name] for i in head.get_inputs()}), strict=True))
    outputs = {name: known[name] for name in manifest["results"]}
    if manifest["tail"]:
        tail = ort.InferenceSession(folder / manifest["tail"], providers=["CPUExecutionProvider"])
        fed = {i.name for i in tail.get_inputs()}
        assert fed <= boundary
        assert set(manifest["passed"]) == boundary & set(inputs)
        made = [o.name for o in tail.get_outputs()]
        outputs |= dict(zip(made, tail.run(made, {n: known[n] for n in fed}), strict=True))
    assert set(outputs) == {t["name"] for t in manifest["outputs"]}
    return outputs


@pytest.mark.parametrize(
    "net", [nets.residual, nets.flattening, nets.wide_shapes, nets.branching, nets.looping, nets.passing, nets.measured]
)
def test_split_files_run_in_plain_onnx_runtime(tmp_path: Path, net: Any) -> None:
    proto = net()
    model = nets.load(proto)
    whole = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    fed = [i.name for i in whole.get_inputs()]
    names = [o.name for o in whole.get_outputs()]
    for cut in model.graph.prefixes():
        manifest = split(model, cut, tmp_path / "parts")  # the same folder: what an earlier cut left must not count
        for sample in samples_for(model, 2):
            expected = dict(zip(names, whole.run(names, {n: sample[n] for n in fed}), strict=True))
            got = run_by_manifest(tmp_path / "parts", sample)
            for name in names:
                np.testing.assert_allclose(got[name], expected[name], rtol=1e-5, atol=1e-6)
        assert manifest.fingerprint == model.fingerprint
        files = {p.name for p in (tmp_path / "parts").iterdir()}
        assert files == {"manifest.json", manifest.head, manifest.tail} - {None}
        for part in (manifest.head, manifest.tail):
            if part:
                onnx.checker.check_model(str(tmp_path / "parts" / part), full_check=net is not nets.measured)


def test_the_manifest_says_what_goes_between(tmp_path: Path) -> None:
    manifest = split(nets.load(nets.flattening()), "relu", tmp_path)
    text = json.loads((tmp_path / "manifest.json").read_text())
    assert text == {
        "model": "net",
        "fingerprint": manifest.fingerprint,
        "cut": "relu",
        "crossing": [{"name": "r1", "dtype": "float32", "shape": [1, 5, 4, 4]}],
        "shapes": ["s"],
        "passed": [],
        "results": [],
        "head": "head.onnx",
        "tail": "tail.onnx",
        "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 3, 6, 6]}],
        "outputs": [{"name": "y", "dtype": "float32", "shape": ["batch", 4]}],
        "tables": [],
        "format": 1,
    }


def test_a_split_model_takes_any_batch(tmp_path: Path) -> None:
    model = nets.load(nets.wide_shapes())
    split(model, "tanh", tmp_path)
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    expected = nets.ENGINE.compile(model.whole()).run({"x": x})
    np.testing.assert_allclose(run_by_manifest(tmp_path, {"x": x})["y"], expected["y"], rtol=1e-6)


def test_split_above_what_one_file_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("splitpoint.models.model.MAX_PROTO_BYTES", 1000)
    model = nets.load(nets.residual())
    split(model, "act", tmp_path)
    assert (tmp_path / "tail.onnx.data").exists()
    sample = samples_for(model, 1)[0]
    np.testing.assert_allclose(
        run_by_manifest(tmp_path, sample)["y"],
        nets.ENGINE.compile(model.whole()).run(sample)["y"],
        rtol=1e-5,
    )


def test_split_says_what_is_wrong(tmp_path: Path) -> None:
    model = nets.load(nets.residual())
    with pytest.raises(CutError, match="no layer, node or tensor stam; did you mean stem"):
        split(model, "stam", tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file cannot be written"):
        split(model, "stem", tmp_path / "file")
    with pytest.raises(StorageError, match="cannot be written"):
        split(model, "stem", tmp_path / "file" / "below")
    (tmp_path / "taken" / "head.onnx").mkdir(parents=True)
    with pytest.raises(StorageError, match="cannot be written"):
        split(model, "stem", tmp_path / "taken")
    with pytest.raises(StorageError, match="cannot be written: No space left"):
        model.whole().save(Path("/dev/full"))


# --- verify -------------------------------------------------------------------------------------------------------


class Broken:
    """An engine whose head is off by `factor`."""

    name, device, threads = "broken", "cpu", 1

    def __init__(self, model: Model, factor: float) -> None:
        self.whole, self.factor = model.whole().key, factor

    def compile(self, segment: Segment) -> Session:
        session = nets.ENGINE.compile(segment)
        if segment.key != self.whole and "y" not in {t.name for t in segment.outputs}:
            real = session.run
            session.run = lambda inputs: {k: v * np.float32(self.factor) for k, v in real(inputs).items()}  # type: ignore[method-assign]
        return session


def test_a_head_that_is_off_by_one_percent_is_found() -> None:
    model = nets.load(nets.residual())
    engine: Engine = Broken(model, 1.01)
    checks = list(verify(model, engine, model.graph.chain()[1:-1]))
    assert {c.verdict for c in checks} == {"different"}
    assert all(1e-3 < c.error < 1 for c in checks)
    assert not any(c.ok for c in checks)
    fine: Engine = Broken(model, 1.0)
    assert failed(verify(model, fine, model.graph.chain())) == []


def test_a_constant_network_is_inconclusive() -> None:
    """onnx's light models answer the same to every input: a match proves nothing."""
    proto = nets.residual()
    for t in proto.graph.initializer:
        if t.name == "w3":
            t.CopyFrom(weight("w3", np.zeros((5, 6), np.float32)))
    model = nets.load(proto)
    checks = list(verify(model, nets.ENGINE, model.graph.chain()))
    assert {c.verdict for c in checks} == {"inconclusive"}
    assert not any(c.ok for c in checks)
    assert "inconclusive" in str(checks[0])


def test_a_nearly_constant_network_is_inconclusive() -> None:
    """A change of 1e-5 of the output's size drowns in rounding."""
    proto = nets.residual()
    for t in proto.graph.initializer:
        if t.name == "w3":
            t.CopyFrom(weight("w3", np.full((5, 6), 1e-6, np.float32)))
    model = nets.load(proto)
    assert {c.verdict for c in verify(model, nets.ENGINE, model.graph.chain())} == {"inconclusive"}


def test_equal_inputs_prove_nothing() -> None:
    model = nets.load(nets.residual())
    sample = samples_for(model, 1)[0]
    with pytest.raises(UsageError, match="the inputs are all equal: verification needs two that differ"):
        list(verify(model, nets.ENGINE, model.graph.chain(), [sample, {n: a.copy() for n, a in sample.items()}]))
    other = samples_for(model, 2)[1]
    assert failed(verify(model, nets.ENGINE, model.graph.chain(), [sample, sample, other])) == []


def test_one_input_is_a_wrong_use() -> None:
    model = nets.load(nets.residual())
    for few in ([], samples_for(model, 1)):
        with pytest.raises(UsageError, match="at least two inputs"):
            list(verify(model, nets.ENGINE, model.graph.chain(), few))


def judged(expected: list[Any], got: list[Any], tolerance: float = 1e-3, dtype: str = "float32") -> str:
    model = nets.load(nets.residual())
    cut = model.graph.chain()[0]

    def outputs(rows: list[Any]) -> list[dict[str, Array]]:
        return [{} if r is None else {"y": np.asarray(r, dtype)} for r in rows]

    return compare(model, cut, outputs(expected), outputs(got), tolerance).verdict


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("expected", "got", "verdict"),
    [
        ([[1, 2], [3, 4]], [[1, 2], [3, 4]], "equal"),
        ([[1, 2], [3, 4]], [[1, 2], [3, 4.0019]], "equal"),  # a thousandth of the change, which is 2
        ([[1, 2], [3, 4]], [[1, 2], [3, 4.0021]], "different"),
        ([[1, 2], [1, 2]], [[1, 2], [1, 2]], "inconclusive"),
        ([[1, 2], [1, 2]], [[1, 2], [1, 3]], "different"),
        ([[1, NAN], [3, NAN]], [[1, NAN], [3, NAN]], "equal"),
        ([[1, NAN], [3, NAN]], [[1, NAN], [3, 4]], "different"),
        ([[1, 2], [3, 4]], [[1, 2], [3, NAN]], "different"),
        ([[NAN, NAN], [NAN, NAN]], [[NAN, NAN], [NAN, NAN]], "inconclusive"),
        ([[1, INF], [3, INF]], [[1, INF], [3, INF]], "equal"),
        ([[1, INF], [3, INF]], [[1, INF], [3, -INF]], "different"),
        ([[1, INF], [3, INF]], [[1, INF], [3, 1e30]], "different"),
        ([[1, 2], [3, 4]], [[1, 2], [3, INF]], "different"),
        ([[1, 2], [3, 4]], [[1, 2], None], "different"),
        ([[1, 2], [3, 4]], [[1, 2], [3]], "different"),
        ([[1, 2], [3]], [[1, 2], [3]], "equal"),  # another number of detections: a change
        ([[1, 2], []], [[1, 2], []], "equal"),
        ([[], []], [[], []], "inconclusive"),
        ([[0, 0], [0]], [[0, 0], [0]], "equal"),
        ([[1e30, 1], [-1e30, 1]], [[1e30, 1], [-1e30, 1]], "equal"),
    ],
)
def test_verdicts(expected: list[Any], got: list[Any], verdict: str) -> None:
    assert judged(expected, got) == verdict


@pytest.mark.parametrize(
    ("expected", "got", "dtype", "verdict"),
    [
        ([[1000, 2], [3, 4]], [[1000, 2], [3, 4]], "int64", "equal"),
        ([[100000, 2], [3, 4]], [[100001, 2], [3, 4]], "int64", "different"),  # another class is another answer
        ([[2**60, 2], [3, 4]], [[2**60 + 1, 2], [3, 4]], "int64", "different"),
        ([[1, 0], [0, 1]], [[1, 0], [0, 1]], "bool", "equal"),
        ([[1, 0], [0, 1]], [[1, 0], [1, 1]], "bool", "different"),
        ([[1, 0], [1, 0]], [[1, 0], [1, 0]], "uint8", "inconclusive"),
        ([[200, 0], [0, 200]], [[200, 0], [0, 199]], "uint8", "different"),
        ([[1, 2], [3, 4]], [[1, 2], [3, 4.008]], "float16", "equal"),  # half precision has three digits
        ([[1, 2], [3, 4]], [[1, 2], [3, 4.2]], "float16", "different"),
    ],
)
def test_verdicts_by_dtype(expected: list[Any], got: list[Any], dtype: str, verdict: str) -> None:
    assert judged(expected, got, dtype=dtype) == verdict


def test_another_dtype_is_another_answer() -> None:
    model = nets.load(nets.residual())
    expected = [{"y": np.array([1, 2], np.float32)}, {"y": np.array([3, 4], np.float32)}]
    got = [{"y": e["y"].astype(np.float64)} for e in expected]
    assert compare(model, model.graph.chain()[0], expected, got).verdict == "different"


def test_outputs_that_depend_on_nothing_must_match_but_prove_nothing() -> None:
    model = nets.load(nets.passing())
    assert failed(verify(model, nets.ENGINE, model.graph.prefixes())) == []
    samples = samples_for(model, 2)
    cut = model.graph.prefixes()[1]
    both = Halves(model, cut, nets.ENGINE)
    expected = [both.run(s) for s in samples]
    wrong = [{**e, "seven": e["seven"] + 1} for e in expected]
    check = compare(model, cut, expected, wrong)
    assert (check.verdict, check.output) == ("different", "seven")


def test_an_output_that_should_move_and_does_not_is_inconclusive_beside_one_that_does() -> None:
    proto = nets.proto(
        [node("Relu", ["x"], ["y"], name="relu"), node("Mul", ["x", "zero"], ["z"], name="mul")],
        [value("x", [8])],
        [value("y", [8]), value("z", [8])],
        [weight("zero", 0.0, np.float32)],
    )
    model = nets.load(proto)
    (check, *_) = verify(model, nets.ENGINE, model.graph.prefixes())
    assert (check.verdict, check.output) == ("inconclusive", "z")


def test_whole_numbers_out() -> None:
    """ArgMax: compared exactly."""
    proto = nets.residual()
    proto.graph.node.append(node("ArgMax", ["sum"], ["best"], name="argmax", axis=1))
    proto.graph.output.append(value("best", None, TensorProto.INT64))
    model = nets.load(proto)
    assert failed(verify(model, nets.ENGINE, model.graph.prefixes())) == []


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            {},
            r"needs the input a: float32\[2,4\] \(its inputs: a: .*, b: .*, unused: float32\[1,3\]\)",
        ),
        ({"a": 1, "b": 1, "unused": 1, "z": 1}, "has no input z"),
        ({"a": np.zeros((2, 5), "f4")}, r"input a must be float32\[2,4\], but float32\[2,5\] came"),
        ({"a": np.zeros((2, 4))}, r"input a must be float32\[2,4\], but float64\[2,4\] came"),
        ({"a": [[1.0] * 4] * 2}, "input a must be a numpy array, not list"),
        ({"a": np.zeros(8, "f4")}, r"but float32\[8\] came"),
    ],
)
def test_wrong_inputs(inputs: dict[str, Any], message: str) -> None:
    model = nets.load(nets.passing())
    good = samples_for(model, 1)[0]
    given = inputs if not inputs or "z" in inputs else {**good, **inputs}
    with pytest.raises(InputError, match=message):
        check_inputs(model, given)
    with pytest.raises(InputError, match=message):
        list(verify(model, nets.ENGINE, model.graph.chain(), [good, given]))


def test_inputs_need_not_be_contiguous() -> None:
    model = nets.load(nets.residual())
    rng = np.random.default_rng(0)
    samples = [{"x": rng.standard_normal((1, 8, 8, 3)).astype(np.float32).transpose(0, 3, 1, 2)} for _ in range(2)]
    assert failed(verify(model, nets.ENGINE, model.graph.chain(), samples)) == []


def test_which_cuts_to_verify() -> None:
    model = nets.load(nets.residual())
    assert select(model, "chain") == list(model.graph.chain())
    assert select(model, "all") == list(model.graph.prefixes())
    assert [len(c.nodes) for c in select(model, "3")] == [0, 4, 8]
    assert len(select(model, "1")) == 1
    assert len(select(model, "1000")) == 9
    for wrong in ("0", "-3", "some", "", "1.5"):
        with pytest.raises(UsageError, match="--cuts is chain, all or a number"):
            select(model, wrong)


def test_samples_stay_in_the_vocabulary() -> None:
    proto = nets.proto(
        [node("Gather", ["table", "ids"], ["e"], name="embed"), node("ReduceSum", ["e", "ax"], ["y"], name="sum")],
        [value("ids", ["batch", 12], TensorProto.INT64)],
        [value("y", None)],
        [nets.normal("table", 40, 3), weight("ax", [1], np.int64)],
    )
    model = nets.load(proto)
    ids = np.concatenate([s["ids"].ravel() for s in samples_for(model, 8)])
    assert 30 < ids.max() < 40
    assert failed(verify(model, nets.ENGINE, model.graph.prefixes())) == []


# --- real networks ------------------------------------------------------------------------------------------------


@pytest.fixture
def quiet_quantiser() -> Iterator[None]:
    logging.disable(logging.WARNING)  # it advises pre-processing, on the root logger
    yield
    logging.disable(logging.NOTSET)


def quantised(folder: Path, form: str) -> Model:
    from onnxruntime import quantization as q

    class Samples(q.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            rng = np.random.default_rng(0)
            self.items = iter([{"x": rng.standard_normal((1, 3, 8, 8)).astype(np.float32)} for _ in range(8)])

        def get_next(self) -> Any:
            return next(self.items, None)

    source = nets.saved(nets.residual(1), folder / "float.onnx")
    out = folder / f"{form}.onnx"
    if form == "dynamic":
        q.quantize_dynamic(source, out, weight_type=q.QuantType.QInt8)
    else:
        q.quantize_static(
            source,
            out,
            Samples(),
            quant_format=q.QuantFormat.QOperator if form == "operators" else q.QuantFormat.QDQ,
            activation_type=q.QuantType.QInt8 if form == "qdq int8" else q.QuantType.QUInt8,
            weight_type=q.QuantType.QInt8,
            per_channel=form == "qdq per channel",
        )
    return nets.load(onnx.load(out))


@pytest.mark.usefixtures("quiet_quantiser")
@pytest.mark.parametrize("form", ["qdq", "qdq int8", "qdq per channel", "operators", "dynamic"])
def test_quantised_models(tmp_path: Path, form: str) -> None:
    model = quantised(tmp_path, form)
    cuts = model.graph.prefixes()
    checks = list(verify(model, nets.ENGINE, cuts))
    assert failed(iter(checks)) == []
    assert max(c.error for c in checks) < 1e-6  # measured: 0, integers do not round
    if form != "dynamic":
        inner = [t.dtype for c in cuts[1:] for t in c.crossing]
        assert set(inner) == {"int8" if form == "qdq int8" else "uint8"}
        assert [len(c.crossing) for c in cuts].count(1) == len(cuts) - 2  # one cut is inside the residual
        assert cuts[1].nbytes == 3 * 8 * 8  # a quarter of the float input


def quantised_lenet(folder: Path, activations: str) -> Model:
    """Tanh stays in float between integer operators: every cut has an integer operator at its boundary."""
    from onnxruntime import quantization as q

    from splitpoint.models.zoo import zoo_path

    rng = np.random.default_rng(0)
    pictures = iter([{"image": rng.integers(0, 256, (1, 32, 32, 1)).astype(np.uint8)} for _ in range(4)])

    class Samples(q.CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> Any:
            return next(pictures, None)

    out = folder / "lenet.onnx"
    kind = q.QuantType.QInt8 if activations == "int8" else q.QuantType.QUInt8
    q.quantize_static(
        zoo_path("lenet5"), out, Samples(), quant_format=q.QuantFormat.QDQ,
        activation_type=kind, weight_type=q.QuantType.QInt8,
    )  # fmt: skip
    return nets.load(onnx.load(out))


@pytest.mark.usefixtures("quiet_quantiser")
@pytest.mark.parametrize("activations", ["int8", "uint8"])
def test_integer_operators_at_the_boundary_stay_integer(tmp_path: Path, activations: str) -> None:
    """Left to itself ONNX Runtime makes uint8 of int8 in the whole but not at a boundary: 9 of 17 cuts differed."""
    model = quantised_lenet(tmp_path, activations)
    cuts = model.graph.prefixes()
    assert activations in {t.dtype for c in cuts for t in c.crossing}
    checks = list(verify(model, nets.ENGINE, cuts))
    assert [(str(c), c.error) for c in checks if c.error] == []
    assert failed(iter(checks)) == []


@pytest.mark.usefixtures("quiet_quantiser")
def test_one_wrong_weight_of_a_quantised_model_is_found(tmp_path: Path) -> None:
    model = quantised_lenet(tmp_path, "int8")
    wrong = onnx.load(tmp_path / "lenet.onnx")
    for t in wrong.graph.initializer:
        if t.name == "fc3.weight_quantized":
            values = onnx.numpy_helper.to_array(t).copy()
            row, column = np.unravel_index(np.abs(values.astype(int)).argmax(), values.shape)
            values[row, column] = -values[row, column]
            t.CopyFrom(weight(t.name, values))
    tail_of = nets.load(wrong)

    class OtherTail:
        name, device, threads = "other tail", "cpu", 1

        def compile(self, segment: Segment) -> Session:
            is_tail = segment.inputs[0].name != "image"
            names = [t.name for t in segment.inputs], [t.name for t in segment.outputs]
            return nets.ENGINE.compile(tail_of.segment(*names) if is_tail else segment)

    engine: Engine = OtherTail()
    assert {c.verdict for c in verify(model, engine, model.graph.chain()[1:-1])} == {"different"}


def test_half_precision() -> None:
    """Halves meet at values rounded to half, the whole keeps some in float32: the tolerance is half's own."""
    proto = nets.residual()
    for t in proto.graph.initializer:
        t.CopyFrom(weight(t.name, onnx.numpy_helper.to_array(t).astype(np.float16)))
    for v in (*proto.graph.input, *proto.graph.output):
        v.type.tensor_type.elem_type = TensorProto.FLOAT16
    model = nets.load(proto)
    assert {t.dtype for c in model.graph.prefixes() for t in c.crossing} == {"float16"}
    assert failed(verify(model, nets.ENGINE, model.graph.prefixes())) == []


#: Network, cuts, least error that would be a surprise. The large ones are cut at fewer places.
SPREAD = {
    "bvlc_alexnet": 4, "densenet121": 6, "inception_v1": 8, "inception_v2": 6, "resnet50": 6, "shufflenet": 10,
    "squeezenet": 14, "vgg19": 3, "zfnet512": 3,
}  # fmt: skip


@pytest.mark.parametrize("name", nets.LIGHT)
def test_light_models(name: str) -> None:
    model = nets.load(nets.light(name))
    checks = list(verify(model, nets.ENGINE, select(model, str(SPREAD[name]))))
    assert len(checks) == SPREAD[name]
    assert failed(iter(checks)) == []
    inner = [c.cut for c in checks if 0 < len(c.cut.nodes) < len(model.graph.placed)]
    assert all(c.crossing for c in inner)


def test_a_cut_in_the_middle_of_anything(tmp_path: Path) -> None:
    """Not a prefix: one arm of the residual on the device, its other arm on the server."""
    model = nets.load(nets.residual())
    stem, act = nets.closed(model.graph, [1]), nets.closed(model.graph, [0])
    cut: Cut = dataclasses.replace(model.graph.cut_of(stem), name="by hand")
    assert failed(verify(model, nets.ENGINE, [cut, model.graph.cut_of(act)])) == []


def test_a_weight_that_the_optimiser_reshapes_is_used_as_reshaped() -> None:
    """ONNX Runtime moves a Transpose behind a Mul and reshapes its constant [C,1,1]: kernels must see the new one."""
    from splitpoint.segments import select

    channels = 384  # more than 1 KiB, so that it is a blob
    nodes = [
        nets.node("Transpose", ["x"], ["last"], perm=[0, 2, 3, 1]),
        nets.node("Relu", ["last"], ["r"]),
        nets.node("Transpose", ["r"], ["first"], perm=[0, 3, 1, 2]),
        nets.node("Mul", ["first", "scale"], ["scaled"]),
        nets.node("Add", ["scaled", "x"], ["y"]),
    ]
    scale = nets.weight("scale", np.linspace(0.5, 2, channels, dtype=np.float32).reshape(channels, 1, 1))
    shape = ["batch", channels, 14, 14]
    model = nets.load(nets.proto(nodes, [nets.value("x", shape)], [nets.value("y", shape)], [scale]))
    assert all(check.ok for check in verify(model, nets.ENGINE, select(model, "all")))


def test_a_model_without_inputs_has_one_answer(tmp_path: Path) -> None:
    net = nets.proto(
        [nets.node("Tanh", ["c"], ["y"])], [], [nets.value("y", [4])], [nets.weight("c", np.arange(4, dtype="f"))]
    )
    model = nets.load(net)
    checks = list(verify(model, nets.ENGINE, model.graph.prefixes()))
    assert [c.verdict for c in checks] == ["equal"]
    manifest = split(model, "input", tmp_path)
    assert (manifest.head, manifest.tail, manifest.results) == ("head.onnx", None, ("y",))
    with Local(model, nets.ENGINE) as whole:
        assert np.allclose(whole.infer({}).outputs["y"], np.tanh(np.arange(4, dtype="f")))
        with pytest.raises(InputError, match="the model has no inputs: give"):
            whole.infer(Request(np.zeros(3)))


@pytest.mark.parametrize(("training", "drawn"), [(True, ["drop (Dropout, in training mode)"]), (False, [])])
def test_a_model_that_draws_random_numbers_says_so(training: bool, drawn: list[str]) -> None:
    nodes = [node("Relu", ["x"], ["h"], name="act"), node("Dropout", ["h", "", "train"], ["y"], name="drop")]
    net = nets.proto(nodes, [value("x", [1, 64])], [value("y", [1, 64])], [weight("train", np.array(training))])
    model = nets.load(net)
    assert drawing(model.skeleton.graph) == drawn
    note = f": the model draws random numbers, at {drawn[0]}, so that no two runs of it are equal" if training else ""
    assert random_note(model) == note


def test_a_trained_dropout_of_weights_runs_on_one_side_only() -> None:
    """Copied to both sides it would be drawn twice."""
    nodes = [
        node("Dropout", ["w", "", "train"], ["d"], name="drop"),
        node("Mul", ["x", "d"], ["m"], name="mul"),
        node("Relu", ["m"], ["r"], name="act"),
        node("Sub", ["r", "d"], ["y"], name="sub"),
    ]
    weights = [weight("w", np.ones((1, 64), "f")), weight("train", np.array(True))]
    model = nets.load(nets.proto(nodes, [value("x", [1, 64])], [value("y", [1, 64])], weights))
    assert model.graph.nodes[0].placed
    assert [t.name for t in model.graph.cut("act").crossing] == ["d", "r"]


# --- tables of codecs ------------------------------------------------------------------------------------------------


def test_tables_of_what_crosses_are_written_and_pinned(tmp_path: Path) -> None:
    tables = tables_of(calibration(), lenet())
    (tmp_path / f"{'0' * 64}.klt").write_bytes(b"of an earlier split")
    manifest = split(lenet(), AT, tmp_path, tables)
    (pinned,) = manifest.tables
    data = tables[TENSOR].to_bytes()
    assert (pinned.tensor, pinned.hash, pinned.nbytes) == (TENSOR, tables[TENSOR].hash, len(data))
    assert (tmp_path / pinned.file).read_bytes() == data
    assert {p.name for p in tmp_path.glob("*.klt")} == {pinned.file}
    assert load_manifest(tmp_path) == manifest
    assert split(lenet(), AT, tmp_path).tables == ()
    assert load_manifest(tmp_path).tables == ()
    assert not list(tmp_path.glob("*.klt"))


@pytest.mark.parametrize("bad", [b"", b"KLT2", bytes(5000)])
def test_a_manifest_whose_tables_are_others_is_refused(bad: bytes, tmp_path: Path) -> None:
    (pinned,) = split(lenet(), AT, tmp_path, tables_of(calibration(), lenet())).tables
    (tmp_path / pinned.file).write_bytes(bad)
    with pytest.raises(InputError, match=rf"does not hold the tables {pinned.hash[:12]} that the manifest pins for"):
        load_manifest(tmp_path)
    (tmp_path / pinned.file).unlink()
    with pytest.raises(InputError, match="there is no file"):
        load_manifest(tmp_path)


@pytest.mark.parametrize("file", ["../secret", "/etc/passwd", "\0"])
def test_a_manifest_names_no_file_elsewhere(file: str, tmp_path: Path) -> None:
    split(lenet(), AT, tmp_path, tables_of(calibration(), lenet()))
    data = json.loads((tmp_path / "manifest.json").read_text())
    data["tables"][0]["file"] = file
    (tmp_path / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match="names tables elsewhere"):
        load_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": 1}')
    with pytest.raises(InputError, match="is not a manifest"):
        load_manifest(tmp_path)
