"""Calibrations as readable JSON files. What comes from a file is checked before it is believed."""

from __future__ import annotations

from splitpoint.calibration.calibrations import FORMAT, Calibration
from splitpoint.codecs import open_priced
from splitpoint.codecs.klt_tables import KltTables
from splitpoint.documents import Documents
from splitpoint.errors import InputError


def _check(calibration: Calibration) -> None:
    """ValueError if what it says does not fit together."""
    for k, row in enumerate(calibration.rows):
        open_priced(row.codec)
        quality, at = row.quality, f"$.rows[{k}].quality"
        if quality.inputs > calibration.inputs:
            raise ValueError(f"a quality of {quality.inputs} inputs, more than there are - at `{at}`")
        if (quality.agreement is not None) != calibration.judged:
            what = "no agreement, of a classifier" if calibration.judged else "an agreement of no classifier"
            raise ValueError(f"{what} - at `{at}`")
    named: set[str] = set()
    for k, entry in enumerate(calibration.tables):
        if entry.tensor in named:
            raise ValueError(f"two tables of one tensor - at `$.tables[{k}]`")
        named.add(entry.tensor)
        try:
            KltTables.from_bytes(entry.data)
        except InputError as exc:
            raise ValueError(f"{exc} - at `$.tables[{k}].data`") from exc


_CALIBRATIONS = Documents(
    what="a calibration", holds=Calibration, format=FORMAT, made_by="splitpoint calibrate-codecs -o",
    most_bytes=256 << 20,  # a thousand cuts with twenty codecs are 4 MB, tables of a tensor up to a few
    check=_check,
)  # fmt: skip
calibration_bytes, save_calibration = _CALIBRATIONS.write, _CALIBRATIONS.save
load_calibration, parse_calibration = _CALIBRATIONS.load, _CALIBRATIONS.parse
