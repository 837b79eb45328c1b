"""Predictions against a device whose truth is a formula; what measuring adds; files and options as users meet them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise, product
from math import exp, isclose
from pathlib import Path

import msgspec
import numpy as np
import pytest
from commands import ok
from latencies import DEVICE, TERMS, kind_model, latency
from plans import FOUR_G, model_of
from plans import profile as hand_made

import nets
from splitpoint.cli import main
from splitpoint.errors import InputError
from splitpoint.link import Link
from splitpoint.models.model import Model
from splitpoint.planning.constraints import Constraints
from splitpoint.planning.planner import Planner
from splitpoint.predict.kernels.kernels import Kernel, kernels_of
from splitpoint.predict.learn.features import columns_of, terms_of
from splitpoint.predict.learn.files import load_latency, save_latency
from splitpoint.predict.learn.latency_model import Latency, Roofline, cold
from splitpoint.predict.price.prediction import CODECS, Prediction, linear_ms, predict, predicted_profile
from splitpoint.predict.price.roofline import roofline_times
from splitpoint.predict.price.service_traces import read_traces
from splitpoint.profile.files import load_profile, save_profile
from splitpoint.profile.profiles import CodecCost, SegmentCost, Stat
from splitpoint.report.prediction_table import MOST_ROWS, kernel_rows, layer_rows
from splitpoint.runtime.adapt.conditions import Observer, Ran
from splitpoint.runtime.server.server import Server

LENET, EFFICIENT = "zoo:lenet5", "zoo:efficientnet_lite0"
NETS = ("residual", "flattening", "passing")
SLOW = latency()
FAST = latency(name="server", scale=0.1, fixed_ms=0.02)


def net(name: str) -> Model:
    return model_of(name) if ":" in name else nets.load(getattr(nets, name)())


def whole_ms(device: Latency, kernels_ms: float) -> float:
    """What a segment takes: a short one is done before all of the fixed part is paid."""
    return kernels_ms + device.fixed_ms * (1 - exp(-kernels_ms / device.cold_ms))


def formula(kernel: Kernel, scale: float = 1.1) -> float:
    """What a kernel takes on the device of `latencies`, in ms."""
    columns = columns_of(kernel.kind, {c: np.array([v]) for c, v in kernel.config.items()})
    terms = terms_of(kernel.kind, columns)
    return scale * sum(ms * float(terms[name][0]) for name, ms in TERMS.items() if name in terms)


def boundaries(model: Model) -> list[tuple[int, list[Kernel], list[Kernel]]]:
    """Prefixes that split no kernel: their places, the kernels inside and those left."""
    kernels = kernels_of(model)
    found = []
    for place, cut in enumerate(model.graph.prefixes()):
        inside = [k for k in kernels if set(k.nodes) <= set(cut.nodes)]
        left = [k for k in kernels if not set(k.nodes) & set(cut.nodes)]
        if len(inside) + len(left) == len(kernels):
            found.append((place, inside, left))
    return found


# --- sums -------------------------------------------------------------------------------------------------------------


def test_a_convolution_by_hand() -> None:
    """3 × 3, 3 → 8 channels, on 8 × 8: every number of the formula written out."""
    model = nets.load(nets.residual())
    conv = next(k for k in predict(model, SLOW).kernels if k.kind == "conv")
    c = conv.kernel.config
    out = c["out"] or c["HW"] / c["stride"]
    depth = c["kernel"] ** 2 * c["Cin"]
    micro = 0.5 * out**2 * depth * c["Cout"] + 0.3 * c["HW"] ** 2 * c["Cin"] + 0.4 * out**2 * c["Cout"]
    assert conv.ms.median == pytest.approx(1.1 * (0.02 + (micro + 0.2 * depth * c["Cout"]) / 1e6))
    assert (conv.ms.p10, conv.ms.p90) == pytest.approx((conv.ms.median * exp(-0.1), conv.ms.median * exp(0.1)))


@pytest.mark.parametrize("name", [*NETS, LENET, EFFICIENT])
def test_heads_and_tails_are_sums_of_the_formula(name: str) -> None:
    model = net(name)
    profile, found = predicted_profile(model, SLOW), boundaries(model)
    assert len(found) >= 3
    for place, inside, left in found:
        head = whole_ms(SLOW, sum(map(formula, inside))) if inside else 0.0
        tail = whole_ms(SLOW, sum(map(formula, left))) if left else 0.0
        assert profile.head(place).median == pytest.approx(head)
        assert profile.tail(place).median == pytest.approx(tail)
    assert profile.whole.median == pytest.approx(whole_ms(SLOW, sum(map(formula, kernels_of(model)))))
    assert profile.head(len(model.graph.order)).median == pytest.approx(profile.whole.median)


@pytest.mark.parametrize("name", [*NETS, LENET, EFFICIENT])
def test_a_cut_inside_a_kernel_never_looks_better_than_one_behind_it(name: str) -> None:
    """Conv without the ReLU behind it is no shorter, and the ReLU alone is one more pass for the server."""
    model = net(name)
    profile = predicted_profile(model, SLOW)
    places = [place for place, _, _ in boundaries(model)]
    for start, end in pairwise(places):
        for k in range(start + 1, end):
            split = profile.head(k).median + profile.tail(k).median
            assert split >= profile.head(end).median + profile.tail(end).median - 1e-9
    for heads in (True, False):
        stats = [profile.head(k) if heads else profile.tail(k) for k in range(len(model.graph.order) + 1)]
        steps = [b.median - a.median for a, b in pairwise(stats)]
        assert min(steps if heads else [-s for s in steps]) >= -1e-9
        assert all(0 <= s.p10 <= s.median <= s.p90 for s in stats)


@pytest.mark.parametrize("name", [LENET, EFFICIENT, "residual"])
def test_the_best_plan_is_that_of_a_profile_made_of_the_same_sums(name: str) -> None:
    model = net(name)
    known = boundaries(model)
    direct = []
    for device in (SLOW, FAST):
        ms = {k.nodes: formula(k, device.scale) for k in kernels_of(model)}
        segments = tuple(
            SegmentCost(
                place,
                Stat(whole_ms(device, sum(ms[k.nodes] for k in inside)), 0, 1e6) if inside else None,
                Stat(whole_ms(device, sum(ms[k.nodes] for k in left)), 0, 1e6) if left else None,
            )
            for place, inside, left in known
        )
        nodes = np.zeros(len(model.graph.nodes))
        for k in kernels_of(model):
            nodes[k.nodes[0]] = ms[k.nodes]
        whole = Stat(whole_ms(device, sum(ms.values())), 0, 1e6)
        blank = hand_made(model.graph, 1.0, model.fingerprint, codecs=dict(CODECS))
        direct.append(msgspec.structs.replace(blank, whole=whole, segments=segments, nodes=tuple(nodes.tolist())))
    ours = [predict(model, device).profile(CODECS) for device in (SLOW, FAST)]
    limits = Constraints(codecs=("int8",))
    planners = [Planner(None, pair, constraints=limits) for pair in (ours, direct)]
    kinds = set()
    for up, rtt in product((0.5, 3.0, 10.0, 60.0, 400.0), (1.0, 20.0)):
        a, b = (p.best(Link(up, up, rtt)) for p in planners)
        assert a is not None
        assert b is not None
        assert isclose(a.total.ms, b.total.ms, rel_tol=0.01)
        assert a.kind == b.kind
        kinds.add(a.kind)
    assert name != EFFICIENT or kinds == {"device", "server", "split"}


def test_what_was_never_calibrated_is_priced_by_flops_and_bytes_and_listed() -> None:
    model, line = model_of(LENET), Roofline(flops_per_ms=4e6, bytes_per_ms=2e6, fixed_ms=0.01, spread=3.0)
    known, found = predict(model, SLOW), predict(model, latency(without=("linear", "avgpool")))
    assert known.uncalibrated == ()
    assert {(u.op, u.kind, u.count) for u in found.uncalibrated} == {
        ("Gemm", "linear", 3),
        ("AveragePool", "avgpool", 2),
    }
    assert sum(u.share for u in found.uncalibrated) < 1
    for cost in found.kernels:
        if cost.kind in ("linear", "avgpool"):
            k = cost.kernel
            ms = max(k.flops / 4e6, (k.in_nbytes + k.out_nbytes + k.weight_nbytes) / 2e6, 0.01)
            assert cost.ms.median == pytest.approx(1.1 * ms)
            assert (cost.ms.p10, cost.ms.p90) == pytest.approx((1.1 * ms / 3, 1.1 * ms * 3))
            assert not cost.calibrated
    assert width(found) > 1.2 * width(known)
    assert roofline_times(kernels_of(model), line).outside.max() == 0


def width(found: Prediction) -> float:
    return found.whole.p90 / found.whole.p10


@pytest.mark.parametrize("name", [LENET, EFFICIENT])
def test_intervals_of_sums_hold_what_they_promise(name: str) -> None:
    """Errors are drawn as they are believed to be; four sums in five must lie in their intervals."""
    belief, rng = predict(net(name), SLOW).belief, np.random.default_rng(0)
    draws, parts = 4000, len(belief.edge)
    factors = 1 + belief.overall * rng.standard_normal((draws, 1))
    factors = factors + belief.shared * rng.standard_normal((draws, belief.group.max() + 1))[:, belief.group]
    factors = factors + belief.own * rng.standard_normal((draws, parts))
    for place, head in enumerate(belief.heads()[1:], 1):
        inside = np.arange(parts) <= belief.counts[place]
        paid = np.where(np.arange(parts) > 0, 1.0, cold(belief.edge[1:][inside[1:]].sum(), belief.cold_ms))
        sums = (factors * belief.edge * paid)[:, inside].sum(axis=1)
        assert 0.75 < np.mean((sums >= head.p10) & (sums <= head.p90)) < 0.85


def test_a_device_without_a_law_for_whole_models_is_less_sure() -> None:
    model = model_of(EFFICIENT)
    assert width(predict(model, latency(spread=0.0))) > width(predict(model, latency(spread=0.08)))


# --- corrections ------------------------------------------------------------------------------------------------------


def measured(found: Prediction, places: list[int], factor: float) -> list[SegmentCost]:
    """Heads and tails at `places` as a machine `factor` times as slow as predicted would have them, within 1 %."""
    heads, tails = found.belief.heads(), found.belief.tails()

    def stat(ms: float) -> Stat:
        return Stat(ms * factor, ms * factor * 0.99, ms * factor * 1.01, 9)

    return [SegmentCost(k, stat(heads[k].median), stat(tails[k].median)) for k in places]


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.25, 3.0])
@pytest.mark.parametrize("name", [LENET, EFFICIENT])
def test_measured_segments_move_the_prediction_towards_them(name: str, factor: float) -> None:
    model = net(name)
    plain, last = predict(model, SLOW), len(model.graph.order)
    for places in ([last // 2], [last // 4, last // 2, 3 * last // 4]):
        found = predict(model, SLOW, measured(plain, places, factor))
        assert found.whole.median / plain.whole.median == pytest.approx(factor, rel=0.15)
        assert found.measured == 2 * len(places)
        for k in range(1, last):  # prefixes that were not measured follow
            assert abs(found.belief.heads()[k].median - factor * plain.belief.heads()[k].median) < abs(
                plain.belief.heads()[k].median * (factor - 1)
            )
    profile = found.profile(CODECS)
    assert profile.head(last // 2).median == pytest.approx(factor * plain.belief.heads()[last // 2].median, rel=0.05)
    assert "corrected by 6 measured times" in profile.note


def test_more_measurements_narrow_the_interval_and_surprises_widen_it() -> None:
    model = model_of(EFFICIENT)
    plain, last = predict(model, SLOW), len(model.graph.order)
    widths = [width(predict(model, SLOW, measured(plain, list(range(10, 10 + n)), 1.0))) for n in (0, 1, 3)]
    assert widths[0] > widths[1] > widths[2]
    agreed, odd = (predict(model, SLOW, measured(plain, [last // 8], f)) for f in (1.0, 4.0))
    assert width(odd) > width(agreed)


def test_a_slow_kind_is_told_from_a_slow_machine() -> None:
    """Depthwise convolutions take twice as long as learned: the head and tail of every cut show it, and which."""
    model = model_of(EFFICIENT)
    kinds = {k: m for k, m in SLOW.kinds.items()}
    slow = {t: 2 * ms for t, ms in TERMS.items()}
    truth = predict(model, msgspec.structs.replace(SLOW, kinds=kinds | {"dw_conv": kind_model("dw_conv", slow)}))
    places = list(range(5, len(model.graph.order), 8))
    plain, found = predict(model, SLOW), predict(model, SLOW, measured(truth, places, 1.0))
    now, before, real = (
        {kind: sum(k.ms.median for k in p.kernels if k.kind == kind) for kind in ("conv", "dw_conv")}
        for p in (found, plain, truth)
    )
    assert real["dw_conv"] == pytest.approx(2 * before["dw_conv"])
    assert now["dw_conv"] == pytest.approx(real["dw_conv"], rel=0.25)
    assert now["conv"] == pytest.approx(real["conv"], rel=0.1)


@pytest.mark.parametrize("factor", [1.0, 1.3])
def test_what_was_measured_today_is_not_certain_tomorrow(factor: float) -> None:
    """However much of a model was measured, and however exactly: the machine is a little faster or slower later."""
    model = model_of(EFFICIENT)
    plain, last = predict(model, SLOW), len(model.graph.order)
    whole = predict(model, SLOW, measured(plain, list(range(1, last)), factor)).whole
    assert whole.p90 / whole.median > 1.04
    assert whole.median / whole.p10 > 1.04
    assert whole.p90 / whole.median < plain.whole.p90 / plain.whole.median


def test_nothing_measured_changes_nothing_and_nonsense_is_refused() -> None:
    model = model_of(LENET)
    plain = predict(model, SLOW)
    assert predict(model, SLOW, [SegmentCost(3)]).whole == plain.whole
    with pytest.raises(InputError, match="prefix 99"):
        predict(model, SLOW, [SegmentCost(99, Stat(1.0, 1.0, 1.0))])


def test_a_running_device_corrects_the_predicted_profile() -> None:
    """What `run` does with every head it computes: the planner is told by how much the device is slower."""
    model = model_of(EFFICIENT)
    edge, cloud = predicted_profile(model, SLOW), predicted_profile(model, FAST)
    observer, profiled_ms = Observer(FOUR_G), edge.head(model.graph.prefixes()[-1]).median
    for k in range(8):
        observer.computed(float(k), Ran(2 * edge.whole.median, profiled_ms, edge.whole.median))
    device = observer.conditions(8.0).device
    assert device == pytest.approx(2.0, rel=0.05)
    slowed = Planner(None, (edge, cloud)).slowed(device, 1.0)
    assert slowed.local(FOUR_G).total.ms == pytest.approx(2 * edge.whole.median, rel=0.05)


def test_traces_are_heads_that_were_measured(tmp_path: Path) -> None:
    graph = model_of(LENET).graph
    lines = [{"cut": "pool1", "spans_ms": {"head": ms, "up": 3.0, "tail": 0.5}} for ms in (9.0, 4.0, 4.1, 4.2, 3.9)]
    lines += [
        {"cut": "pool1", "spans_ms": {"head": 90.0}, "fallback": "local"},
        {"cut": "fc1", "spans_ms": {"head": 5}},
    ]
    lines += [{"cut": "nowhere", "spans_ms": {"head": 5.0}}] * 3
    path = tmp_path / "run.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    segments, said = read_traces(path, graph)
    assert [graph.prefixes()[s.prefix].name for s in segments] == ["pool1"]
    assert segments[0].head == Stat(4.1, 3.94, 7.08, 5)
    assert segments[0].tail is None
    assert len(said) == 2
    assert "1 request cut at fc1, fewer than 3" in said[0] + said[1]
    tails, _ = read_traces(path, graph, heads=False)
    assert tails[0].tail == Stat(0.5, 0.5, 0.5, 5)
    path.write_text('{"cut": "pool1", "spans_ms": {"head": 4.0}}\nnot json\n')
    with pytest.raises(InputError, match=r"run.jsonl line 2 is no request's trace"):
        read_traces(path, graph)


# --- the profile ------------------------------------------------------------------------------------------------------


def test_a_predicted_profile_is_a_profile_that_says_so(tmp_path: Path) -> None:
    model = model_of(LENET)
    profile = predicted_profile(model, SLOW)
    save_profile(tmp_path / "p.profile.json", profile)
    again = load_profile(tmp_path / "p.profile.json")
    assert again.head(5) == profile.head(5)
    assert "predicted from bench, never run there" in again.where
    assert "codec times of another machine" in again.where
    assert again.machine == DEVICE
    assert not again.complete
    assert {s.count for x in again.segments for s in (x.head, x.tail) if s is not None} == {0}
    own = predicted_profile(model, SLOW, codecs={"int8": CodecCost(1, 2, 3, 4)})
    assert "another machine" not in own.note
    assert own.codecs == {"int8": CodecCost(1, 2, 3, 4)}


def test_linear_regression_is_there_to_compare_with() -> None:
    kernels = kernels_of(model_of(LENET))
    found = linear_ms(kernels, latency(without=("move",)))
    assert [ms == 0.5 for ms in found] == [k.kind != "move" for k in kernels]


def test_tables_are_no_longer_than_a_screen() -> None:
    small, large = predict(model_of(LENET), SLOW), predict(model_of(EFFICIENT), SLOW)
    assert layer_rows(small) == kernel_rows(small)
    rows = layer_rows(large)
    assert len(rows) <= MOST_ROWS < len(large.kernels)
    assert sum(r.kernels for r in rows) == len(large.kernels)
    assert sum(r.ms for r in rows) == pytest.approx(sum(k.ms.median for k in large.kernels), rel=1e-3)
    assert "blocks.3" in [r.layer for r in rows]
    short = layer_rows(large, 5)
    assert len(short) == 5
    assert short[-1].layer == f"{len(large.kernels) - 4} others"
    assert sum(r.ms for r in short) == pytest.approx(sum(r.ms for r in rows), rel=1e-3)


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """device.latency.json and server.latency.json, of which the first knows no global pool."""
    folder = tmp_path_factory.mktemp("latency")
    save_latency(folder / "device.latency.json", latency(name="device", without=("other", "global_pool")))
    save_latency(folder / "server.latency.json", FAST)
    return folder


def fails(capsys: pytest.CaptureFixture[str], status: int, *args: object) -> str:
    """The message of a command that must fail with this status: one sentence on one line."""
    assert main([str(a) for a in args]) == status
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("splitpoint: ")
    assert "Traceback" not in "".join(lines)
    return lines[-1]


def test_predict_prints_kernels_the_whole_and_what_comes_next(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    device = files / "device.latency.json"
    text = ok(capsys, "predict", "--on", device, EFFICIENT)
    for words in (
        "predicted: nothing was run", "on device: Cortex-A72, onnxruntime on cpu, 1 thread", "for eight of ten",
        "2: conv dw_conv", "never calibrated, priced by FLOPs and bytes: 1 kernel", "ReduceMean", "blocks.3",
        "beside them up to 0.050 ms that a run costs after a pause",
        f"next: splitpoint plan {EFFICIENT} --edge {device} --cloud HOST",
    ):  # fmt: skip
        assert words in text
    assert text.replace(EFFICIENT, "") != ok(capsys, "predict", EFFICIENT, "--on", device, "--all").replace(
        EFFICIENT, ""
    )
    found = json.loads(ok(capsys, "predict", EFFICIENT, "--on", device, "--json"))
    assert found["whole_ms"] == pytest.approx(predict(model_of(EFFICIENT), load_latency(device)).whole.median)
    assert [u["op"] for u in found["uncalibrated"]] == ["ReduceMean"]
    assert len(found["kernels"]) == len(kernels_of(model_of(EFFICIENT)))


def test_predict_fits_a_narrow_terminal(files: Path) -> None:
    env = os.environ | {"COLUMNS": "80", "TTY_COMPATIBLE": "1", "TERM": "xterm", "NO_COLOR": "1"}
    words = [sys.executable, "-m", "splitpoint", "predict", EFFICIENT, "--on", str(files / "device.latency.json")]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=True)
    lines = [line.replace("\x1b[1m", "").replace("\x1b[0m", "") for line in done.stdout.splitlines()]
    assert max(len(line) for line in lines if not line.startswith("next: ")) <= 80
    assert len(lines) < 50


def test_files_that_predict_writes(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    device, edge = files / "device.latency.json", tmp_path / "edge.profile.json"
    ok(capsys, "predict", LENET, "--on", device, "-o", edge, "--csv", tmp_path / "k.csv")
    assert load_profile(edge).graph.name == "lenet5"
    assert (tmp_path / "k.csv").read_text().splitlines()[0].startswith("layer,kind,ops,kernels,ms,low_ms")
    assert "split" in ok(capsys, "plan", "--edge", edge, "--cloud", edge, "--link", "4g")
    # what was predicted is no measurement
    message = fails(capsys, 4, "predict", LENET, "--on", device, "--measured", edge)
    assert "no measured time in it" in message


def test_a_measured_profile_corrects_what_the_command_says(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    device, model = files / "device.latency.json", model_of(LENET)
    plain = json.loads(ok(capsys, "predict", LENET, "--on", device, "--json"))["whole_ms"]
    save_profile(tmp_path / "m.profile.json", hand_made(model.graph, 2 * plain, model.fingerprint))
    (tmp_path / "run.jsonl").write_text(
        "\n".join(json.dumps({"cut": "output", "spans_ms": {"head": 2 * plain}}) for _ in range(5))
    )
    for more in (("--measured", tmp_path / "m.profile.json"), ("--traces", tmp_path / "run.jsonl")):
        found = json.loads(ok(capsys, "predict", LENET, "--on", device, "--json", *more))
        assert found["measured"] > 0
        assert found["whole_ms"] == pytest.approx(2 * plain, rel=0.1)
    assert "corrected by" in ok(capsys, "predict", LENET, "--on", device, "--traces", tmp_path / "run.jsonl")
    others = hand_made(model.graph, 2 * plain, model.fingerprint, threads=4)
    save_profile(tmp_path / "m.profile.json", others)
    message = fails(capsys, 4, "predict", LENET, "--on", device, "--measured", tmp_path / "m.profile.json")
    assert "was measured with 4 threads, device with 1 thread" in message
    ok(capsys, "predict", LENET, "--on", device, "--measured", tmp_path / "m.profile.json", "--force")
    message = fails(capsys, 4, "predict", EFFICIENT, "--on", device, "--measured", tmp_path / "m.profile.json")
    assert "not of efficientnet_lite0" in message


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--threads", "4"), "was made with 1 thread, not with 4 threads"),
        (("--device", "cuda"), "was made with device cpu, not with device cuda"),
    ],
)
def test_another_device_or_thread_count_is_refused_or_warned_of(
    files: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, str], said: str
) -> None:
    device = files / "device.latency.json"
    assert said in fails(capsys, 4, "predict", LENET, "--on", device, *more)
    assert main(["predict", LENET, "--on", str(device), *more, "--force"]) == 0
    assert f"warning: {device} {said}" in capsys.readouterr().err
    if more[0] == "--threads":
        words = ("plan", LENET, "--edge", device, "--cloud", files / "server.latency.json", "--link", "4g", *more)
        assert said in fails(capsys, 4, *words)
        ok(capsys, *words, "--force")


def test_another_engine_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.latency.json"
    save_latency(path, latency(engine="tvm"))
    assert "engine tvm, not with engine onnxruntime" in fails(capsys, 4, "predict", LENET, "--on", path)
    assert "engine tvm" in fails(capsys, 4, "plan", LENET, "--edge", path, "--cloud", path, "--link", "4g")
    ok(capsys, "predict", LENET, "--on", path, "--force")


@pytest.mark.parametrize("verb", ["predict", "plan"])
@pytest.mark.parametrize("damage", ["cut", "nan", "format", "profile", "text", "gone"])
def test_a_damaged_file_is_refused_in_one_sentence(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str, damage: str
) -> None:
    data = (files / "device.latency.json").read_bytes()
    made = {
        "cut": data[: len(data) // 2],
        "nan": data.replace(b'"fixed_ms": 0.05', b'"fixed_ms": NaN'),
        "format": data.replace(b'"format": 1', b'"format": 99'),
        "profile": b'{"format": 1, "fingerprint": "ab", "segments": [], "whole": [1, 1, 1, 1]}',
        "text": b"conv: 3 ms",
    }
    path = tmp_path / "bad.latency.json"
    if damage != "gone":
        assert made[damage] != data
        path.write_bytes(made[damage])
    words = ("--on", path) if verb == "predict" else ("--edge", path, "--cloud", path, "--link", "4g")
    assert str(path) in fails(capsys, 4, verb, LENET, *words)


def test_plan_takes_latency_files_for_either_side(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    device, server = files / "device.latency.json", files / "server.latency.json"
    save_profile(tmp_path / "cloud.profile.json", predicted_profile(model_of(EFFICIENT), FAST))
    both = json.loads(ok(capsys, "plan", EFFICIENT, "--edge", device, "--cloud", server, "--link", "4g", "--json"))
    assert "predicted from device, never run there" in both["edge"]
    assert "predicted from server" in both["cloud"]
    one = ("plan", EFFICIENT, "--edge", device, "--cloud", tmp_path / "cloud.profile.json", "--link", "4g", "--json")
    assert json.loads(ok(capsys, *one))["best"] == both["best"]
    # a name without the ending is known by what is inside
    plain = tmp_path / "device.json"
    plain.write_bytes(device.read_bytes())
    assert "predicted from device" in ok(capsys, "plan", LENET, "--edge", plain, "--cloud", plain, "--link", "4g")
    assert "give MODEL" in fails(capsys, 2, "plan", "--edge", device, "--cloud", server, "--link", "4g")
    assert "name it with --link" in fails(capsys, 2, "plan", LENET, "--edge", device, "--cloud", server)


def test_what_is_missing_is_said(capsys: pytest.CaptureFixture[str], files: Path) -> None:
    assert "Missing argument 'MODEL'" in fails(capsys, 2, "predict")
    assert "Missing option '--on'" in fails(capsys, 2, "predict", LENET)
    assert "neurosurgeon-edge" in fails(capsys, 4, "predict", LENET, "--on", "neurosurgeon-egde")
    assert "no model is called trian" in fails(capsys, 3, "predict", "trian", "--on", files / "device.latency.json")
    text = ok(capsys, "predict", "--help")
    for words in ("predict [OPTIONS] MODEL", "--on", "evaluate", "train"):
        assert words in text


def test_train_learns_from_tables_and_names_the_rows_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is learned is `tests/predict/learn/test_training.py`'s matter; here, what reaches it and what is said."""
    asked: dict[str, object] = {}

    def train(tables: object, **identity: object) -> Latency:
        asked.update(identity, tables=tables)
        return latency(name=str(identity["name"]), kinds={"linear": kind_model("linear")})

    monkeypatch.setattr("splitpoint.predict.learn.training.train", train)
    folder, path = tmp_path / "board", tmp_path / "board.latency.json"
    folder.mkdir()
    (folder / "linear_lat.csv").write_text(
        "in_features,out_features,FLOPs,latency\n10,10,190,0.005\n10,20,380,nan\n10,20,380,-1\n10,20,380,x\n8,8,120,0\n"
    )
    status = main(["predict", "train", str(folder), "-o", str(path), "--threads", "4", "--seed-flops", "--note", "N"])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    for said in ("(line 3): a latency that is not a number", "zero or negative", "text where a number should be"):
        assert said in captured.err
    assert "linear 100 5.0% 60% 90% 100% 80%" in " ".join(captured.out.split())
    assert f"next: splitpoint predict MODEL --on {path}" in captured.out
    assert load_latency(path).name == "board"
    assert (asked["name"], asked["threads"], asked["convention"], asked["note"]) == ("board", 4, "seed", "N")
    assert len(asked["tables"]["linear"]) == 1  # type: ignore[index]
    (folder / "linear_lat.csv").write_text("in_features,latency\n10,0.005\n")
    assert "has no column out_features" in fails(capsys, 4, "predict", "train", folder, "-o", path)
    assert "there is no folder" in fails(capsys, 4, "predict", "train", tmp_path / "none", "-o", path)


def test_the_shipped_devices_work_at_once_and_say_whose_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    text = ok(capsys, "predict", EFFICIENT, "--on", "neurosurgeon-edge")
    edge, cloud = load_latency("neurosurgeon-edge"), load_latency("neurosurgeon-cloud")
    assert edge.note
    assert " ".join(edge.note.split()) in " ".join(text.split())
    words = (
        "plan",
        EFFICIENT,
        "--edge",
        "neurosurgeon-edge",
        "--cloud",
        "neurosurgeon-cloud",
        "--link",
        "wifi",
        "--json",
    )
    found = json.loads(ok(capsys, *words))
    assert edge.note in found["edge"]
    assert cloud.note in found["cloud"]
    assert predict(model_of(EFFICIENT), edge).whole.median > predict(model_of(EFFICIENT), cloud).whole.median


def test_a_server_measures_itself_for_a_device_that_is_not_there(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is the server's: its graph is enough to price it on the device."""
    monkeypatch.setenv("SPLITPOINT_CACHE", str(tmp_path))
    with Server([model_of(LENET)], engine=nets.ENGINE, port=0) as server:
        words = ("--cloud", server.address, "--link", "3g", "--budget", "0.3s", "--json")
        plan = json.loads(ok(capsys, "plan", "lenet5", "--edge", files / "device.latency.json", *words))
    assert "predicted from device" in plan["edge"]
    assert "predicted" not in plan["cloud"]
    assert plan["options"][0]["total"][0] == pytest.approx(
        predict(model_of(LENET), load_latency(files / "device.latency.json")).whole.median
    )
