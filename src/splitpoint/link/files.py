"""Links and traces as files.

A link is JSON (``*.link.json``), a trace CSV with the header ``time,up,down,rtt``: seconds, Mbit/s, Mbit/s,
milliseconds; a fifth column ``jitter`` (ms) is optional. What a file says is checked: InputError names it and the
field.
"""

from __future__ import annotations

import csv
import io
from math import isfinite
from pathlib import Path

import msgspec

from splitpoint.documents import Documents
from splitpoint.errors import InputError, SplitpointError
from splitpoint.files import read_text
from splitpoint.link import Link
from splitpoint.link.link_trace import LinkTrace

#: Of the file. Another number is refused with a sentence.
FORMAT = 1

_COLUMNS = ("time", "up", "down", "rtt")
#: A day at ten rows a second is 860,000 rows of some 30 bytes.
_MOST_NBYTES = 32 << 20


class _LinkFile(msgspec.Struct, frozen=True, kw_only=True):
    format: int = FORMAT
    name: str = ""
    up_mbps: float
    down_mbps: float
    rtt_ms: float
    jitter_ms: float = 0.0

    def link(self) -> Link:
        return Link(self.up_mbps, self.down_mbps, self.rtt_ms, self.jitter_ms, self.name)


_LINKS = Documents(
    what="a link", holds=_LinkFile, format=FORMAT, made_by="splitpoint link HOST -o", most_bytes=_MOST_NBYTES,
    marks=("up_mbps",), check=_LinkFile.link,
)  # fmt: skip


def save_link(path: Path | str, link: Link) -> None:
    """Write `link` as readable JSON. StorageError if that cannot be done; nothing is left half-written."""
    _LINKS.save(path, _LinkFile(**msgspec.structs.asdict(link)))


def load_link(path: Path | str) -> Link:
    """The link in `path`, as `save_link` writes it. InputError names the file and what is wrong in it."""
    return _LINKS.load(path).link()


def load_trace(path: Path) -> LinkTrace:
    """The trace in `path`. InputError names the file and the line that is wrong."""
    text = read_text(path, _MOST_NBYTES, "a trace")
    reader = csv.DictReader(io.StringIO(text), skipinitialspace=True, strict=True)
    times: list[float] = []
    links: list[Link] = []
    try:
        names = [(n or "").strip().lower() for n in reader.fieldnames or ()]
        if not set(_COLUMNS) <= set(names):
            came = ",".join(names)[:60] or "nothing"
            raise InputError(f"{path} is no trace: its first line must be {','.join(_COLUMNS)}, not {came}")
        reader.fieldnames = names
        for row in reader:
            time, link = _row(row, f"{path} line {reader.line_num}")
            if times and time <= times[-1]:
                raise InputError(f"{path} line {reader.line_num}: time {time:g} does not come after {times[-1]:g}")
            times.append(time)
            links.append(link)
    except csv.Error as exc:
        raise InputError(f"{path} line {reader.line_num} is not CSV: {exc}") from exc
    if not times:
        raise InputError(f"{path} is a trace without rows: write at least one below {','.join(_COLUMNS)}")
    return LinkTrace(tuple(t - times[0] for t in times), tuple(links), path.name)


def _row(row: dict[str, str | None], where: str) -> tuple[float, Link]:
    numbers = []
    for column in (*_COLUMNS, "jitter"):
        text = (row.get(column) or ("0" if column == "jitter" else "")).strip()
        try:
            numbers.append(float(text))
        except ValueError:
            raise InputError(f"{where}: {column} is {text[:40] or 'missing'}, not a number") from None
    time, up, down, rtt, jitter = numbers
    if not isfinite(time):
        raise InputError(f"{where}: time must be a finite number of seconds, not {time:g}")
    try:
        return time, Link(up, down, rtt, jitter)
    except SplitpointError as exc:
        hint = " (write an outage as a small rate, such as 0.01)" if 0 in (up, down) else ""
        raise InputError(f"{where}: {exc}{hint}") from exc
