"""Calibrations as readable JSON files. What comes from a file is checked before it is believed."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite
from pathlib import Path

import msgspec

from splitpoint.calibration.calibrations import FORMAT, Calibration, CalibrationRow
from splitpoint.codecs import open_codec
from splitpoint.errors import InputError, UsageError
from splitpoint.files import read_file, write_atomic
from splitpoint.parsing import MalformedError, parse_json
from splitpoint.text import HIDDEN

#: A thousand cuts with twenty codecs are 4 MB.
_MAX_BYTES = 64 << 20


def calibration_bytes(calibration: Calibration) -> bytes:
    """`calibration` as readable JSON."""
    return msgspec.json.format(msgspec.json.encode(calibration), indent=1) + b"\n"


def save_calibration(path: Path, calibration: Calibration) -> None:
    """Write `calibration`; StorageError if that is not possible, and nothing is half-written."""
    write_atomic(path, calibration_bytes(calibration))


def load_calibration(path: Path) -> Calibration:
    """The calibration in a file. InputError names the file and what is wrong in it."""
    return parse_calibration(read_file(path, _MAX_BYTES, "a calibration", "splitpoint calibrate -o"), str(path))


class _Versioned(msgspec.Struct):
    format: int


def parse_calibration(data: bytes, where: str = "the calibration") -> Calibration:
    """The calibration in JSON bytes; InputError as `load_calibration`."""
    try:
        version = parse_json(data, _Versioned).format
        if version != FORMAT:
            raise InputError(
                f"{where} has the calibration format {version} and this version reads {FORMAT}: "
                "make it again with splitpoint calibrate"
            )
        found = parse_json(data, Calibration)
    except MalformedError as exc:
        raise InputError(f"{where} is not a calibration: {exc}") from exc
    for problem in _problems(found):
        raise InputError(f"{where} is not a calibration: {problem}")
    return found


def _problems(found: Calibration) -> Iterator[str]:
    if found.inputs < 1 or not found.rows:
        yield "it has no inputs or no rows"
    for name in ("model", "fingerprint", "output"):
        if HIDDEN.search(getattr(found, name)):
            yield f"hidden or control characters - at `$.{name}`"
    for k, row in enumerate(found.rows):
        for problem in _problems_of(row, found):
            yield f"{problem} - at `$.rows[{k}]`"


def _problems_of(row: CalibrationRow, found: Calibration) -> Iterator[str]:
    try:
        open_codec(row.codec)
    except UsageError as exc:
        yield str(exc)
    if row.prefix < 0 or row.most < 0 or any(n < 0 for n in row.nbytes):
        yield "a place or a size is below 0"
    quality = row.quality
    if not 1 <= quality.inputs <= found.inputs:
        yield "a quality of no inputs, or of more than there are"
    if (quality.agreement is not None) != found.classifier:
        yield "an agreement of what is no classifier" if not found.classifier else "a classifier without an agreement"
    if quality.agreement is not None and not 0 <= quality.agreement <= 1:
        yield "an agreement outside 0…1"
    if not (abs(quality.cosine) <= 1.001 and isfinite(quality.error) and quality.error >= 0):
        yield "a cosine outside -1…1, or an error that is no number"
