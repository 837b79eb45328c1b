"""Everything a device and its server do, with nothing but the core installed: `make minimal` runs it.

    PYTHON scripts/smoke.py            # in an environment that has the wheel; prints megabytes and seconds

The whole model, run by plain ONNX Runtime, is the oracle. Ends with another status than 0 at the first thing wrong.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path

import numpy as np

import splitpoint as sp
from splitpoint.inputs import read_inputs
from splitpoint.machine import versions
from splitpoint.models.zoo import digits
from splitpoint.tensors import load_arrays

SPLITPOINT = str(Path(sys.executable).with_name("splitpoint"))
#: What only extras bring.
ABSENT = ("torch", "matplotlib", "openpyxl", "cv2", "cryptography", "sklearn", "pytest")


class Costs:
    """Seconds and resident megabytes of each command."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[float, float]] = {}

    def run(self, *words: str, status: int = 0) -> str:
        """Standard output and error of `splitpoint words`, which must end with `status`."""
        started = time.perf_counter()
        with tempfile.TemporaryFile("w+") as said:
            process = subprocess.Popen([SPLITPOINT, *words], stdout=said, stderr=subprocess.STDOUT)
            _, ended, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(ended)
            said.seek(0)
            text = said.read()
        self.seen[words[0]] = time.perf_counter() - started, used.ru_maxrss / 1e3
        if process.returncode != status:
            raise SystemExit(f"splitpoint {' '.join(words)} ended with {process.returncode}, not {status}:\n{text}")
        return text


def main() -> None:
    there = [name for name in ABSENT if find_spec(name)]
    assert not there, f"not a bare environment: it has {', '.join(there)}"
    assert "site-packages" in sp.__file__, f"not the installed splitpoint: {sp.__file__}"
    with tempfile.TemporaryDirectory(prefix="splitpoint-smoke-") as folder:
        os.chdir(folder)
        os.environ["SPLITPOINT_CACHE"] = str(Path(folder, "cache"))
        costs = Costs()
        alone(costs)
        words = [SPLITPOINT, "serve", "zoo:lenet5", "--port", "0", "--until-stdin-ends"]
        server = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            together(costs, next(line for line in server.stdout if line.startswith("serving on ")).split()[2])
        finally:
            server.communicate()
        assert server.returncode == 0
    report(costs)


def alone(costs: Costs) -> None:
    """What needs no server."""
    assert "conv2" in costs.run("inspect", "zoo:lenet5")
    costs.run("split", "zoo:lenet5", "--at", "conv2", "-o", "parts")
    halves_are_the_whole()
    assert "equal the whole model" in costs.run("verify", "zoo:lenet5", "--cuts", "all")
    costs.run("profile", "zoo:lenet5", "--budget", "1s", "-o", "edge.profile.json")
    assert "telemetry  off" in costs.run("doctor")
    costs.run("lab", "list")  # reads TOML
    # What an extra brings is asked for in a sentence that says how.
    assert " install 'cryptography>=" in costs.run("keys", "lab", status=2)


def halves_are_the_whole() -> None:
    """head.onnx and tail.onnx, run by ONNX Runtime alone."""
    import onnxruntime as ort

    image = read_inputs(sp.load("zoo:lenet5"), digits()[0])
    made = image
    for half in ("head", "tail"):
        session = ort.InferenceSession(f"parts/{half}.onnx", providers=["CPUExecutionProvider"])
        inputs = {i.name: made[i.name] for i in session.get_inputs()}
        made = dict(zip((o.name for o in session.get_outputs()), session.run(None, inputs), strict=True))
    same(made, whole(image))


def whole(image: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    model = sp.load("zoo:lenet5")
    return sp.open_engine().compile(model.whole()).run(image)


def same(made: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    for name, array in expected.items():
        np.testing.assert_allclose(made[name], array, rtol=1e-4, atol=1e-4)


def together(costs: Costs, address: str) -> None:
    """What a device does with a server."""
    costs.run("doctor", "--cloud", address)
    costs.run("profile", "zoo:lenet5", "--cloud", address, "--budget", "1s", "-o", "cloud.profile.json")
    plan = costs.run(
        "plan", "zoo:lenet5", "--edge", "edge.profile.json", "--cloud", "cloud.profile.json", "--link", "wifi", "--json"
    )
    assert json.loads(plan)["options"]
    for digit in digits():
        costs.run("run", "--cloud", address, "zoo:lenet5", str(digit), "--at", "conv2", "--save", "answer.npz")
        answer = load_arrays(Path("answer.npz"))
        same({"logits": answer[f"{digit.stem}/logits"]}, whole(read_inputs(sp.load("zoo:lenet5"), digit)))


def report(costs: Costs) -> None:
    """What it weighs, without pip: the packages on disk, and the last `run`."""
    packages = (f for d in distributions() if d.metadata["Name"] not in ("pip", "setuptools") for f in d.files or ())
    size = sum(Path(str(f.locate())).stat().st_size for f in packages if Path(str(f.locate())).is_file()) / 1e6
    seconds, memory = costs.seen["run"]
    print(json.dumps({"versions": versions(), "disk_mb": size, "run_s": seconds, "run_mb": memory}))


if __name__ == "__main__":
    main()
