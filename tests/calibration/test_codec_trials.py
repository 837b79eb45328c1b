"""Real inputs through cuts and codecs; LeNet-5 and its held-out digits are the data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

import nets
from splitpoint.calibration.calibrations import Calibration, CalibrationRow, Quality, needed_inputs
from splitpoint.calibration.codec_trials import calibrate
from splitpoint.calibration.files import calibration_bytes, load_calibration, parse_calibration, save_calibration
from splitpoint.cli import main
from splitpoint.codecs import open_codec
from splitpoint.engines import open_engine
from splitpoint.errors import InputError, UsageError
from splitpoint.models import load
from splitpoint.models.model import Model
from splitpoint.models.zoo import heldout_digits
from splitpoint.segments import halves, samples_for
from splitpoint.tensors import Array, spec_of

ENGINE = open_engine(threads=1)
NAMES = ("fp16", "int8", "int4", "raw+zstd", "int8+zstd", "jpeg:50", "jpeg:95")


@pytest.fixture(scope="module")
def lenet() -> Model:
    return load("zoo:lenet5")


@pytest.fixture(scope="module")
def inputs(lenet: Model) -> list[dict[str, Array]]:
    spec = lenet.inputs[0].bind(lenet.graph.assumed)
    pictures, _ = heldout_digits()
    made = []
    for picture in pictures[:12]:
        image = Image.fromarray(picture).resize((spec.shape[2], spec.shape[1]))  # type: ignore[arg-type]
        made.append({spec.name: np.asarray(image, np.uint8).reshape([int(n) for n in spec.shape])})
    return made


@pytest.fixture(scope="module")
def found(lenet: Model, inputs: list[dict[str, Array]]) -> Calibration:
    return calibrate(lenet, ENGINE, inputs, codecs=NAMES)


def test_a_row_is_what_happens_by_hand(lenet: Model, inputs: list[dict[str, Array]], found: Calibration) -> None:
    prefixes = lenet.graph.prefixes()
    whole = ENGINE.compile(lenet.whole())
    expected = [whole.run(x)["logits"].reshape(-1).astype(np.float64) for x in inputs]
    span = max(e.max() for e in expected) - min(e.min() for e in expected)
    place, cut = next((k, c) for k, c in enumerate(prefixes) if c.name == "pool1" or c.name.endswith("pool1"))
    both, codec = halves(lenet, cut, ENGINE), open_codec("int4")
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
        wanted = {n for n in NAMES if any(open_codec(n).accepts(t) for t in cut.crossing)}
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


@pytest.mark.parametrize(
    ("same", "of", "bound"),
    # The second and third: Clopper and Pearson's upper end as published tables have it.
    [(300, 300, 0.01), (24, 24, 0.125), (2, 2, 1.0), (9, 10, 0.3942), (95, 100, 0.1023), (0, 5, 1.0)],
)
def test_what_a_calibration_does_not_rule_out(same: int, of: int, bound: float) -> None:
    assert Quality(of, same / of, 1.0, 0.0).bound == pytest.approx(bound, abs=2e-4)


def test_no_claim_without_labels() -> None:
    assert Quality(1000, None, 1.0, 0.0).bound == 1.0


@pytest.mark.parametrize("max_drop", [0.5, 0.1, 0.03, 0.01, 0.005, 0.001, 0.3, 3.0, 1 / 7])
def test_as_many_inputs_as_needed_and_not_one_less(max_drop: float) -> None:
    needed = needed_inputs(max_drop)
    assert Quality(needed, 1.0, 1.0, 0.0).bound <= max_drop
    assert needed == 1 or Quality(needed - 1, 1.0, 1.0, 0.0).bound > max_drop or max_drop >= 1


@pytest.mark.parametrize("max_drop", [0.0, -0.01, float("nan")])
def test_no_number_of_inputs_shows_that_nothing_drops(max_drop: float) -> None:
    with pytest.raises(UsageError, match="no number of inputs"):
        needed_inputs(max_drop)


@pytest.mark.parametrize(
    ("same", "of", "max_drop", "verdict"),
    [
        (300, 300, 0.01, "shown"),
        (299, 299, 0.01, "not shown"),  # no label changed, but 3/299 is more than 1 %
        (24, 24, 0.01, "not shown"),
        (24, 24, 0.125, "shown"),
        (999, 1000, 0.01, "shown"),
        (995, 1000, 0.01, "not shown"),  # half a percent seen, 1.05 % possible
        (988, 1000, 0.01, "refused"),
        (23, 24, 0.01, "refused"),
    ],
)
def test_the_three_answers(same: int, of: int, max_drop: float, verdict: str) -> None:
    row = CalibrationRow(3, "int8", (10,), 10, Quality(of, same / of, 1.0, 0.0))
    found = Calibration(model="m", fingerprint="f", inputs=of, classifier=True, output="y", rows=(row,))
    assert found.allowed(3, "int8", max_drop) == verdict
    assert found.allowed(4, "int8", max_drop) == found.allowed(3, "int4", max_drop) == "not shown"
    assert found.allowed(4, "raw+zstd", max_drop) == "shown"


def test_without_labels_nothing_is_shown() -> None:
    assert Quality(1000, None, 1.0, 0.0).verdict(0.5) == "not shown"


def test_it_loads_back(found: Calibration, tmp_path: Path) -> None:
    save_calibration(tmp_path / "c.json", found)
    assert load_calibration(tmp_path / "c.json") == found


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            {"format": 2},
            "of format 2, and this version reads format 1: make it anew with splitpoint calibrate",
        ),
        ({"rows": []}, r"Expected `array` of length >= 1 - at `\$.rows`"),
        ({"inputs": 0}, r"Expected `int` >= 1 - at `\$.inputs`"),
        ({"rows": "x"}, "rows"),
        ({"classifier": False}, "no classifier"),
        ({"model": "\x1b[2J"}, r"control characters - at `\$.model`"),
    ],
)
def test_a_wrong_file_is_refused(found: Calibration, change: dict[str, Any], why: str) -> None:
    data = json.loads(calibration_bytes(found)) | change
    with pytest.raises(InputError, match=why):
        parse_calibration(json.dumps(data).encode(), "c.json")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"codec": "int9"}, "int9"),
        ({"prefix": -1}, r"Expected `int` >= 0 - at `\$.rows\[1\].prefix`"),
        ({"most": -5}, r"Expected `int` >= 0 - at `\$.rows\[1\].most`"),
        (
            {"quality": {"inputs": 3, "agreement": 1.5, "cosine": 1, "error": 0}},
            r"<= 1.0 - at `\$.rows\[1\].quality.agreement`",
        ),
        ({"quality": {"inputs": 0, "agreement": 1, "cosine": 1, "error": 0}}, r"`int` >= 1 - at `\$.rows\[1\].quality"),
        ({"quality": {"inputs": 13, "agreement": 1, "cosine": 1, "error": 0}}, "more than there are"),
        (
            {"quality": {"inputs": 3, "agreement": 1, "cosine": 2, "error": 0}},
            r"<= 1.001 - at `\$.rows\[1\].quality.cosine`",
        ),
        (
            {"quality": {"inputs": 3, "agreement": 1, "cosine": 1, "error": -1}},
            r">= 0.0 - at `\$.rows\[1\].quality.error`",
        ),
    ],
)
def test_a_wrong_row_is_refused(found: Calibration, change: dict[str, Any], why: str) -> None:
    data = json.loads(calibration_bytes(found))
    data["rows"][1] |= change
    with pytest.raises(InputError, match=why):
        parse_calibration(json.dumps(data).encode(), "c.json")


def test_half_a_file_is_refused(found: Calibration, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_bytes(calibration_bytes(found)[:300])
    with pytest.raises(InputError, match="not a calibration"):
        load_calibration(tmp_path / "c.json")
    with pytest.raises(InputError, match="no file"):
        load_calibration(tmp_path / "none.json")


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
    closed = (model.graph.cut_of(model.graph.closure([i])) for i in model.graph.placed)
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


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from splitpoint.models.zoo import digits

    folder, out = digits()[0].parent, tmp_path / "calib.json"
    words = ["calibrate", "zoo:lenet5", "--threads", "1", "--codec", "int8", "--codec", "jpeg:90"]
    assert main([*words, "--images", str(folder), "-o", str(out), "--limit", "2"]) == 0
    said = capsys.readouterr().out
    assert "int8" in said
    assert "as JPEG: q90" in said
    assert "not ruled out" in said
    assert load_calibration(out).inputs == 2

    broken = tmp_path / "broken"
    broken.mkdir()
    assert main([*words, "--images", str(broken)]) == 4
    (broken / "a.png").write_bytes(b"no picture")
    assert main([*words, "--images", str(broken)]) == 4
    assert "a.png is not an image that Pillow can read" in capsys.readouterr().err
    (broken / "b.png").write_bytes(digits()[0].read_bytes())
    assert main([*words, "--images", str(broken), "--json"]) == 0
    said_too = capsys.readouterr()
    assert "1 input left out, 1 used" in said_too.err
    assert msgspec.json.decode(said_too.out, type=Calibration).inputs == 1
    assert main([*words, "--images", str(broken), "-o", str(tmp_path / "no" / "c.json")]) == 7
    assert main(["calibrate", "zoo:lenet5", "--images", str(folder), "--codec", "int9"]) == 2
