"""Calibrations as readable JSON files. What comes from a file is checked before it is believed."""

from __future__ import annotations

from pathlib import Path

from splitpoint.calibration.calibrations import FORMAT, Calibration
from splitpoint.codecs import open_codec
from splitpoint.documents import Documents


def calibration_bytes(calibration: Calibration) -> bytes:
    """`calibration` as readable JSON."""
    return _CALIBRATIONS.write(calibration)


def save_calibration(path: Path | str, calibration: Calibration) -> None:
    """Write `calibration`; StorageError if that is not possible, and nothing is half-written."""
    _CALIBRATIONS.save(path, calibration)


def load_calibration(path: Path | str) -> Calibration:
    """The calibration in a file. InputError names the file and what is wrong in it."""
    return _CALIBRATIONS.load(path)


def parse_calibration(data: bytes, where: str = "the calibration") -> Calibration:
    """The calibration in JSON bytes; InputError as `load_calibration`."""
    return _CALIBRATIONS.parse(data, where)


def _check(calibration: Calibration) -> None:
    """ValueError if what it says does not fit together."""
    for k, row in enumerate(calibration.rows):
        open_codec(row.codec)
        quality, at = row.quality, f"$.rows[{k}].quality"
        if quality.inputs > calibration.inputs:
            raise ValueError(f"a quality of {quality.inputs} inputs, more than there are - at `{at}`")
        if (quality.agreement is not None) != calibration.classifier:
            what = "a classifier without an agreement" if calibration.classifier else "an agreement of no classifier"
            raise ValueError(f"{what} - at `{at}`")


_CALIBRATIONS = Documents(
    what="a calibration", holds=Calibration, format=FORMAT, made_by="splitpoint calibrate -o",
    most_bytes=64 << 20,  # a thousand cuts with twenty codecs are 4 MB
    check=_check,
)  # fmt: skip
