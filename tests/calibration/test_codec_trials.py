"""Real inputs through cuts and codecs; LeNet-5 and its held-out digits are the data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from calibration_cases import ENGINE, NAMES

import nets
from splitpoint.calibration.calibrations import Calibration
from splitpoint.calibration.codec_trials import calibrate, lower_end
from splitpoint.codecs import open_priced
from splitpoint.errors import InputError, UsageError
from splitpoint.models.model import Model
from splitpoint.segments import Halves, samples_for
from splitpoint.tensors import Array, spec_of


def test_a_row_is_what_happens_by_hand(lenet: Model, inputs: list[dict[str, Array]], found: Calibration) -> None:
    prefixes = lenet.graph.prefixes()
    whole = ENGINE.compile(lenet.whole())
    expected = [whole.run(x)["logits"].reshape(-1).astype(np.float64) for x in inputs]
    span = max(e.max() for e in expected) - min(e.min() for e in expected)
    place, cut = next((k, c) for k, c in enumerate(prefixes) if c.name == "pool1" or c.name.endswith("pool1"))
    both, codec = Halves(lenet, cut, ENGINE), open_priced("int4")
    [tensor] = cut.crossing
    sizes, same, errors, cosines = [], 0, [], []
    for x, e in zip(inputs, expected, strict=True):
        assert both.head is not None
        assert both.tail is not None
        made = both.head.run(x)[tensor.name]
        data = codec.encode(made)
        sizes.append(data.nbytes)
        got = both.tail.run({tensor.name: codec.decode(data, spec_of(tensor.name, made))})["logits"].reshape(-1)
        same += int(got.argmax() == e.argmax())
        errors.append(np.abs(got - e).max() / span)
        cosines.append(e @ got / np.linalg.norm(e) / np.linalg.norm(got))
    row = found.row(place, "int4")
    assert row is not None
    assert row.nbytes == (int(np.median(sizes)),)
    assert row.most == max(sizes)
    assert row.quality.agreement == same / len(inputs)
    assert row.quality.error == pytest.approx(max(errors), rel=1e-6)
    assert row.quality.error > 1e-4, "int4 changes something, or nothing was measured"
    assert row.quality.cosine == pytest.approx(min(cosines), abs=1e-6)


def test_every_cut_has_what_its_tensors_take(lenet: Model, found: Calibration) -> None:
    for cut in lenet.graph.chain():
        place = next(k for k, c in enumerate(lenet.graph.prefixes()) if c.nodes == cut.nodes)
        codecs = {r.codec for r in found.rows if r.prefix == place}
        wanted = {n for n in NAMES if any(open_priced(n).accepts(t) for t in cut.crossing)}
        assert codecs == wanted
    assert {r.codec for r in found.rows if r.prefix == 0} == {"raw+zstd", "jpeg:50", "jpeg:95"}


def test_exact_codecs_change_nothing_and_zstd_changes_bytes_only(found: Calibration) -> None:
    for row in found.rows:
        if row.codec == "raw+zstd":
            assert row.quality.agreement == 1
            assert row.quality.error < 1e-5
        if row.codec == "int8+zstd":
            base = found.row(row.prefix, "int8")
            assert base is not None
            assert row.quality == base.quality


def test_coarser_is_worse(found: Calibration) -> None:
    def worst(codec: str) -> float:
        return max(r.quality.error for r in found.rows if r.codec == codec)

    assert worst("fp16") < worst("int8") < worst("int4")
    assert worst("jpeg:95") < worst("jpeg:50")


def test_what_cannot_be_calibrated(lenet: Model, inputs: list[dict[str, Array]]) -> None:
    with pytest.raises(UsageError, match="at least one input"):
        calibrate(lenet, ENGINE, [])
    with pytest.raises(UsageError, match="int9"):
        calibrate(lenet, ENGINE, inputs, codecs=["int9"])
    with pytest.raises(InputError):
        calibrate(lenet, ENGINE, [{"image": np.zeros((1, 2), np.uint8)}])
    with pytest.raises(UsageError, match="none of jpeg:90 can encode"):
        calibrate(lenet, ENGINE, inputs[:1], codecs=["jpeg:90"], cuts=[lenet.graph.cut("pool1")])


def test_a_cut_that_is_no_prefix_has_no_place_in_a_calibration() -> None:
    model = nets.load(nets.branching())
    prefixes = {frozenset(c.nodes) for c in model.graph.prefixes()}
    closed = (model.graph.cut_of(nets.closed(model.graph, [i])) for i in model.graph.placed)
    cut = next(c for c in closed if frozenset(c.nodes) not in prefixes)
    with pytest.raises(UsageError, match="no topological prefix"):
        calibrate(model, ENGINE, samples_for(model, 1), codecs=["raw"], cuts=[cut])


def test_progress_ends_at_its_total(lenet: Model, inputs: list[dict[str, Array]]) -> None:
    seen: list[tuple[int, int]] = []
    calibrate(lenet, ENGINE, inputs[:2], codecs=["int8"], on_progress=lambda *at: seen.append(at))
    done, total = zip(*seen, strict=True)
    assert set(total) == {len(seen)}
    assert done == tuple(range(1, len(seen) + 1))


def test_a_codec_that_cannot_say_a_value_has_no_row(lenet: Model, inputs: list[dict[str, Array]]) -> None:
    class Endless:
        """An engine whose heads make an infinity."""

        name, device, threads = "endless", "none", 1

        def compile(self, segment: Any) -> Any:
            session = ENGINE.compile(segment)
            inner = session.run

            def run(feed: Any) -> dict[str, Array]:
                made = inner(feed)
                if "logits" not in made:
                    for value in made.values():
                        value.reshape(-1)[:1] = np.inf if value.dtype.kind == "f" else 0
                return made

            session.run = run  # type: ignore[method-assign]
            return session

    told: list[str] = []
    cut = lenet.graph.cut("pool1")
    found = calibrate(lenet, Endless(), inputs[:1], codecs=["int8", "raw"], cuts=[cut], on_note=told.append)
    assert [r.codec for r in found.rows] == ["raw"]
    assert len(told) == 1
    assert told[0].startswith(f"int8 is left out at {cut.name}")


def test_pictures_are_tried_at_the_input_with_what_they_take(lenet: Model, inputs: list[dict[str, Array]]) -> None:
    names = ("jpeg:90", "jpeg@50:90", "webp:90", "webp-lossless", "png")
    found = calibrate(lenet, ENGINE, inputs, codecs=names)
    assert {(r.prefix, r.codec) for r in found.rows} == {(0, name) for name in names}
    for row in found.rows:
        assert row.encode_ms > 0
        assert row.decode_ms > 0
        assert row.quality.agreement is not None
    exact, small = found.row(0, "png"), found.row(0, "jpeg@50:90")
    assert exact is not None
    assert small is not None
    assert exact.quality.agreement == 1
    assert exact.quality.error < 1e-5
    assert small.quality.error > exact.quality.error


def test_a_measure_that_is_named_is_the_agreement(lenet: Model, inputs: list[dict[str, Array]]) -> None:
    cut = lenet.graph.cut("pool1")
    found = calibrate(lenet, ENGINE, inputs, codecs=["int4", "raw"], cuts=[cut], measure="relative")
    assert (found.measure, found.classifier, found.judged) == ("relative", False, True)
    int4, raw = (r.quality for r in found.rows)
    assert raw.agreement == pytest.approx(1, abs=1e-5)
    assert int4.agreement is not None
    assert int4.least is not None
    assert 0.5 < int4.least < int4.agreement < 0.9999
    assert int4.bound == 1 - int4.least
    with pytest.raises(UsageError, match="no measure is called"):
        calibrate(lenet, ENGINE, inputs, codecs=["int4"], cuts=[cut], measure="best")


def test_an_output_that_nobody_says_the_meaning_of_has_no_agreement() -> None:
    model = nets.load(nets.residual())
    found = calibrate(model, ENGINE, samples_for(model, 3), codecs=["int8"])
    assert model.input_spec is None
    assert not found.judged
    assert found.rows[0].quality.agreement is None
    assert calibrate(model, ENGINE, samples_for(model, 3), codecs=["int8"], measure="top1").classifier


def test_labels_give_the_accuracy(lenet: Model, inputs: list[dict[str, Array]]) -> None:
    whole = ENGINE.compile(lenet.whole())
    answers = [int(whole.run(x)["logits"].argmax()) for x in inputs]
    wrong = [(a + 1) % 10 if k < 3 else a for k, a in enumerate(answers)]
    cut = lenet.graph.cut("pool1")
    found = calibrate(lenet, ENGINE, inputs, codecs=["raw"], cuts=[cut], labels=wrong)
    assert found.accuracy == found.rows[0].quality.accuracy == 9 / 12
    with pytest.raises(UsageError, match="11 labels for 12 inputs"):
        calibrate(lenet, ENGINE, inputs, codecs=["raw"], cuts=[cut], labels=wrong[1:])


def test_the_lower_end_of_a_mean() -> None:
    rng = np.random.default_rng(1)
    # Of a mean of 0.8 with a spread of 0.1, over 100 inputs: 1.64 x 0.01 below.
    scores = 0.8 + 0.1 * (rng.standard_normal(100) - 0)
    scores += 0.8 - scores.mean()
    assert lower_end(scores.tolist()) == pytest.approx(0.8 - 0.0164, abs=0.004)
    assert lower_end([0.7]) == pytest.approx(0.7)


def detector() -> Model:
    """Four boxes from 32 numbers: corners that move with the features, and a score and a class for each."""
    rng = np.random.default_rng(3)
    sides = np.abs(rng.standard_normal((64, 16))).astype(np.float32) * ([0, 0, 1, 1] * 4)
    sides[6:] = 0  # of few features, so that what int4 does to one is seen
    return nets.load(
        nets.proto(
            [
                nets.node("MatMul", ["x", "w1"], ["h"], name="stem"),
                nets.node("Relu", ["h"], ["r"], name="act"),
                nets.node("MatMul", ["r", "w2"], ["sides"], name="sides"),
                nets.node("Reshape", ["sides", "shape"], ["raw"], name="shaped"),
                nets.node("Add", ["raw", "places"], ["boxes"], name="placed"),
                nets.node("MatMul", ["r", "w3"], ["sure"], name="sure"),
                nets.node("Sigmoid", ["sure"], ["scores"], name="score"),
                nets.node("ArgMax", ["places"], ["labels"], name="label", axis=2, keepdims=0),
            ],
            [nets.value("x", [1, 32])],
            [nets.value("boxes", [1, 4, 4]), nets.value("scores", [1, 4]), nets.value("labels", [1, 4], 7)],
            [
                nets.normal("w1", 32, 64),
                nets.weight("w2", sides, np.float32),
                nets.weight("w3", sides[:, :4], np.float32),
                nets.weight("shape", np.array([1, 4, 4], np.int64)),
                nets.weight(
                    "places", np.array([[[0, 0, 1 + k % 2, 1]] for k in range(4)], np.float32).reshape(1, 4, 4)
                ),
            ],
        )
    )


def test_boxes_of_a_detector_are_matched_behind_every_codec() -> None:
    model = detector()
    inputs = samples_for(model, 6)
    cut = model.graph.cut("act")
    agreements = {}
    for measure in ("boxes50", "boxes75", "map"):
        found = calibrate(model, ENGINE, inputs, codecs=["raw", "int4"], cuts=[cut], measure=measure)
        agreements[measure] = {r.codec: r.quality.agreement for r in found.rows}
        assert agreements[measure]["raw"] == 1
    assert 0.3 < (agreements["map"]["int4"] or 0) < 1, "boxes move a little"
    assert (agreements["map"]["int4"] or 0) < (agreements["boxes50"]["int4"] or 0)
