"""Latency files on the command line: which word names one, and whether it may be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitpoint.cli.latency_files import check_same, in_words, is_latency, whose
from splitpoint.errors import InputError
from splitpoint.predict.learn.files import SHIPPED, load_latency


def test_a_latency_file_is_known_by_its_name_or_by_what_is_in_it(tmp_path: Path) -> None:
    assert all(is_latency(name) for name in SHIPPED)
    assert is_latency("anywhere/device.latency.json")
    (tmp_path / "a.json").write_text('{"kinds": {}, "roofline": {}}')
    (tmp_path / "b.json").write_text('{"kinds": {}}')
    (tmp_path / "c.json").write_text("no JSON")
    assert [is_latency(str(tmp_path / f"{name}.json")) for name in "abcd"] == [True, False, False, False]
    (tmp_path / "a").write_text('{"kinds": {}, "roofline": {}}')  # calibrate-device -o a
    assert is_latency(str(tmp_path / "a"))
    assert not is_latency("localhost:3277")


def test_another_engine_device_or_number_of_threads_is_refused_or_said(capsys: pytest.CaptureFixture[str]) -> None:
    name = next(iter(SHIPPED))
    latency = load_latency(name)
    check_same(latency, name)  # the shipped ones are of no engine of ours
    with pytest.raises(InputError, match="calibrate-kernels"):
        check_same(latency, "copied.latency.json")
    check_same(latency, "copied.latency.json", force=True)
    assert "warning: copied.latency.json was made with" in capsys.readouterr().err
    with pytest.raises(InputError, match="not with 63 threads"):
        check_same(latency, name, threads=63)
    assert whose(latency)[0].startswith(f"on {latency.name}: ")


def test_quantities_in_words() -> None:
    assert in_words("threads", 1) == "1 thread"
    assert in_words("threads", 0) == "an unknown number of threads"
    assert in_words("engine", "") == "an unknown engine"
    assert in_words("device", "cpu") == "device cpu"
