"""Watts, where the system tells: RAPL's energy counters, a Jetson's power rails. Never a guess.

Neither sees a radio: what sending takes is given by the user (``--edge-watts``), or left at what waiting takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Protocol

from splitpoint.profile.profiles import Watts

#: How long the machine is watched doing nothing.
IDLE_S = 0.5

#: Names of the rail that feeds the whole board, on Jetson Nano, TX2, Xavier and Orin.
_RAILS = frozenset({"VDD_IN", "POM_5V_IN", "SYS_VDD_IN", "VDD_5V_IN", "5V_IN", "VIN_SYS_5V0", "VIN"})


class Meter(Protocol):
    """A power meter. `source` names it in the profile."""

    source: str

    def begin(self, now_s: float) -> None:
        """Start of what is measured."""
        ...

    def sample(self) -> None:
        """Called now and then while it lasts."""
        ...

    def end(self, now_s: float) -> float:
        """Mean watts since `begin`."""
        ...


@dataclass
class Rapl:
    """Energy counters of the processor packages (µJ, they wrap at `ranges`)."""

    counters: list[Path]
    ranges: list[int]
    source: str = "measured by RAPL (processor packages only)"
    _start: list[int] = field(default_factory=list)
    _start_s: float = 0.0

    def begin(self, now_s: float) -> None:
        self._start, self._start_s = self._read(), now_s

    def sample(self) -> None:
        """Nothing to do: the counters count by themselves."""

    def end(self, now_s: float) -> float:
        used = sum((b - a) % (most + 1) for a, b, most in zip(self._start, self._read(), self.ranges, strict=True))
        return used / 1e6 / (now_s - self._start_s) if now_s > self._start_s else 0.0

    def _read(self) -> list[int]:
        return [int(path.read_text()) for path in self.counters]


@dataclass
class Rail:
    """A power sensor that says milliwatts now, or millivolts and milliamperes: sampled."""

    files: tuple[Path, ...]
    source: str
    _seen: list[float] = field(default_factory=list)

    def begin(self, now_s: float) -> None:
        del now_s
        self._seen = [self._watts()]

    def sample(self) -> None:
        self._seen.append(self._watts())

    def end(self, now_s: float) -> float:
        del now_s
        self._seen.append(self._watts())
        return sum(self._seen) / len(self._seen)

    def _watts(self) -> float:
        return prod(float(path.read_text()) / 1e3 for path in self.files)


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
        meter.begin(clock())
        for _ in range(10):
            sleep(IDLE_S / 10)
            meter.sample()
        idle = meter.end(clock())
        started = clock()
        meter.begin(started)
        while clock() - started < seconds:
            compute()
            meter.sample()
        busy = meter.end(clock())
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
