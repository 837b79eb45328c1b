"""Latency files: they come back, and broken ones are refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from trained_tables import convolutions, learned

from splitpoint.errors import InputError
from splitpoint.predict.kernels.kernel_table import Table
from splitpoint.predict.learn import files
from splitpoint.predict.learn.files import SHIPPED, latency_bytes, load_latency, parse_latency, save_latency

# --- files ------------------------------------------------------------------------------------------------------------


def test_comes_back_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "device.latency.json"
    save_latency(path, learned())
    back = load_latency(path)
    assert latency_bytes(back) == latency_bytes(learned())
    table = convolutions(50, seed=8)
    assert back.kinds["conv"].predict("conv", table.columns).median_ms.tolist() == medians(table).tolist()


def medians(table: Table) -> np.ndarray[Any, Any]:
    return learned().kinds["conv"].predict("conv", table.columns).median_ms


def test_using_a_file_needs_no_scikit_learn(tmp_path: Path) -> None:
    save_latency(tmp_path / "x.json", learned())
    code = (
        "import sys; sys.modules['sklearn'] = sys.modules['scipy'] = None\n"
        "import numpy as np\n"
        "from splitpoint.predict.learn.files import load_latency\n"
        "c = {k: np.array([v]) for k, v in dict(elements=5e4, op=6.0).items()}\n"
        "print(load_latency(sys.argv[1]).kinds['activation'].predict('activation', c).median_ms[0])"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.json")], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) == pytest.approx(0.005 + 5e4 * 8e-6, rel=0.1)


def spoil(change: Callable[[dict[str, Any]], object]) -> bytes:
    value: dict[str, Any] = msgspec.json.decode(latency_bytes(learned()))
    change(value)
    return msgspec.json.encode(value)


def _forest(value: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = value["kinds"]["conv"]["forest"]
    return found


def _set(where: dict[str, Any] | list[Any], key: Any, to: object) -> None:
    where[key] = to


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v: _set(v, "format", 2), "format 2, and this version reads format 1"),
        (lambda v: v.pop("kinds"), "is not a latency file"),
        (lambda v: _set(v, "convention", "odd"), "counts FLOPs in an unknown way"),
        (lambda v: _set(v, "name", "a\x1b[2J"), "control characters"),
        (lambda v: _set(v, "scale", 0), r"at `\$\.scale`"),
        (lambda v: _set(v, "spread", -1), r"at `\$\.spread`"),
        (lambda v: _set(v["roofline"], "flops_per_ms", 0), r"at `\$\.roofline\.flops_per_ms`"),
        (lambda v: _set(v["kinds"], "rnn", v["kinds"]["conv"]), "a kind that is none"),
        (lambda v: _set(v["kinds"]["conv"]["features"], 0, "moon"), "does not know"),
        (lambda v: _set(v["kinds"]["conv"]["base"][""], "moon", 1.0), "does not know"),
        (lambda v: v["kinds"]["conv"]["base"].pop(""), "no base"),
        (lambda v: _set(v["kinds"]["conv"]["base"][""], "macs", -1.0), r"at `\$\.kinds.*base"),
        (lambda v: v["kinds"]["conv"]["linear"].pop("1"), "no base, or a linear model"),
        (lambda v: v["kinds"]["conv"]["ranges"].pop(), "ranges for"),
        (lambda v: _set(v["kinds"]["conv"]["ranges"], 0, [2, 1]), "ends before it begins"),
        (lambda v: _set(v["kinds"]["conv"], "low", 1.0), r"at `\$\.kinds.*low`"),
        (lambda v: _set(v["kinds"]["conv"]["score"], "within10", 1.5), r"at `\$\.kinds.*score\.within10`"),
        (lambda v: _forest(v)["feature"].pop(), "nodes, and there are"),
        (lambda v: _set(_forest(v)["trees"], 0, -5), "nodes, and there are"),
        (lambda v: _set(_forest(v)["feature"], 0, 999), "a feature that is not there"),
        (lambda v: _set(_forest(v)["feature"], 0, -1), "a feature that is not there"),
        (lambda v: _set(_forest(v)["feature"], 0, 1 << 40), "a feature that is not there"),
        (lambda v: _set(_forest(v)["feature"], 0, 1 << 70), "not a latency file|damaged"),
        (lambda v: _set(_forest(v)["threshold"], 0, 99999), "a threshold that is not there"),
        (lambda v: _set(_forest(v)["right"], 0, 1), "leads out of its tree"),
        (lambda v: _set(_forest(v)["right"], 0, -3), "leads out of its tree"),
        (lambda v: _set(_forest(v)["right"], 0, 10**6), "leads out of its tree"),
        (lambda v: _set(_forest(v), "step", 1e9), "a factor that no kernel has"),
        (lambda v: _set(_forest(v), "start", 1e300), "a factor that no kernel has"),
        (lambda v: _forest(v)["thresholds"].pop(), "features with thresholds"),
        (lambda v: max(_forest(v)["thresholds"], key=len).reverse(), "not ascending"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(change: Callable[[dict[str, Any]], object], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        parse_latency(spoil(change), "x.json")
    assert str(caught.value).startswith("x.json ")


@pytest.mark.parametrize("data", [b"", b"[1]", b'{"kinds": 1', b"\xff", b'{"kinds":{},"roofline":{},"format":1}'])
def test_what_is_no_latency_file_is_said(data: bytes) -> None:
    with pytest.raises(InputError, match=r"x\.json is "):
        parse_latency(data, "x.json")


def test_a_name_that_is_none_says_what_there_is() -> None:
    with pytest.raises(InputError, match="did you mean neurosurgeon-edge"):
        load_latency("neurosurgeon-edg")


# --- shipped ----------------------------------------------------------------------------------------------------------

#: Rows of the seed's tables: HW, kernel, stride, Cin, Cout and ms on its edge and on its cloud machine.
PUBLISHED = (
    (27, 5, 1, 256, 512, 23.184, None),
    (27, 5, 1, 1024, 1024, 174.303, None),
    (112, 7, 1, 16, 16, 10.08, None),
    (224, 9, 1, 16, 16, 47.526, None),
    (27, 1, 2, 1024, 512, None, 0.396),
    (13, 7, 2, 128, 16, None, 0.774),
    (14, 9, 1, 16, 1024, None, 1.325),
)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_files_say_whose_they_are_and_fit_what_was_published(name: str) -> None:
    latency = load_latency(name)
    assert latency.name == name
    assert "Neurosurgeon" in latency.note
    assert latency.convention == "seed"
    assert set(latency.kinds) == {"conv", "dw_conv", "linear", "maxpool", "avgpool", "batchnorm"}
    assert (files._FOLDER / f"{name}.latency.json").stat().st_size < 3_200_000
    place = 5 if name.endswith("edge") else 6
    rows = np.array([r[:5] for r in PUBLISHED if r[place] is not None], float)
    measured = np.array([r[place] for r in PUBLISHED if r[place] is not None], float)
    columns = dict(zip(("HW", "kernel", "stride", "Cin", "Cout"), rows.T, strict=True)) | {"FLOPs": np.zeros(len(rows))}
    assert np.median(np.abs(latency.kinds["conv"].predict("conv", columns).median_ms / measured - 1)) < 0.15
    for model in latency.kinds.values():
        assert 0.7 <= model.score.covered <= 0.9
