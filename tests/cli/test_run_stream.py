"""splitpoint run on folders, videos and cameras, and what becomes of frames that come too fast."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from commands import PYTHON, Serving, fails, ok
from plans import profiles
from relays import ThreadRelay
from serving import until
from videos import video

from splitpoint.cli import main
from splitpoint.cli.answers import AnswerRows, Tag
from splitpoint.cli.run_stream import StreamSummary, whole
from splitpoint.link import Link
from splitpoint.models.zoo import digits
from splitpoint.planning.files import save_plan
from splitpoint.planning.planner import plan
from splitpoint.runtime.result import Marks, Result
from splitpoint.runtime.stream.pacing import Counts
from splitpoint.trace import Span


@pytest.fixture(scope="module")
def serving() -> Iterator[Serving]:
    server = Serving("zoo:lenet5")
    yield server
    server.end()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPLITPOINT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two hundred digits."""
    made = tmp_path / "digits"
    made.mkdir()
    for k in range(200):
        shutil.copy(digits()[k % len(digits())], made / f"{k:03}.png")
    return made


def test_run_streams_a_video(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = video(tmp_path / "a.avi")
    text = ok(capsys, "run", "zoo:lenet5", "--source", path)
    assert len(re.findall(r"^frame \d+ ", text, re.MULTILINE)) == 20
    assert re.search(r"^20 answers in [\d.]+ s: [\d.]+/s, median [\d.]+ ms, p95 [\d.]+ ms$", text, re.MULTILINE)
    assert ok(capsys, "run", "zoo:lenet5", path).count("frame ") == 20, "a video needs no --source"


def test_run_answers_what_a_broken_video_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = video(tmp_path / "a.avi")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    assert main(["run", "zoo:lenet5", "--source", str(path), "--json"]) == 4
    said = capsys.readouterr()
    answered = len(said.out.splitlines())
    assert 5 <= answered < 18
    assert f"splitpoint: {path} ends in the middle: only its first {answered} frames could be read" in said.err
    assert f"{answered} answers" in said.err


def test_run_drops_what_it_cannot_keep_up_with_and_counts_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = video(tmp_path / "a.avi", 60)
    words = ["run", "zoo:efficientnet_lite0", "--source", path, "--rate", "5000", "--threads", "1", "--json"]
    assert main([*map(str, words), "--on-overload", "drop-oldest"]) == 0
    said = capsys.readouterr()
    found = re.search(r"^60 frames: (\d+) answered, (\d+) dropped \(drop-oldest\)$", said.err, re.MULTILINE)
    assert found, said.err
    assert int(found[1]) == len(said.out.splitlines())
    assert int(found[1]) + int(found[2]) == 60
    assert int(found[2]) > 10
    rows = [json.loads(line) for line in said.out.splitlines()]
    assert [int(r["input"].split()[1]) for r in rows] == sorted(int(r["input"].split()[1]) for r in rows)
    assert all(sum(r["spans_ms"].values()) == pytest.approx(r["ms"]["total"], abs=0.01) for r in rows)


@pytest.mark.parametrize(
    ("args", "status", "hint"),
    [
        (["--source", "/dev/video917"], 4, "there is no camera at /dev/video917"),
        (["--source", "nowhere.mp4"], 4, "no such file or folder: nowhere.mp4"),
        (["--source", "a" * 400], 4, "no such file or folder: aaa"),
        (["a" * 400], 4, "no such file or folder: aaa"),
        ([str(digits()[0]), "a" * 400], 4, "inputs could not be read"),
        (["--source", "rtsp://me:geheim@127.0.0.1:1/live", str(digits()[0])], 2, "--source rtsp://127.0.0.1:1/live is"),
        (
            [str(digits()[0]), "rtsp://me:geheim@127.0.0.1:1/live"],
            2,
            ": rtsp://127.0.0.1:1/live is a stream of its own",
        ),
        (["--source", ".", "--reconnect", "-3"], 2, "--reconnect is a time"),
        (["--source", "camera:x"], 4, "a camera is camera:0"),
        # Before anything is asked of a server, which would take half a minute.
        (["nowhere.jpg", "--cloud", "127.0.0.1:1"], 4, "no such file or folder: nowhere.jpg"),
        (["--source", "nowhere", "--cloud", "127.0.0.1:1"], 4, "no such file or folder: nowhere"),
        (["--source", ".", str(digits()[0])], 2, "give MODEL beside it, and no files"),
        (["--source", ".", "--rate", "0"], 2, "--rate is frames a second"),
        (["--source", ".", "--rate", "-30"], 2, "--rate is frames a second"),
        (["--source", ".", "--rate", "inf"], 2, "--rate is frames a second"),
        (["--source", str(digits()[0].parent), "--on-overload", "drop-oldest"], 2, "--on-overload needs --rate"),
        (["--source", str(digits()[0].parent), "--rate", "9", "--on-overload", "degrade"], 2, "of a plan"),
        ([str(digits()[0]), "--deadline", "0"], 2, "--deadline is a time such as 200ms"),
        ([str(digits()[0]), "--deadline", "-200ms"], 2, "--deadline is a time such as 200ms"),
        ([str(digits()[0]), "--fallback", "local"], 2, "add --cloud"),
        ([str(digits()[0]), "/dev/video0"], 2, "run it alone"),
    ],
)
def test_mistakes_get_a_sentence_and_a_status(
    args: list[str], status: int, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert hint in fails(capsys, status, "run", "zoo:lenet5", *args)


def test_run_asks_what_to_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert "say what to run" in fails(capsys, 2, "run")


def test_a_deadline_is_kept_by_finishing_here(
    cache: Path, tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The server is slow to answer: its link takes 300 ms each way."""
    server = Serving("zoo:lenet5")
    try:
        with ThreadRelay(server.address, Link(100, 100, 600)) as relay:
            words = ["run", "lenet", "--cloud", relay.address, "--at", "pool1", "--deadline", "250ms", "--json"]
            assert main([*words, *[str(p) for p in sorted(folder.iterdir())[:3]]]) == 0
    finally:
        server.end()
    said = capsys.readouterr()
    rows = [json.loads(line) for line in said.out.splitlines()]
    assert "fetching all of the model first" in said.err
    assert len(rows) == 3
    assert all(row["fallback"] for row in rows), "no answer of the server can be in time"
    assert "3 of 3 finished here" in said.err


class Running:
    """A `splitpoint run` process; what it prints is read as it comes."""

    def __init__(self, *words: object) -> None:
        self.process = subprocess.Popen(
            [*PYTHON, "run", *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.rows, self.said = list[str](), list[str]()
        streams = ((self.process.stdout, self.rows), (self.process.stderr, self.said))
        self.threads = [threading.Thread(target=into.extend, args=(lines,)) for lines, into in streams]
        for thread in self.threads:
            thread.start()

    def __enter__(self) -> Running:
        if not until(lambda: len(self.rows) >= 5, 60):
            self.__exit__()
            raise AssertionError("".join(self.said))
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for thread, stream in zip(self.threads, (self.process.stdout, self.process.stderr), strict=True):
            thread.join(10)
            assert stream is not None
            stream.close()

    def silent(self) -> bool:
        """Whether no row comes for half a second."""
        known = len(self.rows)
        return not until(lambda: len(self.rows) > known, 0.5)

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def ends(self) -> str:
        """Standard error, to the end."""
        self.process.wait(60)
        for thread in self.threads:
            thread.join(10)
        return "".join(self.said)


@pytest.mark.parametrize("rate", [["--rate", "40"], []])
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_answers_what_is_under_way_and_sums_up(
    rate: list[str], serving: Serving, cache: Path, folder: Path
) -> None:
    for k in range(200, 4000):
        os.link(folder / "000.png", folder / f"{k:04}.png")
    words = ["lenet", "--cloud", serving.address, "--at", "pool1", "--json", "--source", folder, *rate]
    with Running(*words) as run:
        run.interrupt()
        err = run.ends()
    assert run.process.returncode == 130
    assert "stopping: what is under way is answered first" in err
    assert err.rstrip().endswith("splitpoint: interrupted")
    assert "Traceback" not in err
    frames = re.search(r"^(\d+) frames: (\d+) answered$", err, re.MULTILINE)
    assert frames, err
    assert frames[1] == frames[2] == str(len(run.rows))
    assert 5 <= len(run.rows) < 4000
    names = [json.loads(row)["input"] for row in run.rows]
    assert names == sorted(names)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_twice_ends_at_once(cache: Path, folder: Path) -> None:
    server = Serving("zoo:lenet5")
    words = ["lenet", "--cloud", server.address, "--at", "pool1", "--json", "--source", folder, "--rate", "40"]
    try:
        with Running(*words, "--fallback", "wait") as run:
            server.process.send_signal(signal.SIGSTOP)
            # Half a second without an answer: frames are under way, and stay there.
            assert until(run.silent, 20)
            run.interrupt()
            assert until(lambda: any(line.startswith("stopping") for line in run.said), 20)
            run.interrupt()
            err = run.ends()
        assert run.process.returncode == 130
        assert "Traceback" not in err
        counts = re.search(r"^(\d+) frames: (\d+) answered, (\d+) without an answer$", err, re.MULTILINE)
        assert counts, err
        assert int(counts[1]) == int(counts[2]) + int(counts[3])
        assert int(counts[2]) == len(run.rows)
    finally:
        server.process.kill()
        server.process.communicate(timeout=30)


def test_run_degrades_to_a_cheaper_option_of_its_plan(
    serving: Serving, tmp_path: Path, cache: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = plan(None, profiles("zoo:lenet5", 4.0, 1.0), Link(100, 100, 1))
    server, device = found.option("server"), found.option("device")
    assert server is not None
    assert device is not None
    # It believes in 50 requests a second; the link takes about six.
    server = msgspec.structs.replace(server, throughput=50.0)
    device = msgspec.structs.replace(device, throughput=200.0, refused="")
    file = tmp_path / "plan.json"
    save_plan(file, msgspec.structs.replace(found, best=server, options=(server, device)))
    with ThreadRelay(serving.address, Link(0.05, 100, 1)) as relay:
        words = ["run", "zoo:lenet5", "--cloud", relay.address, "--plan", file, "--source", folder, "--rate", "50",
                 "--on-overload", "degrade", "--fallback", "wait", "--json"]  # fmt: skip
        assert main([str(w) for w in words]) == 0
    said = capsys.readouterr()
    rows = [json.loads(line) for line in said.out.splitlines()]
    assert "on overload: all on the edge" in said.err
    assert "too fast: now all on the edge" in said.err
    counts = re.search(r"^200 frames: (\d+) answered, (\d+) dropped \(degrade\), (\d+) with a cheaper", said.err, re.M)
    assert counts, said.err
    assert [int(n) for n in counts.groups()] == [len(rows), 200 - len(rows), sum("degraded" in r for r in rows)]
    assert [r["cut"] for r in rows[-30:]] == ["output"] * 30, "the cheaper option keeps up"
    assert rows[0]["cut"] == "input"


def test_the_load_decides_the_objective(
    serving: Serving, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.png", "b.png"):
        shutil.copy(digits()[0], tmp_path / name)
    common = ["run", "lenet", "--cloud", serving.address, "--budget", "300ms", "--json", "--profile-first"]
    assert main([*common, "--source", str(tmp_path)]) == 0
    assert "heavy load: frames come as fast as they are answered" in capsys.readouterr().err
    assert main([*common, "--source", str(tmp_path), "--rate", "2"]) == 0
    assert "light load: 2/s arrive" in capsys.readouterr().err
    assert main([*common, str(digits()[0])]) == 0
    assert "load:" not in capsys.readouterr().err


# --- rows, and what they came to -------------------------------------------------------------------------------------


def test_rows_and_the_summary_say_what_was_finished_here(capsys: pytest.CaptureFixture[str]) -> None:
    marks = Marks(10.0, 10.01, 10.05, 10.1)
    outputs = {"y": np.zeros((1, 2), np.float32)}
    prepared = (Span("prepare", 9.97, 9.98),)
    plain = Result(outputs, "a", marks, prepared, Tag("x/1.png"), deadline_s=0.2)
    late = Result(outputs, "a", marks, prepared, Tag("x/2.png", 1), fallback="the server is gone: reset", resumed=10.05,
                  deadline_s=0.08, attempts=2)  # fmt: skip
    rows = AnswerRows(lambda: None, ["1.png"], lambda: "about", as_json=False, keep=False)
    summary = StreamSummary(clock=iter([0.0, 1.0, 2.0, 3.0]).__next__)
    for result in map(whole, (plain, late, late)):
        rows.print(result)
        summary.add(result)
    about, header, first, second, _ = capsys.readouterr().out.splitlines()
    assert about == "about"
    assert header.startswith("input")
    assert first.split()[0] == "1.png"
    assert "finished" not in first
    # 10 ms of decoding, 20 until its turn, and 100 more: the deadline counts all of that, as the total does.
    assert second.endswith("finished here: the server is gone: reset  50.0 ms after the deadline")
    assert sum(s.ms for s in whole(late).trace.spans) == pytest.approx(130.0)
    assert summary.speed() == "3 answers in 3.00 s: 1/s, median 130 ms, p95 130 ms"
    assert list(summary.trouble()) == [
        "2 of 3 finished here (the server is gone)",
        "2 of 3 after the deadline of 80.0 ms, by 50.0 ms at most",
    ]
    counts = Counts(taken=4, dropped=2, degraded=1)
    assert summary.frames(counts, "degrade") == (
        "6 frames: 3 answered, 2 dropped (degrade), 1 with a cheaper option, 1 without an answer"
    )
    as_json = AnswerRows(lambda: None, ["1.png"], lambda: "about", as_json=True, keep=True)
    as_json.print(whole(late))
    row = json.loads(capsys.readouterr().out)
    assert (row["fallback"], row["attempts"], row["degraded"]) == ("the server is gone: reset", 2, 1)
    assert row["missed_ms"] == pytest.approx(50.0)
    assert list(as_json.outputs) == ["2"]


def answer(took_s: float, deadline_s: float = 0.0, fallback: str = "") -> Result:
    marks = Marks(0.0, took_s, took_s, took_s)
    return Result({"y": np.zeros(1, np.float32)}, "a", marks, deadline_s=deadline_s, fallback=fallback)


def summary(*times: float) -> StreamSummary:
    return StreamSummary(clock=iter([0.0, *times]).__next__)


def test_no_answers_are_said_and_one_at_once_has_no_rate() -> None:
    assert summary().speed() == "no answers"
    at_once = summary(0.0)
    at_once.add(answer(0.010))
    assert at_once.speed() == "1 answer, median 10.0 ms, p95 10.0 ms"
    assert list(at_once.trouble()) == []


def test_reasons_are_counted_without_their_details() -> None:
    sums = summary(1.0, 2.0, 3.0)
    for why in ("the server is gone: reset", "the server is gone: timed out", "the server was late"):
        sums.add(answer(0.020, fallback=why))
    assert list(sums.trouble()) == ["3 of 3 finished here (the server is gone: 2; the server was late: 1)"]


def test_answers_by_a_guess_are_counted() -> None:
    sums = summary(1.0, 2.0, 3.0)
    for plan_of in ("guess", "guess", "profiled"):
        sums.add(msgspec.structs.replace(answer(0.02), tag=Tag("x", plan=plan_of)))
    assert list(sums.trouble()) == ["2 of 3 cut by a guess (--profile-first plans before the first)"]


def test_what_came_after_its_deadline_is_counted_with_the_worst() -> None:
    sums = summary(1.0, 2.0, 4.0)
    for took_s in (0.05, 0.12, 0.18):
        sums.add(answer(took_s, deadline_s=0.1))
    assert list(sums.trouble()) == ["2 of 3 after the deadline of 100 ms, by 80.0 ms at most"]
    assert sums.speed().startswith("3 answers in 4.00 s: ")


def test_every_frame_is_accounted_for() -> None:
    sums = summary(1.0)
    sums.add(answer(0.01))
    assert sums.frames(Counts(taken=1), "queue") == "1 frame: 1 answered"
    assert sums.frames(Counts(taken=3, dropped=2), "drop-oldest") == (
        "5 frames: 1 answered, 2 dropped (drop-oldest), 2 without an answer"
    )
