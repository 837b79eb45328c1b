"""Nothing phones home: no file but ours, no thread that could send, no socket but ours."""

from __future__ import annotations

import ast
import os
import platform
import struct
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from places import ROOT

import splitpoint
from splitpoint.models.zoo import digits
from splitpoint.telemetry import OFF

#: What tells libraries to be silent anyway, which must not be what this proves.
_AUTOMATION = ("CI", "TF_BUILD", "JENKINS_URL", "GITHUB_ACTIONS", "DO_NOT_TRACK", "DISABLE_TELEMETRY", *OFF)

#: Ends the process, and what it starts, at the first socket of a kind that is not named. It needs no root.
_SEAL = """
import ctypes, os, sys
program = bytes.fromhex(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_char_p)]
assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
if libc.prctl(22, 2, ctypes.byref(Program(len(program) // 8, program)), 0, 0):  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
    sys.exit(99)
os.execv(sys.argv[2], sys.argv[2:])
"""
_ARCHITECTURES = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}


def seal(*, tcp: bool) -> str:
    """A filter that lets UNIX sockets be made, and TCP's if `tcp`; not UDP's, which every look-up of a name needs."""
    load, equal, masked, give = 0x20, 0x15, 0x54, 0x06
    kill, allow = 0x80000000, 0x7FFF0000
    audit, number = _ARCHITECTURES[platform.machine()]
    code = [
        (load, 0, 0, 4), (equal, 0, 8, audit),  # another architecture's calls are none of ours
        (load, 0, 0, 0), (equal, 0, 6, number),  # socket(domain, type, protocol)
        (load, 0, 0, 16), (equal, 4, 0, 1),  # AF_UNIX
        (load, 0, 0, 24), (masked, 0, 0, 0xF), (equal, 1 if tcp else 0, 0, 1),  # SOCK_STREAM
        (give, 0, 0, kill), (give, 0, 0, allow),
    ]  # fmt: skip
    return b"".join(struct.pack("=HBBI", *line) for line in code).hex()


def environment(home: Path, **variables: str) -> dict[str, str]:
    """A user of his own, on no machine of a CI service; one thread of computing, so that others show."""
    kept = {k: v for k, v in os.environ.items() if k not in _AUTOMATION and k != "SPLITPOINT_CACHE"}
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return {**kept, **threads, "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), **variables}


def sealed(home: Path, *words: object, tcp: bool = False, **variables: str) -> subprocess.CompletedProcess[str]:
    """`python words`, which dies of SIGSYS at a socket that is not ours."""
    if sys.platform != "linux" or platform.machine() not in _ARCHITECTURES:
        pytest.skip("seccomp filters are Linux's")
    done = subprocess.run(
        [sys.executable, "-c", _SEAL, seal(tcp=tcp), sys.executable, *map(str, words)],
        env=environment(home, **variables), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    if done.returncode == 99:
        pytest.skip("this system does not let a process filter its calls")
    return done


def files(home: Path) -> set[str]:
    """What was written, without splitpoint's own cache."""
    found = {str(p.relative_to(home)) for p in home.rglob("*") if p.is_file()}
    return {f for f in found if "splitpoint" not in Path(f).parts}


#: An engine made and used, by every device there is; what threads there are then.
_INFER = """
import os
import numpy as np
import splitpoint as sp
from splitpoint.engines.onnxruntime import DEVICES
import onnxruntime as ort
model = sp.load("zoo:lenet5")
for name, device in DEVICES.items():
    if device.provider in ort.get_available_providers():
        session = sp.open_engine(device=name, threads=1).compile(model.whole())
        session.run({t.name: np.zeros((1, 32, 32, 1), t.dtype) for t in session.inputs})
        print("ran", name)
print("threads", len(os.listdir("/proc/self/task")))
"""


def test_an_engine_leaves_no_file_and_no_thread_and_opens_no_socket(tmp_path: Path) -> None:
    done = sealed(tmp_path, "-c", _INFER)
    assert (done.returncode, done.stderr) == (0, "")
    assert "ran cpu" in done.stdout
    # What does not run cannot send later: ONNX Runtime looks its maker's host up nine seconds after the import.
    assert "threads 1\n" in done.stdout
    assert files(tmp_path) == set()


def test_without_that_it_would(tmp_path: Path) -> None:
    """The proof above can fail, with an ONNX Runtime that reports; and the user's own word is kept."""
    import onnxruntime

    if tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 29):
        pytest.skip("this ONNX Runtime has no telemetry on Linux")
    done = sealed(tmp_path, "-c", _INFER, ORT_DISABLE_TELEMETRY="0")
    assert done.returncode == 0, done.stderr
    assert "threads 1\n" not in done.stdout
    assert any(f.endswith("deviceid") for f in files(tmp_path))


def test_the_seal_holds(tmp_path: Path) -> None:
    udp = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)"
    tcp = "import socket; socket.socket()"
    assert sealed(tmp_path, "-c", udp, tcp=True).returncode < 0
    assert sealed(tmp_path, "-c", tcp).returncode < 0
    assert sealed(tmp_path, "-c", tcp, tcp=True).returncode == 0


@pytest.mark.parametrize(
    "words",
    [
        ["run", "zoo:lenet5", digits()[0]],
        ["inspect", "zoo:lenet5"],
        ["verify", "zoo:lenet5"],
        ["profile", "zoo:lenet5", "--budget", "0.2s"],
        ["doctor"],
    ],
    ids=lambda words: words[0],
)
def test_a_command_opens_no_socket(words: list[object], tmp_path: Path) -> None:
    done = sealed(tmp_path, "-m", "splitpoint", *words)
    assert done.returncode == 0, done.stderr
    assert files(tmp_path) == set()


def test_server_and_device_open_tcp_sockets_only(tmp_path: Path) -> None:
    """Both processes, their workers and what they profile; no name is looked up."""
    program = """
import subprocess, sys
serve = [sys.executable, "-u", "-m", "splitpoint", "serve", "zoo:lenet5", "--port", "0", "--until-stdin-ends"]
server = subprocess.Popen(serve, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
address = next(line.split()[2] for line in server.stdout if line.startswith("serving on "))
run = [sys.executable, "-m", "splitpoint", "run", "--cloud", address, "--at", "conv2", sys.argv[1]]
status = subprocess.run(run).returncode
_, _ = server.communicate()
sys.exit(status or server.returncode)
"""
    done = sealed(tmp_path, "-c", program, digits()[0], tcp=True)
    assert done.returncode == 0, done.stderr
    assert files(tmp_path) == set()


@pytest.mark.torch
def test_exporting_opens_no_socket_and_no_extra_phones_home(tmp_path: Path) -> None:
    """Random weights: naming a model of a hub asks that hub, and nothing else does."""
    packages = (
        "cv2",
        "matplotlib.pyplot",
        "openpyxl",
        "cryptography",
        "sklearn",
        "torch",
        "torchvision",
        "timm",
        "transformers",
    )
    there = [p for p in packages if find_spec(p.partition(".")[0])]
    program = (
        f"import splitpoint as sp\nimport {', '.join(there)}\n"
        "from huggingface_hub import constants\nassert constants.HF_HUB_DISABLE_TELEMETRY\n"
        "sp.load('torchvision:squeezenet1_1', weights='random:0')\n"
    )
    done = sealed(tmp_path, "-c", program)
    assert done.returncode == 0, done.stderr
    assert {f for f in files(tmp_path) if "icrosoft" in f or "intel" in f or "deviceid" in f or ".db" in f} == set()


@pytest.mark.parametrize(("variable", "said"), [({}, True), ({"ORT_DISABLE_TELEMETRY": "1"}, False)])
def test_an_onnxruntime_that_was_imported_before_is_told_what_works(
    variable: dict[str, str], said: bool, tmp_path: Path
) -> None:
    program = """
import sys, types
early = types.ModuleType("onnxruntime")
early.__version__, early.disable_telemetry_events = "1.32.0", lambda: print("told")
sys.modules["onnxruntime"] = early
import splitpoint
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(tmp_path, **variable),
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout == "told\n", "import splitpoint first, or set ORT_DISABLE_TELEMETRY=1" in done.stderr) == (
        said,
        said,
    )


def test_nothing_of_ours_imports_onnxruntime_before_splitpoint() -> None:
    """At the top of a file, onnxruntime comes before splitpoint in the order of imports; in tests conftest.py does."""
    folders = [Path(splitpoint.__file__).parent, ROOT / "bench", ROOT / "scripts"]
    found = [
        f"{path.name}:{entry.lineno}"
        for folder in folders
        for path in folder.rglob("*.py")
        for entry in ast.parse(path.read_text()).body
        if isinstance(entry, (ast.Import, ast.ImportFrom)) and "onnxruntime" in ast.unparse(entry).split()
    ]
    assert found == []
