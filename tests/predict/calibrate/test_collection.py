"""What was measured on a device, in its file and as tables."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from virtual_kernels import VirtualEngine, collected

from splitpoint.errors import InputError
from splitpoint.predict.calibrate.collection import NetworkVisit, load_collection, save_collection, started
from splitpoint.predict.calibrate.reference import network
from splitpoint.predict.kernels.kernel_kinds import KINDS
from splitpoint.predict.kernels.kernel_table import read_tables, write_tables
from splitpoint.predict.price.prediction import predict_latency


def test_a_slow_visit_does_not_count() -> None:
    found = collected(VirtualEngine(), 4.0).strips[0]
    visit = found.visits[0]
    slow = msgspec.structs.replace(
        visit, whole=tuple(2 * ms for ms in visit.whole), kernels=tuple(9 * ms for ms in visit.kernels)
    )
    both = msgspec.structs.replace(found, visits=(slow, visit))
    assert both.whole_ms == found.whole_ms
    assert (both.kernels_ms() == found.kernels_ms()).all()


# --- the file -----------------------------------------------------------------------------------------------------


def test_rows_become_tables_and_tables_files(tmp_path: Path) -> None:
    found = collected(VirtualEngine(), 12.0)
    tables = found.tables()
    assert sum(len(t) for t in tables.values()) == found.rows
    assert {"conv", "dw_conv", "linear", "maxpool"} <= tables.keys()
    for kind, table in tables.items():
        assert tuple(table.columns) == KINDS[kind].columns
        assert table.origin is not None
    strip_0 = sum(float(t.latency_ms[t.origin == 0].sum()) for t in tables.values() if t.origin is not None)
    assert strip_0 == pytest.approx(float(found.strips[0].kernels_ms().sum()))
    write_tables(tmp_path, tables)
    again, said = read_tables(tmp_path)
    assert said == []
    assert again.keys() == tables.keys()
    for kind, table in tables.items():
        np.testing.assert_allclose(again[kind].latency_ms, table.latency_ms)
        assert (again[kind].origin == table.origin).all()


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        (("format",), 99, "of format 99"),
        (("columns", "conv"), ["HW"], "another version"),
        (("spent_s",), -1.0, r"at `\$\.spent_s`"),
        (("strips", 0, "family"), "../x", "of no family"),
        (("strips", 0, "visits"), [], r"at `\$\.strips\[0\]\.visits`"),
        (("strips", 0, "visits", 0, "whole"), [-1.0], r"at `\$\.strips\[0\]\.visits\[0\]\.whole\[0\]`"),
        (("strips", 0, "visits", 0, "kernels", 0), 1e12, r"at `\$\.strips\[0\]\.visits\[0\]\.kernels"),
        (("strips", 0, "visits", 0, "kernels"), [1.0], "1 kernel"),
        (("strips", 0, "rows", 0, 0), "nothing", "a row of nothing"),
        (("strips", 0, "rows", 0, 1, 0), -5.0, r"at `\$\.strips\[0\]\.rows"),
        (("strips", 0, "work"), 0.0, r"at `\$\.strips\[0\]\.work`"),
        (("threads",), "many", "Expected `int`"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, place: tuple[Any, ...], value: Any, says: str) -> None:
    path = tmp_path / "device.strips.json"
    save_collection(path, collected(VirtualEngine(), 3.0))
    content = json.loads(path.read_bytes())
    at = content
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=says) as caught:
        load_collection(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff\xfe", b'{"format": 1'])
def test_what_is_no_collection_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "device.strips.json"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"calibration under way.*remove it to begin anew"):
        load_collection(path)


def test_measurements_of_another_machine_or_engine_are_refused() -> None:
    found = started(VirtualEngine(), seed=3)  # type: ignore[arg-type]
    found.require(VirtualEngine(), 3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="another number of threads: 1, not 2"):
        found.require(VirtualEngine(threads=2), 3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="another device: cpu, not cuda"):
        found.require(VirtualEngine(device="cuda"), 3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="another seed: 3, not 4"):
        found.require(VirtualEngine(), 4)  # type: ignore[arg-type]
    machine = dataclasses.replace(found.machine, processor="Z80")
    with pytest.raises(InputError, match="another processor: Z80"):
        msgspec.structs.replace(found, machine=machine).require(VirtualEngine(), 3)  # type: ignore[arg-type]


def test_a_file_says_of_its_references_what_it_predicts(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    from splitpoint.predict.learn import training as learn

    monkeypatch.setattr(learn, "FULL", learn.QUICK)
    found = collected(VirtualEngine(), 40.0)
    latency = found.learned()
    assert [r.name for r in latency.reference] == [r.name for r in found.references()]
    assert len(latency.reference) > 5
    for r in latency.reference:
        assert r.ms == predict_latency(network(r), latency).whole.median
    # one strip that was disturbed is not what the device is measured by
    slow, other = found.references()[0], list(found.strips)
    k = next(k for k, s in enumerate(other) if s.seed == slow.seed)
    disturbed = NetworkVisit(tuple(1.2 * ms for ms in other[k].visits[0].whole), other[k].visits[0].kernels)
    other[k] = msgspec.structs.replace(other[k], visits=(disturbed,))
    again = msgspec.structs.replace(found, strips=tuple(other)).learned()
    assert {r.seed: r.ms for r in again.reference}.get(slow.seed, slow.ms) < 1.1 * slow.ms


def test_a_device_whose_own_networks_lie_beyond_their_ranges_says_so_and_is_less_sure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("sklearn")
    from splitpoint.predict.learn import training as learn

    monkeypatch.setattr(learn, "FULL", learn.QUICK)
    found = collected(VirtualEngine(), 40.0)
    calm = found.learned()
    assert calm.contradicted == 0.0
    # The law is learned of wholes that were quick when their kernels were, and the references take three times as long.
    law = learn._law

    def quicker(*args: Any) -> tuple[float, float, float]:
        fixed_ms, scale, spread = law(*args)
        return fixed_ms / 3, scale / 3, spread

    monkeypatch.setattr(learn, "_law", quicker)
    latency = found.learned()
    assert 2.0 < latency.contradicted < 5.0
    assert latency.spread == pytest.approx(np.log(latency.contradicted))
    assert f"four in five lie within {latency.contradicted:.2g} times what it says" in latency.too_little()
    assert "--budget" in latency.too_little()
    taken = {s.seed: s.whole_ms for s in found.strips}
    wholes = [(taken[r.seed], predict_latency(network(r), latency).whole) for r in latency.reference]
    assert np.mean([said.p10 <= ms <= said.p90 for ms, said in wholes]) >= 0.8
