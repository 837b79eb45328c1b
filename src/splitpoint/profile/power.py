"""Watts, where the system tells: RAPL's energy counters, a Jetson's power rails. Never a guess.

Neither sees a radio: what sending takes is given by the user (``--edge-watts``), or left at what waiting takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Protocol, TypeAlias

from splitpoint.profile.profiles import Watts

#: How long the machine is watched doing nothing.
IDLE_S = 0.5

#: Names of the rail that feeds the whole board, on Jetson Nano, TX2, Xavier and Orin.
_RAILS = frozenset({"VDD_IN", "POM_5V_IN", "SYS_VDD_IN", "VDD_5V_IN", "5V_IN", "VIN_SYS_5V0", "VIN"})


#: When it was read, in seconds, and what the meter's files said.
Reading: TypeAlias = tuple[float, Sequence[float]]


class Meter(Protocol):
    """A power meter. `source` names it in the profile."""

    source: str

    def read(self) -> Sequence[float]:
        """What its files say now."""
        ...

    def watts(self, readings: Sequence[Reading]) -> float:
        """Mean power from the first to the last of these."""
        ...


@dataclass
class Rapl:
    """Energy counters of the processor packages (µJ, they wrap at `ranges`)."""

    counters: list[Path]
    ranges: list[int]
    source: str = "measured by RAPL (processor packages only)"

    def read(self) -> Sequence[float]:
        return [int(path.read_text()) for path in self.counters]

    def watts(self, readings: Sequence[Reading]) -> float:
        (started_s, before), (ended_s, after) = readings[0], readings[-1]
        used = sum((b - a) % (most + 1) for a, b, most in zip(before, after, self.ranges, strict=True))
        return used / 1e6 / (ended_s - started_s) if ended_s > started_s else 0.0


@dataclass
class Rail:
    """A power sensor that says milliwatts now, or millivolts and milliamperes: sampled."""

    files: tuple[Path, ...]
    source: str

    def read(self) -> Sequence[float]:
        return [float(path.read_text()) / 1e3 for path in self.files]

    def watts(self, readings: Sequence[Reading]) -> float:
        return sum(prod(read) for _, read in readings) / len(readings)


def find_meter(root: Path = Path("/")) -> Meter | None:
    """The meter of this machine, if it has one that may be read. `root` is where its file system begins."""
    return _rail(root) or _rapl(root)


def measure_watts(
    meter: Meter,
    compute: Callable[[], object],
    clock: Callable[[], float],
    sleep: Callable[[float], None],
    seconds: float,
) -> Watts | None:
    """Watts while idle and while `compute` runs again and again for `seconds`; None if the meter says nonsense."""
    try:
        readings = [(clock(), meter.read())]
        for _ in range(10):
            sleep(IDLE_S / 10)
            readings.append((clock(), meter.read()))
        idle = meter.watts(readings)
        readings = [(clock(), meter.read())]
        while readings[-1][0] - readings[0][0] < seconds:
            compute()
            readings.append((clock(), meter.read()))
        busy = meter.watts(readings)
    except (OSError, ValueError):
        return None
    if not 0 < idle <= busy:
        return None
    return Watts(busy, idle, idle, f"{meter.source}; tx is idle: no radio was measured")


def _rapl(root: Path) -> Rapl | None:
    counters, ranges = [], []
    # Packages only: intel-rapl:0:0 and so on are parts of them. (AMD's processors use the same names.)
    for zone in sorted((root / "sys/class/powercap").glob("intel-rapl:*")):
        if zone.name.count(":") == 1 and (_number(zone / "energy_uj")) is not None:
            most = _number(zone / "max_energy_range_uj")
            counters.append(zone / "energy_uj")
            ranges.append(int(most) if most else (1 << 32) - 1)
    return Rapl(counters, ranges) if counters else None


def _rail(root: Path) -> Rail | None:
    devices = root / "sys/bus/i2c/drivers"
    for label in sorted(devices.glob("ina3221/*/hwmon/hwmon*/in*_label")):  # JetPack 5 and 6: mV and mA
        volts = label.with_name(label.name.replace("_label", "_input"))
        amps = volts.with_name(volts.name.replace("in", "curr", 1))
        if _text(label) in _RAILS and None not in (_number(volts), _number(amps)):
            return Rail((volts, amps), _rail_source(label))
    for label in sorted(devices.glob("ina3221x/*/iio:device*/rail_name_*")):  # JetPack 4: mW
        power = label.with_name(label.name.replace("rail_name_", "in_power") + "_input")
        if _text(label) in _RAILS and _number(power) is not None:
            return Rail((power,), _rail_source(label))
    return None


def _rail_source(label: Path) -> str:
    return f"measured on the board's rail {_text(label)}"


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _number(path: Path) -> float | None:
    try:
        return float(_text(path))
    except ValueError:
        return None
