"""Watts, where the system tells."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from pathlib import Path

import pytest
from profile_cases import Machinery, measured

from splitpoint.models.model import Model
from splitpoint.profile import power
from splitpoint.profile.profiles import Watts


def write(path: Path, text: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")
    return path


def test_rapl_counts_packages_and_survives_a_wrap(tmp_path: Path) -> None:
    zones = tmp_path / "sys/class/powercap"
    counters = []
    for package in (0, 1):
        counters.append(write(zones / f"intel-rapl:{package}/energy_uj", 900_000_000))
        write(zones / f"intel-rapl:{package}/max_energy_range_uj", 1_000_000_000)
        write(zones / f"intel-rapl:{package}:0/energy_uj", 5)
    meter = power.find_meter(tmp_path)
    assert meter is not None
    assert "RAPL" in meter.source
    readings = [(10.0, meter.read()), (11.0, meter.read())]
    write(counters[0], 904_000_000)
    write(counters[1], 1_999_999)  # wrapped after 100 J
    assert meter.watts([*readings, (12.0, meter.read())]) == pytest.approx((4 + 102) / 2)


def test_a_jetsons_board_rail(tmp_path: Path) -> None:
    folder = tmp_path / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"
    write(folder / "in1_label", "VDD_CPU_GPU_CV")
    write(folder / "in1_input", 1)
    write(folder / "curr1_input", 1)
    write(folder / "in2_label", "VDD_IN")
    write(folder / "in2_input", 5000)
    current = write(folder / "curr2_input", 1000)
    meter = power.find_meter(tmp_path)
    assert meter is not None
    assert "VDD_IN" in meter.source
    readings = [(0.0, meter.read())]
    write(current, 3000)
    readings += [(0.5, meter.read()), (1.0, meter.read())]
    assert meter.watts(readings) == pytest.approx((5 + 15 + 15) / 3)


def test_an_older_jetsons_rail(tmp_path: Path) -> None:
    folder = tmp_path / "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    write(folder / "rail_name_0", "POM_5V_IN")
    write(folder / "in_power0_input", 4500)
    meter = power.find_meter(tmp_path)
    assert meter is not None
    assert meter.watts([(0.0, meter.read()), (1.0, meter.read())]) == pytest.approx(4.5)


def test_no_meter_no_watts(tmp_path: Path) -> None:
    assert power.find_meter(tmp_path) is None
    write(tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj", "")  # may not be read
    assert power.find_meter(tmp_path) is None


class Battery:
    source = "measured by a test"

    def __init__(self, *watts: float) -> None:
        self.known = list(watts)

    def read(self) -> Sequence[float]:
        return ()

    def watts(self, readings: Sequence[power.Reading]) -> float:
        moments = [now_s for now_s, _ in readings]
        assert moments == sorted(moments)
        return self.known.pop(0)


def test_watts_are_measured_idle_and_computing_or_not_at_all(lenet: Model) -> None:
    ticks = count()

    def clock() -> float:
        return float(next(ticks))

    slept: list[float] = []
    found = power.measure_watts(Battery(1.5, 6.0), lambda: None, clock, slept.append, 3.0)
    assert found == Watts(6.0, 1.5, 1.5, "measured by a test; tx is idle: no radio was measured")
    assert sum(slept) == pytest.approx(power.IDLE_S)
    assert power.measure_watts(Battery(6.0, 1.5), lambda: None, clock, slept.append, 3.0) is None
    assert power.measure_watts(Battery(0.0, 0.0), lambda: None, clock, slept.append, 3.0) is None


def test_given_watts_are_kept(lenet: Model) -> None:
    machinery = Machinery(lenet)
    assert measured(lenet, machinery, 0.01, watts=Watts(5, 2, 1)).watts == Watts(5, 2, 1)
    assert measured(lenet, machinery, 0.01).watts is None
