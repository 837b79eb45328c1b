"""splitpoint plan as a user meets it: words in, one table or one sentence out."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from commands import ok
from plans import model_of, profiles
from predicted_nets import EFFICIENT, FAST, LENET

import nets
from splitpoint.cli import main
from splitpoint.engines import open_engine
from splitpoint.planning.files import load_plan
from splitpoint.predict.learn.files import load_latency
from splitpoint.predict.price.prediction import predict_latency
from splitpoint.profile.files import load_profile, save_profile
from splitpoint.runtime.server.server import Server


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """edge.profile.json and cloud.profile.json of EfficientNet, lenet_*.profile.json of LeNet."""
    folder = tmp_path_factory.mktemp("profiles")
    for prefix, name, edge_ms, cloud_ms in (("", EFFICIENT, 90.0, 6.0), ("lenet_", LENET, 60.0, 2.0)):
        edge, cloud = profiles(name, edge_ms, cloud_ms)
        save_profile(folder / f"{prefix}edge.profile.json", edge)
        save_profile(folder / f"{prefix}cloud.profile.json", cloud)
    return folder


def command(files: Path, *more: object, link: str | None = "4g") -> list[str]:
    edge, cloud = files / "edge.profile.json", files / "cloud.profile.json"
    words = ["plan", "--edge", edge, "--cloud", cloud, *(("--link", link) if link else ()), *more]
    return [str(w) for w in words]


def fails(capsys: pytest.CaptureFixture[str], status: int, *args: object) -> str:
    """The message of a command that must fail with this status: one sentence on one line."""
    assert main([str(a) for a in args]) == status
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("splitpoint: ")
    assert "Traceback" not in "".join(lines)
    return lines[-1]


def test_the_table_and_what_the_second_seed_printed(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = ok(capsys, *command(files))
    for words in (
        "all on the edge", "all on the server, raw input", "all on the server, JPEG 4:4:4 q98", "72/75 same",
        "split: ", "Do not split: ", "lossy codecs and pictures are planned only where asked for", "klt:45",
        "bandwidth: 5.85 Mbit/s", "best latency: 90.0 ms", "best partition point: output (all on the edge)",
        "as the uplink's bandwidth changes",
    ):  # fmt: skip
        assert words in text
    assert "the runner-up is" not in text
    assert "the runner-up is" in ok(capsys, *command(files, "--explain"))


def test_json_and_the_file_are_the_same_plan(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = ok(capsys, *command(files, "--json", "-o", tmp_path / "plan.json", "--codec", "int8"))
    plan = load_plan(tmp_path / "plan.json")
    assert json.loads(text) == json.loads(msgspec.json.encode(plan))
    assert plan.fingerprint == model_of(EFFICIENT).fingerprint
    assert plan.link.name == "4g"


def test_the_model_may_be_named_and_is_checked(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = ok(capsys, *command(files))
    assert ok(capsys, *command(files, EFFICIENT)) == one
    assert "not of unheard-of" in fails(capsys, 4, *command(files, "unheard-of"))
    message = fails(capsys, 4, *command(files, LENET))
    assert "edge.profile.json" in message
    assert "not of lenet5" in message


def test_every_option_reaches_the_planner(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limits = ["--deadline", "0.2s", "--max-edge-memory", "8MB", "--keep-input-local", "--codec", "int4"]
    text = ok(capsys, *command(files, *limits, "--edge-watts", "5,2,1", "--objective", "energy", "--json"))
    plan = json.loads(text)
    assert plan["objective"] == "energy"
    assert plan["constraints"] == [
        "at most 8.0 MB on the edge", "the input stays on the edge", "an answer within 200 ms",
    ]  # fmt: skip
    assert plan["best"]["hosts"][0]["memory"] <= 8e6
    assert plan["best"]["energy_mj"] > 0


def test_the_picture_is_written(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ok(capsys, *command(files, "--png", tmp_path / "plan.png"))
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_fits_a_narrow_terminal(files: Path) -> None:
    env = os.environ | {"COLUMNS": "80", "TTY_COMPATIBLE": "1", "TERM": "xterm", "NO_COLOR": "1"}
    words = [sys.executable, "-m", "splitpoint", *command(files, "--codec", "int8")]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=True)
    lines = [line.replace("\x1b[1m", "").replace("\x1b[0m", "") for line in done.stdout.splitlines()]
    assert max(map(len, lines)) <= 80
    assert "ms ± band" in done.stdout


def test_a_trace_is_planned_for_by_its_mean(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "drive.csv").write_text("time,up,down,rtt\n0,8,8,20\n10,2,2,20\n")
    assert "bandwidth: 3.2 Mbit/s" in ok(capsys, *command(files, link=str(tmp_path / "drive.csv")))


@pytest.mark.parametrize(
    ("more", "status", "words"),
    [
        (("--deadline", "20ms"), 2, "an answer within 20.0 ms cannot be had: the nearest plan is "),
        (("--deadline", "soon"), 2, "--deadline is a time such as 200ms or 1.5s, above zero and at most a day"),
        (("--deadline", "0ms"), 2, "--deadline is a time such as 200ms"),
        (("--deadline", "9" * 67 + "s"), 2, "at most a day, not " + "9" * 39 + "…"),
        (("--max-edge-memory", "9" * 67 + "B"), 2, "at most a petabyte, not " + "9" * 39 + "…"),
        (("--max-edge-memory", "1001TB"), 2, "at most a petabyte, not 1001TB"),
        (("--max-drop", "two"), 2, "--max-drop is a share"),
        (("--max-edge-memory", "-3MB"), 2, "--max-edge-memory is a size"),
        (("--objective", "energy"), 2, "--edge-watts"),
        (("--edge-watts", "1,2"), 2, "--edge-watts is COMPUTE,TX,IDLE"),
        (("--edge-watts", "1,nan,2"), 2, "--edge-watts is COMPUTE,TX,IDLE"),
        (("--codec", "int9"), 2, "did you mean int8"),
        (("-o", "/nowhere/plan.json"), 7, "there is no folder /nowhere"),
        (("--png", "/nowhere/plan.png"), 7, "there is no folder /nowhere"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(
    files: Path, more: tuple[str, ...], status: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in fails(capsys, status, *command(files, *more))


def test_what_answers_must_be_kept_takes_a_calibration(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sides = ["plan", "--edge", files / "lenet_edge.profile.json", "--cloud", files / "lenet_cloud.profile.json"]
    said = fails(capsys, 2, *sides, "--link", "4g", "--max-drop", "1%")
    assert "--max-drop needs a calibration: splitpoint calibrate-codecs" in said
    assert "--front needs a calibration" in fails(capsys, 2, *sides, "--link", "4g", "--front", "front.csv")
    # The zoo's network comes with one.
    text = ok(capsys, *command(files, "--agreement", "95%"))
    assert "split: blocks.5.project.norm, klt:45" in text
    assert "an agreement of at least 95 %" in text


@pytest.mark.parametrize("link", ["0mbit,3ms", "-1mbit,3ms", "nanmbit,3ms", "5g7", "10mbit"])
def test_a_link_that_is_none_is_refused(files: Path, link: str, capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, 2, *command(files, link=link))


def test_without_a_server_the_link_must_be_named(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for link in (None, "measured"):
        assert "a link cannot be measured without a server" in fails(capsys, 2, *command(files, link=link))


def test_profiles_of_two_models_and_files_that_are_none_are_refused(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", "--edge", f"{files}/edge.profile.json", "--link", "4g", "--cloud"]
    assert "both must be of one model" in fails(capsys, 4, *words, f"{files}/lenet_cloud.profile.json")
    assert "there is no file" in fails(capsys, 4, *words, str(tmp_path / "missing.profile.json"))
    (tmp_path / "half.profile.json").write_text('{"format": 1')
    assert "half.profile.json" in fails(capsys, 4, *words, str(tmp_path / "half.profile.json"))
    message = fails(capsys, 2, "plan", "--cloud", f"{files}/cloud.profile.json", "--link", "4g")
    assert "give MODEL, to profile it here, or the edge's profile with --edge" in message


def test_nothing_is_written_when_there_is_no_plan(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["-o", str(tmp_path / "plan.json"), "--png", str(tmp_path / "plan.png")]
    fails(capsys, 2, *command(files, "--deadline", "1ms", *out))
    assert list(tmp_path.iterdir()) == []


def test_a_server_profiles_itself_and_the_link_is_measured(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but a server and a model's name: both profiles and the link are measured."""
    monkeypatch.setenv("SPLITPOINT_CACHE", str(tmp_path))
    with Server([model_of(LENET)], engine=open_engine(threads=1), port=0) as server:
        here = ["plan", "--cloud", server.address, "--threads", "1", "--budget", "1s", "--json"]
        plan = json.loads(ok(capsys, *here, LENET))
        assert plan["fingerprint"] == model_of(LENET).fingerprint
        assert plan["links"][0]["up_mbps"] > 1
        plan = json.loads(ok(capsys, *here, "--edge", f"{files}/lenet_edge.profile.json", "--link", "3g"))
        assert plan["links"][0]["name"] == "3g"
        assert plan["options"][0]["total"][0] == pytest.approx(60)
        other = ["--edge", f"{files}/edge.profile.json", "--link", "3g"]
        assert "the server has no model efficientnet_lite0" in fails(capsys, 3, *here, *other)
    assert "splitpoint: " in fails(capsys, 6, *here, LENET)


def test_plan_takes_latency_files_for_either_side(
    latency_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    device, server = latency_files / "device.latency.json", latency_files / "server.latency.json"
    save_profile(tmp_path / "cloud.profile.json", predict_latency(model_of(EFFICIENT), FAST).profile())
    both = json.loads(ok(capsys, "plan", EFFICIENT, "--edge", device, "--cloud", server, "--link", "4g", "--json"))
    assert "predicted from device, never run there" in both["hosts"][0]
    assert "predicted from server" in both["hosts"][1]
    one = ("plan", EFFICIENT, "--edge", device, "--cloud", tmp_path / "cloud.profile.json", "--link", "4g", "--json")
    assert json.loads(ok(capsys, *one))["best"] == both["best"]
    # a name without the ending is known by what is inside
    plain = tmp_path / "device.json"
    plain.write_bytes(device.read_bytes())
    assert "predicted from device" in ok(capsys, "plan", LENET, "--edge", plain, "--cloud", plain, "--link", "4g")
    assert "give MODEL" in fails(capsys, 2, "plan", "--edge", device, "--cloud", server, "--link", "4g")
    assert "name it with --link" in fails(capsys, 2, "plan", LENET, "--edge", device, "--cloud", server)


def test_a_server_measures_itself_for_a_device_that_is_not_there(
    latency_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is the server's: its graph is enough to price it on the device."""
    monkeypatch.setenv("SPLITPOINT_CACHE", str(tmp_path))
    with Server([model_of(LENET)], engine=nets.ENGINE, port=0) as server:
        words = ("--cloud", server.address, "--link", "3g", "--budget", "0.3s", "--json")
        plan = json.loads(ok(capsys, "plan", "lenet5", "--edge", latency_files / "device.latency.json", *words))
    assert "predicted from device" in plan["hosts"][0]
    assert "predicted" not in plan["hosts"][1]
    assert plan["options"][0]["total"][0] == pytest.approx(
        predict_latency(model_of(LENET), load_latency(latency_files / "device.latency.json")).whole.median
    )


def test_every_partition_point(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "points.csv"
    text = ok(capsys, *command(files, "--all", "--csv", path))
    edge = load_profile(files / "edge.profile.json")
    points = edge.graph.prefixes()
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["partition_point"] for row in rows] == [cut.name for cut in points]
    for row in rows:
        parts = sum(float(row[name]) for name in ("edge_ms", "transfer_ms", "cloud_ms"))
        assert parts == pytest.approx(float(row["total_ms"]), abs=1e-4)
        assert row["partition_point"] in text
    assert [row["partition_point"] for row in rows if row["best"] == "True"] == ["output"]
    assert float(rows[-1]["total_ms"]) == pytest.approx(90.0, rel=1e-3)
    assert float(rows[0]["edge_ms"]) == 0
    assert "best partition point: output" in text
    data = json.loads(ok(capsys, *command(files, "--all", "--json")))
    assert len(data["points"]) == len(rows)
    assert data["plan"]["best"]["kind"] == "device"
