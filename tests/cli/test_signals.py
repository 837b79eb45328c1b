"""Ctrl-C and SIGTERM, at many moments, to real processes: one word, the right exit status, nothing lost or left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random

import msgspec
import pytest

from splitpoint.engines import open_engine
from splitpoint.models import load
from splitpoint.models.zoo import photos
from splitpoint.runtime.server.server import Server

DIGITS = photos()[0].parents[1] / "digits"
#: Says on standard output when `script` begins: before that it is Python's own start that is interrupted.
BEGINS = "import os; from splitpoint.cli import script; os.write(1, b'.'); script()"
#: What Python says of a Ctrl-C between two steps of `BEGINS`: none of them is ours.
OUTSIDE = ["Traceback (most recent call last):", '  File "<string>", line 1, in <module>', "KeyboardInterrupt"]
WORDS = {signal.SIGINT: (130, "splitpoint: interrupted"), signal.SIGTERM: (143, "splitpoint: terminated")}
WORDS[signal.SIGHUP] = (129, "splitpoint: terminated")


def start(words: Sequence[object], code: str = BEGINS, *, ignored: Sequence[int] = ()) -> subprocess.Popen[bytes]:
    def before() -> None:  # whoever runs the tests may ignore some
        for number in WORDS:
            signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)

    process = subprocess.Popen(
        [sys.executable, "-u", "-c", code, *map(str, words)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, preexec_fn=before,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.read(1) == b"."
    return process


def ended(process: subprocess.Popen[bytes], number: int) -> None:
    """It ends as the signal says, or had ended in order before."""
    _, err = process.communicate(timeout=60)
    said = err.decode().splitlines()
    if said == OUTSIDE:
        return
    assert not [line for line in said if "Traceback" in line or "Exception" in line], err.decode()
    if process.returncode == -number:  # while Python takes itself apart: nothing is left to say
        return
    if process.returncode:
        assert (process.returncode, said[-1]) == WORDS[signal.Signals(number)]
        assert sum(line in ("splitpoint: interrupted", "splitpoint: terminated") for line in said) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("words", "longest_s"),
    [
        (["run", "zoo:lenet5", DIGITS], 0.6),
        (["profile", "zoo:lenet5", "--budget", "30s"], 1.5),
        (["serve", "zoo:lenet5", "--port", "0"], 0.5),
        (["lab", "faults"], 3.0),
    ],
    ids=["run", "profile", "serve", "lab"],
)
def test_at_any_moment(words: list[object], longest_s: float, number: int) -> None:
    """Where it is then is luck, whatever the machine is doing; how it ends is not."""
    random = Random(f"{words[0]} {number}")
    for _ in range(5):
        process = start(words)
        try:
            process.wait(random.uniform(0, longest_s))
        except subprocess.TimeoutExpired:
            process.send_signal(number)
        ended(process, number)


#: Makes `verify` do something else, and says when that has begun.
INSTEAD = """
import os, sys, time
from importlib.machinery import ModuleSpec
import click, splitpoint.cli.verify as verb
from splitpoint.cli import script

class Swallows:
    def __del__(self):
        os.write(1, b"."); time.sleep(60)

def swallow():
    try:
        os.write(1, b"."); time.sleep(60)
    except BaseException:
        pass
    time.sleep(60)

def convert():
    try:
        os.write(1, b"."); time.sleep(60)
    except BaseException as exc:
        raise ImportError("a C module failed to import")

def clear_up():
    try:
        os.write(1, b"."); time.sleep(60)
    finally:
        time.sleep(0.7)
        os.write(2, b"cleared up\\n")

def hang():
    try:
        os.write(1, b"."); time.sleep(60)
    finally:
        try:
            os.write(1, b"clearing\\n"); time.sleep(60)
        finally:
            os.write(2, b"cleared up\\n")

def finalise():
    Swallows()
    time.sleep(60)

class ExtensionFileLoader:
    def create_module(self, spec):
        os.write(1, b"."); time.sleep(0.3)

    def exec_module(self, module):
        os.write(2, b"filled\\n")

class Finder:
    def find_spec(self, name, path, target=None):
        return ModuleSpec(name, ExtensionFileLoader()) if name == "extension" else None

def extend():
    sys.meta_path.insert(0, Finder())
    import extension
    time.sleep(60)

verb.command = click.Command("verify", callback=globals()[sys.argv.pop(1)])
sys.argv[1:] = ["verify"]
script()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("what", ["swallow", "convert", "finalise"])
def test_code_of_others_cannot_swallow_it(what: str, number: int) -> None:
    process = start([what], INSTEAD)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err.decode()) == (WORDS[number][0], f"{WORDS[number][1]}\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_extension_module_is_imported_to_its_end(number: int) -> None:
    """One that is made and not filled may crash when it is freed."""
    process = start(["extend"], INSTEAD)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err.decode()) == (WORDS[number][0], f"filled\n{WORDS[number][1]}\n")


def test_what_is_cleared_up_is_not_disturbed() -> None:
    process = start(["clear_up"], INSTEAD)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err.decode()) == (143, "cleared up\nsplitpoint: terminated\n")


def test_a_second_signal_does_not_wait_for_what_hangs() -> None:
    process = start(["hang"], INSTEAD)
    assert process.stdout is not None
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == b"clearing\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err.decode()) == (130, "cleared up\nsplitpoint: interrupted\n")


def test_what_is_ignored_stays_ignored() -> None:
    """``nohup splitpoint run …``, and a script's ``splitpoint run … &``."""
    process = start(["profile", "zoo:lenet5", "--budget", "1s"], ignored=[signal.SIGHUP, signal.SIGINT])
    for number in (signal.SIGHUP, signal.SIGINT):
        process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    folder = tmp_path / "frames"
    folder.mkdir()
    for k in range(2000):
        (folder / f"{k:04}.png").symlink_to(DIGITS / "8.png")
    return folder


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("where", ["server", "here"])
def test_a_stream_answers_what_is_under_way(frames: Path, number: int, where: str) -> None:
    """`docker stop` and systemd send SIGTERM: no frame that was taken is lost."""
    with Server([load("zoo:lenet5")], engine=open_engine(threads=1), port=0) as server:
        there = ["--cloud", server.address, "--at", "pool1"] if where == "server" else []
        with start(["run", "zoo:lenet5", *there, "--source", frames, "--rate", "100", "--json"]) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            rows = [process.stdout.readline() for _ in range(5)]
            process.send_signal(number)
            rows += process.stdout.readlines()  # `communicate` would pass over what `readline` has read ahead
            said = process.stderr.read().decode().splitlines()
    assert (process.returncode, said[-1]) == WORDS[number]
    assert any(line.startswith("stopping: what is under way") for line in said)
    assert f"{len(rows)} frames: {len(rows)} answered" in said
    names = [Path(msgspec.json.decode(row)["input"]).name for row in rows]
    assert names == [f"{k:04}.png" for k in range(len(rows))], "in order, and none is missing"


def test_a_second_signal_ends_a_stream_that_cannot_drain(frames: Path, tmp_path: Path) -> None:
    with Server([load("zoo:lenet5")], engine=open_engine(threads=1), port=0) as server:
        kept = tmp_path / "kept.npz"
        process = start(
            ["run", "zoo:lenet5", "--cloud", server.address, "--at", "pool1", "--fallback", "wait", "--source", frames,
             "--rate", "100", "--json", "--save", kept]
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        rows = [process.stdout.readline() for _ in range(5)]
        server.close()  # nobody answers any more
        process.send_signal(signal.SIGTERM)
        while not process.stderr.readline().startswith(b"stopping"):
            pass
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 143
    assert kept.exists()
    assert rows


def test_one_by_one_what_was_answered_is_kept(tmp_path: Path) -> None:
    kept = tmp_path / "kept.npz"
    reading, writing = os.pipe()  # the second input comes never
    process = subprocess.Popen(
        [sys.executable, "-m", "splitpoint", "run", "zoo:lenet5", str(DIGITS / "8.png"), "-", "--json", "--save",
         str(kept)],
        stdin=reading, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    os.close(reading)
    os.close(writing)
    assert (process.returncode, err.decode().splitlines()[-1]) == WORDS[signal.SIGTERM]
    assert kept.exists()
